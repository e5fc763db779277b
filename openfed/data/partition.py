"""Ways to split one data set over sites. Each puts every sample into exactly one site.

All: (values, sites, rng, settings) -> one int64 array of sample positions per site, ascending. The
same generator state gives the same split; no other chance comes in.
Raise: TaskError: K40, the settings or the data do not allow such a split.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np

from openfed.errors import TaskError
from openfed.typing import Array

TRIES = 10_000
"""Draws of proportions before `dirichlet` says that its minimum cannot be had."""

Split = list[Array]


def iid(n: int, sites: int, rng: np.random.Generator) -> Split:
    """At random, in parts whose sizes differ by one at most."""
    _check(sites >= 1 and n >= sites, f"expected 1 to {n} sites, one sample for each at least")
    return _ascending(np.array_split(rng.permutation(n), sites))


def dirichlet(
    labels: Array, sites: int, rng: np.random.Generator, *, alpha: float, minimum: int = 1
) -> Split:
    """Each class is divided over the sites in proportions drawn from Dirichlet(alpha, ..., alpha).

    alpha from 1e-4 to 1e8: small ones give sites of few classes, large ones iid. Proportions are
    drawn anew until every site has `minimum` samples: they are Dirichlet, given that. Sources:
    Hsu, Qi, Brown 2019, arXiv:1909.06335; as here per class, and with a minimum, Li et al. 2021,
    arXiv:2102.02079 (whose code besides holds large sites back: not done here).
    """
    of = _classes(labels, sites)
    _check(1e-4 <= alpha <= 1e8, "alpha: expected 0.0001 to 100000000")
    _check(0 <= minimum * sites <= len(of), f"minimum: {len(of)} samples are too few for {sites}")
    counts = np.bincount(of)
    for _ in range(TRIES):
        shares = rng.dirichlet(np.full(sites, alpha), size=len(counts))
        cuts = np.floor(np.cumsum(shares, axis=1)[:, :-1] * counts[:, None] + 0.5).astype(np.int64)
        cuts = np.minimum(cuts, counts[:, None])
        ends = np.concatenate([np.zeros_like(counts)[:, None], cuts, counts[:, None]], axis=1)
        if np.diff(ends, axis=1).sum(axis=0).min() >= minimum:
            break
    else:
        message = f"no split with {minimum} samples at every site in {TRIES} draws: raise alpha, "
        raise TaskError("K40", f"partition: {message}or lower minimum or sites")
    found: list[list[Array]] = [[] for _ in range(sites)]
    for each, row in enumerate(cuts):
        members = rng.permutation(np.flatnonzero(of == each))
        for site, part in zip(found, np.split(members, row), strict=True):
            site.append(part)
    return _ascending([np.concatenate(parts) for parts in found])


def shards(labels: Array, sites: int, rng: np.random.Generator, *, each: int = 2) -> Split:
    """Samples in the order of their labels are cut into sites * each shards, dealt at random.

    A site has at most `each` labels where no shard crosses from one label to the next. Source:
    McMahan et al. 2017, arXiv:1602.05629, section 3, with each = 2.
    """
    of = _classes(labels, sites)
    _check(each >= 1 and each * sites <= len(of), "each: expected a sample for every shard")
    mixed = rng.permutation(len(of))
    pieces = np.array_split(mixed[np.argsort(of[mixed], kind="stable")], sites * each)
    dealt = rng.permutation(sites * each).reshape(sites, each)
    return _ascending([np.concatenate([pieces[i] for i in row]) for row in dealt])


def quantity(
    n: int,
    sites: int,
    rng: np.random.Generator,
    *,
    law: Literal["lognormal", "power"],
    skew: float,
    minimum: int = 1,
) -> Split:
    """Samples at random, in parts of unequal sizes.

    Beyond `minimum` each, sizes are as exp(skew * z) with z standard normal (lognormal), or as
    rank^-skew with ranks 1 to sites dealt at random (power: Zipf's law); skew >= 0, 0 is equal.
    """
    _check(sites >= 1 and minimum >= 0 and max(minimum, 1) * sites <= n, "too few samples")
    _check(law in ("lognormal", "power"), "law: expected lognormal or power")
    _check(0 <= skew < np.inf, "skew: expected a finite number >= 0")
    drawn = (
        rng.standard_normal(sites) if law == "lognormal" else -np.log(rng.permutation(sites) + 1)
    )
    scaled = skew * drawn
    sizes = minimum + _apportion(np.exp(scaled - scaled.max()), n - minimum * sites)
    return _ascending(np.split(rng.permutation(n), np.cumsum(sizes)[:-1]))


def by_key(keys: Array, sites: int, rng: np.random.Generator) -> Split:
    """All samples of a key (a user, a patient) at one site; keys are dealt in random order.

    Each goes to the site with the fewest samples yet, the first of several: no site is empty.
    """
    of = _classes(keys, sites)
    counts = np.bincount(of)
    _check(len(counts) >= sites, f"expected at least as many keys as sites, {sites}")
    home, sizes = np.zeros(len(counts), np.int64), np.zeros(sites, np.int64)
    for key in rng.permutation(len(counts)):
        home[key] = np.argmin(sizes)
        sizes[home[key]] += counts[key]
    return [np.flatnonzero(home[of] == site) for site in range(sites)]


def natural(column: Array, sites: int, rng: np.random.Generator) -> Split:
    """A site per value of a column (hospital, device), in sorted order; nothing is drawn."""
    of = _classes(column, sites)
    found = int(of.max()) + 1
    _check(found == sites, f"the column has {found} values, expected {sites}: one for each site")
    return [np.flatnonzero(of == site) for site in range(sites)]


PARTITIONERS: Mapping[str, Callable[..., Split]] = {
    "iid": lambda values, *given, **settings: iid(len(values), *given, **settings),
    "dirichlet": dirichlet,
    "shards": shards,
    "quantity": lambda values, *given, **settings: quantity(len(values), *given, **settings),
    "by_key": by_key,
    "natural": natural,
}


def partition(
    name: str, values: Array, sites: int, rng: np.random.Generator, settings: Mapping[str, Any]
) -> Split:
    """By a name of the table; `values`, of shape (n,): labels, keys, or whatever n are counted."""
    _check(name in PARTITIONERS, f"{name!r} is unknown; known: {', '.join(PARTITIONERS)}")
    try:
        return PARTITIONERS[name](values, sites, rng, **settings)
    except TypeError:
        told = ", ".join(sorted(settings)) or "none"
        message = f"partition: {name} does not take these settings, or such values: {told}"
        raise TaskError("K40", message) from None


def share(source: Mapping[str, Any], values: Array) -> Array:
    """The samples of one data set that are a site's own, as int64 positions, ascending.

    `source`: what local.yaml's `partition` hands to a loader, or a person writes in `sites`:
    {share: [2, 10] (the second of ten), by: {dirichlet: {alpha: 0.1}} (or a name alone), seed: 0};
    other keys are the loader's.
    `values`: labels, keys or anything of shape (n,), as `partition` takes them.
    Raises: TaskError: K40, also where `source` is not of this form.
    """
    told: Mapping[str, Any] = source if isinstance(source, Mapping) else {}
    place, by, seed = told.get("share"), told.get("by"), told.get("seed", 0)
    chosen = [(by, {})] if isinstance(by, str) else [*by.items()] if isinstance(by, Mapping) else []
    numbers = [*place, seed] if isinstance(place, list | tuple) else []
    right = len(numbers) == 3 and all(type(each) is int for each in numbers) and len(chosen) == 1
    right = right and 1 <= numbers[0] <= numbers[1] and seed >= 0
    right = right and isinstance(chosen[0][1] or {}, Mapping)
    _check(right, "expected {share: [2, 10], by: {dirichlet: {alpha: 0.1}}, seed: 0}")
    (name, settings), (number, sites, _) = chosen[0], numbers
    rng = np.random.default_rng(seed)
    own: Array = partition(name, values, sites, rng, settings or {})[number - 1]
    return own


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise TaskError("K40", f"partition: {message}")


def _classes(labels: Array, sites: int) -> Array:
    """Labels as positions among their sorted values. Their kind must have an order."""
    labels = np.asarray(labels)
    _check(labels.ndim == 1 and labels.dtype.kind in "biufUS", "expected one label per sample")
    _check(1 <= sites <= len(labels), f"expected 1 to {len(labels)} sites, a sample for each")
    _, positions = np.unique(labels, return_inverse=True)
    return np.asarray(positions, dtype=np.int64)


def _apportion(weights: Array, total: int) -> Array:
    """Integers that add up to `total`, in proportion to weights: largest remainders, first ones."""
    exact = weights / weights.sum() * total
    whole: Array = np.floor(exact).astype(np.int64)
    rest = total - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:rest]] += 1
    return whole


def _ascending(parts: list[Array]) -> Split:
    return [np.sort(part).astype(np.int64) for part in parts]
