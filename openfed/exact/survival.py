"""Kaplan-Meier curves from counts, with Greenwood's variance."""

from dataclasses import dataclass

import numpy as np

from openfed.exact.base import Floats, State, Sums, flag, labels, table
from openfed.exact.statistics import histograms
from openfed.typing import Array, Tensors


@dataclass(frozen=True)
class KaplanMeier:
    """One round. x: (rows, 2): time in whole units (days, months), and 1 for an event or 0 where
    observation ended; y: the row's group, which may be absent with one group.

    Times from `horizon` on count as observation that ended there. With n rows at risk and d events
    at time t: survival(t) = product over s <= t of (1 - d / n); its variance is survival^2 times
    the sum of d / (n (n - d)), 0 once nobody is left (Kaplan, Meier 1958; Greenwood 1926).
    State: events, at_risk, survival, variance (groups, horizon), by time 0 to `horizon` - 1.
    """

    horizon: int
    groups: int = 1
    features: int = 2

    def start(self) -> State:
        shape = (self.groups, self.horizon)
        names = ("events", "at_risk", "survival", "variance")
        return {**{name: np.zeros(shape) for name in names}, "done": flag(0)}

    def lift(self, state: Tensors, x: Array, y: Array | None = None) -> Sums:
        """Raises: TaskError K51: a time that is no whole number >= 0, an event that is not 0/1."""
        rows = table(x, 2)
        n = len(rows)
        time = labels(np.minimum(rows[:, 0], self.horizon), n, self.horizon + 1, "whole time")
        event = labels(rows[:, 1], n, 2, "event")
        alone = self.groups == 1 and y is None
        group = labels(np.zeros(n) if alone else y, n, self.groups, "group")
        cell = group * (self.horizon + 1) + time

        def count(which: Array) -> Floats:
            found = histograms(cell[which][:, None], self.groups * (self.horizon + 1))
            return found.reshape(self.groups, self.horizon + 1)

        return {"events": count(event == 1), "ended": count(event == 0)}

    def step(self, state: Tensors, sums: Sums) -> State:
        leaving = sums["events"] + sums["ended"]
        at_risk = leaving[:, ::-1].cumsum(axis=1)[:, ::-1][:, :-1]
        events = sums["events"][:, :-1]
        left = at_risk - events
        survival = np.cumprod(np.where(at_risk > 0, left / np.maximum(at_risk, 1), 1.0), axis=1)
        hazard = events / np.maximum(at_risk * left, 1)
        return {
            "events": events,
            "at_risk": at_risk,
            "survival": survival,
            "variance": survival**2 * hazard.cumsum(axis=1),
            "done": flag(1),
        }
