"""Ridge regression in one round, logistic regression by Newton steps."""

from dataclasses import dataclass

import numpy as np

from openfed.errors import OpenFedError
from openfed.exact.base import EPS, Floats, Ints, State, Sums, flag, labels, members, table, values
from openfed.typing import Array, Tensors

SEPARATED = 1e-9
"""Nats a row: below that, without a penalty, the weights are on their way to infinity."""

NEAR = 1e-8
"""So near to the least objective, relatively, Newton's steps are safe, and rounding may hide what
they gain: they are taken as they are, until the gap no longer falls."""


@dataclass(frozen=True)
class Ridge:
    """min over w, b of the sum of (y - x w - b)^2, plus alpha ||w||^2 (Hoerl, Kennard 1970).

    `standardise`: the columns are scaled to variance 1 (divisor n) first, so alpha counts in those
    units; coefficients are told in the data's own. The intercept is not penalised. Sums of squares
    lose eps (mean / deviation)^2 of a column: subtract a public origin from years or timestamps.
    A column of deviation below 1e-7 of its size counts as constant and gets 0.
    State: coef (features,), intercept (), mean and scale (features,), n ().
    """

    features: int
    alpha: float = 1.0
    standardise: bool = False

    def start(self) -> State:
        d = self.features
        zeros: State = {name: np.zeros(d) for name in ("coef", "mean")}
        zeros |= {"scale": np.ones(d), "intercept": np.zeros(()), "n": np.zeros(())}
        return {**zeros, "done": flag(0)}

    def lift(self, state: Tensors, x: Array, y: Array | None) -> Sums:
        rows = table(x, self.features)
        wanted = values(y, len(rows))
        return {
            "n": np.asarray(float(len(rows))),
            "x": rows.sum(axis=0),
            "xx": rows.T @ rows,
            "y": np.asarray(wanted.sum()),
            "xy": rows.T @ wanted,
        }

    def step(self, state: Tensors, sums: Sums) -> State:
        """Raises: OpenFedError K52: no rows. K53: the columns do not determine the answer."""
        n = float(sums["n"])
        if n == 0:
            raise OpenFedError("K52", "ridge regression: there is no row at any site")
        mean, middle = sums["x"] / n, float(sums["y"]) / n
        gram = sums["xx"] - n * np.outer(mean, mean)
        moment = sums["xy"] - n * mean * middle
        varies = np.diag(gram) > 64 * EPS * np.diag(sums["xx"])
        scale = np.ones(self.features)
        if self.standardise:
            scale = np.where(varies, np.sqrt(np.maximum(np.diag(gram), 0) / n), 1.0)
            scale[~varies] = 1.0
        coef = np.zeros(self.features)
        kept = np.flatnonzero(varies)
        inner = (gram / np.outer(scale, scale))[np.ix_(kept, kept)]
        solved = solve_definite(
            inner + self.alpha * np.eye(len(kept)), (moment / scale)[kept], "ridge regression"
        )
        coef[kept] = solved / scale[kept]
        return {
            "coef": coef,
            "intercept": np.asarray(middle - mean @ coef),
            "mean": mean,
            "scale": scale,
            "n": sums["n"],
            "done": flag(1),
        }

    def predict(self, state: Tensors, x: Array) -> Floats:
        return np.asarray(table(x, self.features) @ state["coef"] + state["intercept"])


def solve_definite(matrix: Floats, right: Floats, what: str) -> Floats:
    """The solution for a symmetric positive definite matrix, its diagonal scaled to 1 first.

    Raises: OpenFedError K53: it is singular to working precision.
    """
    size = np.sqrt(np.maximum(np.diag(matrix), 0))
    if right.size == 0:
        return np.zeros_like(right)
    if size.min() > 0:
        scaled = matrix / np.outer(size, size)
        lowest = np.linalg.eigvalsh((scaled + scaled.T) / 2)[0]
        if lowest > len(size) * EPS:
            return np.asarray(np.linalg.solve(scaled, right / size) / size)
    message = f"{what}: the columns of all sites' rows do not determine one answer"
    raise OpenFedError("K53", message)


@dataclass(frozen=True)
class Logistic:
    """min over w, b of the sum over rows of -log p(y | x), plus penalty / 2 ||w||^2, by Newton.

    Two classes: p(1) = 1 / (1 + exp(-x w - b)); more: softmax, one (w, b) a class. The penalty is
    on the pooled sum (scikit-learn's 1 / C), the intercepts are free. A step that does not lower
    the objective is halved. Done when half the squared Newton decrement, an estimate of how far the
    objective is above its least value, is below `tol` times it, or as small as rounding lets it be
    (Boyd, Vandenberghe 2004, 9.5.1).
    Softmax is unchanged when one vector is added to all classes: the answer's classes sum to 0.
    State: coef (outputs, features), intercept (outputs,), loss (): the objective one
    step before, gap (): how far that was above its least value; outputs is 1 for two classes.
    """

    features: int
    classes: int = 2
    penalty: float = 1.0
    tol: float = 1e-14

    @property
    def outputs(self) -> int:
        return 1 if self.classes == 2 else self.classes

    def start(self) -> State:
        shape = (self.outputs, self.features + 1)
        return {
            **self._parts(np.zeros(shape)),
            "best": np.zeros(shape),
            "move": np.zeros(shape),
            "share": np.asarray(0.0),  # of the move that led from best to here; 0: none yet
            "loss": np.zeros(()),
            "gap": np.zeros(()),
            "done": flag(0),
        }

    def _parts(self, weights: Floats) -> State:
        return {"coef": weights[:, :-1].copy(), "intercept": weights[:, -1].copy()}

    def lift(self, state: Tensors, x: Array, y: Array | None) -> Sums:
        rows = table(x, self.features)
        wanted = members(labels(y, len(rows), self.classes), self.classes)
        wide = np.hstack([rows, np.ones((len(rows), 1))])
        p, loss = self._loss(state, rows, wanted)
        outputs, width = self.outputs, self.features + 1
        hessian = np.empty((outputs, width, outputs, width))
        for a in range(outputs):
            for b in range(a + 1):
                weight = p[:, a] * ((a == b) - p[:, b])
                hessian[a, :, b, :] = hessian[b, :, a, :] = (wide * weight[:, None]).T @ wide
        return {
            "n": wanted.sum(axis=0),
            "loss": np.asarray(loss),
            "gradient": (p - wanted[:, -outputs:]).T @ wide,
            "hessian": hessian.reshape(outputs * width, outputs * width),
        }

    def _loss(self, state: Tensors, rows: Floats, wanted: Floats) -> tuple[Floats, float]:
        """Probabilities of the outputs (rows, outputs), and the sum of -log p(y | x)."""
        margin = self.margins(state, rows)
        full = np.hstack([np.zeros_like(margin), margin]) if self.outputs == 1 else margin
        full = full - full.max(axis=1, keepdims=True)
        total = np.log(np.exp(full).sum(axis=1))
        loss = float((total - (full * wanted).sum(axis=1)).sum())
        return np.exp(full - total[:, None])[:, -self.outputs :], loss

    def step(self, state: Tensors, sums: Sums) -> State:
        """Raises: OpenFedError K52: a class has no row at any site, so there is no minimum. K53: no
        minimum, or no single one: without a penalty, classes that a plane separates, or columns
        that depend on each other."""
        if not sums["n"].all():
            missing = int(np.flatnonzero(sums["n"] == 0)[0])
            message = f"logistic regression: no site has a row of class {missing}"
            raise OpenFedError("K52", message)
        here = np.hstack([state["coef"], state["intercept"][:, None]])
        free = np.ones_like(here)
        free[:, -1] = 0
        loss = float(sums["loss"]) + self.penalty / 2 * float((free * here**2).sum())
        if self.penalty == 0 and loss < SEPARATED * sums["n"].sum():
            message = "logistic regression: a plane separates the classes, and there is no penalty"
            raise OpenFedError("K53", message)
        share, before = float(state["share"]), float(state["gap"])
        near = share > 0 and before <= NEAR * float(state["loss"])
        if share > 2**-20 and not near and loss > float(state["loss"]):
            return self._halved(state, share / 2)
        gradient = sums["gradient"] + self.penalty * free * here
        hessian = sums["hessian"] + self.penalty * np.diag(free.reshape(-1))
        move = -solve_definite(
            self._pinned(hessian), gradient.reshape(-1), "logistic regression"
        ).reshape(here.shape)
        gap = -float((gradient * move).sum()) / 2
        over = gap <= self.tol * loss or (near and gap > before / 4) or 0 < share <= 2**-20
        return {
            **self._parts(here + move),
            "best": here,
            "move": move,
            "share": np.asarray(1.0),
            "loss": np.asarray(loss),
            "gap": np.asarray(max(gap, 0.0)),
            "done": flag(bool(over)),
        }

    def _halved(self, state: Tensors, share: float) -> State:
        weights = state["best"] + share * state["move"]
        return {**state, **self._parts(weights), "share": np.asarray(share)}

    def _pinned(self, hessian: Floats) -> Floats:
        """Softmax: curvature along what changes no probability; the answer stays where it is."""
        if self.outputs == 1:
            return hessian
        width = self.features + 1
        size = np.diag(hessian).reshape(self.outputs, width).mean(axis=0)
        return np.asarray(hessian + np.tile(np.diag(size), (self.outputs, self.outputs)))

    def margins(self, state: Tensors, x: Array) -> Floats:
        """(rows, outputs): scores before sigmoid or softmax."""
        return np.asarray(table(x, self.features) @ state["coef"].T + state["intercept"])

    def probabilities(self, state: Tensors, x: Array) -> Floats:
        """(rows, classes)."""
        rows = table(x, self.features)
        p, _ = self._loss(state, rows, np.zeros((len(rows), self.classes)))
        return np.hstack([1 - p, p]) if self.outputs == 1 else p

    def predict(self, state: Tensors, x: Array) -> Ints:
        return np.asarray(self.probabilities(state, x).argmax(axis=1), np.int64)
