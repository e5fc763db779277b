"""Who takes part where the plan names no sites, and who is no longer waited for."""

import asyncio
import shutil

import pytest

from openfed.errors import OpenFedError
from openfed.node import aggregator as module
from tests.unit.node.gate import ENROLLED, LEASE_S


def test_the_first_round_waits_for_everybody_on_the_roster_for_ten_seconds(gate):
    async def body(here):
        gathering = asyncio.ensure_future(here.aggregator._gathered(2))
        await here.hello("two")
        await here.hello("one")
        assert not await here.after(module.GATHER_S - 1, gathering), "three may still come"
        assert await here.after(1, gathering) == ("one", "two")

    gate(body)


def test_it_begins_at_once_when_everybody_is_here(gate, monkeypatch):
    monkeypatch.setattr(module, "TICK_S", 1e6)  # nobody looks again by itself

    async def body(here):
        gathering = asyncio.ensure_future(here.aggregator._gathered(2))
        for name in ("three", "one", "two"):
            await here.hello(name)
        assert await gathering == ("one", "three", "two")

    gate(body)


def test_a_revoked_member_is_neither_waited_for_nor_asked(gate):
    async def body(here):
        for name in ("one", "two", "three"):
            await here.hello(name)
        here.members["three"] = True
        assert await here.aggregator._gathered(2) == ("one", "two")

    gate(body)


def test_fewer_than_the_minimum_are_waited_for_however_long(gate):
    async def body(here):
        gathering = asyncio.ensure_future(here.aggregator._gathered(2))
        await here.hello("one")
        for _ in range(30):  # who waits for orders is heard again and again
            await here.hello("one")
            assert not await here.after(LEASE_S - 1, gathering)
        await here.hello("three")
        assert await here.after(0, gathering) == ("one", "three")

    gate(body)


def test_who_has_not_been_heard_for_a_lease_is_not_asked(gate):
    async def body(here):
        for name in ("one", "two", "three"):
            await here.hello(name)
        here.time += LEASE_S / 2
        await here.hello("one")
        await here.hello("three")
        here.time += LEASE_S / 2
        assert await here.aggregator._gathered(2) == ("one", "three")

    gate(body)


def test_who_hangs_up_is_not_asked_unless_it_has_come_back(gate):
    async def body(here):
        for name in ("one", "two", "three"):
            await here.hello(name)
        here.time += module.GATHER_S
        calls = {name: here.next(name) for name in ("one", "two", "three")}
        await asyncio.sleep(0)
        here.time += 1
        again = here.next("two")  # on a new connection, before the old one is known to be lost
        await asyncio.sleep(0)
        calls["two"].cancel()
        calls["three"].cancel()
        await asyncio.gather(calls["two"], calls["three"], return_exceptions=True)
        assert await here.aggregator._gathered(2) == ("one", "two")
        again.cancel()
        calls["one"].cancel()

    gate(body)


def test_whoever_only_looks_is_not_here(gate):
    async def body(here):
        for name in ("one", "two"):
            await here.hello(name)
        await here.hello("three", facts=False)
        here.time += module.GATHER_S
        assert await here.aggregator._gathered(2) == ("one", "two")

    gate(body)


def test_waiting_for_sites_ends_with_the_aggregator(gate):
    async def body(here):
        gathering = asyncio.ensure_future(here.aggregator._gathered(2))
        await asyncio.sleep(0)
        here.aggregator.interrupt("stopped")
        with pytest.raises(OpenFedError, match="stopped"):
            await gathering

    gate(body)


def test_an_open_ask_does_not_wait_for_who_is_revoked_meanwhile(gate):
    async def body(here):
        open = await here.ask(quorum=2)
        here.members["two"] = True
        row = await here.aggregator._answered("ask1", 0)
        assert [(reply.collaborator, reply.code) for reply in row.replies] == [("two", "C18")]
        await here.until(lambda: open.ask.closed)
        assert here.journal.ask("ask1").met is False, "without it the quorum can't be met"
        told = [fields for kind, fields in here.events if kind == "node.refused"]
        assert [(each["collaborator"], each["code"]) for each in told] == [("two", "C18")]

    gate(body)


def test_where_the_quorum_can_do_without_it_the_ask_goes_on(gate):
    async def body(here):
        open = await here.ask(quorum=1, deadline_s=100.0)
        await here.hello("one")
        here.members["two"] = True
        await here.until(lambda: not open.ask.awaits("two"))
        assert open.ask.awaits("one") and not open.ask.closed
        here.time += 50
        await here.hello("one")  # at work, and too slow
        here.time += 50
        await here.until(lambda: open.ask.closed)
        assert open.ask.closed.accepted == () and open.ask.failed == {"two": "C18"}

    gate(body)


def test_who_is_not_certified_yet_is_waited_for(gate):
    async def body(here):
        del here.members["two"]
        for name in ("one", "two"):
            await here.hello(name)
        open = await here.ask(quorum=2, deadline_s=100.0)
        await here.until(lambda: open.since is not None)
        here.time += 50
        await here.until(lambda: open.ask.elapsed_s == 50)
        assert open.ask.awaits("two")

    gate(body)


def test_a_federation_of_the_enrolled_makes_the_model_of_one_that_names_its_sites(lab):
    toys = lambda: {"one": lab.toy(1.0, 10), "two": lab.toy(-0.5, 30)}  # noqa: E731
    named, open = lab(toys()), lab(toys(), sites=ENROLLED)
    assert named.run().summary["model"] == {**open.run().summary["model"], "path": str(
        named.root / "save" / "toy_last.safetensors")}  # fmt: skip
    journal = open.journal()
    assert [names for _, names in journal.notes("sites/")] == [["one", "two"]] * 4
    journal.close()


def test_a_replay_asks_those_who_were_here_then(lab, tmp_path, crash_points):
    """After every commit of the journal the run goes on, and a third site has come."""
    toys = {"one": lab.toy(1.0, 10), "two": lab.toy(-0.5, 30)}
    first = lab(toys, sites=ENROLLED, rounds=2)
    for point in crash_points(first, tmp_path / "points"):
        here = lab({**toys, "three": lab.toy(0.25, 20)}, sites=ENROLLED, rounds=2)
        shutil.copytree(point / "runs", here.root / "runs")
        journal = here.journal()
        before = dict(journal.notes("sites/"))
        journal.close()
        assert here.run().state == "completed"
        journal = here.journal()
        after = dict(journal.notes("sites/"))
        journal.close()
        assert all(names == ["one", "two"] for names in before.values())
        others = [names for key, names in after.items() if key not in before]
        assert others == [["one", "three", "two"]] * (3 - len(before))
        assert after == {**after, **before}
