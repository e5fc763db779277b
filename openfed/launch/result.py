"""What a run gives back: the object of `--json`, and its history."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openfed.errors import UsageError
from openfed.observe.files import METRICS, read
from openfed.observe.view import Event

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Result:
    """`json` is what `fx run --json` prints; `exit_code` what `fx run` ends with."""

    workspace: Path
    json: Mapping[str, Any]
    exit_code: int = 0

    @property
    def status(self) -> str:
        """completed, failed or aborted; why is in `json["reason"]`."""
        return str(self.json["status"])

    @property
    def metrics(self) -> Mapping[str, float]:
        """Aggregated scores of the model after the last round, by metric."""
        scores: Mapping[str, float] = self.json["metrics"]
        return scores

    @property
    def model(self) -> Path:
        """The safetensors file of the model after the last round."""
        return self.workspace / str(self.json["model"]["path"])

    @property
    def history(self) -> "pandas.DataFrame":
        """`metrics.jsonl`: a row per (round, model, collaborator or "aggregate", task, metric).

        Raises: UsageError U11: pandas is not installed.
        """
        try:
            import pandas  # noqa: PLC0415  (an extra: only notebooks need it)
        except ImportError:
            message = "history needs pandas: pip install 'openfed-fx[notebook]'"
            raise UsageError("U11", message) from None
        return pandas.DataFrame(read(self.workspace / "logs" / METRICS))


@dataclass(frozen=True)
class Seconds:
    """Where the time of one `fx run` went; `openfed` is what is left for openfed itself."""

    total: float
    training: float  # the user's code, the slowest site of every ask
    imports: float  # the user's code and its frameworks, imported once per process
    per_round: float  # openfed's own share of one round

    @property
    def openfed(self) -> float:
        return max(0.0, self.total - self.training - self.imports)

    def json(self) -> dict[str, float]:
        names = ("total", "training", "imports", "openfed", "per_round")
        return {name: round(getattr(self, name), 3) for name in names}


def seconds(events: Iterable[Event], total: float, initial: float) -> Seconds:
    """Add up a run's events. `initial`: seconds of import and build of the initial model."""
    asks: dict[tuple[Any, ...], float] = {}
    imports, own = 0.0, []
    for event in events:
        if event.get("event") == "reply":
            ask = (event["round"], event["task"], event.get("ask"))
            asks[ask] = max(asks.get(ask, 0.0), float(event.get("seconds") or 0.0))
            imports = max(imports, float(event.get("import_seconds") or 0.0))
        elif event.get("event") == "round.ended":
            own.append(float(event["openfed_seconds"]))
    per_round = sum(own) / len(own) if own else 0.0
    return Seconds(total, sum(asks.values()), imports + initial, per_round)
