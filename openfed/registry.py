"""Names in a plan and what they stand for at the aggregator. A test holds it against the plan's
tables of settings; the runners' names are in `openfed.tasks.runners`."""

from collections.abc import Callable, Mapping
from functools import partial

from openfed.strategy.base import Strategy
from openfed.strategy.reduce import Rule, coordinate_median
from openfed.strategy.server import FedAdaptive, FedAvg, FedAvgM

STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": partial(FedAdaptive, "adagrad"),
    "fedadam": partial(FedAdaptive, "adam"),
    "fedyogi": partial(FedAdaptive, "yogi"),
    "median": FedAvg,
}

AGGREGATES: Mapping[str, Rule] = {"median": coordinate_median}
"""Strategies that make one update of many in another way than by the weighted mean."""
