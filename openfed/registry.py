"""Names in a plan and what they stand for at the aggregator. A test holds it against the plan's
tables of settings; the runners' names are in `openfed.tasks.runners`."""

from collections.abc import Callable, Mapping
from functools import partial

from openfed.strategy.base import Strategy
from openfed.strategy.clipping import clip
from openfed.strategy.reduce import Rule, coordinate_median, weighted_mean
from openfed.strategy.robust import (
    bulyan,
    geometric_median,
    krum,
    multi_krum,
    near_median,
    trimmed_mean,
)
from openfed.strategy.screens import (
    Screening,
    adaptive_clipping,
    centred_clipping,
    fednova,
    forgetful,
    qfedavg,
)
from openfed.strategy.server import FedAdaptive, FedAvg, FedAvgM, FedDyn, Scaffold


def _average(**_: object) -> FedAvg:
    """The model moves by the reduced update; the settings are those of what reduces."""
    return FedAvg()


def _feddyn(**_: object) -> FedDyn:
    """Its setting is that of its half at the sites."""
    return FedDyn()


STRATEGIES: Mapping[str, Callable[..., Strategy]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadagrad": partial(FedAdaptive, "adagrad"),
    "fedadam": partial(FedAdaptive, "adam"),
    "fedyogi": partial(FedAdaptive, "yogi"),
    "median": FedAvg,
    "fedprox": _average,
    "scaffold": Scaffold,
    "feddyn": _feddyn,
    "mimelite": _average,
    "fedplus": _average,
    "ditto": _average,
    "fedrep": _average,
    "fedrecon": _average,
    "trimmed_mean": _average,
    "geometric_median": _average,
    "krum": _average,
    "multi_krum": _average,
    "bulyan": _average,
    "norm_clipping": _average,
    "adaptive_clipping": _average,
    "centred_clipping": _average,
    "fednova": _average,
    "qfedavg": _average,
}

CLIPPED: Mapping[str, Rule] = {"mean": weighted_mean, "median": coordinate_median}
"""What `norm_clipping` makes one update with."""

AGGREGATES: Mapping[str, Callable[..., Rule]] = {
    "median": lambda: coordinate_median,
    "trimmed_mean": partial(partial, trimmed_mean),
    "bulyan": partial(partial, near_median),
    "norm_clipping": lambda norm, rule: CLIPPED[rule],
}
"""Strategies that make one update of many in another way than by the weighted mean; they are
given their settings."""

SCREENS: Mapping[str, Callable[..., Screening]] = {
    "geometric_median": partial(forgetful, geometric_median),
    "krum": partial(forgetful, krum),
    "multi_krum": partial(forgetful, multi_krum),
    "bulyan": partial(forgetful, bulyan),
    "norm_clipping": lambda norm, rule: forgetful(clip, norm=norm),
    "adaptive_clipping": partial(partial, adaptive_clipping),
    "centred_clipping": partial(partial, centred_clipping),
    "fednova": partial(forgetful, fednova),
    "qfedavg": partial(forgetful, qfedavg),
}
"""Strategies that choose, weigh or scale whole updates first; they are given their settings, and
what they take from the local optimiser (`openfed.plan.methods.local_settings`)."""
