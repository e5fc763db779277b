"""The methods by the names that plans have for them, and what their sums look like."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from openfed.errors import TaskError
from openfed.exact.base import Method, shapes
from openfed.exact.bayes import NaiveBayes
from openfed.exact.boosting import Boosted
from openfed.exact.id3 import ID3
from openfed.exact.kmeans import KMeans
from openfed.exact.linear import Logistic, Ridge
from openfed.exact.pca import PCA
from openfed.exact.scores import Confusion, Scores
from openfed.exact.statistics import Covariance, Histogram, Moments, Quantiles
from openfed.exact.survival import KaplanMeier
from openfed.tensors.record import Signature, Spec
from openfed.typing import Tensors

METHODS: Mapping[str, Callable[..., Method]] = {
    "moments": Moments,
    "covariance": Covariance,
    "histogram": Histogram,
    "quantiles": Quantiles,
    "ridge": Ridge,
    "logistic": Logistic,
    "naive_bayes": NaiveBayes,
    "kmeans": KMeans,
    "pca": PCA,
    "id3": ID3,
    "boosted_trees": Boosted,
    "scores": Scores,
    "confusion": Confusion,
    "kaplan_meier": KaplanMeier,
}

SUPPRESSES = (Moments, Covariance, Histogram, Quantiles)
"""Where `least` hides small groups: how many rows a site has must not be told beside the sums."""

MOST = 1 << 28
"""Bytes of a state, or of a site's sums: what either end takes."""


def make_method(name: str, settings: Mapping[str, Any]) -> Method:
    """The method of a plan's `flow`. Raises: KeyError, TypeError: no plan says that."""
    given = {key: tuple(x) if isinstance(x, list) else x for key, x in settings.items()}
    return METHODS[name](**given)


def hides(method: Method) -> bool:
    """Whether the method suppresses small groups."""
    return isinstance(method, SUPPRESSES) and method.least > 0


def _layout(method: Method, state: Tensors) -> dict[str, tuple[Any, ...]]:
    """Dtypes, and shapes where they don't change: a state comes from elsewhere."""
    grows = isinstance(method, ID3)
    return {name: (x.dtype, () if grows else x.shape) for name, x in state.items()}


def sums_signature(method: Method, state: Tensors) -> Signature:
    """What every site's sums at this state look like: float64 entries, sorted by name.

    Raises: TaskError K55: no state of this method; its sums would have more than `MOST` bytes.
    """
    first = method.start()
    if _layout(method, state) != _layout(method, first):
        raise TaskError("K55", f"expected its entries: {', '.join(sorted(first))}")
    one = sum(8 * math.prod(shape) for shape in shapes(method, first).values())
    if isinstance(method, ID3) and np.count_nonzero(state["open"]) * one > MOST:
        raise TaskError("K55", f"more open nodes than fit into sums of {MOST} bytes")
    try:
        found = shapes(method, state)
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as error:
        raise TaskError("K55", f"no sums can be made for it: {error}") from error
    specs = tuple(Spec(name, "float64", shape) for name, shape in sorted(found.items()))
    if (size := sum(spec.size for spec in specs)) > MOST:
        raise TaskError("K55", f"sums of {size} bytes, expected at most {MOST}")
    return specs
