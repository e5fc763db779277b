"""The one composition root: from a plan and a folder to the objects that run it."""

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

from openfed.errors import OpenFedError
from openfed.exact.methods import make_method
from openfed.flow.exact import exact
from openfed.flow.fedavg import fedavg
from openfed.flow.federation import Federation
from openfed.node.accounts import Accounts
from openfed.node.agent import Agent, Said
from openfed.node.aggregator import (
    Aggregator,
    Consent,
    Renewing,
    Rosters,
    no_roster,
    nobody,
)
from openfed.node.conduct import Ended, Flow, conduct, read_initial
from openfed.node.trainer import Trainer
from openfed.pki.keys import Signer
from openfed.pki.peer import AGGREGATOR
from openfed.plan.lock import Lock
from openfed.plan.methods import local_settings
from openfed.plan.schema import Plan
from openfed.plan.site import Site
from openfed.registry import AGGREGATES, SCREENS, STRATEGIES
from openfed.store.journal import Journal
from openfed.store.ledger import check_key
from openfed.store.runs import JOURNAL, run_folder
from openfed.store.spool import Spool
from openfed.strategy.reduce import Rule, weighted_mean
from openfed.strategy.screens import Screening
from openfed.transport.base import Link
from openfed.typing import Emit, Tensors


def make_flow(lock: Lock) -> Flow:
    """The flow and the strategy that the plan names."""
    if lock.plan.flow is not None:
        method = make_method(lock.plan.flow.name, lock.plan.flow.settings)
        return partial(exact, method=method)
    choice = lock.plan.strategy
    strategy = STRATEGIES[choice.name](**choice.settings)

    def flow(fed: Federation) -> Tensors:
        return fedavg(fed, strategy)

    return flow


def make_rule(plan: Plan) -> tuple[Rule, Screening | None]:
    """What the plan's strategy makes one update of many with, and what it does with them before."""
    chosen = plan.strategy
    make, screen = AGGREGATES.get(chosen.name), SCREENS.get(chosen.name)
    local = local_settings(chosen, plan.task_runner)
    return (
        make(**chosen.settings) if make else weighted_mean,
        screen(**chosen.settings, **local) if screen else None,
    )


def open_journal(workspace: Path, run: str, lock: Lock, signer: Signer | None = None) -> Journal:
    """The run's journal; a new one begins with the run's id and plan. `signer` signs its ledger.

    Raises: OpenFedError J01: the ledger's first entry was changed. J09: another identity key
    began it.
    """
    journal = Journal(run_folder(workspace, run) / JOURNAL, signer)
    told = {"federation": lock.plan.federation, "aggregator": AGGREGATOR}
    told |= {"model": lock.model_digest}
    if journal.fact("run") is None:
        facts = {"run": run, "plan_digest": lock.digest, "status": "running", "reason": ""}
        journal.begin({**facts, "began": str(time.time())}, told)
    elif not journal.head.number:
        journal.adopt(told)
    try:
        check_key(journal.begun(), journal.identity)
    except OpenFedError:
        journal.close()
        raise
    return journal


def make_aggregator(
    workspace: Path,
    lock: Lock,
    run: str,
    journal: Journal,
    emit: Emit,
    consent: Consent | None = None,
    renewing: Renewing = nobody,
    roster: Rosters = no_roster,
) -> tuple[Aggregator, Callable[[], Awaitable[Ended]]]:
    """The aggregator, to be served by a transport, and what runs it to its end.

    Call it inside a running event loop.
    """
    spool = Spool(run_folder(workspace, run))
    accounts = Accounts(emit)
    aggregator = Aggregator(
        lock,
        run,
        journal,
        spool,
        accounts.emit,
        consent=consent,
        renewing=renewing,
        roster=roster,
    )
    saved = workspace / "save"
    initial = partial(read_initial, saved, lock)
    way = (accounts.emit, time.time, initial, *make_rule(lock.plan))
    handle = Federation(lock, aggregator, journal, spool, *way)

    async def go() -> Ended:
        return await conduct(aggregator, handle, make_flow(lock), saved, accounts)

    return aggregator, go


def make_agent(
    workspace: Path,
    lock: Lock,
    name: str,
    link: Link,
    trainer: Trainer,
    said: Said,
    facts: Mapping[str, str] | None = None,
    approval: bytes = b"",
    site: Site | None = None,
    aggregator_key: bytes | None = None,
) -> Agent:
    """A collaborator's agent; its state lives under the run's folder. `aggregator_key`: as the
    authority's roster has it."""

    def state_folder(run: str) -> Path:
        return run_folder(workspace, run) / "agents" / name

    told = (facts, approval, site, aggregator_key)
    return Agent(name, lock, link, trainer, state_folder, said, *told)
