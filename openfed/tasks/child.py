"""The task process: the only one that runs the user's code, and the only one that sees the data.

    python -m openfed.tasks.child --exchange DIR [--previous-exit N]
    python -m openfed.tasks.child --initial DIR --config task.json

With `--exchange` it serves an agent: DIR holds `task.json`, the agent's socket, and the frames in
`in/` and `out/` (`channel.py`). It ends when the agent closes the socket, and when its standard
input ends, which is the launcher's hand. When the thread that launched it ends, the kernel kills
it, even where user code lets no other thread run. With `--initial` it makes the plan's first model,
without data: DIR gets `model.frame` and `initial.json`; on failure the last line of standard error
is a JSON object {code, message, traceback}, and the exit code is 5.
"""

import argparse
import ctypes
import json
import mmap
import os
import platform
import queue
import select
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import openfed
from openfed.errors import OpenFedError, TaskError, WireError
from openfed.failpoints import arm, failpoint
from openfed.tasks import channel
from openfed.tasks.base import SENDS, TRAIN, Outcome, Runner, Task
from openfed.tasks.checks import check_local, check_numbers, check_update
from openfed.tasks.config import Config, read_config
from openfed.tasks.failures import failure
from openfed.tasks.output import captured
from openfed.tasks.runners import check_data, make_data, make_runner
from openfed.tensors.frame import unpack, write_frame
from openfed.tensors.record import Record, signature_of
from openfed.typing import Tensors

CONNECT_S = 60.0
"""How long the agent may take to come up."""

ENVIRONMENT = frozenset(
    {
        *("PATH", "HOME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "CONDA_PREFIX"),
        *("LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"),
        "CUBLAS_WORKSPACE_CONFIG",
    }
)
"""What stays of the environment, and PYTHON*, LC_*; the launcher has taken out the rest already."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")

VERSIONED = ("numpy", "torch", "sklearn", "scipy", "torchvision", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(prog="openfed.tasks.child")
    parser.add_argument("--exchange", type=Path)
    parser.add_argument("--previous-exit", type=int)
    parser.add_argument("--initial", type=Path)
    parser.add_argument("--config", type=Path)
    given = parser.parse_args()
    begun = time.monotonic()
    try:
        arm(os.environ)
    except OpenFedError as error:
        sys.exit(str(error))
    _close_inherited()
    lifeline = _take_stdin()
    _die_with_launcher(lifeline)
    threading.Thread(target=_hold_lifeline, args=(lifeline,), daemon=True).start()
    if given.initial:
        sys.exit(_initial(read_config(given.config), given.initial.absolute(), begun))
    exchange = given.exchange.absolute()
    config = read_config(exchange / "task.json")
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    hello = {"op": "hello", "previous_exit": given.previous_exit}
    threading.Thread(target=_listen, args=(exchange, hello, inbox), daemon=True).start()
    _enter(config)
    _serve(config, exchange, inbox, begun)


# -- the process ------------------------------------------------------------------------------


def _close_inherited() -> None:
    """Every descriptor but 0 to 2: nothing of the launcher's may reach user code."""
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _take_stdin() -> int:
    """The launcher's pipe, out of the way of code that reads standard input."""
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return lifeline


def _die_with_launcher(lifeline: int) -> None:
    """Native code that keeps the interpreter lock stops every thread, but not the kernel."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    watched = select.poll()
    watched.register(lifeline, 0)
    if any(event & select.POLLHUP for _, event in watched.poll(0)):
        os._exit(0)  # it had ended before the kernel knew; parent ids do not tell, in containers


def _hold_lifeline(lifeline: int) -> None:
    _close_in_forks(lifeline)
    while os.read(lifeline, 4096):
        pass
    os._exit(0)


def _close_in_forks(descriptor: int) -> None:
    """Workers that user code forks must not keep the socket or the lifeline open."""

    def close() -> None:
        with suppress(OSError):
            os.close(descriptor)

    os.register_at_fork(after_in_child=close)


def _enter(config: Config) -> None:
    """Leave the launcher's surroundings: environment, folder, import path, Ctrl-C."""
    for name in list(os.environ):
        if name not in ENVIRONMENT and not name.startswith(("PYTHON", "LC_")):
            del os.environ[name]
    os.environ.update(dict.fromkeys(THREADS, str(config.threads)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher decides, through the lifeline
    os.umask(0o077)
    os.chdir(config.workspace)
    sys.path.insert(0, str(config.workspace))
    _own_src(config.workspace / "src")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def _own_src(folder: Path) -> None:
    """`src` is the workspace's, even where some installed distribution brings a package `src`."""
    if not (folder / "__init__.py").exists():
        package = types.ModuleType("src")
        package.__path__ = [str(folder)]
        sys.modules["src"] = package


# -- the agent --------------------------------------------------------------------------------


def _listen(exchange: Path, hello: channel.Message, inbox: "queue.SimpleQueue[Any]") -> None:
    """Puts the connection into `inbox`, then every message; ends the process with the agent."""
    connection = _connected(exchange)
    _close_in_forks(connection.fileno())
    try:
        channel.send(connection, hello)
        inbox.put(connection)
        while (message := channel.receive(connection)) is not None:
            inbox.put(message)
    except (OSError, WireError) as error:
        os.write(2, f"openfed: lost the agent: {error}\n".encode())
    os._exit(0)


def _connected(exchange: Path) -> socket.socket:
    end = time.monotonic() + CONNECT_S
    while True:
        try:
            return channel.connect(exchange)
        except OSError as error:
            if time.monotonic() > end:
                os.write(2, f"openfed: no agent at {exchange}/agent.sock: {error}\n".encode())
                os._exit(1)
            time.sleep(0.02)


def _serve(config: Config, exchange: Path, inbox: "queue.SimpleQueue[Any]", begun: float) -> None:
    answer, runner = _get_ready(config, begun)
    connection: socket.socket = inbox.get()
    _tell(connection, channel.encode(answer))
    while True:
        message = inbox.get()
        if runner is None or message.get("op") != "run":
            os.write(2, f"openfed: unexpected message {message.get('op')!r}\n".encode())
            continue
        failpoint("task.taken")
        _tell(connection, _answer(config, exchange, runner, message))
        failpoint("task.answered")


def _tell(connection: socket.socket, message: bytes) -> None:
    """Ends the process where the agent has gone meanwhile: nobody waits for its work."""
    try:
        connection.sendall(message)
    except OSError as error:
        os.write(2, f"openfed: lost the agent: {error}\n".encode())
        os._exit(0)


def _get_ready(config: Config, begun: float) -> tuple[channel.Message, Runner | None]:
    """Import and build what the plan names, check the data. Returns: what to tell the agent."""
    try:
        with captured(config.output_limit):
            data = make_data(config.data_loader, config.source)
            check_data(config.contract, data)
            runner = make_runner(config, data)
    except BaseException as error:  # noqa: BLE001 - user code may raise anything, SystemExit too
        return {"op": "broken", **failure(error, config.workspace)}, None
    seconds = time.monotonic() - begun
    return {"op": "ready", "import_seconds": seconds, "versions": _versions()}, runner


def _versions() -> Mapping[str, str]:
    found = {"openfed": openfed.__version__, "python": platform.python_version()}
    for name in VERSIONED:
        if name in sys.modules:
            found[name] = str(getattr(sys.modules[name], "__version__", "unknown"))
    return found


def _answer(config: Config, exchange: Path, runner: Runner, message: Mapping[str, Any]) -> bytes:
    """Run one task; whatever user code does but ending the process, there is an answer."""
    try:
        told = _run(config, exchange, runner, message)
        return channel.encode({"op": "done", "id": message["id"], **told})
    except BaseException as error:  # noqa: BLE001 - user code may raise anything, SystemExit too
        told = failure(error, config.workspace)
        return channel.encode({"op": "failed", "id": message["id"], **told})


def _run(
    config: Config, exchange: Path, runner: Runner, message: Mapping[str, Any]
) -> channel.Message:
    task = Task(**message["task"])
    moving = _mapped(exchange / channel.MODEL_IN)
    frozen = _mapped(exchange / channel.FROZEN_IN) if message["frozen"] else {}
    local = _mapped(exchange / channel.LOCAL_IN) if message["local"] else {}
    begun = time.monotonic()
    with captured(config.output_limit) as printed:
        outcome = runner.run(task, {**moving, **frozen}, local)
    seconds = time.monotonic() - begun
    failpoint("task.ran")
    if printed.too_much:
        limit = config.output_limit
        raise TaskError("K06", f"the task printed {printed.bytes} bytes, at most {limit} are kept")
    if not isinstance(outcome, Outcome):
        found = type(outcome).__name__
        raise TaskError("K08", f"the runner returned a {found}, expected openfed's Outcome")
    check_numbers(outcome.numbers)
    sends = task.name in SENDS
    if task.name == TRAIN:  # sums are those of a runner that ships; the agent looks at them
        check_update(outcome.tensors, signature_of(moving), config.scope)
    if sends:
        _write(exchange / channel.UPDATE_OUT, outcome.tensors)
    if outcome.local is not None:
        check_local(outcome.local, (*moving, *frozen))
        _write(exchange / channel.LOCAL_OUT, outcome.local)
    failpoint("task.written")
    numbers = {name: [float(x) for x in xs] for name, xs in outcome.numbers.items()}
    return {
        "update": sends,
        "local": outcome.local is not None,
        "numbers": {**numbers, "seconds": [seconds]},
    }


def _write(path: Path, tensors: Tensors) -> None:
    """Raises: OpenFedError S12: the machine refuses, which is no fault of user code."""
    try:
        write_frame(path, Record(tensors))
    except OSError as error:
        raise OpenFedError("S12", f"{path.name} of a task: {error.strerror}") from None


def _mapped(path: Path) -> Tensors:
    """Read-only views into the file; the agent does not write it while a task runs."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        frame = mmap.mmap(descriptor, size, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    finally:
        os.close(descriptor)
    return unpack(frame, limit=size, copy=False).tensors


# -- the first model --------------------------------------------------------------------------


def _initial(config: Config, out: Path, begun: float) -> int:
    """Returns: the exit code."""
    _enter(config)
    try:
        with captured(config.output_limit):
            runner = make_runner(config, None)
            imported = time.monotonic()
            tensors, signature = runner.initial(config.seed)
        check_update(tensors, signature, config.scope)
        write_frame(out / "model.frame", Record(tensors))
    except BaseException as error:  # noqa: BLE001 - user code may raise anything, SystemExit too
        print(json.dumps(failure(error, config.workspace)), file=sys.stderr)  # noqa: T201
        return TaskError.exit_code
    entries = [
        {"name": spec.name, "dtype": spec.dtype, "shape": spec.shape, "kind": spec.kind}
        for spec in signature
    ]
    seconds = {
        "import_seconds": imported - begun,
        "build_seconds": time.monotonic() - imported,
    }
    (out / "initial.json").write_text(json.dumps({"signature": entries, **seconds}))
    return 0


if __name__ == "__main__":
    main()
