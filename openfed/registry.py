"""Names in a plan and what they stand for at the aggregator. A test holds it against the plan's
tables of settings; the runners' names are in `openfed.tasks.runners`."""

from collections.abc import Callable, Mapping
from functools import partial

from openfed.strategy.base import Strategy
from openfed.strategy.reduce import Rule, coordinate_median
from openfed.strategy.server import FedAdaptive, FedAvg, FedAvgM, FedDyn, Scaffold
from openfed.typing import Json


def _at_site(make: Callable[[], Strategy]) -> Callable[..., Strategy]:
    """Of a method whose settings are all for its half at the site."""

    def factory(**settings: Json) -> Strategy:
        return make()

    return factory


STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": partial(FedAdaptive, "adagrad"),
    "fedadam": partial(FedAdaptive, "adam"),
    "fedyogi": partial(FedAdaptive, "yogi"),
    "median": FedAvg,
    "fedprox": _at_site(FedAvg),
    "scaffold": Scaffold,
    "feddyn": _at_site(FedDyn),
    "mimelite": _at_site(FedAvg),
    "fedplus": _at_site(FedAvg),
    "ditto": _at_site(FedAvg),
    "fedrep": _at_site(FedAvg),
    "fedrecon": _at_site(FedAvg),
}

AGGREGATES: Mapping[str, Rule] = {"median": coordinate_median}
"""Strategies that make one update of many in another way than by the weighted mean."""
