"""The agent's side of the task process: the exchange folder and its socket.

The process that can see the data cannot reach the network; this is the other one. It treats
whatever the task process says and writes as input from outside.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from openfed.errors import CODES, TaskError, WireError
from openfed.failpoints import failpoint
from openfed.node.threads import to_the_end
from openfed.tasks.base import Outcome, Task
from openfed.tasks.channel import LOCAL_OUT, UPDATE_OUT, listen, read_message, write_message
from openfed.tensors.frame import FrameFile, Held, Source, open_frame, unpack
from openfed.tensors.record import Record
from openfed.typing import Numbers

MOST_UNREAD = 100
"""Messages of a task process that are kept before it has to wait."""

RETURN_S = 60.0
"""How long a lost task process has to come back before its task is given up."""


@dataclass(frozen=True)
class Inputs:
    """Frames that a task works on; `frozen` and `local` may be absent."""

    model: Path
    frozen: Path | None = None
    local: Path | None = None


@dataclass(frozen=True)
class Result:
    """What a task answered. `trained` and `local` are read until `close`, in pieces."""

    numbers: Numbers
    trained: Source | None = None
    local: Source | None = None

    def close(self) -> None:
        for source in (self.trained, self.local):
            if isinstance(source, FrameFile):
                source.close()


class Trainer(Protocol):
    """Runs tasks where the data is. `versions`: of what they run on, once it is known."""

    versions: Mapping[str, str]

    async def run(self, task: Task, inputs: Inputs, limit: int) -> Result:
        """`limit`: most bytes of what was trained, as a frame.

        Raises TaskError: the task failed, or its process died.
        """
        ...


class Killed(TaskError):
    """The task process was killed from outside while it worked: no fault of the task's."""


class Child:
    """A connected task process, and what it has said that nobody has read yet."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer, self.ready, self.gone = writer, False, False
        self.previous_exit: int | None = None
        self.import_seconds = 0.0
        self._heard: asyncio.Queue[dict[str, Any] | WireError | None] = asyncio.Queue(MOST_UNREAD)
        self._listening = asyncio.create_task(self._listen(reader))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Reads at all times, so that the end of an idle process is noticed."""
        last: WireError | None = None
        try:
            while (message := await read_message(reader)) is not None:
                await self._heard.put(message)
        except WireError as error:
            last = error
        except ConnectionError:
            pass
        self.gone = True
        await self._heard.put(last)

    async def hear(self, *ops: str) -> dict[str, Any]:
        """The next message of one of these kinds. Raises: ConnectionError: it has gone."""
        while True:
            message = await self._heard.get()
            if message is None:
                raise ConnectionError("it closed its socket")
            if isinstance(message, WireError):
                raise message
            if message.get("op") in ops:
                return message

    def close(self) -> None:
        self._listening.cancel()
        self.writer.close()


class SocketTrainer:
    """Talks to the task process that connects to `exchange/agent.sock`; one at a time."""

    def __init__(self, exchange: Path, said: Callable[[str], None]) -> None:
        self.exchange, self._said = exchange, said
        self._child: asyncio.Future[Child] = asyncio.get_running_loop().create_future()
        self._server: asyncio.Server | None = None
        self._meetings = set[asyncio.Task[None]]()
        self._laid_out: dict[str, str] = {}
        self.versions: Mapping[str, str] = {}
        for name in ("in", "out"):
            (exchange / name).mkdir(mode=0o700, exist_ok=True)

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._met, sock=listen(self.exchange))

    async def close(self) -> None:
        """Tell the task process that the run is over (it exits when the socket closes)."""
        if self._server is not None:
            self._server.close()
        if self._child.done() and not self._child.cancelled():
            self._child.result().close()
        self._child.cancel()
        for meeting in self._meetings:
            meeting.cancel()
        await asyncio.gather(*self._meetings)

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        child, meeting = Child(reader, writer), asyncio.current_task()
        assert meeting
        self._meetings.add(meeting)
        try:
            hello = await child.hear("hello")
        except (WireError, ConnectionError) as error:
            self._said(f"task process refused: {error}")
            child.close()
            return
        except asyncio.CancelledError:  # by `close`; raised, asyncio would print a traceback
            child.close()
            return
        finally:
            self._meetings.discard(meeting)
        previous = hello.get("previous_exit")
        child.previous_exit = previous if isinstance(previous, int) else None
        if self._child.done():  # the one before is gone, or about to be found so
            self._child = asyncio.get_running_loop().create_future()
        self._child.set_result(child)

    async def run(self, task: Task, inputs: Inputs, limit: int) -> Result:
        """A task whose process is killed is done once more, by its successor."""
        try:
            return await self._run(task, inputs, limit)
        except Killed as error:
            self._said(f"{error.message}; once more")
            return await self._run(task, inputs, limit)

    async def _run(self, task: Task, inputs: Inputs, limit: int) -> Result:
        child = await self._alive(task)
        try:
            await self._ready(child)
            await to_the_end(asyncio.to_thread(self._lay_out, inputs))
            order = {"op": "run", "id": f"{task.round}-{task.name}", "task": asdict(task)}
            has = {"frozen": inputs.frozen is not None, "local": inputs.local is not None}
            await write_message(child.writer, {**order, **has})
            failpoint("task.asked")
            answer = await child.hear("done", "failed")
            failpoint("task.heard")
        except (ConnectionError, WireError, asyncio.CancelledError) as error:
            self._drop(child)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise await self._ended(task, error) from None
        if answer["op"] == "failed":
            failed = _failure(answer)
            if failed.code == "S12":  # a full disk, as where the agent itself finds one
                raise OSError(failed.message)
            raise failed
        about = {"import_seconds": (child.import_seconds,)}
        return self._collect(answer, limit, about)

    async def _ready(self, child: Child) -> None:
        """Wait until the process has imported the user's code and opened the data."""
        if child.ready:
            return
        message = await child.hear("ready", "broken")
        if message["op"] == "broken":
            self._drop(child)
            raise _failure(message)
        child.ready = True
        self.versions = _versions(message.get("versions"))
        seconds = message.get("import_seconds")
        child.import_seconds = min(max(seconds, 0.0), 1e6) if isinstance(seconds, float) else 0.0

    async def _alive(self, task: Task) -> Child:
        """The connected process; one that died since its last task is replaced by its successor.

        Raises: TaskError K27: there is none in time.
        """
        while True:
            try:
                child = await asyncio.wait_for(asyncio.shield(self._child), RETURN_S)
            except TimeoutError:
                message = f"{task.collaborator}: no task process for {RETURN_S:.0f} s"
                raise TaskError("K27", message) from None
            if not child.gone:
                return child
            self._drop(child)

    def _drop(self, child: Child) -> None:
        """Let go of a task process: it exits when its socket closes, and is started again."""
        child.close()
        if self._child.done() and self._child.result() is child:
            self._child = asyncio.get_running_loop().create_future()

    async def _ended(self, task: Task, error: BaseException) -> TaskError:
        """Why the process ended, as its successor was told by the launcher."""
        who = f"{task.collaborator}: the task process ended during {task.name}"
        if isinstance(error, WireError):
            return TaskError("K26", f"{who}: {error.message}")
        try:
            successor = await asyncio.wait_for(asyncio.shield(self._child), 10)
        except TimeoutError:  # it comes back later than that
            return Killed("K26", who)
        code = successor.previous_exit
        if code is None:
            return Killed("K26", who)
        if code >= 0:
            return TaskError("K26", f"{who}: exit code {code}")
        hint = " (out of memory?)" if code == -9 else ""
        return Killed("K26", f"{who}: killed by signal {-code}{hint}")

    def _lay_out(self, inputs: Inputs) -> None:
        """Put frames into the exchange: as links where that can be, else as copies."""
        for name in ("model", "frozen", "local"):
            source: Path | None = getattr(inputs, name)
            if source is None or self._laid_out.get(name) == source.name:
                continue
            aside = self.exchange / "in" / f".{name}"
            aside.unlink(missing_ok=True)
            try:
                os.link(source, aside)
            except OSError:  # another file system
                shutil.copyfile(source, aside)
            failpoint("exchange.linked")
            os.replace(aside, self.exchange / "in" / name)
            self._laid_out[name] = source.name

    def _collect(self, answer: dict[str, Any], limit: int, about: Numbers) -> Result:
        numbers = {**_numbers(answer.get("numbers")), **about}
        trained = self._open(UPDATE_OUT, limit) if answer.get("update") else None
        try:
            local = self._open(LOCAL_OUT, 1 << 48) if answer.get("local") else None
        except TaskError:
            Result(numbers, trained).close()
            raise
        return Result(numbers, trained, local)

    def _open(self, name: str, limit: int) -> FrameFile:
        """What the task wrote; from here on its process can only make a read of it fail."""
        try:
            return open_frame(self.exchange / name, limit=limit)
        except OSError as error:
            raise TaskError("K28", f"{name}: {error.strerror}") from error
        except WireError as error:
            raise TaskError("K28", f"{name}: {error.message}") from error


class DirectTrainer:
    """Runs the task in this process: for tests and simulations, where nothing is to be kept
    apart."""

    def __init__(self, run: Callable[[Task, dict[str, Any], dict[str, Any]], Outcome]) -> None:
        self._run = run
        self.versions: Mapping[str, str] = {}

    async def run(self, task: Task, inputs: Inputs, limit: int) -> Result:
        def work() -> Outcome:
            model = dict(_read(inputs.model))
            if inputs.frozen is not None:
                model |= _read(inputs.frozen)
            return self._run(task, model, dict(_read(inputs.local)) if inputs.local else {})

        outcome = await asyncio.to_thread(work)
        trained = Held(Record(outcome.tensors)) if outcome.tensors else None
        local = None if outcome.local is None else Held(Record(outcome.local))
        return Result(outcome.numbers, trained, local)


def _versions(found: Any) -> dict[str, str]:
    if not isinstance(found, dict):
        return {}
    return {str(name)[:40]: str(value)[:40] for name, value in list(found.items())[:20]}


def _read(path: Path) -> dict[str, Any]:
    return dict(unpack(path.read_bytes(), limit=1 << 40).tensors)


def _failure(message: dict[str, Any]) -> TaskError:
    code = message.get("code")
    text, traceback = message.get("message"), message.get("traceback")
    return TaskError(
        code if isinstance(code, str) and code in CODES else "K20",
        str(text)[:2000],
        traceback=str(traceback or "")[:20000],
    )


def _numbers(found: Any) -> dict[str, tuple[float, ...]]:
    try:
        return {str(name): tuple(float(x) for x in xs) for name, xs in found.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise TaskError("K28", f"numbers: expected lists of floats ({error})") from error
