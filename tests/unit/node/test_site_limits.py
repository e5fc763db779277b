"""What a site does to an update before it leaves, and what it lets leave at all."""

import math

import numpy as np
import pytest

from openfed.errors import PolicyError, TaskError
from openfed.node.site_limits import (
    allowed_numbers,
    check_round,
    check_samples,
    check_sent,
    filtered,
    gaussian,
    once,
)
from openfed.plan.site import Limits, Site
from openfed.tensors.frame import CHUNK, Held, chunks
from openfed.tensors.record import DTYPES, Kind, Record, Spec

SPECS = (
    Spec("bn.count", "int64", (), Kind.BUFFER),
    Spec("bn.mean", "float32", (3,), Kind.BUFFER),
    Spec("control/w", "float32", (3,), Kind.CONTROL),
    Spec("head.b", "float64", (4,)),
    Spec("opt.m", "float32", (3,), Kind.STATE),
    Spec("w", "float32", (2, CHUNK)),
)


MOVING = ("control/w", "head.b", "w")


class Given:
    """An update in memory, with kinds; counts what is read."""

    def __init__(self, seed=0, scale=1.0):
        rng = np.random.default_rng(seed)
        self.tensors = {
            spec.name: np.asarray(rng.normal(size=spec.shape) * scale * 5).astype(spec.dtype)
            for spec in SPECS
        }
        self.specs, self.numbers, self.reads = SPECS, {}, 0
        self.changed = lambda name, out: None

    def read(self, name, start, out):
        self.reads += 1
        Held(Record(self.tensors)).read(name, start, out)
        self.changed(name, out)


def site(*filters, **limits):
    return Site.model_validate({"name": "one", "data": 0, "filters": filters, "limits": limits})


def through(given, *filters):
    """What leaves of an update."""
    source, out = filtered(given, site(*filters).filters), {}
    assert source.specs == SPECS and source.numbers == {}
    for spec in source.specs:
        flat = np.empty(spec.count, DTYPES[spec.dtype])
        for start, count in chunks(spec):
            source.read(spec.name, start, flat[start : start + count])
        out[spec.name] = flat.reshape(spec.shape)
    return out


def norm(tensors):
    return math.sqrt(sum(float(np.sum(np.float64(tensors[n]) ** 2)) for n in MOVING))


def same(tensors, given, *names):
    return all(tensors[name].tobytes() == given.tensors[name].tobytes() for name in names)


def test_without_filters_the_update_is_what_it_was():
    given = Given()
    assert filtered(given, ()) is given


@pytest.mark.parametrize("most", [0.001, 1.0, 300.0])
def test_an_update_is_scaled_down_as_a_whole_to_the_norm_that_may_leave(most):
    given = Given()
    assert norm(given.tensors) > most
    out = through(given, {"clip_norm": most})
    assert norm(out) <= most
    assert norm(out) == pytest.approx(most, rel=1e-6)
    factor = most / norm(given.tensors)
    for name in MOVING:
        np.testing.assert_allclose(out[name], given.tensors[name] * factor, rtol=1e-5)
    assert same(out, given, "bn.count", "bn.mean", "opt.m")


def test_a_small_update_is_not_touched_and_a_zero_one_neither():
    given = Given(scale=1e-6)
    assert same(through(given, {"clip_norm": 1.0}), given, *given.tensors)
    zero = Given(scale=0.0)
    assert same(through(zero, {"clip_norm": 1.0}), zero, *zero.tensors)


def test_a_norm_too_large_to_compute_leaves_nothing_but_zeros():
    given = Given()
    given.tensors["head.b"][:] = 1e300
    out = through(given, {"clip_norm": 1.0})
    assert norm(out) == 0.0


def test_a_result_that_grows_between_the_two_passes_is_not_sent():
    given = Given()
    source = filtered(given, site({"clip_norm": 1.0}).filters)

    def grow(name, out):
        if name == "w":
            out *= 2

    given.changed = grow
    with pytest.raises(TaskError, match="K28"):
        for spec in SPECS:
            for start, count in chunks(spec):
                source.read(spec.name, start, np.empty(count, DTYPES[spec.dtype]))


def test_dropped_entries_leave_as_zeros_whatever_they_are():
    given = Given()
    out = through(given, {"drop": ["bn.*", "head.b"]})
    for name in ("bn.count", "bn.mean", "head.b"):
        assert not out[name].any()
        assert out[name].dtype == given.tensors[name].dtype
    assert same(out, given, "opt.m", "w")


def test_noise_is_of_the_size_that_was_asked_for_and_new_every_time():
    given = Given()
    first, second = (through(given, {"noise": {"std": 0.25}}) for _ in range(2))
    for out in (first, second):
        noise = np.float64(out["w"]) - given.tensors["w"]
        assert abs(noise.mean()) < 5 * 0.25 / math.sqrt(noise.size)
        assert noise.std() == pytest.approx(0.25, rel=0.02)
        assert (out["head.b"] != given.tensors["head.b"]).all()
        assert same(out, given, "bn.count", "bn.mean", "opt.m")
    between = np.corrcoef(
        (first["w"] - given.tensors["w"]).ravel(), (second["w"] - given.tensors["w"]).ravel()
    )
    assert abs(between[0, 1]) < 0.02


def test_gaussian_numbers_are_normal():
    drawn = gaussian(200_001)
    assert drawn.shape == (200_001,) and drawn.dtype == np.float64
    ordered = np.sort(drawn)
    expected = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in ordered[::100]])
    steps = np.arange(drawn.size)[::100] / drawn.size
    assert np.abs(expected - steps).max() < 2.0 / math.sqrt(drawn.size)  # Kolmogorov-Smirnov
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.02
    assert abs(np.corrcoef(drawn[:100_000], drawn[100_001:])[0, 1]) < 0.02
    assert gaussian(0).size == 0


def test_filters_run_in_their_order_and_dropped_entries_get_no_noise():
    given = Given()
    out = through(given, {"drop": ["head.*"]}, {"clip_norm": 1.0}, {"noise": {"std": 1e-9}})
    assert not out["head.b"].any()
    assert float(np.linalg.norm(np.float64(out["w"]))) == pytest.approx(1.0, rel=1e-5)
    clipped_first = through(given, {"clip_norm": 1.0}, {"drop": ["w"]})
    factor = 1.0 / norm(given.tensors)
    assert not clipped_first["w"].any()
    np.testing.assert_allclose(clipped_first["head.b"], given.tensors["head.b"] * factor, rtol=1e-5)


# -- limits ---------------------------------------------------------------------------------------


def test_only_listed_metrics_leave_and_what_every_reply_has():
    numbers = {
        "n": (5.0,),
        "seconds": (1.0,),
        "metrics/train/loss": (1.0, 2.0),
        "metrics/validate/accuracy": (1.0, 2.0),
        "metrics/validate_tuned/accuracy": (1.0, 2.0),
    }
    assert allowed_numbers(Limits(), numbers) == numbers
    some = allowed_numbers(site(metrics=["accuracy"]).limits, numbers)
    assert sorted(numbers.keys() - some.keys()) == ["metrics/train/loss"]
    assert sorted(allowed_numbers(site(metrics=[]).limits, numbers)) == ["n", "seconds"]


def test_limits_hold_from_the_first_that_is_too_much():
    limits = site(rounds=3, samples=10, bytes_out="100B").limits
    check_round(limits, 3, trains=True)
    check_round(limits, 4, trains=False)  # the last model is validated after the last round
    check_samples(limits, {"n": (10.0,)})
    check_sent(limits, 60, 40)
    for broken, code in (
        (lambda: check_round(limits, 4, trains=True), "R30"),
        (lambda: check_sent(limits, 60, 41), "R34"),
    ):
        with pytest.raises(PolicyError, match=code):
            broken()
    with pytest.raises(TaskError, match="K31") as caught:
        check_samples(limits, {"n": (7.0,)})
    assert "7" not in caught.value.message
    check_round(Limits(), 10**6, trains=True)
    check_samples(Limits(), {"n": (1.0,)})
    check_sent(Limits(), 1 << 60, 1 << 60)


def test_noise_and_counted_bytes_are_encoded_once():
    assert not once(None) and not once(site({"clip_norm": 1.0}, seconds="1s"))
    assert once(site({"noise": {"std": 1.0}})) and once(site(bytes_out="1GB"))
