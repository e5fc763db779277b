"""What a run costs, from the events it makes: whose the seconds were."""

from collections.abc import Mapping
from typing import Any

from openfed.typing import Emit


class Accounts:
    """Passes events on, and adds to each `round.ended` openfed's seconds.

    A round's training is, ask by ask, the slowest accepted task; what is left of the round's
    seconds is openfed's own. In the first round that anyone trains in, the wait for the user's
    imports is taken off too.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.training = self.imports = 0.0
        self._slowest: dict[str, float] = {}
        self._round = (0.0, 0.0)  # training, imports at its start

    def emit(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Observe an event and pass it on."""
        if kind == "round.started":
            self._round = (self.training, self.imports)
        elif kind == "reply":
            seconds = float(fields.get("seconds", 0.0))
            self._slowest[fields["ask"]] = max(seconds, self._slowest.get(fields["ask"], 0.0))
            self.imports = max(self.imports, float(fields.get("import_seconds", 0.0)))
        elif kind == "ask.closed":
            self.training += self._slowest.pop(fields["ask"], 0.0)
        elif kind == "round.ended":
            fields = {**fields, "openfed_seconds": self._own(float(fields["seconds"]))}
        self._emit(kind, fields)

    def _own(self, seconds: float) -> float:
        training, imports = self._round
        return max(0.0, seconds - (self.training - training) - (self.imports - imports))
