"""From names in a plan to the user's objects: the only place that imports by name."""

import importlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from openfed.data.check import demand
from openfed.data.contract import Contract
from openfed.data.table import Samples, Table
from openfed.errors import TaskError
from openfed.tasks.base import Runner
from openfed.tasks.config import Choice, Config
from openfed.tasks.metrics import METRICS, Sums, metric_name

RUNNERS: Mapping[str, str] = {
    "torch": "openfed.tasks.torch:TorchRunner",
    "sklearn": "openfed.tasks.sklearn:SklearnRunner",
    "numpy": "openfed.tasks.numpy_function:NumpyRunner",
    "exact": "openfed.tasks.exact:ExactRunner",
}
"""Runners that ship, each called as `(config, data)`; a user's is called as `(data, **settings)`.
`data` is the user's loader, or None where only the initial model is made.
"""


def load(name: str) -> Any:
    """The object that `module:attribute` names.

    Raises: TaskError: K01, with what the import raised as its cause; K08, not such a name.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon:
        raise TaskError("K08", f"expected module:attribute, as in src.model:Net, got {name!r}")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise TaskError("K01", f"{module_name} cannot be imported: {what}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        known = ", ".join(sorted(key for key in vars(module) if not key.startswith("_")))
        raise TaskError("K01", f"{module_name} has no {attribute}; it has: {known}") from None


def pick(kind: str, name: str, table: Mapping[str, Any]) -> Any:
    """What ships under `name`, else the user's object that it names.

    Raises: TaskError: K08 with the known names, K01.
    """
    if name in table:
        return table[name]
    if ":" not in name:
        raise TaskError("K08", f"unknown {kind} {name!r}; known: {', '.join(sorted(table))}")
    return load(name)


def load_metrics(names: Iterable[str]) -> dict[str, Any]:
    """The plan's metrics by the name they are reported under: None, or the user's, giving sums.

    Raises: TaskError: K08 an unknown name, or one of the user's that is a shipped one's. K01.
    """
    loaded: dict[str, Any] = {}
    for name in names:
        short = metric_name(name)
        if name != short and short in METRICS:
            raise TaskError("K08", f"metric {name}: {short} is a shipped metric's name; rename it")
        own = None if name in METRICS else pick("metric", name, METRICS)
        loaded[short] = own and partial(_ratio, name, own)
    return loaded


def _ratio(name: str, function: Callable[..., Any], output: Any, targets: Any) -> Sums:
    """The sums of a user's metric over one batch. Raises: TaskError: K02, K12."""
    returned = called(name, "(output, targets) -> (numerator, denominator)", function)(
        output, targets
    )
    try:
        above, below = map(float, returned)
    except (TypeError, ValueError, RuntimeError):  # the last is torch's
        told = f"{name} returned {kind_of(returned)}: return (numerator, denominator)"
        raise TaskError("K12", told) from None
    return above, below


def called(name: str, contract: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the user's that says its name, and how it is called, where it raises.

    Raises: TaskError: K02, with what the function raised as its cause.
    """

    def call(*given: Any, **settings: Any) -> Any:
        try:
            return function(*given, **settings)
        except Exception as error:
            what = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            raise TaskError("K02", f"{name} raised {what}. It is called as {contract}") from error

    return call


def kind_of(value: Any) -> str:
    """`a Tensor`, or for a tuple the kinds of its parts: `(dict, int)`."""
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return "None" if value is None else f"a {type(value).__name__}"


def make_data(chosen: Choice, source: Any) -> Any:
    """The user's loader over the site's `source`."""
    return load(chosen.name)(source, **chosen.settings)


def check_data(contract: Contract | None, data: Any) -> None:
    """Hold what a loader's `table()` or `samples()` gives against the plan's data contract.

    Raises: TaskError: K49 the data are not as demanded; K05 the loader has neither method, or it
    returned something else.
    """
    if contract is not None:
        demand(contract, _whole(data))


def _whole(data: Any) -> Table | Samples:
    """What the site trains on, at least."""
    kinds: Mapping[str, type[Table | Samples]] = {"table": Table, "samples": Samples}
    name = next((name for name in kinds if callable(getattr(data, name, None))), None)
    who = type(data).__name__
    if name is None:
        message = "for the plan's data contract: table(), a Table, or samples(), a Samples"
        raise TaskError("K05", f"{who} needs one of two methods {message} of openfed.data.table")
    found = getattr(data, name)()
    if not isinstance(found, kinds[name]) or not _of_arrays(found):
        told = f"expected a {kinds[name].__name__} of openfed.data.table, with numpy arrays in it"
        raise TaskError("K05", f"{who}.{name}() returned {kind_of(found)}, {told}")
    return found


def _of_arrays(found: Table | Samples) -> bool:
    given = found.arrays if isinstance(found, Table) else (found.inputs, found.targets)
    return all(each is None or isinstance(each, np.ndarray) for each in given)


def make_runner(config: Config, data: Any) -> Runner:
    """The plan's runner over `data`."""
    name = config.runner.name
    if name in RUNNERS:
        runner: Runner = load(RUNNERS[name])(config, data)
        return runner
    made: Runner = pick("task runner", name, RUNNERS)(data, **config.runner.settings)
    return made
