"""What a run costs, from the events it makes: whose the seconds were, and how many bytes."""

from collections.abc import Callable, Mapping
from typing import Any

from openfed.typing import Emit


class Accounts:
    """Passes events on, and adds to each `round.ended` what its round cost.

    A round's training is, ask by ask, the slowest accepted task; what is left of the round's
    seconds is openfed's own. In the first round that anyone trains in, the wait for the user's
    imports is taken off too.
    """

    def __init__(self, emit: Emit, transferred: Callable[[], tuple[int, int]]) -> None:
        self._emit, self._transferred = emit, transferred
        self.training = self.imports = 0.0
        self._slowest: dict[str, float] = {}
        self._round = (0.0, 0.0, 0, 0)  # training, imports, bytes up, bytes down at its start

    def emit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Observe an event and pass it on."""
        if kind == "round.started":
            self._round = (self.training, self.imports, *self._transferred())
        elif kind == "reply":
            seconds = float(fields.get("seconds", 0.0))
            self._slowest[fields["ask"]] = max(seconds, self._slowest.get(fields["ask"], 0.0))
            self.imports = max(self.imports, float(fields.get("import_seconds", 0.0)))
        elif kind == "ask.closed":
            self.training += self._slowest.pop(fields["ask"], 0.0)
        elif kind == "round.ended":
            fields = {**fields, **self._cost(float(fields["seconds"]))}
        self._emit(kind, fields)

    def _cost(self, seconds: float) -> dict[str, float]:
        training, imports, up, down = self._round
        theirs = self.training - training + self.imports - imports
        received, sent = self._transferred()
        return {
            "openfed_seconds": max(0.0, seconds - theirs),
            "bytes_up": received - up,
            "bytes_down": sent - down,
        }
