"""`fx ledger verify`: a run's ledger, from its journal or a file, against keys and sites' files."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openfed.errors import CertificateError, UsageError
from openfed.node.conduct import LEDGER
from openfed.observe.text import clean, one_line, plural
from openfed.parse import DIGEST
from openfed.pki.files import load_roster
from openfed.pki.keys import verifier
from openfed.pki.peer import AGGREGATOR
from openfed.plan.approval import fingerprint, read_signed
from openfed.plan.digest import canonical_json
from openfed.store.audit import (
    Inclusion,
    Kept,
    check_kept,
    read_journal,
    read_lines,
    table_faults,
)
from openfed.store.ledger import Entry, Fault, Story, read_chain, story_of, wrong_signatures
from openfed.store.runs import JOURNAL, run_folder, runs
from openfed.store.witness import FILE
from openfed.tasks.base import SENDS
from openfed.wire.messages import Head
from openfed.workspace import Workspace

SHOWN = 5
"""Faults of one code that people are shown."""


@dataclass(frozen=True)
class Key:
    """The aggregator's identity key, and who says that it is."""

    public: bytes  # empty: nothing is signed
    by: str


@dataclass(frozen=True)
class Verified:
    path: str
    story: Story
    entries: int
    head: Head | None
    key: Key
    tables: bool  # whether they were compared, too
    faults: tuple[Fault, ...]
    kept: tuple[Kept, ...]

    @property
    def all_faults(self) -> tuple[Fault, ...]:
        return (*self.faults, *(fault for kept in self.kept for fault in kept.faults))


def verify_ledger(
    workspace: Workspace, path: Path | None, against: Sequence[Path], key: str | None
) -> Verified:
    """Verify the ledger at `path`; without one, that of the latest run here. `against`: what sites
    have kept; what lies in this workspace is always compared. `key`: hex.

    Raises: UsageError J08: there is nothing to verify.
    """
    path = path or _latest(workspace)
    lines, tables = read_journal(path) if path.suffix == ".sqlite" else (read_lines(path), None)
    entries, faults = read_chain(lines)
    if not entries:
        raise UsageError("J08", f"{path}: expected a ledger, found no entry that is whole")
    story, wrong = story_of(entries)
    known = _key(workspace, story, key)
    if not faults:  # else they follow from those
        faults += wrong
        faults += _wrong_approvals(story)
        faults += table_faults(story, tables) if tables else ()
        faults += _wrong_export(workspace, lines, story) if tables else ()
    faults += _unsigned(entries, story, known)
    verify = verifier(known.public) if known.public else None
    files = dict.fromkeys((*_here(workspace, story.run), *against))
    kept = [check_kept(str(file), read_lines(file), entries, story, verify) for file in files]
    last = entries[max(entries)].head
    found = tuple(faults), tuple(kept)
    return Verified(str(path), story, len(entries), last, known, tables is not None, *found)


def _latest(workspace: Workspace) -> Path:
    for info in reversed(runs(workspace.root)):
        return run_folder(workspace.root, info.id) / JOURNAL
    path = workspace.root / "save" / LEDGER
    if not path.is_file():
        message = "expected a run's journal below runs/, or a ledger in save/, found neither"
        raise UsageError("J08", f"{message}: name the file, or go to the aggregator's workspace")
    return path


def _here(workspace: Workspace, run: str) -> list[Path]:
    """What the sites of this workspace have kept of the run."""
    folder = run_folder(workspace.root, run) / "agents"
    return sorted(folder.glob(f"*/{FILE}")) if run else []


def _key(workspace: Workspace, story: Story, given: str | None) -> Key:
    if given is not None:
        if not DIGEST.fullmatch(given):
            message = f"--key: expected 64 lower-case hexadecimal digits, found {given[:80]!r}"
            raise UsageError("J08", message)
        return Key(bytes.fromhex(given), "--key")
    try:
        roster = load_roster(workspace.cert)
    except CertificateError as error:
        if error.code != "C12":
            raise
    else:
        if public := roster.identity(AGGREGATOR):
            return Key(public, "cert/roster.json")
    own = bytes.fromhex(story.key) if DIGEST.fullmatch(story.key) else b""
    return Key(own, "the ledger itself" if own else "")


def _unsigned(entries: Mapping[int, Entry], story: Story, key: Key) -> list[Fault]:
    if not key.public:
        return []
    if not any(entry.signature for entry in entries.values()):
        first = next(iter(entries.values()))
        message = f"nothing in the ledger is signed, expected {fingerprint(key.public)} to have"
        return [Fault("J03", first.number, first.kind, message)]
    return list(wrong_signatures(entries, story.run, story.plan, verifier(key.public)))


def _wrong_approvals(story: Story) -> Iterator[Fault]:
    for number, approval in story.approvals:
        try:
            signed = read_signed("approval", canonical_json(approval))
            wrong = "" if signed.digest == story.plan else f"it is of plan {signed.digest[:16]}"
        except ValueError as error:
            wrong = str(error)
        if wrong:
            yield Fault("J04", number, "site.approved", f"the approval does not count: {wrong}")


def _wrong_export(workspace: Workspace, lines: Sequence[bytes], story: Story) -> Iterator[Fault]:
    """The export of the run, if one is there, is the table."""
    path = workspace.root / "save" / LEDGER
    if path.is_file() and story.ended:
        exported = read_lines(path)
        if lines[: len(exported)] == exported:
            return
        if not exported[0].startswith(lines[0][:-1]) and exported[0] != lines[0]:
            return  # of another run
        yield Fault("J06", 0, "", f"{path} is not what the journal has: copy it from there")


# -- what people and programs are told -------------------------------------------------------------


def verified_json(found: Verified) -> dict[str, Any]:
    story, head = found.story, found.head
    return {
        "ok": not found.all_faults,
        "ledger": found.path,
        "run": story.run,
        "plan_digest": story.plan,
        "entries": found.entries,
        "head": {"number": head.number, "hash": head.hash} if head else None,
        "ended": story.ended or None,
        "key": found.key.public.hex() or None,
        "key_by": found.key.by or None,
        "rounds": max(story.turns, default=0),
        "faults": [asdict(fault) for fault in found.all_faults],
        "sites": [
            {
                "path": kept.path,
                "collaborator": kept.collaborator,
                "heads": kept.heads,
                "included": [asdict(each) for each in kept.included],
                "faults": [asdict(fault) for fault in kept.faults],
            }
            for kept in found.kept
        ],
    }


def verified_lines(found: Verified) -> Iterator[str]:
    story, head = found.story, found.head
    yield f"run {clean(story.run[:80])}, plan {clean(story.plan[:16])}: {clean(found.path)}"
    last = f", the last {head.hash[:16]}" if head else ""
    how = story.ended or "not ended in it: what sites have kept says if its end is missing"
    yield f"  {plural(found.entries, 'entry').replace('entrys', 'entries')}{last}; run {how}"
    yield f"  {_signed_by(found.key)}"
    checked = "chain, signatures, story" if found.key.public else "chain, story"
    yield f"  looked at: {checked}{', tables of the journal' if found.tables else ''}"
    for kept in found.kept:
        yield f"  {_site(kept)}"
    if not found.kept:
        yield "  no site's file to compare with (--against)"
    yield from _shown(found.all_faults)
    count = len(found.all_faults)
    yield f"{plural(count, 'fault')}: this ledger is not to be trusted" if count else "ok"


def _signed_by(key: Key) -> str:
    if not key.public:
        return "not signed: a run in one process has no keys; whoever could write it could forge it"
    said = f"signed by {fingerprint(key.public)}, the aggregator's by {key.by}"
    return said + (": nobody here vouches for it" if key.by == "the ledger itself" else "")


def _site(kept: Kept) -> str:
    rounds = sorted({each.round for each in kept.included if each.accepted and _trains(each)})
    heads = f"{plural(kept.heads, 'head')}, {plural(len(kept.included), 'receipt')}"
    which = f"; updates included in rounds {_ranges(rounds)}" if rounds else ""
    wrong = f"; {plural(len(kept.faults), 'fault')}" if kept.faults else "; all in the ledger"
    return f"{one_line(kept.collaborator, 80) or clean(kept.path)}: {heads}{wrong}{which}"


def _trains(each: Inclusion) -> bool:
    return each.task in SENDS


def _ranges(numbers: Sequence[int]) -> str:
    """`_ranges([1, 2, 3, 7])` is "1-3, 7"."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in found)


def _shown(faults: Sequence[Fault]) -> Iterator[str]:
    for code in dict.fromkeys(fault.code for fault in faults):
        same = [fault for fault in faults if fault.code == code]
        yield from (clean(fault) for fault in same[:SHOWN])
        if len(same) > SHOWN:
            yield f"{code}  and {len(same) - SHOWN} more"
