"""A whole federation in one process: the same flow, ask machine, journal and checks; only the
transport is another, and tasks run where the caller says. Gives the digest of the networked run.
"""

import asyncio
import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from openfed.assemble import make_agent, make_aggregator, open_journal
from openfed.node.aggregator import Aggregator
from openfed.node.conduct import Ended
from openfed.node.trainer import Trainer
from openfed.pki.roster import Member, Roster
from openfed.plan.lock import Lock
from openfed.store.runs import hold, run_folder
from openfed.transport.inprocess import InProcess
from openfed.typing import Emit
from openfed.wire.messages import Peer


async def run_inprocess(
    root: Path, lock: Lock, run: str, trainers: Mapping[str, Trainer], emit: Emit
) -> Ended:
    """Run the plan with one agent for each of `trainers`, by collaborator name.

    The initial model is the workspace's, as for a networked run; the models are saved there too.
    """
    held = hold(run_folder(root, run))
    journal = open_journal(root, run, lock)
    try:
        roster = _roster(lock, trainers)
        aggregator, go = make_aggregator(root, lock, run, journal, emit, roster=lambda: roster)
        agents = [
            make_agent(root, lock, name, InProcess(aggregator, _peer(lock, name)), trainer, _quiet)
            for name, trainer in trainers.items()
        ]
        ending = asyncio.ensure_future(go())
        working = [asyncio.create_task(agent.run()) for agent in agents]
        for each in working:
            each.add_done_callback(partial(_stop_if_lost, aggregator))
        try:
            return await ending
        finally:
            for each in working:
                each.cancel()
            await asyncio.gather(*working, return_exceptions=True)
    finally:
        journal.close()
        os.close(held)


def _stop_if_lost(aggregator: Aggregator, working: asyncio.Task[object]) -> None:
    """Where one agent dies, the run can't go on: there is no one to start it again."""
    if not working.cancelled() and (error := working.exception()) is not None:
        aggregator.interrupt(str(error))


def _peer(lock: Lock, name: str) -> Peer:
    return Peer(lock.plan.federation, "collaborator", name, serial=0, not_after=float("inf"))


def _roster(lock: Lock, names: Iterable[str]) -> Roster:
    """Everybody who takes part: nobody has keys here."""
    members = tuple(Member("collaborator", name, b"", revoked=False) for name in names)
    return Roster(lock.plan.federation, 0, 0.0, members, frozenset())


def _quiet(text: str) -> None:
    """What agents say is for logs; here there are none."""
