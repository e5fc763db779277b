"""Splits: every sample once, the same again, and what each partitioner says it does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.data.partition import (
    PARTITIONERS,
    _apportion,
    by_key,
    dirichlet,
    iid,
    natural,
    partition,
    quantity,
    shards,
    share,
)
from openfed.errors import TaskError

SETTINGS = {
    "iid": {},
    "dirichlet": {"alpha": 0.5, "minimum": 0},
    "shards": {"each": 1},
    "quantity": {"law": "power", "skew": 1.5},
    "by_key": {},
    "natural": {},
}


def rng(seed=7):
    return np.random.default_rng(seed)


def refuses(call, *given, **settings):
    with pytest.raises(TaskError) as caught:
        call(*given, **settings)
    assert caught.value.code == "K40"
    return caught.value.message


@given(
    name=st.sampled_from(sorted(PARTITIONERS)),
    labels=st.lists(st.integers(0, 4), min_size=5, max_size=80),
    sites=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_sample_is_at_exactly_one_site_and_the_same_again(name, labels, sites, seed):
    labels = np.array(labels)
    if name == "natural":
        sites = len(set(labels.tolist()))
    if name == "by_key":
        labels = np.arange(len(labels)) // 2 if len(labels) >= 10 else np.arange(len(labels))
    split = partition(name, labels, sites, rng(seed), SETTINGS[name])
    assert len(split) == sites and all(part.dtype == np.int64 for part in split)
    assert sorted(np.concatenate(split).tolist()) == list(range(len(labels)))
    assert all((np.diff(part) > 0).all() for part in split)
    again = partition(name, labels, sites, rng(seed), SETTINGS[name])
    assert all(np.array_equal(a, b) for a, b in zip(split, again, strict=True))


def test_another_seed_is_another_split():
    labels = np.arange(100) % 10
    for name in sorted(set(PARTITIONERS) - {"natural"}):
        one, other = (partition(name, labels, 5, rng(seed), SETTINGS[name]) for seed in (1, 2))
        assert any(not np.array_equal(a, b) for a, b in zip(one, other, strict=True)), name


def test_iid_sizes_differ_by_one_at_most():
    assert sorted(len(part) for part in iid(11, 4, rng())) == [2, 3, 3, 3]


def test_dirichlet_moments_are_those_of_the_distribution():
    """A site's share of a class: mean 1/K, variance (K-1) / (K^2 (K alpha + 1))."""
    labels = np.zeros(2000, np.int64)
    for alpha in (0.1, 1.0, 20.0):
        g = rng(3)
        share = np.array([[len(p) for p in dirichlet(labels, 4, g, alpha=alpha, minimum=0)]
                          for _ in range(1500)]) / 2000  # fmt: skip
        expected = 3 / (16 * (4 * alpha + 1))
        assert np.allclose(share.mean(axis=0), 0.25, atol=0.04)
        assert np.allclose(share.var(axis=0), expected, rtol=0.2)


def test_dirichlet_divides_each_class_by_itself():
    labels = np.repeat(np.arange(10), 200)
    split = dirichlet(labels, 5, rng(), alpha=0.1)
    counts = np.array([np.bincount(labels[part], minlength=10) for part in split])
    assert (counts.sum(axis=0) == 200).all()
    assert (counts == 0).any() and len(set(counts.argmax(axis=0).tolist())) > 1
    even = dirichlet(labels, 5, rng(), alpha=1e6)
    assert all(abs(np.bincount(labels[p], minlength=10) - 40).max() <= 2 for p in even)


def test_dirichlet_takes_members_of_a_class_at_random():
    parts = dirichlet(np.zeros(100, int), 2, rng(), alpha=1e6)
    assert all(35 < np.median(part) < 65 for part in parts)


def test_dirichlet_holds_the_minimum_of_the_issue():
    digits = np.arange(1797) % 10
    for seed in range(5):
        split = dirichlet(digits, 10, rng(seed), alpha=0.1, minimum=10)
        assert min(map(len, split)) >= 10


@pytest.mark.parametrize("alpha", [1e-4, 1e-3, 1e8])
def test_dirichlet_at_the_ends_of_its_range(alpha):
    split = dirichlet(np.arange(60) % 3, 3, rng(), alpha=alpha, minimum=0)
    assert sum(map(len, split)) == 60


def test_a_minimum_that_is_never_drawn_is_said():
    message = refuses(dirichlet, np.zeros(20, int), 10, rng(), alpha=1e-4, minimum=2)
    assert "raise alpha" in message


def test_shards_give_a_site_as_many_labels_as_shards():
    labels = np.repeat(np.arange(10), 20)[rng(1).permutation(200)]
    split = shards(labels, 10, rng(), each=2)
    assert all(len(part) == 20 and len(set(labels[part].tolist())) <= 2 for part in split)
    assert any(len(set(labels[part].tolist())) == 2 for part in split)


def test_sizes_by_largest_remainders():
    assert _apportion(np.array([1.0, 1.0, 1.0]), 10).tolist() == [4, 3, 3]
    assert _apportion(np.array([5.0, 3.0, 2.0]), 7).tolist() == [4, 2, 1]  # 3.5, 2.1, 1.4


def test_power_sizes_are_as_the_ranks():
    sizes = sorted(map(len, quantity(110, 3, rng(), law="power", skew=1.0, minimum=0)))
    assert sizes == [20, 30, 60]  # 110 * (6, 3, 2) / 11
    assert set(map(len, quantity(90, 3, rng(), law="power", skew=0.0))) == {30}


def test_lognormal_sizes_have_the_spread_asked_for():
    sizes = np.array([len(p) for p in quantity(10**6, 2000, rng(), law="lognormal", skew=0.5)])
    assert sizes.min() >= 1
    assert np.log(sizes).std() == pytest.approx(0.5, abs=0.03)


def test_quantity_gives_everybody_the_minimum():
    sizes = [len(p) for p in quantity(1000, 20, rng(), law="power", skew=3.0, minimum=7)]
    assert min(sizes) >= 7 and sum(sizes) == 1000


def test_a_key_stays_at_one_site_and_sites_fill_evenly():
    keys = np.array([f"u{i}" for i in rng(5).integers(0, 50, 1000)])
    split = by_key(keys, 4, rng())
    homes = [set(keys[part].tolist()) for part in split]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 50
    assert max(map(len, split)) - min(map(len, split)) <= 40


def test_a_natural_split_is_a_site_per_value_in_sorted_order():
    split = natural(np.array(["b", "a", "b", "c"]), 3, rng())
    assert [part.tolist() for part in split] == [[1], [0, 2], [3]]


@pytest.mark.parametrize(
    ("name", "values", "sites", "settings"),
    [
        ("iid", np.zeros(3), 4, {}),
        ("iid", np.zeros(3), 0, {}),
        ("unheard", np.zeros(3), 1, {}),
        ("iid", np.zeros(3), 1, {"alpha": 1}),
        ("dirichlet", np.zeros(9), 2, {"alpha": 0}),
        ("dirichlet", np.zeros(9), 2, {"alpha": float("nan")}),
        ("dirichlet", np.zeros(9), 2, {"alpha": "x"}),
        ("dirichlet", np.zeros(9), 2, {"alpha": 1, "minimum": 5}),
        ("dirichlet", np.zeros((9, 2)), 2, {"alpha": 1}),
        ("dirichlet", np.array([object()] * 9), 2, {"alpha": 1}),
        ("shards", np.zeros(9), 3, {"each": 4}),
        ("shards", np.zeros(9), 3, {"each": 0}),
        ("quantity", np.zeros(9), 3, {"law": "even", "skew": 1}),
        ("quantity", np.zeros(9), 3, {"law": "power", "skew": -1}),
        ("quantity", np.zeros(9), 3, {"law": "power", "skew": 1, "minimum": 4}),
        ("by_key", np.array([1, 1, 2, 2]), 3, {}),
        ("natural", np.array([1, 1, 2, 2]), 3, {}),
    ],
)
def test_what_cannot_be_split_so_is_refused(name, values, sites, settings):
    assert refuses(partition, name, values, sites, rng(), settings)


def test_a_share_is_a_sites_part_of_the_split():
    labels = np.arange(90) % 9
    source = {"of": "data", "share": [2, 3], "by": {"dirichlet": {"alpha": 0.5}}, "seed": 11}
    assert share(source, labels).tolist() == dirichlet(labels, 3, rng(11), alpha=0.5)[1].tolist()
    bare = share({"share": (1, 3), "by": "iid"}, labels)
    assert bare.tolist() == iid(90, 3, rng(0))[0].tolist()


@pytest.mark.parametrize(
    "changes",
    [
        *({"share": value} for value in (None, 2, [2], [0, 3], [4, 3], [True, 3], ["1", 3])),
        *({"by": value} for value in (None, {}, 3, {"iid": {}, "shards": {}}, "stripes")),
        *({"by": {"iid": {"alpha": 1}}}, {"by": {"dirichlet": None}}, {"by": {"dirichlet": [1]}}),
        *({"seed": value} for value in (-1, 0.5, None)),
    ],
)
def test_a_share_of_another_form_is_refused(changes):
    refuses(share, {"share": [2, 3], "by": "iid", **changes}, np.arange(9))


@pytest.mark.parametrize("source", [None, "data/one", 3, []])
def test_a_source_that_is_no_share_is_refused(source):
    assert "expected {share: [2, 10]" in refuses(share, source, np.arange(9))
