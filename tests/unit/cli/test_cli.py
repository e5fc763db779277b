import ast
import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from openfed.cli.main import COMMANDS, fx, main
from openfed.cli.next import next_step
from openfed.errors import CODES
from openfed.tensors.model_file import read_model, write_model
from openfed.workspace import PURPOSES, Workspace, create, open_workspace, purpose, templates

PYTHON_M = (sys.executable, "-m", "openfed")


@pytest.fixture
def call(capsys, tmp_path, monkeypatch):
    """Runs `fx` in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return call


def test_help_takes_less_than_150_milliseconds_of_processor_time():
    def once():  # what others do on the machine is not ours
        before = os.times()
        subprocess.run([*PYTHON_M, "--help"], stdout=subprocess.DEVNULL, check=True)
        after = os.times()
        spent = (after.children_user, after.children_system)
        return sum(spent) - before.children_user - before.children_system

    assert min(once() for _ in range(9)) < 0.150  # slower cores of a shared machine apart


@pytest.mark.slow
def test_help_is_there_150_milliseconds_after_an_interpreter_that_does_nothing(capsys):
    def best(*command):
        taken = []
        for _ in range(7):
            begun = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            taken.append(time.perf_counter() - begun)
        return min(taken)

    bare, whole = best(sys.executable, "-c", "pass"), best(*PYTHON_M, "--help")
    with capsys.disabled():
        print(f"\nfx --help: {whole:.3f} s, python -c pass: {bare:.3f} s, the best of 7")
    assert whole - bare < 0.150


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom openfed.cli.main import main\n"
        "try: main(['--help'])\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "pydantic", "grpc", "rich", "cryptography", "yaml", "torch", "pandas"}
    assert not heavy & set(done.stderr.split())
    assert "openfed.cli.run" not in done.stderr, "commands are imported when they are used"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_in_the_table_is_that_of_the_command(name):
    command = import_module(f"openfed.cli.{name}").command
    assert command.help.splitlines()[0] == COMMANDS[name]


def every_command():
    for name in COMMANDS:
        command = import_module(f"openfed.cli.{name}").command
        yield from ((name, sub) for sub in getattr(command, "commands", {}))
        yield (name,)


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_every_command_has_help(words, call):
    code, out, _ = call(*words, "--help")
    assert code == 0 and out.startswith(f"Usage: fx {' '.join(words)}")


def test_commands_parse_call_and_print_in_at_most_fifteen_lines():
    for path in Path(import_module("openfed.cli.main").__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lines = {part.lineno for part in ast.walk(node) if isinstance(part, ast.stmt)}
                assert len(lines) <= 16, f"{path.name}: {node.name}"


def test_fx_alone_says_what_to_do_next(call):
    code, out, _ = call()
    assert code == 0 and out.rstrip().endswith(
        "Next: fx workspace create --prefix my_workspace --template torch_digits"
    )


def test_the_next_step_follows_the_state_of_the_folder(tmp_path):
    workspace = Workspace(tmp_path / "w")
    create(workspace.root, "numpy_linear")
    assert "fx run" in next_step(workspace)
    workspace.logs.mkdir()
    (workspace.logs / "events.jsonl").touch()
    assert next_step(workspace).startswith("fx status")


def test_creating_lists_the_files_and_who_gets_them(call, tmp_path):
    code, out, _ = call("workspace", "create", "--prefix", "w", "--template", "numpy_linear")
    assert code == 0 and out.endswith("Next:  cd w  &&  fx run\n")
    assert "plan/plan.yaml" in out and "goes to every site" in out and "stays here" in out
    assert (tmp_path / "w" / "plan" / "plan.yaml").is_file()


def test_a_folder_with_something_in_it_is_left_alone(call, tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "mine").write_text("mine")
    code, _, err = call("workspace", "create", "--prefix", "w", "--template", "numpy_linear")
    assert code == 2 and err.startswith("U03  ")
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["mine"]


def test_an_unknown_template_is_answered_with_those_that_ship(call):
    code, _, err = call("workspace", "create", "--prefix", "w", "--template", "keras")
    assert code == 2 and err.startswith("U02  ")
    assert all(name in err for name in templates())


def test_templates_are_listed_with_a_line_each(call):
    code, out, _ = call("workspace", "templates")
    lines = out.splitlines()
    assert code == 0 and [line.split()[0] for line in lines] == list(templates())
    assert all(len(line.split()) > 3 for line in lines)


def test_a_template_brings_no_traces_of_a_run(tmp_path, monkeypatch):
    source = tmp_path / "templates" / "t"
    for name in ("plan/plan.yaml", "plan/plan.lock", "cert/k", "runs/r", "src/__pycache__/a.pyc"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).touch()
    monkeypatch.setattr("openfed.workspace.TEMPLATES", tmp_path / "templates")
    assert create(tmp_path / "w", "t") == (tmp_path / "w" / "plan" / "plan.yaml",)


@pytest.mark.parametrize(
    "words", [("run",), ("plan", "check"), ("plan", "show"), ("status",), ("aggregator", "start")]
)
def test_outside_a_workspace_the_error_says_how_to_get_one(call, words, tmp_path):
    code, out, err = call(*words)
    assert code == 2 and out == "" and err.startswith("U01  ") and "fx workspace create" in err
    assert "(more: fx explain U01)" in err and list(tmp_path.iterdir()) == []


def test_debug_shows_where_an_error_was_raised(call):
    _, _, without = call("run")
    _, _, with_debug = call("--debug", "run")
    assert "Traceback" not in without and "Traceback" in with_debug


@pytest.mark.parametrize(
    "words", [("nope",), ("run", "--nope"), ("collaborator", "start"), ("run", "--new", "--resume")]
)
def test_wrong_usage_ends_with_2(call, words):
    code, _, err = call(*words)
    assert code == 2 and "Usage:" in err and "Traceback" not in err


def test_what_the_system_refuses_is_told_without_a_traceback(call, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = call("workspace", "create", "--prefix", "file/w", "--template", "numpy_linear")
    assert code == 1 and err.startswith("S12  ") and "Traceback" not in err


def no_thread():
    """As Python says it where the kernel has no memory, or no process, left for one."""
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (no_thread, "the limit of memory or of processes"),
        (lambda: bytes(1 << 62), "no memory"),
    ],
)
def test_what_a_full_machine_refuses_is_told_without_a_traceback(call, monkeypatch, fault, words):
    monkeypatch.setattr(fx, "main", lambda **_: fault())
    code, _, err = call("run")
    assert (code, words in err, "Traceback" in err) == (1, True, False), err


def test_ctrl_c_ends_with_130(call, monkeypatch):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(fx, "main", interrupted)
    code, _, err = call("run")
    assert code == 130 and err == "Interrupted.\n"


@pytest.mark.parametrize("code", ["U01", "u01"])
def test_a_code_is_explained_with_cause_and_remedy(call, code):
    left, out, _ = call("explain", code)
    assert left == 0 and CODES["U01"].cause in out and CODES["U01"].remedy in out


def test_the_plan_is_checked_shown_and_explained(call, tmp_path, monkeypatch):
    create(tmp_path / "w", "numpy_linear")
    monkeypatch.chdir(tmp_path / "w")
    before = sorted(Path(".").rglob("*"))
    assert call("plan", "check")[0] == 0
    code, out, err = call("plan", "show", "-s", "rounds=3")
    assert code == 0 and json.loads(out)["rounds"] == 3 and "none yet" in err
    assert json.loads(out)["aggregator"]["listen"] and "not in the digest" in err
    code, out, _ = call("plan", "explain")
    assert code == 0 and "What leaves a site" in out
    code, out, _ = call("plan", "schema")
    assert code == 0 and json.loads(out)["properties"]["rounds"]
    assert sorted(Path(".").rglob("*")) == before, "these commands only look"


def test_a_bad_override_is_a_plan_error(call, tmp_path, monkeypatch):
    create(tmp_path / "w", "numpy_linear")
    monkeypatch.chdir(tmp_path / "w")
    code, _, err = call("plan", "check", "-s", "rounds=-1")
    assert code == 2 and "rounds" in err and "Traceback" not in err


def test_status_before_any_run(call, tmp_path, monkeypatch):
    create(tmp_path / "w", "numpy_linear")
    monkeypatch.chdir(tmp_path / "w")
    assert call("status")[1] == "no run yet: fx run\n"
    assert json.loads(call("status", "--json")[1])["status"] == "none"


def files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_resume_without_a_run_of_this_plan_writes_nothing(call, tmp_path, monkeypatch):
    create(tmp_path / "w", "numpy_linear")
    monkeypatch.chdir(tmp_path / "w")
    before = files(tmp_path)
    code, _, err = call("run", "--resume")
    assert code == 2 and err.startswith("U40  ") and files(tmp_path) == before
    assert not (tmp_path / "w" / "runs").exists()


def test_nodes_are_not_started_with_a_port_that_nobody_can_know(call, tmp_path, monkeypatch):
    create(tmp_path / "w", "numpy_linear")
    monkeypatch.chdir(tmp_path / "w")
    code, _, err = call("aggregator", "start")
    assert code == 2 and "P19" in err and "; write it: fx plan initialize" in err
    port0 = "aggregator.listen=127.0.0.1:0"
    assert call("plan", "initialize", "-s", port0)[0] == 0
    for words in (("aggregator", "start"), ("collaborator", "start", "-n", "mill")):
        code, _, err = call(*words)
        assert code == 2 and err.startswith("U17  ")
        assert "aggregator.listen" in err and "plan.yaml" in err and "fx plan initialize" in err
    assert not (tmp_path / "w" / "cert").exists()


def test_the_workspace_is_found_from_its_folder_or_its_plan(tmp_path):
    create(tmp_path / "w", "numpy_linear")
    assert open_workspace(tmp_path / "w") == open_workspace(tmp_path / "w" / "plan" / "plan.yaml")


@pytest.mark.parametrize(("start", "why"), PURPOSES)
def test_files_are_said_to_be_for_somebody(start, why):
    assert purpose(Path(start)) == why
    assert purpose(Path(start + "x")) != why, "whole names only"


def test_secrets_are_never_said_to_go_anywhere():
    for path in ("cert/authority/authority.key", "cert/one/node.key", "cert/one/identity.key"):
        assert "goes to" not in purpose(Path(path))


# -- fx model -----------------------------------------------------------------------------------

MODEL = {
    "a/../weird": np.arange(6, dtype=np.float32).reshape(2, 3),
    "file": np.array(5, np.int64),
    "empty": np.zeros((0, 4), np.float16),
    "flags": np.array([True, False]),
}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype
        and left[k].shape == right[k].shape
        and left[k].tobytes() == right[k].tobytes()
        for k in left
    )


def test_models_come_back_bit_for_bit(tmp_path):
    model = {**MODEL, "bf": np.array([1.5, -0.0, np.inf], ml_dtypes.bfloat16)}
    model["u16"] = np.array([65535], np.uint16)
    model["fortran"] = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    write_model(tmp_path / "m.safetensors", model)
    assert same(read_model(tmp_path / "m.safetensors"), model)


def test_npz_holds_the_same_arrays(call, tmp_path):
    write_model(tmp_path / "m.safetensors", MODEL)
    assert call("model", "save", "-i", "m.safetensors", "-o", "m.npz", "--to", "npz")[0] == 0
    with np.load(tmp_path / "m.npz", allow_pickle=False) as archive:
        assert same({name: archive[name] for name in archive.files}, MODEL)


def test_torch_reads_its_own_format(call, tmp_path):
    torch = pytest.importorskip("torch")
    write_model(tmp_path / "m.safetensors", MODEL)
    assert call("model", "save", "-i", "m.safetensors", "-o", "m.pt", "--to", "torch")[0] == 0
    state = torch.load(tmp_path / "m.pt", weights_only=True)
    assert same({name: value.numpy() for name, value in state.items()}, MODEL)


@pytest.mark.parametrize("name", ["m.npz", "M.NPZ"])
def test_the_suffix_says_the_format(call, tmp_path, name):
    write_model(tmp_path / "m.safetensors", MODEL)
    assert call("model", "save", "-i", "m.safetensors", "-o", name)[0] == 0
    with np.load(tmp_path / name, allow_pickle=False) as archive:
        assert same({name: archive[name] for name in archive.files}, MODEL)


@pytest.mark.parametrize("name", ["m.pt", "m.pth"])
def test_the_suffixes_of_torch_mean_torch(call, tmp_path, name):
    torch = pytest.importorskip("torch")
    write_model(tmp_path / "m.safetensors", MODEL)
    assert call("model", "save", "-i", "m.safetensors", "-o", name)[0] == 0
    assert torch.load(tmp_path / name, weights_only=True).keys() == MODEL.keys()


@pytest.mark.parametrize("words", [("x.bin",), ("x",), ("x.pt", "--to", "npz")])
def test_a_suffix_that_says_another_format_or_none_is_refused(call, tmp_path, words):
    write_model(tmp_path / "m.safetensors", MODEL)
    code, _, err = call("model", "save", "-i", "m.safetensors", "-o", *words)
    assert code == 2 and err.startswith("U22  ")
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_bfloat16_is_refused_where_the_format_has_none_and_nothing_is_left(call, tmp_path):
    write_model(tmp_path / "m.safetensors", {"b": np.zeros(2, ml_dtypes.bfloat16)})
    code, _, err = call("model", "save", "-i", "m.safetensors", "-o", "m.npz", "--to", "npz")
    assert code == 2 and err.startswith("U19  ")
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_a_file_that_is_there_is_not_overwritten(call, tmp_path):
    write_model(tmp_path / "m.safetensors", MODEL)
    (tmp_path / "out").write_text("mine")
    code, _, err = call("model", "save", "-i", "m.safetensors", "-o", "out")
    assert code == 2 and err.startswith("U18  ") and (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"\x80\x04]", b"\xff" * 64, None])
def test_what_is_no_model_is_named(call, tmp_path, content):
    if content is not None:
        (tmp_path / "m").write_bytes(content)
    code, _, err = call("model", "inspect", "m")
    assert code == 2 and err.startswith("U10  m")


def test_inspect_lists_entries_and_never_obeys_their_names(call, tmp_path):
    write_model(tmp_path / "m", {**MODEL, "evil\x1b[2J": np.zeros(1, np.int8)})
    code, out, _ = call("model", "inspect", "m")
    assert code == 0 and "\x1b" not in out
    assert "float32   [2, 3]" in out and "5 entries" in out
