"""The ask machine under any order of events, beside a model of it that is as simple as can be.

The shell around the machine journals what it accepts and excludes, and how an ask was closed. A
restart folds the journal: what comes out must be the ask that was there.
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
    Late,
    Refuse,
    Replied,
    step,
)
from openfed.flow.federation import replayed
from openfed.store.journal import AskRow, Reply

SITES = ("anna", "bert", "carl", "dora")
NAMES = st.sampled_from((*SITES, "eve"))
DIGESTS, CODES = st.sampled_from("12"), st.sampled_from(("K20", "C18"))
TIMES = st.floats(0, 30, allow_nan=False)


def asked_anew(asked: Ask) -> Ask:
    return Ask("x", asked.cohort, asked.quorum, asked.deadline_s)


def folded(step, row, asked) -> Ask:
    """An ask that is over, from its replies and then its age."""
    ask = asked_anew(asked)
    for reply in row.replies:
        name = reply.collaborator
        event = Failed(name, reply.code) if reply.code else Replied(name, reply.digest)
        ask, _ = step(ask, event)
    return step(ask, Elapsed(row.elapsed_s))[0]


class AnyOrder(RuleBasedStateMachine):
    """`counted` and `over` are the model; `journal` is what the shell has made durable."""

    step = staticmethod(step)

    @initialize(
        cohort=st.sets(st.sampled_from(SITES), min_size=1),
        quorum=st.integers(1, 4),
        deadline=st.none() | st.floats(0.5, 20),
    )
    def opened(self, cohort, quorum, deadline):
        names = tuple(sorted(cohort))
        self.ask = Ask("x", names, min(quorum, len(names)), deadline)
        self.journal, self.journaled_s, self.met = [], 0.0, None
        self.counted = {}  # name -> (digest, code), of those whose answer counts
        self.clock, self.over, self.closes = 0.0, False, []

    # -- the model -------------------------------------------------------------------------------

    def expected(self, name, digest, code):
        """What must come of an answer."""
        if name not in self.ask.cohort:
            return Refuse(name, "R07")
        before, failed = self.counted.get(name, ("", ""))
        if name in self.counted and (code or before == digest):
            return Duplicate(name)
        if before:
            return Refuse(name, "R08")
        if self.over:
            return Late(name)
        if failed:
            return Refuse(name, "R09")
        return Exclude(name, code) if code else Accept(name, digest)

    def must_be_over(self):
        accepted = sum(1 for _, code in self.counted.values() if not code)
        failed = len(self.counted) - accepted
        late = self.ask.deadline_s is not None and self.clock >= self.ask.deadline_s
        hopeless = len(self.ask.cohort) - failed < self.ask.quorum
        return len(self.counted) == len(self.ask.cohort) or late or hopeless

    # -- the shell -------------------------------------------------------------------------------

    def happens(self, event, expected, reply=None):
        """One event as the aggregator takes it: step, journal, adopt; and what it must do."""
        ask, effects = self.step(self.ask, event)
        if isinstance(expected, Accept | Exclude):
            self.counted[reply.collaborator] = (reply.digest, reply.code)
        wanted = [] if expected is None else [expected]
        if not self.over and self.must_be_over():
            self.over = True
            names = tuple(sorted(n for n, (_, code) in self.counted.items() if not code))
            wanted.append(Close(names, len(names) >= self.ask.quorum))
        assert list(effects) == wanted
        for effect in effects:
            if isinstance(effect, Accept | Exclude):
                self.journal.append(reply)
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
        name = data.draw(st.sampled_from(sorted(self.counted)))
        digest = "changed" if changed else self.counted[name][0] or "1"
        self.replies(name, digest)

    @rule(name=NAMES, code=CODES)
    def is_lost(self, name, code):
        reply = Reply(name, "", 0, code, "lost")
        self.happens(Failed(name, code), self.expected(name, "", code), reply)

    @rule(seconds=TIMES)
    def time_passes(self, seconds):
        """As some clock says it, which may have been set back."""
        self.clock = max(self.clock, seconds)
        self.happens(Elapsed(seconds), None)

    @precondition(lambda self: self.ask.deadline_s is not None)
    @rule()
    def the_deadline_passes(self):
        self.time_passes(self.ask.deadline_s)

    @rule()
    def the_aggregator_starts_again(self):
        """An open ask is folded from the journal, and offered again: its age may end it."""
        row = AskRow("x", 1, 0, "train", self.journaled_s, self.met, tuple(self.journal))
        if row.met is None:
            ask = replayed(row, asked_anew(self.ask))
            ask, effects = self.step(ask, Elapsed(ask.elapsed_s))
            assert effects == ()
        else:
            ask = folded(self.step, row, self.ask)
        if self.ask.deadline_s is None:  # nobody notes how long it has been open
            self.clock, self.ask = 0.0, replace(self.ask, elapsed_s=0.0)
        if self.over:  # what is over does not age
            ask = replace(ask, elapsed_s=self.ask.elapsed_s)
        assert replace(ask, met_s=None) == replace(self.ask, met_s=None)  # a grace begins anew
        self.ask = ask

    # -- what must hold whatever happens ---------------------------------------------------------

    @invariant()
    def each_counts_at_most_once(self):
        names = [reply.collaborator for reply in self.journal]
        assert len(names) == len(set(names))
        assert set(names) == {*self.ask.accepted, *self.ask.failed} <= set(self.ask.cohort)

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
