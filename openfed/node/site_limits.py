"""A site's own limits while it takes part: what may leave it, and how updates are filtered.

The filters are sources around the update: chunk by chunk, so that memory does not grow with the
model, and between the update and the codecs, so that nothing of a trained model passes them by.
"""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from openfed.errors import PolicyError, TaskError
from openfed.flow.metrics import PREFIX
from openfed.plan.site import Filter, Limits, Site, in_bytes, noised
from openfed.tensors.check import check_finite
from openfed.tensors.frame import Source, chunks
from openfed.tensors.record import DTYPES, Signature, matches
from openfed.typing import Array, Numbers

OWN = frozenset({"R30", "R34"})
"""Limits of the site's own after which it leaves the run; the aggregator is told before."""

MARGIN = 2.0**-22
"""By how much more an update is scaled down, so that rounding to float32 can't lift its norm above
the limit."""

SLACK = 1e-9
"""How far two sums of the same squares may lie apart, relatively."""


def once(site: Site | None) -> bool:
    """Whether a reply is whole and durable before its first byte leaves, and never made twice for
    one ask: two draws of noise would average, and bytes are counted before they leave."""
    if site is None:
        return False
    noisy = any(each.noise is not None for each in site.filters)
    return noisy or site.limits.bytes_out is not None


def check_round(limits: Limits, round: int, *, trains: bool) -> None:
    """Raises: PolicyError R30: more rounds of training than the site allows."""
    if trains and limits.rounds is not None and round > limits.rounds:
        message = f"site.yaml: limits.rounds is {limits.rounds}, and round {round} was asked for"
        raise PolicyError("R30", message)


def check_samples(limits: Limits, numbers: Numbers) -> None:
    """Raises: TaskError K31, which doesn't say how many there were: that would leave the site."""
    if limits.samples is not None and numbers["n"][0] < limits.samples:
        raise TaskError("K31", "fewer samples than this site's limits.samples; nothing was sent")


def allowed_numbers(limits: Limits, numbers: Numbers) -> Numbers:
    """Without the metrics that may not leave."""
    if limits.metrics is None:
        return numbers
    return {
        name: values
        for name, values in numbers.items()
        if not name.startswith(PREFIX) or name.split("/", 2)[-1] in limits.metrics
    }


def check_sent(limits: Limits, sent: int, size: int) -> None:
    """`sent`: bytes of all replies so far; `size`: of the next one.

    Raises: PolicyError R34: with it there would be more than the site allows.
    """
    most = limits.bytes_out
    if most is not None and sent + size > most:
        message = (
            f"site.yaml: limits.bytes_out is {in_bytes(most)}; {sent} bytes have left in this run, "
            f"and a reply of {size} was to follow: it was not sent, and this site leaves the run"
        )
        raise PolicyError("R34", message)


# -- filters --------------------------------------------------------------------------------------


def filtered(update: Source, filters: Sequence[Filter]) -> Source:
    """`update` as it may leave; read its entries in order, each chunk once.

    Reads the whole update where its norm is needed. Raises: what reading the update raises.
    """
    moving = frozenset(spec.name for spec in update.specs if noised(spec))
    for each in filters:
        if each.drop is not None:
            gone = frozenset(spec.name for spec in update.specs if matches(spec.name, each.drop))
            update, moving = _Dropped(update, gone), moving - gone
        elif each.clip_norm is not None:
            update = _Clipped(update, moving, each.clip_norm)
        elif each.noise is not None:
            update = _Noisy(update, moving, each.noise.std)
    return update


@dataclass(frozen=True)
class _Dropped:
    source: Source
    gone: frozenset[str]

    @property
    def specs(self) -> Signature:
        return self.source.specs

    @property
    def numbers(self) -> Numbers:
        return self.source.numbers

    def read(self, name: str, start: int, out: Array) -> None:
        if name in self.gone:
            out[...] = 0
        else:
            self.source.read(name, start, out)


class _Clipped:
    """Scales by one factor, of a first pass over the whole update. What is read in the second one
    can be other bytes, since the task's process can write its file meanwhile: it must not be more.
    """

    def __init__(self, source: Source, moving: frozenset[str], most: float) -> None:
        self.source, self._moving = source, moving
        self._total, self._seen = _squares(source, moving), 0.0
        norm = math.sqrt(self._total)
        self._factor = most / norm * (1 - MARGIN) if norm > most else 1.0
        self._most = max(self._total * (1 + SLACK), most * most if norm <= most else 0.0)

    @property
    def specs(self) -> Signature:
        return self.source.specs

    @property
    def numbers(self) -> Numbers:
        return self.source.numbers

    def read(self, name: str, start: int, out: Array) -> None:
        self.source.read(name, start, out)
        if name not in self._moving:
            return
        self._seen += _square(out)
        if self._seen > self._most:
            raise TaskError("K28", f"{name}: the task's result changed while it was read")
        if self._factor < 1:
            out[...] = out * np.float64(self._factor)


def _squares(source: Source, moving: frozenset[str]) -> float:
    """The sum of the squares of these entries."""
    return sum(_each_square(source, moving), 0.0)


def _each_square(source: Source, moving: frozenset[str]) -> Iterable[float]:
    for spec in source.specs:
        if spec.name in moving:
            for start, count in chunks(spec):
                values = np.empty(count, DTYPES[spec.dtype])
                source.read(spec.name, start, values)
                yield _square(values)


def _square(values: Array) -> float:
    wide = values.astype(np.float64)
    with np.errstate(over="ignore"):  # infinite: nothing of it is left, then
        return float(np.dot(wide, wide))


@dataclass(frozen=True)
class _Noisy:
    """Every read draws anew: whoever reads twice tells more than once."""

    source: Source
    moving: frozenset[str]
    std: float

    @property
    def specs(self) -> Signature:
        return self.source.specs

    @property
    def numbers(self) -> Numbers:
        return self.source.numbers

    def read(self, name: str, start: int, out: Array) -> None:
        self.source.read(name, start, out)
        if name in self.moving:
            with np.errstate(over="ignore"):
                out[...] = out + self.std * gaussian(out.size)
            check_finite(name, out)


def gaussian(count: int) -> Array:
    """Independent standard normal numbers (float64), by Box and Muller from the operating
    system's randomness; 53 bits a draw, so none is beyond 8.6."""
    pairs = -(-count // 2)
    drawn = np.frombuffer(os.urandom(16 * pairs), np.uint64).reshape(2, pairs) >> np.uint64(11)
    unit = (drawn[0].astype(np.float64) + 1) * 2.0**-53  # above 0, 1 at most
    radius = np.sqrt(-2 * np.log(unit))
    angle = drawn[1].astype(np.float64) * (2.0**-53 * 2 * math.pi)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
