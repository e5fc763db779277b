"""Who is admitted to a run, and what of theirs: the aggregator's checks, without its state."""

import numpy as np

from openfed.codec.packet import check_chains
from openfed.codec.pipeline import Pipeline
from openfed.errors import PolicyError, WireError
from openfed.flow.metrics import check_sums, declared
from openfed.plan.lock import Lock
from openfed.store.packets import PacketFile
from openfed.tasks.base import TRAIN
from openfed.tensors.check import check_entries, check_finite, check_numbers, check_reports
from openfed.tensors.frame import CHUNK, chunks
from openfed.tensors.record import DTYPES, Signature
from openfed.wire.messages import PROTOCOL, Assignment, Peer, Stamp


def admit(lock: Lock, run: str, peer: Peer, stamp: Stamp) -> None:
    """Refuse whoever does not belong to this run of this plan; `run` is empty for a hello.

    Raises: PolicyError: R10 protocol, R03 federation, R02 name or role, R01 plan, R04 run.
    """
    plan = lock.plan
    if stamp.protocol[0] != PROTOCOL[0]:
        spoken = f"{peer.name} speaks {stamp.protocol[0]}"
        raise PolicyError("R10", f"expected protocol {PROTOCOL[0]}, {spoken}")
    if peer.federation != plan.federation or stamp.federation != plan.federation:
        found = stamp.federation if peer.federation == plan.federation else peer.federation
        raise PolicyError("R03", f"expected federation {plan.federation}, got {found}")
    if peer.role != "collaborator" or not plan.admits(peer.name):
        raise PolicyError("R02", f"{peer.role} {peer.name} is not a collaborator of this plan")
    if stamp.plan_digest != lock.digest:
        ours, theirs = lock.digest[:16], stamp.plan_digest[:16]
        raise PolicyError("R01", f"expected plan {ours}..., {peer.name} has {theirs}...")
    if run and stamp.run != run:
        raise PolicyError("R04", f"expected run {run}, got {stamp.run or 'none'}")


def check_reply(lock: Lock, packet: PacketFile, assignment: Assignment, entries: Signature) -> None:
    """Everything the agent has checked already: the aggregator trusts no one. `entries`: those that
    the reply has to have.

    Raises: TaskError: K21 to K25. WireError: W14 differences from another model, W2x codes that
    are not the plan's, or damaged.
    """
    check_entries(packet.specs, entries)
    kinds = {spec.name: spec for spec in entries}
    uplink = Pipeline(lock.plan.compression_pipeline.uplink)
    check_chains(packet.head, lambda spec: uplink.chain(kinds[spec.name]))
    reports = lock.plan.reports
    allowed = declared(lock.plan.metrics, assignment.task, reports)
    check_numbers(packet.numbers, allowed, trained=assignment.task == TRAIN)
    check_reports(packet.numbers, reports if assignment.updates else ())
    check_sums(packet.numbers)
    model = next(p.digest for p in assignment.payloads if p.name == "model")
    if packet.head.base != model:
        found = packet.head.base[:16]
        raise WireError("W14", f"expected an update of model {model[:16]}..., got of {found}...")
    for spec in packet.specs:
        buffer = np.empty(min(CHUNK, spec.count), DTYPES[spec.dtype])
        for start, count in chunks(spec):
            packet.read(spec.name, start, buffer[:count])
            check_finite(spec.name, buffer[:count])
