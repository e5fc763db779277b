"""A node dies at every failpoint that it passes, over mTLS, and at random moments: the model is the
one that would have come out.

`OPENFED_TEST_KILLS=200` strikes so often at random moments, `OPENFED_TEST_SEED` at others; with
`pytest -s` each test says what it did.
"""

import os
import random
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from openfed.failpoints import POINTS
from openfed.launch.ledger import verify_ledger
from openfed.store.runs import runs
from openfed.workspace import Workspace
from tests.e2e import crash
from tests.e2e.crash import AGENT, AGGREGATOR, BLOCKS, CASES, LOSING, SITES, TASK, Deaths

KILLS = int(os.environ.get("OPENFED_TEST_KILLS", "10"))
SEED = int(os.environ.get("OPENFED_TEST_SEED", "6"))
BLOCK_POINTS = ("push.block", "spool.block")
ROUNDS = 6

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@dataclass(frozen=True)
class Whole:
    """The run to which nothing happens."""

    rounds: dict[int, str]
    digest: str
    passages: Counter
    seconds: float


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = crash.make(tmp_path_factory.mktemp("whole") / "w")
    deaths = Deaths(root, noted=sorted(POINTS), due=True)
    began = time.monotonic()
    assert crash.run(deaths) == 1
    seconds = time.monotonic() - began
    assert all(crash.trained(root, site) == dict.fromkeys(range(1, 7), 1) for site in SITES)
    return Whole(crash.rounds(root), crash.digest(root), deaths.passages(), seconds)


def check_same(root: Path, whole: Whole) -> None:
    """The model, round by round; one end; the ledger, with what the sites have kept of it."""
    assert crash.digest(root) == whole.digest
    assert crash.rounds(root).items() <= whole.rounds.items()
    assert runs(root)[-1].status == "completed"
    assert len(crash.events(root, "run.ended")) <= 1
    found = verify_ledger(Workspace(root), None, (), None)
    assert not found.all_faults and found.tables
    assert len(found.kept) == len(SITES)
    for kept in found.kept:  # a receipt of every update
        receipts = {each.round for each in kept.included if each.task == "train" and each.accepted}
        assert receipts == set(range(1, ROUNDS + 1)), kept.path


def again(root: Path) -> dict[str, int]:
    """Site -> finished trainings beyond one a round; every round was trained."""
    counts = {site: crash.trained(root, site) for site in SITES}
    assert all(set(each) == set(range(1, ROUNDS + 1)) for each in counts.values()), counts
    return {site: each.total() - ROUNDS for site, each in counts.items()}


def beyond(deaths: Deaths, whole: Whole, point: str) -> Counter:
    """Node -> how many blocks it moved more than in the run to which nothing happened."""
    names = (AGGREGATOR, *SITES)
    found = deaths.passages()
    return Counter({name: found[name, point] - whole.passages[name, point] for name in names})


def test_every_case_is_passed_and_every_passage_is_a_case(whole):
    passed = {(name.replace("farm", "mill"), point) for name, point in whole.passages}
    assert passed == {(node, point) for node, points in CASES.items() for point in points}


@pytest.mark.parametrize("which", ["first", "later"])
@pytest.mark.parametrize("node", [AGGREGATOR, AGENT, TASK])
def test_a_node_that_dies_at_every_point_changes_nothing(whole, tmp_path, node, which):
    root = crash.make(tmp_path / "w")
    passages = {point: each[which == "later" :][:1] for point, each in CASES[node].items()}
    left = {node: [f"{point}=kill@{n}" for point, ns in passages.items() for n in ns]}
    deaths = Deaths(root, left, BLOCK_POINTS)
    while left[node]:
        before, wanted = len(deaths.fired), list(left[node])
        crash.forget_trained(root)
        typed = crash.run(deaths)
        died = deaths.fired[before:]
        assert died, f"never passed: {wanted}"
        check_same(root, whole)
        stopped = typed - 1  # the nodes that lived were stopped, whatever they were at
        lost = sum(death in LOSING for death in died) + stopped
        more = again(root)
        up, down = (beyond(deaths, whole, point) for point in BLOCK_POINTS)
        print(f"{node} {which}: {len(died)} deaths, fx run {typed} times, trained again {more}, "
              f"blocks sent {dict(up)}, blocks kept {dict(down)}")  # fmt: skip
        assert more["farm"] <= stopped and more["mill"] <= lost
        anew = BLOCKS * sum(more.values()) + len(SITES) * stopped  # what was lost with a sending
        assert up.total() <= len(died) + anew
        assert down[AGGREGATOR] <= anew + (0 if node == AGGREGATOR else len(died))
        assert max(down[site] for site in SITES) <= len(died)


@contextmanager
def struck_at_random(deaths, chance, most, longest_s):
    """While the block lasts, some node is killed every now and then, at most so many times; a task
    process once: the second death in one task is that task's failure."""
    over, names = threading.Event(), [AGGREGATOR, *SITES, "farm.task", TASK]

    def strike():
        while len(deaths.fired) < most and not over.wait(chance.uniform(0, longest_s)):
            name = chance.choice(names)
            if deaths.strike(name) and name.endswith(".task"):
                names.remove(name)

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        yield
    finally:
        over.set()
        striker.join()


def test_kills_at_random_moments_change_nothing(whole, tmp_path):
    root, chance = crash.make(tmp_path / "w"), random.Random(SEED)
    killed, ended, typed, trained = Counter(), 0, 0, 0
    while killed.total() < KILLS:
        crash.forget_trained(root)
        deaths = Deaths(root)
        with struck_at_random(deaths, chance, KILLS - killed.total(), whole.seconds / 2):
            again_typed = crash.run(deaths)
        typed += again_typed
        struck = Counter(name for name, _ in deaths.fired)
        check_same(root, whole)
        for site, more in again(root).items():
            assert more <= struck[site] + struck[f"{site}.task"] + again_typed - 1
            trained += more
        killed += struck
        ended += 1
    print(f"{killed.total()} kills {dict(killed)}: {ended} runs, fx run {typed} times, "
          f"{trained} trainings done again, every digest that of the undisturbed run")  # fmt: skip


@pytest.mark.parametrize("which", ["first", "later"])
def test_with_quorum_and_deadline_the_model_is_that_of_the_journal(tmp_path, which):
    root = crash.make(tmp_path / "w", cohort="{quorum: 1, deadline: 20s}", updates="all")
    (root / "mill.late.3").touch()
    passage = {"first": 1, "later": 2}[which]
    points = ("journal.close", "journal.elapsed", "journal.turn", "push.verdict", "spool.settled")
    left = {AGGREGATOR: [f"{point}=kill@{passage}" for point in points]}
    deaths = Deaths(root, left)
    crash.run(deaths)
    assert len(deaths.fired) == len(points)
    closed = {
        (each["round"], tuple(each["accepted"]))
        for each in crash.events(root, "ask.closed")
        if each["task"] == "train"
    }
    assert (3, ("farm",)) in closed and (2, ("farm", "mill")) in closed
    assert crash.replayed(root, tmp_path / "copy") == crash.digest(root)
