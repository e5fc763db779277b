"""The ask machine under any order of events, beside a model of it that is as simple as can be.

The shell around the machine journals what it accepts, excludes and keeps, and how an ask was
closed. A restart folds the journal: what comes out must be the ask that was there.
"""

from dataclasses import replace

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from openfed.ask.machine import (
    Accept,
    Ask,
    Close,
    Duplicate,
    Elapsed,
    Exclude,
    Failed,
    Keep,
    Late,
    Refuse,
    Replied,
    Returned,
    Wait,
    step,
)
from openfed.flow.federation import replayed
from openfed.store.journal import LATE, AskRow, Reply

SITES = ("anna", "bert", "carl", "dora")
NAMES = st.sampled_from((*SITES, "eve"))
DIGESTS, CODES = st.sampled_from("12"), st.sampled_from(("K20", "C18"))
TIMES = st.floats(0, 30, allow_nan=False)


class AnyOrder(RuleBasedStateMachine):
    """`counted` and `over` are the model; `journal` is what the shell has made durable."""

    step = staticmethod(step)

    @initialize(
        cohort=st.sets(st.sampled_from(SITES), min_size=1),
        quorum=st.integers(1, 4),
        wanted=st.integers(0, 4),
        deadline=st.none() | st.floats(0.5, 20),
        grace=st.none() | st.floats(0.5, 10),
        keeps=st.booleans(),
    )
    def opened(self, cohort, quorum, wanted, deadline, grace, keeps):
        names = tuple(sorted(cohort))
        quorum = min(quorum, len(names))
        wanted = wanted and max(quorum, min(wanted, len(names)))
        self.asked = Ask("x", names, quorum, deadline, wanted, grace, keeps)
        self.ask, self.journal, self.journaled_s, self.met = self.asked, [], 0.0, None
        self.counted, self.kept = {}, {}  # name -> (digest, code), whose answer counts, and when
        self.clock, self.met_at, self.waiting, self.over, self.closes = 0.0, None, False, False, []

    # -- the model -------------------------------------------------------------------------------

    @property
    def accepted(self):
        return sorted(name for name, (_, code) in self.counted.items() if not code)

    def expected(self, name, digest, code):
        """What must come of an answer."""
        if name not in self.ask.cohort:
            return Refuse(name, "R07")
        before, failed = {**self.counted, **self.kept}.get(name, ("", ""))
        if (before or failed) and (code or before == digest):
            return Duplicate(name)
        if before:
            return Refuse(name, "R08")
        if failed:
            return Late(name) if self.over else Refuse(name, "R09")
        if self.over:
            keeps = self.ask.keeps_late and self.met and not code
            return Keep(name, digest) if keeps else Late(name)
        return Exclude(name, code) if code else Accept(name, digest)

    def overdue(self):
        deadline, grace = self.ask.deadline_s, self.ask.grace_s
        graced = grace is not None and self.met_at is not None and self.clock - self.met_at >= grace
        return graced or (deadline is not None and self.clock >= deadline)

    def must_be_over(self):
        met = len(self.accepted) >= self.ask.quorum
        failed = len(self.counted) - len(self.accepted)
        hopeless = len(self.ask.cohort) - failed < self.ask.quorum
        enough = bool(self.ask.wanted) and len(self.accepted) >= self.ask.wanted
        everybody = len(self.counted) == len(self.ask.cohort)
        return everybody or enough or hopeless or self.overdue() or (self.waiting and met)

    # -- the shell -------------------------------------------------------------------------------

    def happens(self, event, expected, reply=None):
        """One event as the aggregator takes it: step, journal, adopt; and what it must do."""
        ask, effects = self.step(self.ask, event)
        if isinstance(expected, Accept | Exclude):
            self.counted[reply.collaborator] = (reply.digest, reply.code)
        if isinstance(expected, Keep):
            self.kept[reply.collaborator] = (reply.digest, "")
        wanted = [] if expected is None else [expected]
        if not self.over and self.must_be_over():
            self.over, self.waiting, names = True, False, tuple(self.accepted)
            wanted.append(Close(names, len(names) >= self.ask.quorum))
        assert list(effects) == wanted
        for effect in effects:
            if isinstance(effect, Accept | Exclude):
                self.journal.append(reply)
            if isinstance(effect, Keep):
                self.journal.append(replace(reply, code=LATE))
            if isinstance(effect, Close):
                self.met = effect.met
                self.closes.append(effect)
        if self.ask.deadline_s is not None:
            self.journaled_s = ask.elapsed_s
        self.ask = ask

    @rule(name=NAMES, digest=DIGESTS)
    def replies(self, name, digest):
        """For the first time, again, changed, late, or after a failure: whatever it is by now."""
        reply = Reply(name, digest, 5)
        self.happens(Replied(name, digest), self.expected(name, digest, ""), reply)

    @precondition(lambda self: self.counted)
    @rule(data=st.data(), changed=st.booleans())
    def replies_again(self, data, changed):
        known = {**self.counted, **self.kept}
        name = data.draw(st.sampled_from(sorted(known)))
        digest = "changed" if changed else known[name][0] or "1"
        self.replies(name, digest)

    @rule(name=NAMES, code=CODES)
    def is_lost(self, name, code):
        reply = Reply(name, "", 0, code, "lost")
        self.happens(Failed(name, code), self.expected(name, "", code), reply)

    @rule(seconds=TIMES, gone=st.frozensets(NAMES))
    def time_passes(self, seconds, gone):
        """As some clock says it, which may have been set back; `gone`: who has not been heard."""
        expected = None
        if not self.over and not self.waiting:
            self.clock = max(self.clock, seconds)
            met = len(self.accepted) >= self.ask.quorum
            if met and self.met_at is None:
                self.met_at = self.clock
            lost = tuple(name for name in self.ask.missing if name in gone)
            if self.overdue() and not met and lost:
                self.waiting, self.clock, expected = True, 0.0, Wait(lost)
        self.happens(Elapsed(seconds, gone), expected)

    @precondition(lambda self: self.ask.deadline_s is not None)
    @rule(gone=st.frozensets(NAMES))
    def the_deadline_passes(self, gone):
        self.time_passes(self.ask.deadline_s, gone)

    @rule()
    def enough_are_back(self):
        self.waiting = False
        self.happens(Returned(), None)

    @precondition(lambda self: not self.over)
    @rule()
    def the_aggregator_starts_again(self):
        """An open ask is folded from the journal, and offered again. It is not known to wait for
        anybody any more, a grace begins anew, and so does the age of an ask without a deadline."""
        row = AskRow("x", 1, 0, "train", self.journaled_s, self.met, tuple(self.journal))
        again = replayed(row, self.asked)
        self.waiting, self.met_at = False, None
        self.clock = self.clock if self.ask.deadline_s is not None else 0.0
        same = replace(self.ask, waiting=False, met_s=None, elapsed_s=self.clock)
        assert again == same
        self.ask = again

    # -- what must hold whatever happens ---------------------------------------------------------

    @invariant()
    def each_counts_at_most_once(self):
        names = [reply.collaborator for reply in self.journal]
        assert len(names) == len(set(names))
        known = {*self.ask.accepted, *self.ask.failed, *self.ask.kept}
        assert set(names) == known <= set(self.ask.cohort)

    @invariant()
    def it_closes_at_most_once_and_says_the_truth(self):
        assert len(self.closes) <= 1
        assert self.ask.closed == (self.closes[0] if self.closes else None)
        assert self.over == bool(self.closes)

    @invariant()
    def who_is_awaited_is_who_can_still_count(self):
        awaited = {name for name in (*SITES, "eve") if self.ask.awaits(name)}
        assert awaited == (set() if self.over else set(self.ask.missing))


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestAnyOrder = AnyOrder.TestCase


def counts_twice(ask, event):
    """The rule against a changed retry is broken."""
    if isinstance(event, Replied) and event.collaborator in ask.accepted:
        return ask, (Accept(event.collaborator, event.digest),)
    return step(ask, event)


def forgets_the_quorum(ask, event):
    ask, effects = step(ask, event)
    return ask, tuple(Close(e.accepted, True) if isinstance(e, Close) else e for e in effects)


@pytest.mark.parametrize("broken", [counts_twice, forgets_the_quorum])
def test_a_broken_machine_is_found_out(broken):
    machine = type("Broken", (AnyOrder,), {"step": staticmethod(broken)})
    quickly = settings(max_examples=100, database=None, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine, settings=settings(quickly, report_multiple_bugs=False))
