"""Metrics as sums: a site reports sums, sums are added over sites, and divided once.

So an F1, AUC or RMSE of the federation is that of all samples together, never a mean of sites'
values. `outputs` are what the model returns before any softmax or sigmoid: one column per class
(classes on axis 1, as in `torch.nn.CrossEntropyLoss`), or the bare score of class 1, or a
regression's prediction. `targets` are class numbers (negative ones are left out), 0/1, or values.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Sums = tuple[float, ...]
Floats = NDArray[np.float64]

BINS: Final = 1024
"""Bins of the AUC's two histograms, equally wide in asinh(score) over scores of +-1000."""

_EDGE: Final = float(np.arcsinh(1000.0))


@dataclass(frozen=True)
class Metric:
    """How the sums of one metric are made and finished."""

    length: int | None  # of the sums; None: three per class
    finish: Callable[[Floats], float | None]
    update: Callable[[NDArray[Any], NDArray[Any]], Iterable[float]] | None  # None: made by the loss
    needs: str = ""  # of outputs and targets, for people


def _scores(outputs: NDArray[Any], targets: NDArray[Any]) -> tuple[Floats, Floats]:
    """Outputs as (samples, classes) or (samples,), targets as (samples,)."""
    scores = np.asarray(outputs, np.float64)
    wanted = np.asarray(targets).reshape(-1)
    if scores.ndim == np.ndim(targets) + 1 and scores.shape[1] > 1:
        scores = np.moveaxis(scores, 1, -1).reshape(-1, scores.shape[1])
    else:
        scores = scores.reshape(-1)
    if len(scores) != len(wanted):
        shapes = f"{np.shape(outputs)} and {np.shape(targets)}"
        raise ValueError(f"outputs and targets do not belong together: shapes {shapes}")
    return scores, wanted.astype(np.float64)


def _classes(outputs: NDArray[Any], targets: NDArray[Any]) -> tuple[NDArray[Any], Floats, int]:
    """Predicted class and wanted class per sample, and how many classes there are."""
    scores, wanted = _scores(outputs, targets)
    scores, wanted = scores[wanted >= 0], wanted[wanted >= 0]
    classes = scores.shape[1] if scores.ndim == 2 else 2
    if wanted.size and wanted.max() >= classes:
        raise ValueError(f"a target is class {wanted.max():g}, the model has 0 to {classes - 1}")
    predicted = scores.argmax(axis=1) if scores.ndim == 2 else (scores > 0).astype(np.int64)
    return predicted, wanted, classes


def _accuracy(outputs: NDArray[Any], targets: NDArray[Any]) -> Iterable[float]:
    predicted, wanted, _ = _classes(outputs, targets)
    return float((predicted == wanted).sum()), float(wanted.size)


def _values(outputs: NDArray[Any], targets: NDArray[Any]) -> tuple[Floats, Floats]:
    scores, wanted = _scores(outputs, targets)
    if scores.ndim > 1:
        raise ValueError(f"expected one value per sample, got outputs of shape {np.shape(outputs)}")
    return scores, wanted


def _errors(power: int) -> Callable[[NDArray[Any], NDArray[Any]], Iterable[float]]:
    def update(outputs: NDArray[Any], targets: NDArray[Any]) -> Iterable[float]:
        scores, wanted = _values(outputs, targets)
        return float((np.abs(scores - wanted) ** power).sum()), float(wanted.size)

    return update


def _r2(outputs: NDArray[Any], targets: NDArray[Any]) -> Iterable[float]:
    scores, wanted = _values(outputs, targets)
    residual = ((scores - wanted) ** 2).sum()
    return float(residual), float((wanted**2).sum()), float(wanted.sum()), float(wanted.size)


def _finish_r2(sums: Floats) -> float | None:
    residual, squares, total, count = sums
    spread = squares - total**2 / count if count else 0.0
    return float(1 - residual / spread) if spread > 1e-12 * max(squares, 1e-300) else None


def _confusion(outputs: NDArray[Any], targets: NDArray[Any]) -> Iterable[float]:
    """True positives, false positives, false negatives: each one number per class."""
    predicted, wanted, classes = _classes(outputs, targets)
    right = np.bincount(predicted[predicted == wanted], minlength=classes)
    said = np.bincount(predicted, minlength=classes)
    there = np.bincount(wanted.astype(np.int64), minlength=classes)
    return [float(x) for x in np.concatenate([right, said - right, there - right])]


def _finish_f1(sums: Floats) -> float | None:
    """Mean over the classes that are either there or said; of no use when a class is missing."""
    right, wrong, missed = sums.reshape(3, -1)
    below = 2 * right + wrong + missed
    seen = below > 0
    return float((2 * right[seen] / below[seen]).mean()) if seen.any() else None


def _of_class_1(index: int) -> Callable[[Floats], float | None]:
    """`index` 0: F1, 1: precision, 2: recall of class 1."""

    def finish(sums: Floats) -> float | None:
        right, wrong, missed = (float(part[1]) for part in sums.reshape(3, -1))
        below = (2 * right + wrong + missed, right + wrong, right + missed)[index]
        return ((2 if index == 0 else 1) * right / below) if below else None

    return finish


def _histograms(outputs: NDArray[Any], targets: NDArray[Any]) -> Iterable[float]:
    """Scores of the samples of class 1, then of the others: `BINS` counts each."""
    scores, wanted = _scores(outputs, targets)
    if scores.ndim == 2:
        if scores.shape[1] != 2:
            raise ValueError(f"auc is for two classes, the model has {scores.shape[1]}")
        scores = scores[:, 1] - scores[:, 0]
    place = (np.arcsinh(scores) + _EDGE) * (BINS / (2 * _EDGE))
    bins = np.clip(place, 0, BINS - 1).astype(np.int64)
    positive = wanted > 0.5
    counts = [np.bincount(bins[side], minlength=BINS) for side in (positive, ~positive)]
    return [float(x) for x in np.concatenate(counts)]


def _finish_auc(sums: Floats) -> float | None:
    """The share of (positive, negative) pairs in the right order; pairs in one bin count half.

    Off by at most half the share of pairs that fall into one bin: see `BINS`.
    """
    positive, negative = sums.reshape(2, -1)
    pairs = float(positive.sum() * negative.sum())
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / pairs) if pairs else None


def _ratio(sums: Floats) -> float | None:
    return float(sums[0] / sums[1]) if sums[1] else None


def _root(sums: Floats) -> float | None:
    ratio = _ratio(sums)
    return None if ratio is None else float(np.sqrt(ratio))


def _exponential(sums: Floats) -> float | None:
    ratio = _ratio(sums)
    return None if ratio is None or ratio > 700 else float(np.exp(ratio))


_CLASSES: Final = "outputs of one column per class, or the score of class 1; class numbers"
_TWO: Final = "outputs of two columns, or the score of class 1; targets 0 or 1"
_VALUES: Final = "one output and one target per sample"

METRICS: Mapping[str, Metric] = {
    "loss": Metric(2, _ratio, None),
    "perplexity": Metric(2, _exponential, None),
    "accuracy": Metric(2, _ratio, _accuracy, _CLASSES),
    "f1": Metric(None, _finish_f1, _confusion, _CLASSES),  # macro: the mean over classes
    "f1_binary": Metric(None, _of_class_1(0), _confusion, _CLASSES),
    "precision": Metric(None, _of_class_1(1), _confusion, _CLASSES),
    "recall": Metric(None, _of_class_1(2), _confusion, _CLASSES),
    "auc": Metric(2 * BINS, _finish_auc, _histograms, _TWO),
    "mae": Metric(2, _ratio, _errors(1), _VALUES),
    "mse": Metric(2, _ratio, _errors(2), _VALUES),
    "rmse": Metric(2, _root, _errors(2), _VALUES),
    "r2": Metric(4, _finish_r2, _r2, _VALUES),
}
"""The metrics that ship. Sums: loss and perplexity (sum of losses, samples); accuracy (right,
samples); f1, precision, recall (true positives, false positives, false negatives per class); auc
(two histograms); mae, mse, rmse (sum of errors, samples); r2 (squared errors, squares, sum, count).
"""

CUSTOM: Final = Metric(2, _ratio, None)
"""A metric of the user's: `f(outputs, targets) -> (numerator, denominator)`."""


def metric_name(name: str) -> str:
    """The name under which a plan's metric is reported: `"src.metrics:dice"` is "dice"."""
    return name.rpartition(":")[2]


def update(name: str, outputs: NDArray[Any], targets: NDArray[Any]) -> Sums:
    """The sums of a shipped metric over one batch.

    Raises: KeyError: not in `METRICS`, or made by the loss. ValueError: the shapes do not match.
    """
    function = METRICS[name].update
    if function is None:
        raise KeyError(name)
    return tuple(function(outputs, targets))


def add(one: Sums | None, other: Sums) -> Sums:
    """Entry by entry; None is the empty sum. Raises: ValueError: the lengths differ."""
    if one is None:
        return other
    return tuple(a + b for a, b in zip(one, other, strict=True))


def fits(name: str, sums: Sequence[float]) -> bool:
    """Whether `sums` can be sums of this metric: how many, and no count negative."""
    counts = name in ("accuracy", "auc") or METRICS.get(name, CUSTOM).length is None
    return _has_length(name, sums) and (not counts or min(sums) >= 0)


def _has_length(name: str, sums: Sequence[float]) -> bool:
    length = METRICS.get(name, CUSTOM).length
    return len(sums) == length if length else len(sums) >= 6 and len(sums) % 3 == 0


def finish(name: str, sums: Sequence[float]) -> float | None:
    """The value of a metric; None where its denominator is 0, or where it is not finite.

    A name that does not ship is a user's ratio. Raises: ValueError: another number of sums.
    """
    if not _has_length(name, sums):
        raise ValueError(f"{len(sums)} numbers are not the sums of the metric {name}")
    with np.errstate(all="ignore"):  # noise and strange sites make sums that no samples have
        value = METRICS.get(name, CUSTOM).finish(np.asarray(sums, np.float64))
    return value if value is not None and math.isfinite(value) else None
