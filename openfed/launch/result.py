"""What a run gives back: the object of `--json`, and its history."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from openfed.errors import UsageError
from openfed.node.accounts import Accounts
from openfed.observe.files import METRICS, TRANSFERS, read
from openfed.observe.view import Event
from openfed.workspace import Workspace

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
        """completed, failed or aborted."""
        return str(self.json["status"])

    @property
    def reason(self) -> str:
        """Why it ended as it did; empty when nothing is to be said."""
        return str(self.json["reason"] or "")

    @property
    def metrics(self) -> Mapping[str, float]:
        """Aggregated scores of the model after the last round, by metric."""
        scores: Mapping[str, float] = self.json["metrics"]
        return scores

    @property
    def model(self) -> Path | None:
        """The safetensors file of the model after the last round; a failed run has none."""
        model = self.json["model"]
        return Path(model["path"]) if model else None

    @property
    def history(self) -> "pandas.DataFrame":
        """`metrics.jsonl`: a row per (round, model, collaborator or "aggregate", task, metric).

        Raises: UsageError U11: pandas is not installed.
        """
        return _table(self.workspace, METRICS)

    @property
    def transfers(self) -> "pandas.DataFrame":
        """`transfers.jsonl`: a row per finished transfer, with its bytes, raw bytes and seconds.

        The round after the last is the validation that ends the run.
        Raises: UsageError U11: pandas is not installed.
        """
        return _table(self.workspace, TRANSFERS)


def _table(workspace: Path, name: str) -> "pandas.DataFrame":
    try:
        import pandas  # noqa: PLC0415  (an extra: only notebooks need it)
    except ImportError:
        message = "history and transfers need pandas: pip install 'openfed-fx[notebook]'"
        raise UsageError("U11", message) from None
    return pandas.DataFrame(read(Workspace(workspace).logs / name))


class Heard:
    """What the events of one `fx run` add up to; it holds none of them, however many there are."""

    def __init__(self) -> None:
        self.ended: Event | None = None
        self.task_failed = False
        self._accounts, self._own = Accounts(lambda kind, fields: None), list[float]()

    def hear(self, event: Event) -> None:
        kind = event.get("event", "")
        self._accounts.emit(kind, event)
        self.ended = event if kind == "run.ended" else None  # an aggregator may come back
        self.task_failed = self.task_failed or kind == "task.failed"
        if kind == "round.ended":
            self._own.append(event["openfed_seconds"])

    def seconds(self, total: float, initial: float) -> dict[str, float]:
        """Where the `total` seconds of one `fx run` went.

        training: the user's code, the slowest site of every ask. imports: of the user's code and
        its frameworks, with the `initial` model. openfed: what is left. per_round: its share of
        a round, the median (the first round waits for everyone to start).
        """
        training, imports = self._accounts.training, self._accounts.imports + initial
        spent = {
            "total": total,
            "training": training,
            "imports": imports,
            "openfed": max(0.0, total - training - imports),
            "per_round": median(self._own) if self._own else 0.0,
        }
        return {name: round(value, 3) for name, value in spent.items()}
