"""What the tests of aggregation share: updates from arrays, and rules by one name each."""

from functools import partial

import numpy as np

from openfed.strategy.clipping import centred_clip, clip
from openfed.strategy.measure import rows
from openfed.strategy.reduce import Weighted, coordinate_median, reduce_updates
from openfed.strategy.robust import (
    bulyan,
    geometric_median,
    krum,
    multi_krum,
    near_median,
    trimmed_mean,
)
from openfed.tensors.frame import Held
from openfed.tensors.record import Record, signature_of


def given_updates(entries, weights=None):
    """(updates, signature) of records; weights are 1 each by default."""
    weights = weights or [1.0] * len(entries)
    sources = [Held(Record(each)) for each in entries]
    made = [Weighted(source, w) for source, w in zip(sources, weights, strict=True)]
    return made, signature_of(entries[0])


def aggregate(entries, screen=None, rule=None, weights=None):
    """The reduced update of records."""
    updates, signature = given_updates(entries, weights)
    return reduce_updates(screen(updates, signature) if screen else updates, signature, rule)


def of_rows(points, screen=None, rule=None, weights=None):
    """The reduced update, float64 [elements], of float64 [updates, elements]."""
    entries = [{"w": np.array(point, np.float64)} for point in points]
    return aggregate(entries, screen, rule, weights)["w"]


def methods(f):
    """(screen, rule) by the name of the method."""
    return {
        "mean": (None, None),
        "median": (None, coordinate_median),
        "trimmed mean": (None, partial(trimmed_mean, f=f)),
        "geometric median": (geometric_median, None),
        "krum": (partial(krum, f=f), None),
        "multi-krum": (partial(multi_krum, f=f), None),
        "bulyan": (partial(bulyan, f=f), partial(near_median, f=f)),
    }


def clipped(points, norm):
    return of_rows(points, partial(clip, norm=norm))


def centred(points, radius, center, steps=1):
    screen = partial(centred_clip, radius=radius, center={"w": center}, steps=steps)
    return of_rows(points, screen)


def flat(entries):
    """float64 [updates, elements] of all floating entries, as the measures see them."""
    updates, signature = given_updates(entries)
    return np.concatenate([found for _, _, found in rows(updates, signature)], axis=1)
