"""What a run is told of the handshakes that fail."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any

from openfed.transport.handshakes import heard, telling
from openfed.typing import Emit


@contextmanager
def counted(emit: Emit) -> Iterator[Emit]:
    """Counts this process' failed handshakes until the block ends. To be used in place of `emit`.

    `handshake.failed` is emitted when a count is 1, 2, 5, 10, 20, 50, ... (a flood makes few
    events), and with the exact counts before the end of the run, or when the block ends. Nothing
    follows the end of the run.
    """
    failures = _Failures(emit)
    try:
        with heard(failures.saw, failures.tell):
            yield failures.emit
    finally:
        failures.tell_all()


class _Failures:
    def __init__(self, emit: Emit) -> None:
        self._emit, self._since = emit, time.time()
        self._counts: dict[str, int] = {}
        self._told: dict[str, int] = {}
        self._telling, self._over = Lock(), False

    def saw(self, cause: str) -> bool:
        """Called by one thread; whether it is time to tell."""
        self._counts[cause] = count = self._counts.get(cause, 0) + 1
        return telling(count)

    def tell(self, *causes: str) -> None:
        """The counts of these causes, unless that is no news, or comes too late."""
        with self._telling:
            self._tell(*causes)

    def tell_all(self) -> None:
        self.tell(*self._counts)

    def emit(self, kind: str, fields: Mapping[str, Any]) -> None:
        if kind != "run.ended":
            return self._emit(kind, fields)
        with self._telling:
            self._tell(*self._counts)
            self._over = True
            self._emit(kind, fields)

    def _tell(self, *causes: str) -> None:
        for cause in causes:
            count = self._counts[cause]
            if not self._over and self._told.get(cause) != count:
                self._told[cause] = count
                about = {"cause": cause, "count": count, "since": self._since}
                self._emit("handshake.failed", about)
