"""The life of an ask: a table of its rules, and their consequences for any order of events."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

A, B, C = "anna", "bert", "carl"


def run(ask, *events):
    effects = []
    for event in events:
        ask, new = step(ask, event)
        effects.append(list(new))
    return ask, effects


TABLE = {
    "everyone answers": (3, None, [Replied(A, "1"), Replied(B, "2"), Replied(C, "3")],
        [[Accept(A, "1")], [Accept(B, "2")], [Accept(C, "3"), Close((A, B, C), True)]]),
    "an early quorum waits for the rest": (1, 9.0, [Replied(B, "2"), Elapsed(8.9)],
        [[Accept(B, "2")], []]),
    "the deadline closes with a quorum": (2, 9.0, [Replied(C, "3"), Replied(A, "1"), Elapsed(9.0)],
        [[Accept(C, "3")], [Accept(A, "1")], [Close((A, C), True)]]),
    "the deadline closes without one": (2, 9.0, [Replied(C, "3"), Elapsed(9.5)],
        [[Accept(C, "3")], [Close((C,), False)]]),
    "too many failures end it at once": (3, None, [Failed(A, "K23")],
        [[Exclude(A, "K23"), Close((), False)]]),
    "a failure within the quorum does not": (2, None,
        [Failed(A, "K23"), Replied(B, "2"), Replied(C, "3")],
        [[Exclude(A, "K23")], [Accept(B, "2")], [Accept(C, "3"), Close((B, C), True)]]),
    "a repetition is a duplicate": (3, None, [Replied(A, "1"), Replied(A, "1")],
        [[Accept(A, "1")], [Duplicate(A)]]),
    "a repetition after the end too": (1, 1.0, [Replied(A, "1"), Elapsed(1.0), Replied(A, "1")],
        [[Accept(A, "1")], [Close((A,), True)], [Duplicate(A)]]),
    "a changed retry is refused": (3, None, [Replied(A, "1"), Replied(A, "9")],
        [[Accept(A, "1")], [Refuse(A, "R08")]]),
    "a late reply is late": (1, 1.0, [Replied(A, "1"), Elapsed(1.0), Replied(B, "2")],
        [[Accept(A, "1")], [Close((A,), True)], [Late(B)]]),
    "a late failure is late": (1, 1.0, [Replied(A, "1"), Elapsed(1.0), Failed(B, "K23")],
        [[Accept(A, "1")], [Close((A,), True)], [Late(B)]]),
    "a reply after a failure is refused": (1, None, [Failed(A, "K23"), Replied(A, "1")],
        [[Exclude(A, "K23")], [Refuse(A, "R09")]]),
    "a failure after a reply changes nothing": (2, None, [Replied(A, "1"), Failed(A, "K23")],
        [[Accept(A, "1")], [Duplicate(A)]]),
    "strangers are refused": (3, None, [Replied("eve", "1"), Failed("eve", "K23")],
        [[Refuse("eve", "R07")], [Refuse("eve", "R07")]]),
    "a deadline is waited out for who is gone": (2, 9.0,
        [Replied(A, "1"), Elapsed(9.0, frozenset(["bert", "carl"])), Elapsed(99.0), Returned(),
         Elapsed(8.9), Replied(C, "3"), Elapsed(9.0)],
        [[Accept(A, "1")], [Wait((B, C))], [], [], [], [Accept(C, "3")], [Close((A, C), True)]]),
    "while it waits a quorum is enough": (2, 9.0,
        [Replied(A, "1"), Elapsed(9.0, frozenset({B})), Replied(C, "3")],
        [[Accept(A, "1")], [Wait((B,))], [Accept(C, "3"), Close((A, C), True)]]),
    "while it waits too many may fail": (3, 9.0, [Elapsed(9.0, frozenset({B})), Failed(A, "K23")],
        [[Wait((B,))], [Exclude(A, "K23"), Close((), False)]]),
    "who has answered is not waited for": (2, 9.0,
        [Replied(A, "1"), Elapsed(9.5, frozenset({A}))], [[Accept(A, "1")], [Close((A,), False)]]),
    "with a quorum nobody is waited for": (1, 9.0,
        [Replied(A, "1"), Elapsed(9.0, frozenset({B}))], [[Accept(A, "1")], [Close((A,), True)]]),
    "time does not run backwards": (1, 9.0, [Replied(A, "1"), Elapsed(8.0), Elapsed(2.0)],
        [[Accept(A, "1")], [], []]),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_rule(case):
    quorum, deadline, events, expected = TABLE[case]
    _, effects = run(Ask("x", (A, B, C), quorum, deadline), *events)
    assert effects == expected


POLICIES = {
    "the first answers are enough": (dict(quorum=2, wanted=2),
        [Replied(C, "3"), Replied(A, "1"), Replied(B, "2")],
        [[Accept(C, "3")], [Accept(A, "1"), Close((A, C), True)], [Late(B)]]),
    "a grace is counted from the first look at the quorum": (dict(quorum=1, grace_s=3.0),
        [Elapsed(50.0), Replied(A, "1"), Elapsed(51.0), Elapsed(53.9), Elapsed(54.0)],
        [[], [Accept(A, "1")], [], [], [Close((A,), True)]]),
    "a deadline comes before the end of a grace": (dict(quorum=1, grace_s=3.0, deadline_s=52.0),
        [Replied(A, "1"), Elapsed(51.0), Elapsed(52.0)],
        [[Accept(A, "1")], [], [Close((A,), True)]]),
    "what is late is kept, once": (dict(quorum=1, deadline_s=1.0, keeps_late=True),
        [Replied(A, "1"), Elapsed(1.0), Replied(B, "2"), Replied(B, "2"), Replied(B, "9"),
         Failed(B, "K23"), Failed(C, "K23"), Replied(A, "1")],
        [[Accept(A, "1")], [Close((A,), True)], [Keep(B, "2")], [Duplicate(B)], [Refuse(B, "R08")],
         [Duplicate(B)], [Late(C)], [Duplicate(A)]]),
    "nothing is kept of an ask that failed": (dict(quorum=2, deadline_s=1.0, keeps_late=True),
        [Replied(A, "1"), Elapsed(1.0), Replied(B, "2")],
        [[Accept(A, "1")], [Close((A,), False)], [Late(B)]]),
    "nor from who has failed": (dict(quorum=1, deadline_s=1.0, keeps_late=True),
        [Failed(B, "K23"), Replied(A, "1"), Elapsed(1.0), Replied(B, "2")],
        [[Exclude(B, "K23")], [Accept(A, "1")], [Close((A,), True)], [Late(B)]]),
}  # fmt: skip


@pytest.mark.parametrize("case", POLICIES)
def test_policy(case):
    policy, events, expected = POLICIES[case]
    _, effects = run(Ask("x", (A, B, C), **policy), *events)
    assert effects == expected


events = st.lists(
    st.one_of(
        st.builds(Replied, st.sampled_from([A, B, C, "eve"]), st.sampled_from("12")),
        st.builds(Failed, st.sampled_from([A, B, C, "eve"]), st.just("K23")),
        st.builds(Elapsed, st.floats(0, 20)),
    ),
    max_size=20,
)


@given(st.integers(1, 3), st.one_of(st.none(), st.floats(0.1, 15)), events)
def test_whatever_happens_each_counts_once_and_the_close_is_the_truth(quorum, deadline, events):
    ask, effects = run(Ask("x", (A, B, C), quorum, deadline), *events)
    flat = [effect for step in effects for effect in step]
    counted = [e.collaborator for e in flat if isinstance(e, Accept | Exclude)]
    assert len(counted) == len(set(counted))
    closes = [i for i, e in enumerate(flat) if isinstance(e, Close)]
    assert len(closes) <= 1
    assert bool(closes) == (ask.closed is not None)
    if closes:
        accepted = sorted(e.collaborator for e in flat if isinstance(e, Accept))
        assert list(ask.closed.accepted) == accepted
        assert ask.closed.met == (len(accepted) >= quorum)
        assert not any(isinstance(e, Accept | Exclude) for e in flat[closes[0] :])


@given(st.integers(1, 3), events)
def test_an_ask_without_missing_collaborators_is_closed(quorum, events):
    ask, _ = run(Ask("x", (A, B, C), quorum, 10.0), *events)
    if not ask.missing or ask.elapsed_s >= 10.0:
        assert ask.closed
