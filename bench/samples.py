"""What codecs are measured on: gaussian values, heavy-tailed ones, a real network's updates."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from openfed.codec.base import CHUNK
from openfed.typing import Array


def gaussian(count: int) -> list[Array]:
    return [np.random.default_rng(1).standard_normal(count, dtype=np.float32)]


def student(count: int) -> list[Array]:
    """Student's t with 3 degrees of freedom: its fourth moment is infinite."""
    return [np.random.default_rng(2).standard_t(3, count).astype(np.float32)]


def update(count: int) -> list[Array]:
    """The weights' change over 40 steps of a network on the digits that scikit-learn ships: 64
    inputs, two hidden layers, 10 outputs, about `count` weights."""
    from sklearn.datasets import load_digits  # optional, as torch is

    images, labels = load_digits(return_X_y=True)
    images, wanted = images.astype(np.float32) / 16, np.eye(10, dtype=np.float32)[labels]
    width = int(math.sqrt(count))
    rng = np.random.default_rng(3)
    sizes = ((64, width), (width, width), (width, 10))
    weights = [
        (rng.standard_normal(size) * math.sqrt(2 / size[0])).astype(np.float32) for size in sizes
    ]
    before = [w.copy() for w in weights]
    for _ in range(40):
        chosen = rng.integers(0, len(images), 32)
        for w, slope in zip(
            weights, gradients(weights, images[chosen], wanted[chosen]), strict=True
        ):
            w -= np.float32(0.05) * slope
    return [(w - old).reshape(-1) for w, old in zip(weights, before, strict=True)]


def gradients(weights: list[Array], x: Array, wanted: Array) -> list[Array]:
    """Of the mean cross-entropy, by backpropagation through ReLU layers."""
    seen = [x]
    for w in weights[:-1]:
        seen.append(np.maximum(seen[-1] @ w, 0))
    scores = seen[-1] @ weights[-1]
    likely = np.exp(scores - scores.max(axis=1, keepdims=True))
    slope = (likely / likely.sum(axis=1, keepdims=True) - wanted) / np.float32(len(x))
    found = []
    for w, inside in zip(reversed(weights), reversed(seen), strict=True):
        found.append(inside.T @ slope)
        slope = (slope @ w.T) * (inside > 0)
    return found[::-1]


SAMPLES: dict[str, Callable[[int], list[Array]]] = {
    "gaussian": gaussian,
    "student t 3": student,
    "digits update": update,
}


def pieces(tensors: list[Array]) -> Iterator[tuple[int, int, Array]]:
    """(tensor, chunk, its elements), as openfed cuts them."""
    for entry, flat in enumerate(tensors):
        for chunk, start in enumerate(range(0, flat.size, CHUNK)):
            yield entry, chunk, flat[start : start + CHUNK]
