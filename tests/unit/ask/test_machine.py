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
    Late,
    Refuse,
    Replied,
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
    "time does not run backwards": (1, 9.0, [Replied(A, "1"), Elapsed(8.0), Elapsed(2.0)],
        [[Accept(A, "1")], [], []]),
}  # fmt: skip


@pytest.mark.parametrize("case", TABLE)
def test_rule(case):
    quorum, deadline, events, expected = TABLE[case]
    _, effects = run(Ask("x", (A, B, C), quorum, deadline), *events)
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
