"""One run from its journal to its saved models: the flow in a thread, the result on disk."""

import asyncio
import json
import platform
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from openfed.errors import CODES, OpenFedError, PolicyError, exhausted
from openfed.failpoints import failpoint
from openfed.files import write_whole
from openfed.flow.federation import Federation, TimeOver
from openfed.flow.metrics import DECODED
from openfed.node.accounts import Accounts
from openfed.node.aggregator import Aggregator, Interrupted
from openfed.parse import AGGREGATE
from openfed.plan.lock import Lock
from openfed.store.journal import Journal
from openfed.tensors.frame import digest
from openfed.tensors.model_file import read_model, write_model
from openfed.tensors.record import Record
from openfed.typing import Emit, Tensors
from openfed.wire.messages import RunState

Flow = Callable[[Federation], Tensors]

LEDGER = "ledger.jsonl"
"""The export of a run's ledger, one entry a line, in the folder of its models."""

FAREWELL_S = 10.0
"""How long an aggregator stays to tell its collaborators that the run has ended."""
FAREWELL_A_SITE_S = 0.05
"""And so much for each of them: a thousand that come back at the same moment take their time."""


@dataclass(frozen=True)
class Ended:
    """How a run ended. `summary`: what `fx run --json` prints of it, the bytes apart, which
    observers add up."""

    state: RunState
    reason: str
    summary: dict[str, Any]


async def conduct(
    aggregator: Aggregator, handle: Federation, flow: Flow, saved: Path, accounts: Accounts
) -> Ended:
    """Run the flow to its end, save the models, tell everyone.

    What the plan, a site or a flow did wrong ends the run as failed, with the reason. What this
    machine did (a stop, a full disk, no memory, a damaged journal) is raised: the run can be
    resumed.
    """
    began = time.monotonic()
    lock, journal = aggregator.lock, aggregator.journal
    state, told, reason = RunState.COMPLETED, "", ""
    try:
        await asyncio.to_thread(_train, lock, handle, flow, saved)
        turn = journal.turn()
        if turn is not None and turn.round < lock.plan.rounds:
            reason = handle.stopped() or ""
    except Interrupted:
        raise
    except TimeOver as error:
        reason = told = f"stopped early: {error.message}"
        if handle.last_model() is None:
            state, reason = RunState.FAILED, f"{error.code}  {error.message}"
    except OpenFedError as error:
        if error.code == "S10":
            raise
        state, reason = RunState.FAILED, f"{error.code}  {error.message}"
        told = f"{error.code}  {CODES[error.code].title}"  # one site's words are not another's
    except Exception as error:
        if exhausted(error) is not None:
            raise
        traceback.print_exc()
        state, reason = RunState.FAILED, f"F03  {type(error).__name__}: {error}"
        told = f"F03  {CODES['F03'].title}"
    await asyncio.to_thread(_save, lock, handle, saved, accounts.emit)
    await asyncio.to_thread(aggregator.spool.drop_unfinished)  # no ask is open: nobody needs it
    failpoint("run.saved")
    await asyncio.to_thread(journal.end, state.value, reason)
    failpoint("run.ended")
    await asyncio.to_thread(_export, journal, saved)
    summary = summarise(lock, journal, saved)
    seconds = {"total": time.monotonic() - began, "training": accounts.training}
    summary["seconds"] = {**seconds, "imports": accounts.imports}
    accounts.emit("run.ended", summary)
    aggregator.end(state, told)
    await aggregator.everyone_told(FAREWELL_S + FAREWELL_A_SITE_S * len(lock.plan.named))
    return Ended(state, reason, summary)


def _train(lock: Lock, handle: Federation, flow: Flow, saved: Path) -> None:
    """Run the flow; a run that begins clears away what an earlier one saved."""
    if not handle.begun:
        for which in ("last", "best"):
            (saved / f"{lock.plan.name}_{which}.safetensors").unlink(missing_ok=True)
        (saved / "manifest.json").unlink(missing_ok=True)
        (saved / LEDGER).unlink(missing_ok=True)
    with np.errstate(over="ignore", invalid="ignore"):  # the handle refuses what is not finite
        flow(handle)


def _save(lock: Lock, handle: Federation, saved: Path, emit: Emit) -> None:
    """Save `last` and `best` of the committed rounds, also of a failed run; say in
    `manifest.json` what they are."""
    init = saved / f"{lock.plan.name}_init.safetensors"
    listed: dict[str, Any] = {"init": {"model": 0, "path": str(init), "digest": lock.model_digest}}
    for which, found in (("last", handle.last_model()), ("best", handle.best_model())):
        if found is None:
            continue
        k, model = found
        path = saved / f"{lock.plan.name}_{which}.safetensors"
        write_model(path, model)
        listed[which] = {"model": k, "path": str(path), "digest": digest(Record(model))}
        emit("model.saved", {"which": which, **listed[which]})
    if "last" in listed:
        handle.remember({"last": listed["last"]["digest"]})
    best = handle.best()
    about = {"run": handle.run, "plan_digest": lock.digest, "best": best and best["metric"]}
    content = {**about, "models": listed, "versions": _versions(), "sites": handle.sites()}
    text = json.dumps(content, indent=2, sort_keys=True)
    write_whole(saved / "manifest.json", text.encode() + b"\n")


def _export(journal: Journal, saved: Path) -> None:
    """The whole ledger, beside the models that it is about."""
    write_whole(saved / LEDGER, b"".join(line + b"\n" for line in journal.entries()))


def read_initial(saved: Path, lock: Lock) -> Tensors:
    """Raises: UsageError U10 unreadable; PolicyError R13 it is not the plan's initial model."""
    path = saved / f"{lock.plan.name}_init.safetensors"
    model = read_model(path)
    found = digest(Record(model))
    if found != lock.model_digest:
        ours, theirs = lock.model_digest[:16], found[:16]
        raise PolicyError("R13", f"{path}: expected the plan's {ours}..., got {theirs}...")
    return model


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("numpy", "grpcio", "openfed-fx")}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def summarise(lock: Lock, journal: Journal, saved: Path) -> dict[str, Any]:
    """What is known of a run from its journal."""
    turn, best = journal.turn(), journal.fact("best")
    found = json.loads(best) if best else None
    path, last = str(saved / f"{lock.plan.name}_last.safetensors"), journal.fact("last")
    return {
        "status": journal.fact("status"),
        "rounds": turn.round if turn else 0,
        "reason": journal.fact("reason") or None,
        "run": journal.fact("run"),
        "plan_digest": lock.digest,
        "model": {"path": path, "digest": last} if last else None,
        "best": {key: found[key] for key in ("model", "metric", "value")} if found else None,
        "metrics": _last_metrics(journal),
    }


def _last_metrics(journal: Journal) -> dict[str, float]:
    """The aggregated metrics of the last validated model."""
    for _, rows in reversed(journal.notes("metrics/")):
        found = {
            row["metric"]: row["value"]
            for row in rows
            if row["collaborator"] == AGGREGATE and row["task"] in ("validate", DECODED)
        }
        if found:
            return found
    return {}
