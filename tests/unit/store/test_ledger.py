"""The ledger: whatever is done to one of its entries is found, and named by its number and kind."""

import json
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.errors import CODES, OpenFedError
from openfed.pki.keys import create_identity_key, signer
from openfed.plan.digest import canonical_json
from openfed.store.audit import check_kept
from openfed.store.ledger import (
    ADOPTED,
    KINDS,
    NOTHING,
    check_key,
    following,
    read_chain,
    read_entry,
    story_of,
    turn_told,
    wrong_signatures,
)
from openfed.store.witness import Seen
from tests.unit.store.chains import (
    BEGINNING,
    KEY,
    LATE,
    PLAN,
    RUN,
    STORY,
    VERIFY,
    ask,
    chain,
    closed,
    counted_late,
    digest,
    ended,
    faults,
    forged,
    kept,
    lines,
    reply,
    turn,
)

WHOLE = lines()
N = len(WHOLE)
EACH = range(1, N + 1)


def test_a_ledger_that_nobody_touched_has_no_fault():
    assert faults(WHOLE) == []
    told = {entry.kind for entry in (*chain(), *chain(LATE))}
    assert told | {ADOPTED} == set(KINDS)


def test_entries_come_back_as_they_were():
    assert [read_entry(line) for line in WHOLE] == chain()


def test_two_runs_of_the_same_story_have_different_heads_and_signatures():
    entries, others = chain(), chain(((BEGINNING[0], {**BEGINNING[1], "run": "r2"}), *STORY[1:]))
    assert not {e.hash for e in entries} & {e.hash for e in others}


# -- one change: found, and named ------------------------------------------------------------------


def edited(number, key, value):
    told = json.loads(WHOLE[number - 1])
    assert told[key] != value
    return [*WHOLE[: number - 1], canonical_json({**told, key: value}), *WHOLE[number:]]


CHANGES = {
    "at": (101.0, "J01"),
    "content": ({"round": 1}, "J01"),
    "hash": ("e" * 64, "J01"),
    "kind": ("reply.lost", "J01"),
    "number": (99, "J01"),
    "previous": ("e" * 64, "J01"),
    "signature": ("e" * 128, "J03"),
}


@pytest.mark.parametrize("key", CHANGES)
@pytest.mark.parametrize("number", EACH)
def test_a_field_that_was_changed_is_found_in_its_entry(number, key):
    value, code = CHANGES[key]
    assert faults(edited(number, key, value)) == [(code, number)]


def test_what_is_wrong_is_said_with_number_and_kind():
    _, (fault,) = read_chain(edited(5, "at", 101.0))
    assert str(fault).startswith("J01  entry 5 (reply.counted): its content has the hash")


@pytest.mark.parametrize("number", range(2, N))
def test_a_dropped_entry_is_named(number):
    assert faults(WHOLE[: number - 1] + WHOLE[number:]) == [("J02", number)]


def test_a_dropped_beginning_is_named():
    assert ("J02", 1) in faults(WHOLE[1:])
    assert ("J02", 1) in faults(WHOLE[4:], key=False)


@pytest.mark.parametrize("number", range(1, N))
def test_two_entries_that_changed_places_are_found(number):
    swapped = [*WHOLE[: number - 1], WHOLE[number], WHOLE[number - 1], *WHOLE[number + 1 :]]
    assert faults(swapped) == [("J02", number)]


@pytest.mark.parametrize("number", EACH)
@pytest.mark.parametrize("where", ["beside it", "at the end"])
def test_an_entry_that_is_there_twice_is_named(number, where):
    at = number if where == "beside it" else N
    assert faults([*WHOLE[:at], WHOLE[number - 1], *WHOLE[at:]]) == [("J02", number)]


@pytest.mark.parametrize("number", EACH)
@pytest.mark.parametrize("cut", [1, 20, "all but one byte"])
def test_a_line_that_is_broken_off_is_named(number, cut):
    line = WHOLE[number - 1]
    short = line[: 1 if cut == "all but one byte" else -cut]
    assert faults([*WHOLE[: number - 1], short, *WHOLE[number:]]) == [("J01", number)]


@pytest.mark.parametrize("number", range(3, N))
def test_a_history_forged_from_an_entry_on_is_not_signed(number):
    found = [entry.line() for entry in forged(chain(), number, at=7.0)]
    assert faults(found) == [("J03", each) for each in range(number, N + 1)]


@pytest.mark.parametrize("number", range(2, N))
def test_an_entry_of_another_history_does_not_fit(number):
    other = chain((*STORY[: number - 1], (STORY[number - 1][0], {"forked": True})))[-1]
    assert not faults([other.line()], story=False)[1:]  # by itself it is signed and whole
    assert faults([*WHOLE[: number - 1], other.line(), *WHOLE[number:]]) == [("J02", number + 1)]
    both = [*WHOLE[:number], other.line(), *WHOLE[number:]]
    assert faults(both) == [("J02", number)]


def test_an_entry_signed_for_another_run_or_plan_or_place_is_refused():
    entry = chain()[3]
    for run, plan, number in (("r2", PLAN, 4), (RUN, "b" * 64, 4)):
        head = chain()[2].head
        stolen = following(head, 100.0, entry.kind, entry.content, run, plan, KEY.sign)
        assert stolen.number == number
        assert faults([*WHOLE[:3], stolen.line(), *WHOLE[4:]]) == [("J03", 4)]


def test_a_signature_of_another_key_is_refused():
    other = signer(create_identity_key())
    assert faults(lines(sign=other.sign)) == [("J03", number) for number in EACH]
    assert faults(lines(sign=None)) == [("J03", number) for number in EACH]


@pytest.mark.parametrize("number", EACH)
def test_the_same_entry_in_another_form_is_named(number):
    spaced = json.dumps(json.loads(WHOLE[number - 1])).encode()
    for other in (spaced, WHOLE[number - 1] + b" ", WHOLE[number - 1] + b"\r"):
        assert faults([*WHOLE[: number - 1], other, *WHOLE[number:]]) == [("J01", number)]


# -- whatever is changed ---------------------------------------------------------------------------


@given(st.integers(0, N - 1), st.data())
def test_any_byte_of_any_line_matters(number, data):
    line = bytearray(WHOLE[number])
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] ^= data.draw(st.integers(1, 255))
    found = faults([*WHOLE[:number], bytes(line), *WHOLE[number + 1 :]])
    assert found in ([("J01", number + 1)], [("J03", number + 1)])


@given(st.permutations(range(N)))
def test_any_other_order_is_found(order):
    wrong = faults([WHOLE[number] for number in order])
    assert bool(wrong) == (order != sorted(order))
    assert {code for code, _ in wrong} <= {"J02"}


@given(st.lists(st.integers(0, N - 1), max_size=N + 4))
def test_any_choice_of_entries_but_a_beginning_is_found(chosen):
    wrong = faults([WHOLE[number] for number in chosen])
    assert bool(wrong) == (chosen != list(range(len(chosen))))


@given(st.lists(st.binary(max_size=200) | st.sampled_from(WHOLE), max_size=12))
def test_whatever_is_read_gives_codes_and_never_a_traceback(found):
    assert all(code in CODES for code, _ in faults(found))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(st.sampled_from(KINDS), st.dictionaries(st.sampled_from(["ask", "round", "key"]), JSON))
def test_a_signed_entry_with_any_content_is_judged_not_obeyed(kind, content):
    entry = following(chain()[-2].head, 1.0, kind, content, RUN, PLAN, KEY.sign)
    found = faults([*WHOLE[:-1], entry.line()])
    assert found in ([("J04", N)], [])


WRONG_LATE = {
    "kept while the ask was open": ((*LATE[:5], kept(1, "farm")), 6),
    "kept where there was no quorum": (
        (*LATE[:5], closed(1, "mill", met=False), kept(1, "farm")),
        7,
    ),
    "kept twice": ((*LATE[:7], kept(1, "farm")), 8),
    "counted without being kept": ((*LATE[:6], turn(1, "2"), counted_late(2, ("farm", "d"))), 8),
    "other bytes counted": ((*LATE[:11], counted_late(2, ("farm", "e"))), 12),
    "counted two rounds later": ((*LATE[:11], counted_late(3, ("farm", "d"))), 12),
}


def test_replies_that_were_kept_count_in_the_next_round():
    assert faults(lines(LATE)) == []


@pytest.mark.parametrize("name", WRONG_LATE)
def test_a_late_reply_that_cannot_count_is_named(name):
    told, number = WRONG_LATE[name]
    assert faults(lines(told)) == [("J04", number)]


# -- the story -------------------------------------------------------------------------------------


def without(*places):
    return tuple(each for at, each in enumerate(STORY, 1) if at not in places)


def instead(**at):
    places = {int(key[1:]): value for key, value in at.items()}
    return tuple(places.get(number, each) for number, each in enumerate(STORY, 1))


CONTRADICTIONS = {
    "accepts one that never answered": (instead(_5=reply(1, "farm", "K01")), 6),
    "accepts fewer than counted": (instead(_7=closed(1, "farm")), 7),
    "accepts more than counted": (instead(_12=closed(2, "farm", "mill")), 12),
    "met without a quorum": (without(5)[:5] + (closed(1, "farm"),), 6),
    "a reply to nobody's ask": (without(4), 4),
    "a reply of one that was not asked": (instead(_5=reply(1, "barn")), 5),
    "a reply twice": (instead(_6=reply(1, "mill")), 6),
    "a reply after the end of the ask": (STORY[:7] + (reply(1, "farm"),), 8),
    "an ask opened twice": (STORY[:4] + (ask(1, "1"),), 5),
    "an ask closed twice": (STORY[:7] + (closed(1, "farm", "mill"),), 8),
    "an ask of a round to come": (STORY[:3] + (ask(2, "1"),), 4),
    "a round committed with an open ask": (without(7)[:7], 7),
    "a round left out": (instead(_8=turn(2, "2")), 8),
    "a round committed twice": (STORY[:8] + (turn(1, "2"),), 9),
    "a round on another model": (instead(_9=ask(2, "9", quorum=1)), 13),
    "no first entry": (STORY[1:], 1),
    "begun twice": (STORY[:3] + (BEGINNING,), 4),
    "work after the end": (STORY + (turn(3, "3"),), N + 1),
    "an unknown kind": (STORY[:3] + (("ask.forgotten", {}),), 4),
    "an approval of another site": (
        instead(_2=("site.approved", {"collaborator": "mill", "approval": {"name": "farm"}})),
        2,
    ),
    "excluded for no reason": (
        instead(_5=("reply.excluded", {**reply(1, "mill")[1], "code": ""})),
        5,
    ),
    "the end on another model": (STORY[:13] + (ask(3, "2"), ended()), 15),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_signed_ledger_that_contradicts_itself_is_named_there(name):
    told, number = CONTRADICTIONS[name]
    assert faults(lines(told))[0] == ("J04", number)


def test_a_run_may_fail_in_a_round_and_approvals_may_come_late():
    told = (*STORY[:11], closed(2, "mill"), ended("failed"), STORY[1])
    assert faults(lines(told)) == []


def test_what_the_sites_decoded_may_be_asked_of():
    lossy = (STORY[12][0], {**STORY[12][1], "decoded": digest("9")})
    assert faults(lines(instead(_9=ask(2, "9", quorum=1), _13=lossy))) == []


def test_a_ledger_that_was_begun_in_the_middle_of_a_run_is_no_contradiction():
    adopted = (ADOPTED, {**BEGINNING[1], "round": 1})
    told = (adopted, reply(2, "mill"), closed(2, "mill"), turn(2, "3"), ask(3, "3"))
    assert faults(lines(told)) == []
    assert ("J04", 2) in faults(lines((adopted, turn(3, "3"))))


def test_a_turn_says_its_frames_and_a_hash_of_all():
    state = json.dumps({"k": {"value": 1}, "model": {"frame": digest("1")}})
    told = turn_told(state)
    assert told["model"] == digest("1") and told["decoded"] == ""
    assert told["state"] != turn_told(state.replace("1}", "2}"))["state"]
    assert turn_told('{"model": {"value": 3}, "x": 1}')["model"] == ""


def test_a_ledger_goes_on_with_the_key_that_began_it():
    check_key(WHOLE[0], KEY.public)
    for other in (create_identity_key(), None):
        with pytest.raises(OpenFedError, match=r"J09  expected the identity key .* --new"):
            check_key(WHOLE[0], signer(other).public if other else b"")
    with pytest.raises(OpenFedError, match="J01  entry 1 of the run's ledger"):
        check_key(WHOLE[0][:-1], KEY.public)


def test_sixteen_sites_that_kept_a_thousand_entries_are_compared_in_two_seconds():
    names = [f"site-{number:02d}" for number in range(16)]
    told = [BEGINNING, turn(0, "1")]
    for r in range(1, 53):
        told += [ask(r, "1", cohort=names), *(reply(r, name) for name in names)]
        told += [closed(r, *names), turn(r, "1")]
    entries = chain(told)
    found = [entry.line() for entry in entries]
    kept = {
        name: [
            Seen(name, RUN, PLAN, "", e.head, e if e.content.get("collaborator") == name else None)
            for e in entries
        ]
        for name in names
    }
    files = {name: [seen.line() for seen in lines] for name, lines in kept.items()}

    def seconds():  # of the processor: what others do on the machine is not ours
        began = time.process_time()
        whole, wrong = read_chain(found)
        story, more = story_of(whole)
        assert not wrong + more + list(wrong_signatures(whole, RUN, PLAN, VERIFY))
        compared = [check_kept(n, lines, whole, story, VERIFY) for n, lines in files.items()]
        assert not any(each.faults for each in compared)
        assert all(len(each.included) == 52 for each in compared)
        return time.process_time() - began

    assert len(entries) == 990
    assert min(seconds() for _ in range(3)) < 2


def test_the_beginning_follows_nothing():
    assert chain()[0].previous == NOTHING.hash and chain()[0].number == 1
    wrong = following(replace(NOTHING, hash="e" * 64), 1.0, *BEGINNING, RUN, PLAN, KEY.sign)
    assert faults([wrong.line()]) == [("J02", 1)]
    assert story_of(read_chain([wrong.line()])[0])[0].run == RUN
