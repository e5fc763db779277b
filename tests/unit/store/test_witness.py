"""What a site keeps of the ledger, what it believes, and what that shows later."""

import json
import os
from dataclasses import replace

import pytest

from openfed.errors import WireError
from openfed.pki.keys import create_identity_key, signer
from openfed.store.audit import check_kept
from openfed.store.ledger import Entry, following, read_chain, story_of
from openfed.store.witness import Seen, Witness, read_seen
from openfed.wire.messages import Head
from tests.unit.store.chains import (
    KEY,
    LATE,
    PLAN,
    RUN,
    STORY,
    VERIFY,
    chain,
    digest,
    forged,
    lines,
    reply,
)

MINE = chain()[4]
"""The receipt of mill's first reply."""
OTHER = signer(create_identity_key())


class Site:
    def __init__(self, folder, known=KEY.public, run=RUN):
        self.path, self.said = folder / "ledger.jsonl", []
        self.witness = Witness(self.path, "mill", run, PLAN, known, self.said.append)

    def seen(self):
        return [read_seen(line) for line in self.path.read_bytes().splitlines()]


@pytest.fixture
def site(tmp_path):
    """Lives of a site, one after another; the first has been greeted."""
    made = []

    def make(identity=KEY.public, **about):
        if made:
            made[-1].witness.close()
        made.append(Site(tmp_path, **about))
        made[-1].witness.greeted(identity)
        return made[-1]

    yield make
    made[-1].witness.close()


def refused(code):
    return pytest.raises(WireError, match=f"^{code}  ")


def test_heads_and_receipts_are_kept_once_and_come_back(site):
    here = site()
    for head in (chain()[2].head, chain()[2].head, chain()[3].head):
        here.witness.told(head, here.witness.last)
    for _ in range(2):
        assert here.witness.receipt(MINE.line(), "ask1", digest("d"))
    assert [each.head.number for each in here.seen()] == [3, 4, 5]
    assert here.seen()[2].receipt == MINE and here.seen()[0].receipt is None
    again = site()
    assert again.witness.last == 5
    again.witness.told(chain()[4].head, 5)
    again.witness.receipt(MINE.line(), "ask1", digest("d"))
    assert len(again.seen()) == 3 and again.said == []


def test_a_head_that_comes_late_is_no_lie(site):
    here = site()
    since = here.witness.last
    here.witness.told(chain()[6].head, since)
    here.witness.told(chain()[4].head, since)  # sent for before the other came
    with refused("J05"):
        here.witness.told(chain()[4].head, here.witness.last)


def test_another_history_is_noticed_at_once_and_after_a_restart(site):
    other = chain((*STORY[:4], reply(1, "farm")))[-1]
    here = site()
    here.witness.told(chain()[4].head, 0)
    with refused("J05"):
        here.witness.told(other.head, 0)
    with refused("J05"):
        site().witness.told(other.head, 5)
    with refused("J05"):
        site().witness.told(None, 5)


def test_what_is_not_signed_by_the_aggregator_is_refused(site):
    here = site()
    for wrong in (
        replace(chain()[2].head, signature=b""),
        replace(chain()[2].head, signature=OTHER.sign(b"x")),
        replace(chain()[2].head, hash=digest("e")),
        replace(chain()[2].head, number=4),
        chain(sign=OTHER.sign)[2].head,
        Head(3, digest("e"), chain()[2].signature),
    ):
        with refused("J07"):
            here.witness.told(wrong, 0)
    assert here.seen() == []


RECEIPTS = {
    "another ask": chain((*STORY[:4], reply(2, "mill")))[-1],
    "another site": chain()[5],
    "other bytes": chain((*STORY[:4], reply(1, "mill", letter="c")))[-1],
    "a refusal": chain((*STORY[:4], reply(1, "mill", "K03")))[-1],
    "another run": chain(run="r2")[4],
    "no signature": chain(sign=None)[4],
    "another key": chain(sign=OTHER.sign)[4],
    "something else": chain()[2],
}


@pytest.mark.parametrize("name", RECEIPTS)
def test_a_receipt_of_something_else_is_refused(site, name):
    here = site()
    with refused("J07"):
        here.witness.receipt(RECEIPTS[name].line(), "ask1", digest("d"))
    with refused("J07"):
        here.witness.receipt(b'{"number": 7}', "ask1", digest("d"))
    assert here.seen() == []


def test_a_missing_receipt_is_said(site):
    here = site()
    assert not here.witness.receipt(b"", "ask1", digest("d"))
    assert here.said == ["the aggregator gave no receipt of the reply to ask1"]


def test_the_key_is_that_of_the_roster(site):
    with refused("J07"):
        site(identity=OTHER.public)


def test_without_a_roster_the_first_key_stays(site):
    here = site(known=None)
    assert here.said[0].startswith("no roster names the aggregator's key: takes sha256:")
    here.witness.told(chain()[2].head, 0)
    site(known=None).witness.told(chain()[3].head, 3)
    for other in (OTHER.public, b""):
        with refused("J07"):
            site(known=None, identity=other)


def test_an_aggregator_without_a_key_is_said_where_one_is_known(site):
    here = site(identity=b"")
    assert here.said == ["this aggregator signs no ledger: there will be no receipts"]
    quiet = site(identity=b"", known=None)
    quiet.witness.told(chain(sign=None)[2].head, 0)
    assert quiet.said == [] and quiet.seen()[0].key == ""
    assert not quiet.witness.receipt(b"", "ask1", digest("d")) and quiet.said == []


def test_a_line_that_a_crash_tore_never_happened(site):
    here = site()
    here.witness.told(chain()[2].head, 0)
    whole = here.path.read_bytes()
    here.path.write_bytes(whole + whole[:-9])
    again = site()
    assert again.witness.last == 3 and again.path.read_bytes() == whole
    again.witness.told(chain()[3].head, 3)
    assert [each.head.number for each in again.seen()] == [3, 4]


def test_a_line_that_was_changed_stops_the_site(site):
    here = site()
    here.witness.told(chain()[2].head, 0)
    here.path.write_bytes(here.path.read_bytes().replace(b'"run"', b'"fun"'))
    with refused("J07"):
        site()


def test_the_file_is_the_owners(site):
    assert os.stat(site().path).st_mode & 0o777 == 0o600


# -- at a verification -----------------------------------------------------------------------------


def kept(*seen, ledger=None, verify=VERIFY):
    """What comparing a site's lines with a ledger says."""
    entries, faults = read_chain(ledger or lines())
    assert not faults
    found = [s.line() if isinstance(s, Seen) else s for s in seen]
    return check_kept("mill.jsonl", found, entries, story_of(entries)[0], verify)


def saw(what: Entry | Head, receipt=False, run=RUN) -> Seen:
    head = what.head if isinstance(what, Entry) else what
    return Seen("mill", run, PLAN, KEY.public.hex(), head, what if receipt else None)


def test_what_a_site_was_told_is_in_the_ledger_and_its_updates_are_counted():
    entries = chain()
    found = kept(*map(saw, entries), saw(MINE, receipt=True), saw(entries[10], receipt=True))
    assert (found.collaborator, found.heads, found.faults) == ("mill", len(entries), ())
    assert [(each.round, each.task, each.accepted) for each in found.included] == [
        (1, "train", True),
        (2, "train", True),
    ]


def test_a_receipt_of_an_ask_that_is_still_open_includes_nothing_yet():
    found = kept(saw(MINE, receipt=True), ledger=lines(STORY[:6]))
    assert found.faults == () and not found.included[0].accepted


def test_a_late_reply_is_included_in_the_round_in_which_it_counts():
    entry = chain(LATE)[6]
    seen = replace(saw(entry, receipt=True), collaborator="farm")
    found = kept(seen, ledger=lines(LATE)).included[0]
    assert (found.round, found.accepted) == (2, True)
    found = kept(seen, ledger=lines(LATE[:9])).included[0]
    assert (found.round, found.accepted) == (1, False)


def test_a_receipt_of_a_late_reply_is_taken(tmp_path):
    witness = Witness(tmp_path / "seen", "farm", RUN, PLAN, KEY.public, print)
    witness.greeted(KEY.public)
    assert witness.receipt(chain(LATE)[6].line(), "ask1", digest("d"))
    witness.close()


@pytest.mark.parametrize("number", range(1, len(STORY) + 1))
def test_a_forked_history_is_named_by_site_and_number(number):
    told = (*STORY[: number - 1], (STORY[number - 1][0], {**STORY[number - 1][1], "forked": 1}))
    found = kept(saw(chain()[number - 1]), ledger=lines((*told, *STORY[number:])))
    (fault,) = found.faults
    assert (fault.code, fault.number) == ("J05", number) and "mill was told" in fault.message


@pytest.mark.parametrize("left", range(1, len(STORY)))
def test_a_ledger_that_was_cut_is_found_by_what_a_site_was_told(left):
    found = kept(saw(chain()[-1]), ledger=lines()[:left])
    (fault,) = found.faults
    assert (fault.code, fault.number) == ("J05", len(STORY))
    assert f"the ledger ends with entry {left}" in fault.message


def test_a_receipt_that_is_not_in_the_ledger_is_named_and_includes_nothing():
    told = (*STORY[:4], reply(1, "mill", letter="c"), *STORY[5:])
    found = kept(saw(MINE, receipt=True), ledger=lines(told))
    assert str(found.faults[0]).startswith("J05  entry 5 (reply.counted): mill was told")
    assert found.included == ()


def test_what_a_site_has_made_up_accuses_nobody():
    found = kept(saw(forged(chain(), 5, at=7.0)[4]))
    assert [(fault.code, fault.number) for fault in found.faults] == [("J03", 5)]
    assert [fault.code for fault in kept(saw(Head(99, digest("e"), b"")), verify=None).faults] == [
        "J05"
    ]


def test_another_runs_file_is_said_and_a_changed_line_named():
    assert [fault.code for fault in kept(saw(chain()[2], run="r2")).faults] == ["J08"]
    assert kept(saw(chain()[2], run="r2"), saw(chain()[2])).faults == ()
    found = kept(b"{}", saw(chain()[2]))
    assert [str(fault).split(":")[:2] for fault in found.faults] == [["J01  mill.jsonl", "1"]]
    for wrong in ("number", "hash", "signature"):
        told = json.loads(saw(chain()[2]).line())
        del told["head"][wrong]
        assert kept(json.dumps(told).encode()).faults[0].code == "J01"


def test_an_unsigned_run_is_compared_too():
    plain = chain(sign=None)
    found = kept(saw(plain[3]), ledger=[entry.line() for entry in plain], verify=None)
    assert found.faults == () and found.heads == 1
    other = following(plain[2].head, 5.0, *STORY[3], RUN, PLAN, None)
    assert kept(saw(other), ledger=lines(sign=None), verify=None).faults[0].code == "J05"
