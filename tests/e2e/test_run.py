"""`fx run` as a person has it: real processes, certificates, sockets, files."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from openfed.observe.files import read
from openfed.workspace import create

FX = (sys.executable, "-m", "openfed")


def fx(root: Path, *arguments: str, timeout: float = 100) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*FX, *arguments], cwd=root, capture_output=True, text=True, timeout=timeout
    )


def last_object(done: "subprocess.CompletedProcess[str]") -> dict:
    return json.loads(done.stdout.splitlines()[-1])


def ended(root: Path) -> dict:
    """run.ended of the latest run."""
    events = read(root / "logs" / "events.jsonl")
    return next(event for event in reversed(events) if event["event"] == "run.ended")


def nodes_of(root: Path) -> dict[int, str]:
    """Process id and command line of everything that works for the workspace."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if entry.name.isdigit() and str(root) in command:
            found[int(entry.name)] = command
    return found


def all_gone(pids) -> bool:
    """Wait, at most twenty seconds, until every process has ended."""
    end = time.monotonic() + 20
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        left = max(0.0, end - time.monotonic())
        done = select.select([descriptor], [], [], left)[0]
        os.close(descriptor)
        if not done:
            return False
    return True


def until(process: "subprocess.Popen[str]", pattern: str) -> str:
    """Read the progress up to the line that matches."""
    assert process.stderr
    for line in process.stderr:
        if re.match(pattern, line):
            return line
    raise AssertionError(f"ended before {pattern!r}")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workspace in which numpy_linear ran once, and what `fx run --json` said."""
    root = tmp_path_factory.mktemp("trained") / "w"
    create(root, "numpy_linear")
    return root, fx(root, "run", "--json")


@pytest.fixture
def workspace(trained, tmp_path):
    """A copy of its own for a test that changes or runs it."""
    shutil.copytree(trained[0], tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture
def fresh(tmp_path):
    create(tmp_path / "w", "numpy_linear")
    return tmp_path / "w"


def edit(root: Path, old: str, new: str, file: str = "plan/plan.yaml") -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))


def test_a_run_ends_with_its_object_on_the_last_line_of_stdout(trained):
    _, done = trained
    assert done.returncode == 0, done.stderr
    told = last_object(done)
    assert told["status"] == "completed" and told["rounds"] == 20 and told["reason"] is None
    assert told["metrics"]["rmse"] == pytest.approx(0.1514, abs=1e-3)
    keys = {"status", "rounds", "reason", "run", "plan_digest", "model", "best", "metrics"}
    assert keys | {"bytes", "seconds"} <= set(told)
    assert set(told["bytes"]) == {"up", "down", "up_raw", "down_raw"}
    assert {"total", "training", "imports", "openfed"} <= set(told["seconds"])


def test_every_round_shows_loss_and_metrics(trained):
    rounds = re.findall(
        r"^round +(\d+)/20 .*loss \d\S* .*rmse \d\S* .*n 64 \(farm 32, mill 32\)",
        trained[1].stderr,
        re.M,
    )
    assert rounds == [str(k) for k in range(1, 21)]
    assert re.search(r"^initial model .*rmse", trained[1].stderr, re.M)


def test_progress_without_a_terminal_has_no_escape_sequences(trained):
    assert "\x1b" not in trained[1].stderr + trained[1].stdout


def test_the_saved_model_loads_with_safetensors_alone(trained):
    root, done = trained
    model = load_file(root / "save" / "line_last.safetensors")
    assert {name: value.dtype.name for name, value in model.items()}
    assert Path(last_object(done)["model"]["path"]).name == "line_last.safetensors"


def test_metrics_file_has_every_model_once(trained):
    rows = read(trained[0] / "logs" / "metrics.jsonl")
    mine = [r for r in rows if (r["collaborator"], r["metric"]) == ("aggregate", "rmse")]
    assert [r["model"] for r in mine if r["task"] == "validate"] == list(range(21))


def test_keys_are_for_their_owner_only(trained):
    keys = list(trained[0].glob("cert/**/*.key"))
    assert len(keys) == 7  # the authority's, and two for each of three nodes
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in keys)


def test_a_second_run_trains_again_and_says_so(workspace, trained):
    keys = {key: key.read_bytes() for key in workspace.glob("cert/**/*.key")}
    done = fx(workspace, "run", "--json")
    first, second = last_object(trained[1]), last_object(done)
    assert "completed: training again, as run" in done.stderr
    assert second["run"] != first["run"]
    assert second["model"]["digest"] == first["model"]["digest"], "same plan, same seed, same bits"
    assert all(key.read_bytes() == held for key, held in keys.items())


def test_a_changed_plan_begins_a_new_run_and_says_so(workspace, trained):
    done = fx(workspace, "run", "--json", "-s", "rounds=2")
    assert "a new run: the plan changed since run" in done.stderr
    assert last_object(done)["rounds"] == 2
    assert last_object(done)["plan_digest"] != last_object(trained[1])["plan_digest"]


def test_changed_code_begins_a_new_run(workspace):
    edit(workspace, '"""', '"""Changed. ', "src/linear.py")
    done = fx(workspace, "run", "-s", "rounds=1")
    assert done.returncode == 0 and "a new run: the plan changed" in done.stderr


def test_after_ctrl_c_nothing_is_left_running_and_the_run_resumes_to_the_same_model(fresh, trained):
    process = subprocess.Popen(
        [*FX, "run"], cwd=fresh, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        until(process, r"round  3/20")
        running = nodes_of(fresh)
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "`fx run` resumes it" in rest and "Traceback" not in rest
    assert len(running) == 5 and all_gone(running)
    status = json.loads(fx(fresh, "status", "--json").stdout)
    assert status["status"] == "interrupted" and 1 <= status["rounds"] < 20

    done = fx(fresh, "run", "--json")
    assert re.search(r"^resumes run \S+ after round \d+", done.stderr, re.M)
    assert last_object(done)["run"] == status["run"]
    assert last_object(done)["model"]["digest"] == last_object(trained[1])["model"]["digest"]
    rows = read(fresh / "logs" / "metrics.jsonl")
    keys = [(r["round"], r["model"], r["collaborator"], r["task"], r["metric"]) for r in rows]
    assert len(keys) == len(set(keys)), "no line twice"


def test_killing_fx_leaves_no_process_behind(fresh):
    process = subprocess.Popen([*FX, "run"], cwd=fresh, stderr=subprocess.PIPE, text=True)
    with process:
        until(process, r"round  1/20")
        running = nodes_of(fresh)
        process.kill()
    assert len(running) == 5 and all_gone(running)


@pytest.mark.parametrize("victim", ["launch.node aggregator", "launch.node agent"])
def test_a_killed_node_is_started_again_and_the_model_is_the_same(fresh, trained, victim):
    process = subprocess.Popen(
        [*FX, "run", "--json"], cwd=fresh, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        until(process, r"round  2/20")
        pid = next(pid for pid, command in nodes_of(fresh).items() if victim in command)
        os.kill(pid, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    assert "killed by SIGKILL) and is started again" in stderr
    told = json.loads(stdout.splitlines()[-1])
    assert told["model"]["digest"] == last_object(trained[1])["model"]["digest"]


def test_a_second_fx_in_the_same_workspace_is_refused(fresh):
    process = subprocess.Popen([*FX, "run"], cwd=fresh, stderr=subprocess.PIPE, text=True)
    with process:
        until(process, r"round  1/20")
        second = fx(fresh, "run")
        assert fx(fresh, "status").stdout.splitlines()[1].startswith("running after")
        process.communicate(timeout=60)
    assert second.returncode == 2 and second.stderr.startswith("U20  ")
    assert process.returncode == 0, "and the first does not notice"


def test_a_bad_plan_is_answered_with_its_line_and_nothing_is_written(fresh):
    edit(fresh, "rounds: 20", "rounds: twenty")
    before = sorted(fresh.rglob("*"))
    done = fx(fresh, "run")
    assert done.returncode == 2
    assert re.match(r"plan/plan.yaml:\d+:\d+ ", done.stderr) and "Traceback" not in done.stderr
    assert sorted(fresh.rglob("*")) == before


def test_user_code_that_raises_ends_the_run_with_the_users_own_lines(fresh):
    edit(fresh, "def train(", "def train(*_):\n    1 / 0\n\n\ndef unused(", "src/linear.py")
    done = fx(fresh, "run", "--json")
    assert done.returncode == 5
    assert last_object(done)["status"] == "failed" and last_object(done)["reason"]
    assert "ZeroDivisionError" in done.stderr and "1 / 0" in done.stderr
    assert "openfed/tasks" not in done.stderr, "only the user's own lines"
    failed = re.search(r"round 1  train  (farm|mill) FAILED  K02", done.stderr)
    assert failed, done.stderr


def test_user_code_that_cannot_be_imported_is_told_before_anything_starts(fresh):
    edit(fresh, "import numpy", "import not_installed_anywhere\nimport numpy", "src/linear.py")
    done = fx(fresh, "run")
    assert done.returncode == 5 and "not_installed_anywhere" in done.stderr
    assert "src/linear.py" in done.stderr and not (fresh / "cert").exists()


def test_an_address_in_use_is_told_as_the_aggregator_tells_it(fresh):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = fx(fresh, "run", "-s", f"aggregator.listen=127.0.0.1:{port}")
    assert done.returncode == 4, done.stderr
    assert f"T02  aggregator: 127.0.0.1:{port}: the port is in use" in done.stderr


def test_nodes_started_one_by_one_and_in_any_order_train_the_same_model(fresh, trained):
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shown = fx(fresh, "plan", "initialize", "-s", f"aggregator.listen=127.0.0.1:{port}")
    assert shown.returncode == 0, shown.stderr
    started = [
        subprocess.Popen([*FX, *command], cwd=fresh, stderr=subprocess.PIPE, text=True)
        for command in (
            ("collaborator", "start", "-n", "mill"),
            ("collaborator", "start", "-n", "farm"),
            ("aggregator", "start"),
        )
    ]
    told = [process.communicate(timeout=100)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], told
    assert ended(fresh)["model"]["digest"] == last_object(trained[1])["model"]["digest"]
    again = fx(fresh, "aggregator", "start")
    assert again.returncode == 0 and "--new begins another run" in again.stderr


def test_the_same_from_python_with_the_history_as_a_table(workspace):
    import openfed

    result = openfed.run(workspace, ["rounds=2"])
    assert result.status == "completed" and result.exit_code == 0
    assert result.model.is_file() and result.metrics["rmse"] > 0
    table = result.history
    assert list(table.columns)[:3] == ["round", "model", "collaborator"]
    assert set(table.model) == {0, 1, 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "metric", "least"),
    [("torch_digits", "accuracy", 0.96), ("sklearn_breast_cancer", "accuracy", 0.95)],
)
def test_the_demo_of_each_template_ends_with_a_trained_model(template, metric, least, tmp_path):
    done = subprocess.run(
        [*FX, "demo", template, "--json"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    told = last_object(done)
    assert told["metrics"][metric] >= least
    assert Path(told["model"]["path"]).is_file()
    assert told["seconds"]["openfed"] < 10


@pytest.mark.slow
def test_the_notebook_of_torch_digits_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    create(tmp_path / "w", "torch_digits")
    book = nbformat.read(tmp_path / "w" / "federation.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        book, timeout=110, kernel_name="python3", resources={"metadata": {"path": tmp_path / "w"}}
    )
    client.execute()
    outputs = json.dumps([cell.get("outputs", []) for cell in book.cells])
    assert "accuracy" in outputs
