"""Ledgers for tests: two sites, two rounds, every kind of entry, signed by a key made here."""

from dataclasses import replace

from openfed.pki.keys import create_identity_key, signer, verifier
from openfed.plan.approval import sign_digest
from openfed.store.ledger import (
    APPROVED,
    BEGUN,
    CLOSED,
    COMMITTED,
    COUNTED,
    ENDED,
    EXCLUDED,
    KEPT,
    LATE_COUNTED,
    NOTHING,
    OPENED,
    Entry,
    following,
    read_chain,
    story_of,
    wrong_signatures,
)

RUN, PLAN = "run-1", "a" * 64
KEY = signer(create_identity_key())
VERIFY = verifier(KEY.public)
APPROVAL = sign_digest("approval", PLAN, "lab", "farm", create_identity_key(), 1.0)


def digest(letter: str) -> str:
    return letter * 64


def turn(round, model):
    return COMMITTED, {"round": round, "model": digest(model), "decoded": "", "state": digest("5")}


def ask(round, model, cohort=("farm", "mill"), quorum=2, id=""):
    about = {"ask": id or f"ask{round}", "round": round, "ordinal": 0, "task": "train"}
    about |= {"cohort": list(cohort), "quorum": quorum, "payloads": {"model": digest(model)}}
    return OPENED, about


def reply(round, name, code="", letter="d"):
    about = {"ask": f"ask{round}", "collaborator": name, "digest": digest(letter), "size": 9}
    return (EXCLUDED, {**about, "code": code}) if code else (COUNTED, about)


def closed(round, *names, met=True):
    return CLOSED, {"ask": f"ask{round}", "accepted": list(names), "met": met}


def ended(state="completed"):
    return ENDED, {"state": state, "code": "", "model": digest("3")}


BEGINNING = (
    BEGUN,
    {"run": RUN, "plan": PLAN, "key": KEY.public.hex(), "federation": "lab", "model": digest("0")},
)
STORY = (
    BEGINNING,
    (APPROVED, {"collaborator": "farm", "approval": APPROVAL.json()}),
    turn(0, "1"),
    ask(1, "1"),
    reply(1, "mill"),
    reply(1, "farm"),
    closed(1, "farm", "mill"),
    turn(1, "2"),
    ask(2, "2", quorum=1),
    reply(2, "farm", "K03"),
    reply(2, "mill"),
    closed(2, "mill"),
    turn(2, "3"),
    ended(),
)


def kept(round, name, letter="d"):
    return KEPT, reply(round, name, letter=letter)[1]


def counted_late(round, *replies):
    return LATE_COUNTED, {"round": round, "replies": [[n, digest(x), 9] for n, x in replies]}


LATE = (
    *STORY[:3],
    ask(1, "1", quorum=1),
    reply(1, "mill"),
    closed(1, "mill"),
    kept(1, "farm"),
    turn(1, "2"),
    ask(2, "2", quorum=1),
    reply(2, "mill"),
    closed(2, "mill"),
    counted_late(2, ("farm", "d")),
    turn(2, "3"),
    ended(),
)


def chain(told=STORY, sign=KEY.sign, run=RUN) -> list[Entry]:
    found, head = [], NOTHING
    for kind, content in told:
        found.append(following(head, 100.0, kind, content, run, PLAN, sign))
        head = found[-1].head
    return found


def lines(told=STORY, **options) -> list[bytes]:
    return [entry.line() for entry in chain(told, **options)]


def faults(found, *, key=True, story=True):
    """What verifying says of these lines, as (code, number)."""
    entries, wrong = read_chain(found)
    told, contradictions = story_of(entries)
    if story and not wrong:
        wrong = wrong + contradictions
    if key:
        wrong = wrong + list(wrong_signatures(entries, RUN, PLAN, VERIFY))
    assert all(str(fault) for fault in wrong)
    return [(fault.code, fault.number) for fault in wrong]


def forged(entries, number, **change) -> list[Entry]:
    """As somebody without the key would: one entry changed, everything after it hashed again."""
    found = entries[: number - 1]
    head = found[-1].head if found else NOTHING
    for entry in [replace(entries[number - 1], **change), *entries[number:]]:
        found.append(following(head, entry.at, entry.kind, entry.content, RUN, PLAN, None))
        head = found[-1].head
    return found
