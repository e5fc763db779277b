"""Methods on sums as a task runner: it computes a site's sums at the state that it is given.

The plan's loader has `table() -> (x, y)`: all of the site's rows as numbers (rows, columns), and a
number for each row, or None where the method takes no labels.
"""

from typing import Any

from openfed.errors import TaskError
from openfed.exact.methods import make_method
from openfed.tasks.base import LIFT, Outcome, Task
from openfed.tasks.config import Config, choice
from openfed.tasks.runners import called, kind_of
from openfed.tensors.record import Signature, signature_of
from openfed.typing import Tensors


class ExactRunner:
    """Lifts the site's table; see `Runner`. The model is the method's state."""

    def __init__(self, config: Config, data: Any) -> None:
        chosen = choice(config.runner.settings["flow"])
        self._method = make_method(chosen.name, chosen.settings)
        self._loader, self._data = config.data_loader.name, data

    def initial(self, seed: int) -> tuple[Tensors, Signature]:
        del seed  # a method starts from its settings alone
        state = self._method.start()
        return state, signature_of(state)

    def run(self, task: Task, model: Tensors, local: Tensors) -> Outcome:
        x, y = self._table()
        sums, n = self._method.lift(model, x, y), float(len(x))
        loss = {f"metrics/{LIFT}/loss": (float(sums["loss"]), n)} if "loss" in sums else {}
        return Outcome({"n": (n,), **loss}, sums)

    def _table(self) -> tuple[Any, Any]:
        """Raises: TaskError: K02 it raised. K12: there is no such method, or it gives no pair."""
        name, contract = f"{self._loader}.table", "table() -> (x, y)"
        if not hasattr(self._data, "table"):
            told = f"{self._loader} has no method {contract}, which the plan's flow asks for"
            raise TaskError("K12", told)
        returned = called(name, contract, self._data.table)()
        if (
            not isinstance(returned, tuple)
            or len(returned) != 2
            or not hasattr(returned[0], "ndim")
        ):
            raise TaskError("K12", f"{name} returned {kind_of(returned)}, expected (x, y): arrays")
        return returned
