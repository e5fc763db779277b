"""The task process as it is started for real; the test plays the agent on the other end."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openfed.tasks import channel
from openfed.tensors.frame import unpack, write_frame
from openfed.tensors.record import Record

MODEL = {"w": np.array([1.0, 2.0]), "b": np.zeros(())}

FINE = """
import numpy as np
class Data:
    def __init__(self, source, **settings):
        self.source = source
def train(record, data, settings):
    record["w"] += 1
    return record, 3, {"loss": 0.5}
def validate(record, data, settings):
    return 2, {"loss": float(record["w"].sum())}
"""


class Child:
    """A task process and the agent's end of its socket."""

    def __init__(self, folder: Path, code: str, **more: Any) -> None:
        self.workspace, self.exchange = folder / "work space", folder / "exchange"
        (self.workspace / "src").mkdir(parents=True)
        (self.workspace / "src" / "code.py").write_text(code)
        for name in ("in", "out"):
            (self.exchange / name).mkdir(parents=True)
        settings = {"train": "src.code:train", "validate": "src.code:validate"}
        settings |= {"init": None, "shapes": {"w": [2], "b": []}, "settings": {}}
        self.config = {
            "workspace": str(self.workspace),
            "collaborator": "one",
            "source": "data/one",
            "seed": 7,
            "rounds": 3,
            "runner": {"name": "numpy", "settings": settings},
            "data_loader": {"name": "src.code:Data", "settings": {}},
            "strategy": {"name": "fedavg", "settings": {}},
            "data_contract": None,
            "metrics": [],
            "scope": [],
            "device": "cpu",
            "threads": 1,
            "output_limit": 16 << 20,
            **more,
        }
        (self.exchange / "task.json").write_text(json.dumps(self.config))
        self.log = folder / "task.log"
        self.server = channel.listen(self.exchange)
        self.process: Any = None
        self.connection: Any = None

    def start(self, *arguments: str, **popen: Any) -> dict[str, Any]:
        """Returns: the process's hello."""
        command = [sys.executable, "-P", "-m", "openfed.tasks.child"]
        command += ["--exchange", str(self.exchange), *arguments]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, **popen
            )
        self.server.settimeout(60)
        self.connection, _ = self.server.accept()
        self.connection.settimeout(60)
        return self.heard()

    def heard(self) -> dict[str, Any]:
        message = channel.receive(self.connection)
        assert message is not None, "the task process closed the socket"
        return message

    def say(self, task: str = "train", *, local: bool = False, **settings: Any) -> None:
        write_frame(self.exchange / "in" / "model", Record(MODEL))
        made = {"name": task, "round": 1, "rounds": 3, "collaborator": "one", "seed": 11}
        message = {"op": "run", "id": "a1", "task": {**made, "settings": settings}}
        channel.send(self.connection, {**message, "frozen": False, "local": local})

    def ask(self, task: str = "train", *, local: bool = False, **settings: Any) -> dict[str, Any]:
        self.say(task, local=local, **settings)
        return self.heard()

    def out(self, name: str) -> dict[str, Any]:
        data = (self.exchange / "out" / name).read_bytes()
        return dict(unpack(data, limit=len(data)).tensors)

    def close(self) -> None:
        for end in (self.connection, self.server):
            if end is not None:
                end.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process.stdin.close()


Start = Callable[..., Child]


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Start]:
    made: list[Child] = []

    def make(code: str = FINE, **more: Any) -> Child:
        made.append(Child(tmp_path, code, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ready(child: Child) -> Child:
    child.start()
    message = child.heard()
    assert message["op"] == "ready", message
    return child


WHOLE = """
import numpy as np
from openfed.data.table import Samples, Table
class Data:
    def __init__(self, source, **settings):
        self.source = source
    def table(self):
        return GIVEN
"""
COLUMNS = {"columns": [{"name": "age", "kind": "integer", "range": [0, 120]}], "samples": 2}


def test_data_that_hold_the_contract_are_ready(child: Start) -> None:
    good = WHOLE.replace("GIVEN", "Table(('age',), (np.array([3, 4]),))")
    functions = FINE[FINE.index("def train") :]
    assert ready(child(good + functions, data_contract=COLUMNS)).ask()["op"] == "done"


@pytest.mark.parametrize(
    ("given", "code", "message"),
    [
        (
            "Table(('age',), (np.array([9876543]),))",
            "K49",
            "data contract: column 'age': there are values outside 0 to 120; samples: expected at "
            "least 2, there are fewer",
        ),
        (
            "Samples(np.array([9876543]))",
            "K05",
            "Data.table() returned a Samples, expected a Table of openfed.data.table, with numpy "
            "arrays in it",
        ),
        (
            "Table(('age',), ([9876543, 1],))",
            "K05",
            "Data.table() returned a Table, expected a Table of openfed.data.table, with numpy "
            "arrays in it",
        ),
    ],
)
def test_data_against_the_contract_are_told_before_any_task_and_no_value_of_them(
    child: Start, given: str, code: str, message: str
) -> None:
    one = child(WHOLE.replace("GIVEN", given), data_contract=COLUMNS)
    one.start()
    assert one.heard() == {"op": "broken", "code": code, "message": message, "traceback": ""}


def test_a_loader_that_shows_no_data_does_not_meet_a_contract(child: Start) -> None:
    with_a_number = FINE.replace("self.source = source", "self.samples = 3")
    one = child(with_a_number, data_contract={"samples": 1})
    one.start()
    told = one.heard()
    assert (told["op"], told["code"]) == ("broken", "K05")
    assert "Data needs one of two methods" in told["message"]


def test_a_task_process_says_hello_then_ready_then_answers_tasks(child: Start) -> None:
    one = child()
    hello = one.start("--previous-exit", "-9")
    assert hello == {"op": "hello", "previous_exit": -9}
    message = one.heard()
    assert message["op"] == "ready"
    assert message["import_seconds"] > 0
    assert message["versions"]["numpy"] == np.__version__
    done = one.ask("train")
    assert (done["op"], done["id"], done["update"], done["local"]) == ("done", "a1", True, False)
    assert done["numbers"]["n"] == [3.0]
    assert done["numbers"]["metrics/train/loss"] == [1.5, 3.0]
    assert done["numbers"]["seconds"][0] >= 0
    np.testing.assert_array_equal(one.out("update")["w"], [2.0, 3.0])
    done = one.ask("validate")
    assert not done["update"]
    assert done["numbers"]["metrics/validate/loss"] == [6.0, 2.0]


FAILURES = {
    "raises": ("raise ValueError('too tall')", "K02", "ValueError: too tall"),
    "exits": ("import sys; sys.exit(3)", "K03", "exit(3)"),
    "returns infinity as a metric": ("return record, 3, {'loss': np.inf}", "K25", "loss"),
    "returns another shape": ("record['w'] = np.zeros(3); return record, 3, {}", "K22", "w"),
    "returns another dtype": ("record['w'] = np.zeros(2, 'f4'); return record, 3, {}", "K22", "w"),
    "loses an entry": ("del record['w']; return record, 3, {}", "K21", "'w'"),
    "adds an entry": ("record['x'] = record['w']; return record, 3, {}", "K21", "'x'"),
    "returns text": ("record['w'] = np.array(['a', 'b']); return record, 3, {}", "K07", "str"),
    "trained on nothing": ("return record, 0, {}", "K04", "n = 0"),
    "reports what is not planned": ("return record, 3, {'dice': 1.0}", "K08", "dice"),
    "returns nothing": ("return None", "K12", "src.code:train returned None, expected (record, n"),
    "returns too little": ("return record, 3", "K12", "returned (dict, int), expected (record, n"),
    "mixes them up": ("return record, {}, 3", "K12", "returned (dict, dict, int), expected"),
    "reports text": ("return record, 3, {'loss': 'low'}", "K12", "loss is a str"),
    "recurses for ever": ("return train(record, data, settings)", "K02", "RecursionError"),
    "is interrupted": ("raise KeyboardInterrupt", "K02", "KeyboardInterrupt"),
}


@pytest.mark.parametrize(("body", "code", "said"), FAILURES.values(), ids=list(FAILURES))
def test_whatever_user_code_does_is_answered_and_the_process_goes_on(
    child: Start, body: str, code: str, said: str
) -> None:
    line = f"    if settings.get('bad'): {body}" if body.count(";") == 0 else ""
    parts = "".join(f"\n        {part.strip()}" for part in body.split(";"))
    line = line or f"    if settings.get('bad'):{parts}"
    one = ready(child(FINE.replace('    record["w"] += 1', f"{line}\n    record['w'] += 1")))
    failed = one.ask("train", bad=True)
    assert (failed["op"], failed["id"], failed["code"]) == ("failed", "a1", code), failed
    assert said in failed["message"]
    assert "openfed/" not in failed["traceback"]
    assert one.ask("train")["op"] == "done"


@pytest.mark.parametrize("name", ["update", "local"])
def test_what_the_machine_refuses_is_no_fault_of_user_code(child: Start, name: str) -> None:
    kept = FINE.replace(
        "    return record, 3", "    record['own.b'] = record['w']\n    return record, 3"
    )
    one = ready(child(kept if name == "local" else FINE, scope=[["own.*", "local"]]))
    (one.exchange / "out" / name).mkdir()
    failed = one.ask("train")
    assert (failed["op"], failed["code"], failed["traceback"]) == ("failed", "S12", ""), failed
    assert failed["message"] == f"{name} of a task: Is a directory"
    (one.exchange / "out" / name).rmdir()
    assert one.ask("train")["op"] == "done"


def test_the_traceback_shows_the_users_own_lines_and_no_others(child: Start) -> None:
    code = FINE.replace('record["w"] += 1', "np.linalg.inv(np.zeros((2, 2)))  # the user's line")
    failed = ready(child(code)).ask("train")
    assert failed["code"] == "K02"
    assert 'File "src/code.py", line 7, in train' in failed["traceback"]
    assert "# the user's line" in failed["traceback"]
    assert failed["traceback"].count("File ") == 1
    assert "LinAlgError: Singular matrix" in failed["traceback"]


BROKEN = {
    "a module that is missing": ("import not_there_at_all\n" + FINE, "K01", "not_there_at_all"),
    "a typo": ("def train(:\n", "K01", "SyntaxError"),
    "a function that is missing": (FINE.replace("train", "trian"), "K01", "has no train"),
    "an exit while importing": ("import sys\nsys.exit(0)\n", "K03", "exit(0)"),
    "a loader that raises": (
        FINE.replace("self.source = source", "open('/nowhere/x.csv')"),
        "K02",
        "/nowhere/x.csv",
    ),
}


@pytest.mark.parametrize(("code", "wanted", "said"), BROKEN.values(), ids=list(BROKEN))
def test_code_that_cannot_be_imported_is_told_with_its_own_lines(
    child: Start, code: str, wanted: str, said: str
) -> None:
    one = child(code)
    one.start()
    broken = one.heard()
    assert (broken["op"], broken["code"]) == ("broken", wanted)
    assert said in broken["message"] + broken["traceback"]
    if "has no" not in said:
        assert 'File "src/code.py", line ' in broken["traceback"]
    assert "importlib" not in broken["traceback"]


def test_printing_a_hundred_megabytes_fails_the_task_and_fills_no_log(child: Start) -> None:
    loud = FINE.replace(
        'record["w"] += 1',
        "print('x' * (settings.get('megabytes', 0) << 20)); print('the end')",
    )
    one = ready(child(loud, output_limit=1 << 20))
    failed = one.ask("train", megabytes=100)
    assert failed["code"] == "K06"
    assert one.log.stat().st_size < 2 << 20
    assert "the end" not in one.log.read_text()
    assert one.ask("train")["op"] == "done"
    assert "the end" in one.log.read_text()


def test_what_a_subprocess_says_on_standard_error_counts_as_well(child: Start) -> None:
    code = FINE.replace('record["w"] += 1', "import os; os.system('head -c 3000 /dev/zero >&2')")
    one = ready(child(code, output_limit=1000))
    assert one.ask("train")["code"] == "K06"
    assert one.log.stat().st_size < 1200


def test_a_killed_process_closes_its_socket_and_a_new_one_answers_the_same(child: Start) -> None:
    code = FINE.replace('record["w"] += 1', 'record["w"] += np.random.normal(size=2)')
    one = ready(child(code))
    one.ask("train")
    first = one.out("update")["w"]
    one.ask("train")
    np.testing.assert_array_equal(one.out("update")["w"], first)
    one.process.kill()
    assert channel.receive(one.connection) is None
    one.process.wait(10)
    one.process.stdin.close()
    one.connection.close()
    ready(one).ask("train")
    np.testing.assert_array_equal(one.out("update")["w"], first)


def test_it_ends_in_the_middle_of_a_task_when_the_agent_closes_the_socket(child: Start) -> None:
    code = FINE.replace('record["w"] += 1', "print('in it', flush=True)\n    while True: pass")
    one = ready(child(code))
    one.say("train")
    one.connection.close()
    assert one.process.wait(20) == 0


def test_it_ends_when_the_launchers_pipe_ends(child: Start) -> None:
    one = ready(child())
    one.process.stdin.close()
    assert one.process.wait(20) == 0


LAUNCHER = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)
print(child.pid, flush=True)
child.wait()
"""


def test_it_dies_with_its_launcher_where_user_code_lets_no_thread_run(child: Start) -> None:
    code = FINE.replace(
        'record["w"] += 1',
        "import re; open('begun', 'w').close(); re.match('(a+)+$', 'a' * 60 + 'b')",
    )
    one = child(code)
    os.mkfifo(one.workspace / "begun")
    command = [sys.executable, "-P", "-m", "openfed.tasks.child", "--exchange", str(one.exchange)]
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, *command], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        try:
            one.server.settimeout(60)
            one.connection, _ = one.server.accept()
            one.connection.settimeout(20)
            assert [one.heard()["op"], one.heard()["op"]] == ["hello", "ready"]
            one.say("train")
            (one.workspace / "begun").read_text()
            launcher.kill()
            assert channel.receive(one.connection) is None
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise


def test_ctrl_c_is_the_launchers_business(child: Start) -> None:
    one = ready(child())
    one.process.send_signal(signal.SIGINT)
    assert one.ask("train")["op"] == "done"


def test_it_holds_its_socket_and_nothing_that_it_inherited(child: Start, tmp_path: Path) -> None:
    secret = tmp_path / "node.key"
    secret.write_text("key")
    one = child()
    with secret.open() as file, socket.create_server(("127.0.0.1", 0)) as network:
        handed = (file.fileno(), network.fileno())
        one.start(pass_fds=handed, env={**os.environ, "API_TOKEN": "s3cret", "HTTPS_PROXY": "x"})
        assert one.heard()["op"] == "ready"
    descriptors = Path(f"/proc/{one.process.pid}/fd")
    held = {int(path.name): os.readlink(path) for path in descriptors.iterdir()}
    assert held.pop(0) == "/dev/null"
    assert held.pop(1) == held.pop(2) == str(one.log)
    kinds = sorted(target.partition(":")[0] for target in held.values())
    assert kinds == ["pipe", "socket"]  # the launcher's pipe and the agent's socket
    inodes = {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}
    assert not any(target[8:-1] in inodes for target in held.values())


def test_user_code_sees_neither_secrets_of_the_environment_nor_standard_input(
    child: Start,
) -> None:
    code = FINE.replace(
        'record["w"] += 1',
        "import os, sys; print(sorted(os.environ), sys.stdin.read(), os.getcwd(), data.source)",
    )
    one = child(code)
    one.start(env={**os.environ, "API_TOKEN": "s3cret", "HTTPS_PROXY": "x"})
    assert one.heard()["op"] == "ready"
    assert one.ask("train")["op"] == "done"
    said = one.log.read_text()
    assert "PATH" in said
    assert "OMP_NUM_THREADS" in said
    assert "TOKEN" not in said
    assert "PROXY" not in said
    assert str(one.workspace) in said
    assert "data/one" in said


def test_it_imports_neither_grpc_nor_pydantic_nor_keys(child: Start) -> None:
    code = FINE.replace('record["w"] += 1', "import sys; print('modules', *sys.modules)")
    one = ready(child(code))
    one.ask("train")
    modules = {name.partition(".")[0] for name in one.log.read_text().split()}
    assert "numpy" in modules
    assert not modules & {"grpc", "pydantic", "cryptography", "rich", "click", "sqlite3", "torch"}


def test_local_entries_are_written_apart_and_given_back(child: Start) -> None:
    one = ready(child(scope=[["b", "local"]]))
    MODEL_ONLY = {"w": MODEL["w"]}
    write_frame(one.exchange / "in" / "local", Record({"b": np.array(5.0)}))
    write_frame(one.exchange / "in" / "model", Record(MODEL_ONLY))
    task = {"name": "train", "round": 1, "rounds": 3, "collaborator": "one", "seed": 1}
    message = {"op": "run", "id": "b", "task": {**task, "settings": {}}, "frozen": False}
    channel.send(one.connection, {**message, "local": True})
    done = one.heard()
    assert (done["op"], done["local"]) == ("done", True)
    assert set(one.out("update")) == {"w"}
    assert one.out("local") == {"b": 5.0}


RUNNER = """
import numpy as np
from openfed.tasks.base import Outcome
class Data:
    def __init__(self, source): pass
class Mine:
    def __init__(self, data, *, slope): self.slope = slope
    def initial(self, seed): raise NotImplementedError
    def run(self, task, model, local):
        return Outcome({"n": (1.0,)}, {name: value * self.slope for name, value in model.items()})
"""


def test_a_runner_of_the_users_own_is_called_with_data_and_settings(child: Start) -> None:
    one = ready(child(RUNNER, runner={"name": "src.code:Mine", "settings": {"slope": 3.0}}))
    assert one.ask("train")["op"] == "done"
    np.testing.assert_array_equal(one.out("update")["w"], [3.0, 6.0])


def test_the_only_serialiser_refuses_an_entry_that_the_plan_keeps_local(child: Start) -> None:
    config = {"name": "src.code:Mine", "settings": {"slope": 3.0}}
    one = ready(child(RUNNER, runner=config, scope=[["b", "local"]]))
    failed = one.ask("train")
    assert (failed["op"], failed["code"]) == ("failed", "K09")
    assert not (one.exchange / "out" / "update").exists()


def initial(one: Child, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "openfed.tasks.child", "--initial", str(out)]
    command += ["--config", str(one.exchange / "task.json")]
    reading, writing = os.pipe()
    try:
        return subprocess.run(
            command, stdin=reading, capture_output=True, text=True, timeout=60, check=False
        )
    finally:
        os.close(writing)
        os.close(reading)


def test_the_initial_model_is_made_without_data(child: Start, tmp_path: Path) -> None:
    one = child(FINE.replace("self.source = source", "raise ValueError('no data here')"))
    done = initial(one, tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "initial.json").read_text())
    assert told["signature"] == [
        {"name": "b", "dtype": "float64", "shape": [], "kind": "parameter"},
        {"name": "w", "dtype": "float64", "shape": [2], "kind": "parameter"},
    ]
    assert told["import_seconds"] >= 0
    assert told["build_seconds"] >= 0
    data = (tmp_path / "model.frame").read_bytes()
    assert unpack(data, limit=len(data)).tensors["w"].tolist() == [0.0, 0.0]


def test_code_that_fails_to_make_a_model_is_told_in_the_last_line(
    child: Start, tmp_path: Path
) -> None:
    one = child("print('hello')\nraise ValueError('café \\ud800')\n")
    done = initial(one, tmp_path)
    assert done.returncode == 5
    told = json.loads(done.stderr.strip().splitlines()[-1])
    assert set(told) == {"code", "message", "traceback"}
    assert told["code"] == "K01"
    assert 'File "src/code.py", line 2' in told["traceback"]
    assert "café" in told["message"]
    assert list(tmp_path.glob("*.frame")) == []


def test_a_typo_in_scope_is_told_before_anything_is_shared(child: Start, tmp_path: Path) -> None:
    done = initial(child(scope=[["bb", "local"]]), tmp_path)
    told = json.loads(done.stderr.strip().splitlines()[-1])
    assert (done.returncode, told["code"], told["traceback"]) == (5, "K11", "")
    assert told["message"] == "scope: 'bb' matches no entry of the model, which has b, w"
    assert list(tmp_path.glob("*.frame")) == []
