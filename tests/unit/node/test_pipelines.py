"""A whole federation with codecs: against the formula, its kept packets, and what sites saw."""

import shutil
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest

from openfed.errors import OpenFedError
from openfed.store.local import RESIDUAL, LocalStore
from openfed.tasks.base import Outcome
from openfed.tensors.frame import digest
from openfed.tensors.record import Kind, Record

RNG = np.random.default_rng(0)
MODEL = {
    "bn.count": np.array(0, np.int64),
    "bn.mask": np.array([True, False, True]),
    "bn.mean": RNG.normal(size=50).astype(np.float32),
    "fixed": np.float32([7, 8]),
    "half": RNG.normal(size=300).astype(np.float16),
    "short": RNG.normal(size=30).astype(ml_dtypes.bfloat16),
    "w": RNG.normal(size=(2, 33_000)).astype(np.float32),  # two chunks
    "wide": RNG.normal(size=200),
}
BUFFERS = ("bn.count", "bn.mask", "bn.mean")
FLOATS = ("half", "short", "w", "wide")
KINDS = {
    "fixed": Kind.FROZEN,
    **{name: Kind.BUFFER for name in BUFFERS},
    **{name: Kind.PARAMETER for name in FLOATS},
}
LOSSY = "[rotate, {lloyd: {bits: 4}}, zstd]"


class Walker:
    """A site that takes random steps, the same again for the same seed; it notes what it saw."""

    def __init__(self, n=10):
        self.n, self.saw, self.updates = n, {}, {}

    def __call__(self, task, model, local):
        moving = {name: x for name, x in model.items() if name != "fixed"}
        key, asked = (task.round, task.name), digest(Record(moving))
        if key in self.saw and self.saw[key][0] != asked:
            key = (task.round, task.name + " again")
        self.saw[key] = asked, moving
        about = {"n": (float(self.n),), "seconds": (0.0,), "import_seconds": (0.0,)}
        if task.name == "validate":
            scores = {"metrics/validate/accuracy": (1.0, 2.0)}
            return Outcome({**about, **scores, "metrics/validate/loss": (1.0, 1.0)})
        rng = np.random.default_rng(task.seed)
        steps = {name: rng.normal(size=model[name].shape) * 0.01 for name in (*FLOATS, "bn.mean")}
        trained = {
            name: (model[name].astype(np.float64) + step).astype(model[name].dtype)
            for name, step in steps.items()
        }
        trained["bn.count"] = model["bn.count"] + self.n
        trained["bn.mask"] = rng.random(3) < 0.5
        self.updates[task.round] = {name: change(x, model[name]) for name, x in trained.items()}
        return Outcome({**about, "metrics/train/loss": (1.0, 1.0)}, trained)


def change(new, old):
    kind = {"float64": np.float64, "int64": None, "bool": None}.get(new.dtype.name, np.float32)
    return new if kind is None else new.astype(kind) - old.astype(kind)


@pytest.fixture
def walk(lab):
    """Makes labs of walking sites: `walk(uplink="...", ...)`; "none" and 10, 30, 20 samples."""

    def make(uplink="[]", downlink="[]", rounds=3, more="", sites=2):
        pipeline = f"compression_pipeline: {{uplink: {uplink}, downlink: {downlink}}}"
        toys = {name: Walker(n) for name, n in (("one", 10), ("two", 30), ("zoe", 20))[:sites]}
        more = f"{pipeline}\nretention: {{updates: all}}\n{more}"
        return lab(toys, rounds=rounds, more=more, model=MODEL, kinds=KINDS)

    return make


def ran(here):
    ended = here.run()
    assert ended.state == "completed", ended.reason
    return ended.summary["model"]["digest"]


def formula(updates):
    """The reduced update of one round, from [(site, head, update), ...] in name order."""
    total = sum(head.numbers["n"][0] for _, head, _ in updates)
    reduced = {}
    for name in updates[0][2]:
        arrays = [(head.numbers["n"][0], update[name]) for _, head, update in updates]
        kind = arrays[0][1].dtype.type
        if kind not in (np.float32, np.float64):
            reduced[name] = np.maximum.reduce([x for _, x in arrays])
            continue
        acc = kind(arrays[0][0]) * arrays[0][1]
        for n, x in arrays[1:]:
            acc = acc + kind(n) * x
        reduced[name] = acc / kind(total)
    return reduced


def moved(model, update):
    """The model moved by an update; entries of the model's dtypes."""
    found = dict(model)
    for name, by in update.items():
        old = model[name]
        sums = by if by.dtype == old.dtype and by.dtype.kind in "ib" else old.astype(by.dtype) + by
        found[name] = sums.astype(old.dtype)
    return found


def recomputed(here):
    """Models 0, 1, ...: of record, from the packets that were kept."""
    models = [MODEL]
    for _, updates in sorted(here.updates().items()):
        models.append(moved(models[-1], formula(updates)))
    return models


def same(one, other):
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert x.dtype == other[name].dtype and x.tobytes() == other[name].tobytes(), name


# -- up --------------------------------------------------------------------------------------------


def test_lossless_codecs_change_no_bit_of_the_model(walk):
    plain = ran(walk())
    for way in ({"uplink": "[zstd]"}, {"downlink": "[zstd]"}, {"uplink": "[{zstd: {level: 19}}]"}):
        here = walk(**way)
        assert ran(here) == plain
        same(here.last, recomputed(here)[-1])


@pytest.mark.parametrize("uplink", ["[bf16, zstd]", LOSSY, "[{topk: {fraction: 0.1}}]"])
def test_the_model_is_the_formula_over_what_was_decoded(walk, uplink):
    here = walk(uplink=uplink)
    assert ran(here) == digest(Record(here.last))
    same(here.last, recomputed(here)[-1])
    for r, updates in here.updates().items():
        for site, _, update in updates:
            exact = here.toys[site].updates[r]
            for name in BUFFERS:
                assert update[name].tobytes() == exact[name].tobytes()
            for name in FLOATS:
                assert update[name].dtype == exact[name].dtype
                if name != "short" or "bf16" not in uplink:  # those differences are exact
                    assert (update[name] != exact[name]).any(), f"{name}: nothing was lost"
                assert np.abs(update[name] - exact[name]).max() < 0.05
    assert here.last["fixed"].tolist() == [7, 8]


def test_the_median_is_taken_of_what_was_decoded(walk):
    here = walk(uplink="[bf16, zstd]", more="strategy: median", sites=3, rounds=2)
    ran(here)
    model = MODEL
    for _, updates in sorted(here.updates().items()):
        names = updates[0][2]
        arrays = {name: [update[name] for _, _, update in updates] for name in names}
        ints = {n: np.maximum.reduce(xs) for n, xs in arrays.items() if xs[0].dtype.kind in "ib"}
        middle = {n: np.sort(xs, axis=0)[1] for n, xs in arrays.items() if n not in ints}
        model = moved(model, {**middle, **ints})
    same(here.last, model)


def test_exceptions_of_the_plan_are_kept(walk):
    here = walk(uplink='{codecs: [bf16], except: [{"wide": [zstd]}, {"half": []}]}', rounds=1)
    ran(here)
    for site, head, update in here.updates()[1]:
        exact = here.toys[site].updates[1]
        lost = {name for name in update if update[name].tobytes() != exact[name].tobytes()}
        assert lost - {"short"} == {"w"}  # differences of bfloat16 may be exact
        coded = dict(zip((s.name for s in head.specs), head.chains, strict=True))
        assert [name for name, *_ in coded["wide"].json()] == ["zstd"]
        assert coded["half"].json() == []


def test_the_same_plan_gives_the_same_lossy_model_and_another_seed_another(walk):
    uplink, downlink = "[rotate, {quantize: {bits: 2}}]", "[{quantize: {bits: 8}}, zstd]"
    first, again = (ran(walk(uplink, downlink, rounds=2)) for _ in range(2))
    other = ran(walk(uplink, downlink, rounds=2, more="# \nvalidation: {every: 2}"))
    assert first == again == other


def left(here, site):
    """The site's residual."""
    store = LocalStore(here.folder / "agents" / site)
    found = store.state(RESIDUAL)
    record = None
    if found:
        with store.spool.open(found, limit=1 << 30) as frame:
            record = frame.record().tensors
    store.close()
    return record


@pytest.mark.parametrize("uplink", ["[{topk: {fraction: 0.05}}]", "[rotate, {lloyd: {bits: 1}}]"])
def test_with_feedback_nothing_is_lost_for_good(walk, uplink):
    here = walk(uplink=f"{{feedback: true, codecs: {uplink}}}", rounds=5)
    ran(here)
    same(here.last, recomputed(here)[-1])
    for site, toy in here.toys.items():
        residual = left(here, site)
        assert sorted(residual) == sorted(FLOATS)
        for name in FLOATS:
            wanted = np.sum([u[name].astype(np.float64) for u in toy.updates.values()], axis=0)
            sent = [u[name].astype(np.float64) for r in here.updates().values()
                    for who, _, u in r if who == site]  # fmt: skip
            assert np.abs(residual[name]).max() > 0.001
            np.testing.assert_allclose(np.sum(sent, axis=0) + residual[name], wanted, atol=2e-7)


def test_without_feedback_there_is_no_residual(walk):
    here = walk(uplink="[{topk: {fraction: 0.05}}]", rounds=1)
    ran(here)
    assert left(here, "one") is None


# -- down ------------------------------------------------------------------------------------------


def saw(here, task="train"):
    """round -> {digest of the model that a site had for this task: the model}."""
    found = {}
    for toy in here.toys.values():
        for (r, name), (known, model) in toy.saw.items():
            if name == task:
                found.setdefault(r, {})[known] = model
    return found


@pytest.mark.parametrize("downlink", ["[{quantize: {bits: 8}}, zstd]", LOSSY, "[bf16]"])
def test_what_sites_decode_is_the_same_and_the_model_of_record_loses_nothing(walk, downlink):
    here = walk(downlink=downlink, rounds=4)
    assert ran(here) == digest(Record(here.last))
    models = recomputed(here)
    same(here.last, models[-1])
    for r, found in saw(here).items():
        ((known, decoded),) = found.items()
        record = models[r - 1]
        for site, head, update in here.updates()[r]:
            assert head.base == known
            same(update, {k: here.toys[site].updates[r][k] for k in update})
        for name in BUFFERS:
            assert decoded[name].tobytes() == record[name].tobytes()
        apart = np.abs(decoded["w"] - record["w"]).max()
        assert apart == 0 if r == 1 else 0 < apart < 0.05  # the first is sent as it is


def test_a_site_that_skips_rounds_has_what_all_have(walk):
    more = "cohort: {fraction: 0.4}\nvalidation: {every: 9}"
    here = walk(downlink=LOSSY, rounds=8, more=more, sites=3)
    ran(here)
    same(here.last, recomputed(here)[-1])
    trained = {
        name: [r for r, task in toy.saw if task == "train"] for name, toy in here.toys.items()
    }
    assert any(b - a > 1 for rounds in trained.values() for a, b in pairwise(rounds))
    assert all(len(found) == 1 for found in saw(here).values())
    for r, updates in here.updates().items():
        assert {head.base for _, head, _ in updates} == set(saw(here)[r])
    final = {name: toy.saw[9, "validate"][0] for name, toy in here.toys.items()}
    assert len(set(final.values())) == 1


def test_the_final_model_is_scored_as_decoded_and_as_it_is(walk):
    here = walk(downlink=LOSSY, rounds=2)
    last = ran(here)
    rows = [(m["task"], m["model"]) for m in here.of("metric")
            if m["metric"] == "accuracy" and m["collaborator"] == "aggregate"]  # fmt: skip
    decoded, exact = "validate_decoded", "validate"
    assert rows == [(decoded, 0), (decoded, 1), (decoded, 2), (exact, 2)]
    for toy in here.toys.values():
        as_decoded, as_it_is = toy.saw[3, "validate"], toy.saw[3, "validate again"]
        assert as_decoded[0] != as_it_is[0]
        assert digest(Record({**as_it_is[1], "fixed": MODEL["fixed"]})) == last


def test_best_and_stop_look_at_what_was_decoded(walk):
    here = walk(downlink=LOSSY, rounds=4, more="stop: {metric: accuracy, patience: 2}")
    ended = here.run()
    assert ended.summary["rounds"] == 2 and "did not improve" in ended.summary["reason"]
    assert ended.summary["best"]["model"] == 0
    rows = [(m["task"], m["model"]) for m in here.of("metric")
            if m["metric"] == "accuracy" and m["collaborator"] == "aggregate"]  # fmt: skip
    assert rows[-2:] == [("validate_decoded", 2), ("validate", 2)]


def test_lossless_downlinks_are_scored_as_ever(walk):
    here = walk(downlink="[zstd]", rounds=1)
    ran(here)
    assert {m["task"] for m in here.of("metric")} == {"validate", "train"}


@pytest.mark.parametrize("downlink", ["[zstd]", LOSSY])
def test_a_model_comes_down_once_for_all_tasks_on_it(walk, downlink):
    here = walk(downlink=downlink, rounds=3)
    ran(here)
    pulled = [(e["collaborator"], e["round"]) for e in here.of("transfer")
              if e["direction"] == "down" and e["payload"] == "model"]  # fmt: skip
    exact = [(name, 4) for name in ("one", "two") if downlink == LOSSY]
    expected = [(name, r) for name in ("one", "two") for r in (1, 2, 3, 4)]
    assert sorted(pulled) == sorted(expected + exact)


# -- a restart -------------------------------------------------------------------------------------


def played_again(here, points, count):
    """Each of some copies of a run's disk, resumed; sites begin with nothing, in its middle."""
    for point in points[:: len(points) // count]:
        shutil.copytree(here.root / "plan", point / "plan")
        (point / "save").mkdir()
        shutil.copy(here.root / "save" / "toy_init.safetensors", point / "save")
        here.root = point
        for toy in here.toys.values():
            toy.saw.clear()
        yield ran(here)


@pytest.mark.parametrize(
    "count", [5, pytest.param(40, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_a_crash_after_any_commit_changes_no_digest(walk, tmp_path, crash_points, count):
    here = walk("[bf16]", LOSSY, rounds=3)
    points = crash_points(here, tmp_path / "points")
    expected, before = digest(Record(here.last)), saw(here)
    for found in played_again(here, points, count):
        assert found == expected
        assert all(found.keys() == before[r].keys() for r, found in saw(here).items())


def test_a_site_that_lost_its_residual_still_decodes_what_all_decode(walk, tmp_path, crash_points):
    here = walk("{feedback: true, codecs: [bf16]}", LOSSY, rounds=3)
    points = crash_points(here, tmp_path / "points")
    for _ in played_again(here, points, 3):
        assert all(len(found) == 1 for found in saw(here).values())
        same(here.last, recomputed(here)[-1])


class Dies(Exception):
    """No answer of a task: the agent ends, and with it this life of the run."""


@pytest.mark.parametrize("when", [("train", 1), ("train", 2), ("validate", 3), ("validate", 4)])
def test_a_run_that_is_interrupted_and_resumed_is_the_one_that_was_not(walk, when):
    ways = "{feedback: true, codecs: [rotate, {lloyd: {bits: 1}}]}", "[{quantize: {bits: 4}}, zstd]"
    undisturbed, here = (walk(*ways, rounds=3) for _ in range(2))
    walker = here.toys["two"]

    def once(task, model, local):
        if (task.name, task.round) == when:
            here.toys["two"] = walker
            raise Dies
        return walker(task, model, local)

    here.toys["two"] = once
    with pytest.raises(OpenFedError, match="S13"):
        here.run()
    assert ran(here) == ran(undisturbed)
    for site in ("one", "two"):
        same(left(here, site), left(undisturbed, site))
