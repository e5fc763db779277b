"""Schedules of the learning rate: functions of the round and the step, never objects with state.

Each is called as `(round from 1, rounds, share of this round's training that is done)` with the
plan's settings, and gives the factor of every learning rate.
"""

import math
from collections.abc import Callable, Mapping


def cosine(
    round: int, rounds: int, done: float, *, over: str = "rounds", floor: float = 0.0
) -> float:
    """Half a cosine from 1 to `floor` over the run; with `over="steps"` also within a round."""
    at = (round - 1 + (done if over == "steps" else 0.0)) / rounds
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * at))


def linear(
    round: int, rounds: int, done: float, *, over: str = "rounds", floor: float = 0.0
) -> float:
    """A straight line from 1 to `floor`; `over` as in `cosine`."""
    at = (round - 1 + (done if over == "steps" else 0.0)) / rounds
    return 1 - (1 - floor) * at


def step(round: int, rounds: int, done: float, *, every: int, gamma: float = 0.1) -> float:
    """Times `gamma` after every `every` rounds."""
    return float(gamma ** ((round - 1) // every))


def exponential(round: int, rounds: int, done: float, *, gamma: float) -> float:
    return float(gamma ** (round - 1))


SCHEDULES: Mapping[str, Callable[..., float]] = {
    "cosine": cosine,
    "linear": linear,
    "step": step,
    "exponential": exponential,
}
