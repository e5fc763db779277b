"""What a site keeps of the aggregator's ledger: the heads that it was told, and the receipts of its
replies. Carried to a verification, it shows whether the ledger there is the one that was told here.

    {"collaborator", "key", "plan", "run", "head": {"hash", "number", "signature"}}
    {"collaborator", "key", "plan", "run", "receipt": "{...}"}    the entry, as in the ledger

`key` is the aggregator's identity key, hex; empty: it signs nothing (a run in one process).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from openfed.errors import WireError
from openfed.failpoints import failpoint
from openfed.parse import strict_json
from openfed.pki.keys import verifier
from openfed.plan.approval import fingerprint
from openfed.plan.digest import canonical_json
from openfed.store.ledger import COUNTED, KEPT, Entry, Verify, head_message, read_entry
from openfed.wire.messages import Head

NONE: Mapping[bytes, Entry] = MappingProxyType({})

FILE = "ledger.jsonl"
"""In the folder of a site's state in a run."""


@dataclass(frozen=True)
class Seen:
    """One line: a head and, where it is a receipt, the entry of that number."""

    collaborator: str
    run: str
    plan: str
    key: str
    head: Head
    receipt: Entry | None = None

    def line(self) -> bytes:
        told: dict[str, Any] = {"collaborator": self.collaborator, "key": self.key}
        told |= {"run": self.run, "plan": self.plan}
        if self.receipt:
            return canonical_json({**told, "receipt": self.receipt.line().decode()})
        told["head"] = {"number": self.head.number, "hash": self.head.hash}
        told["head"]["signature"] = self.head.signature.hex()
        return canonical_json(told)


def read_seen(line: bytes, known: Mapping[bytes, Entry] = NONE) -> Seen:
    """`known`: entries by their lines, which need not be read again.

    Raises: ValueError: it is no such line.
    """
    try:
        told = strict_json(line)
        name, run, plan, key = (str(told[each]) for each in ("collaborator", "run", "plan", "key"))
        if "receipt" in told:
            text = str(told["receipt"]).encode()
            entry = known.get(text) or read_entry(text)
            return Seen(name, run, plan, key, entry.head, entry)
        head = told["head"]
        signature = bytes.fromhex(head["signature"])
        return Seen(name, run, plan, key, Head(int(head["number"]), str(head["hash"]), signature))
    except (KeyError, TypeError) as error:
        raise ValueError("it is no line that a site writes") from error


class Witness:
    """Checks what one site is told, and keeps it. `known`: the aggregator's identity key by the
    authority's roster; without one, the first key that is told is the one to expect.

    Raises: WireError J05: another history than before. J07: not the aggregator's word.
    """

    def __init__(
        self, path: Path, name: str, run: str, plan: str, known: bytes | None,
        said: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.path, self._name, self._run, self._plan = path, name, run, plan
        self._known, self._said = known, said
        self._key = b""
        self._verify: Verify | None = None
        self.last = 0
        """The highest number that was told so far: what is told later goes at least as far."""
        self._hashes: dict[int, str] = {}
        self._receipts: set[int] = set()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._read()

    def close(self) -> None:
        os.close(self._file)

    def greeted(self, identity: bytes) -> None:
        """The aggregator has said which key signs for it; empty: none does."""
        expected = self._known or self._key
        if not identity and not self._key:
            if expected:
                self._said("this aggregator signs no ledger: there will be no receipts")
            return
        if not expected:
            self._said(f"no roster names the aggregator's key: takes {fingerprint(identity)}")
        elif identity != expected:
            found = fingerprint(identity) if identity else "none"
            message = f"expected the aggregator's identity key {fingerprint(expected)}"
            raise WireError(
                "J07", f"{message}, found {found}: ask its operator, and bring the roster again"
            )
        self._key, self._verify = identity, verifier(identity)

    def told(self, head: Head | None, since: int) -> None:
        """A head came in an answer to what was sent when `last` was `since`."""
        if head is None or not head.number:
            if self._verify and since:
                raise WireError("J05", f"the aggregator told of entry {since} and now of none")
            return
        self._check(head)
        if head.number < since:
            message = f"the aggregator's ledger had entry {since} and now ends with {head.number}"
            raise WireError("J05", f"{message}: see {self.path}")
        if head.number not in self._hashes:
            self._keep(Seen(*self._about, head))

    def receipt(self, line: bytes, ask: str, digest: str) -> bool:
        """Keep the receipt of this reply, durably; whether there is one."""
        if not line:
            if self._verify:
                self._said(f"the aggregator gave no receipt of the reply to {ask}")
            return False
        try:
            entry = read_entry(line)
        except ValueError as error:
            raise WireError("J07", f"the receipt of the reply to {ask}: {error}") from None
        self._check(entry.head)
        own = {"ask": ask, "collaborator": self._name, "digest": digest}
        if entry.kind not in (COUNTED, KEPT) or not own.items() <= entry.content.items():
            found = {key: entry.content.get(key) for key in own}
            message = f"expected a receipt of {own}, found {entry.kind} of {found}"
            raise WireError("J07", message)
        if entry.number not in self._receipts:
            self._keep(Seen(*self._about, entry.head, entry))
            failpoint("witness.receipt")
            os.fsync(self._file)
            failpoint("witness.kept")
        return True

    @property
    def _about(self) -> tuple[str, str, str, str]:
        return self._name, self._run, self._plan, self._key.hex()

    def _check(self, head: Head) -> None:
        if self._verify and not _signed(self._verify, self._run, self._plan, head):
            message = f"entry {head.number} of the ledger is not signed by the aggregator's key"
            raise WireError("J07", f"{message} {fingerprint(self._key)}")
        known = self._hashes.get(head.number, head.hash)
        if known != head.hash:
            message = f"entry {head.number} of the ledger was {known[:16]}, now it is told as"
            raise WireError("J05", f"{message} {head.hash[:16]}: see {self.path}")

    def _keep(self, seen: Seen) -> None:
        data = seen.line() + b"\n"
        if os.write(self._file, data) != len(data):
            raise OSError(f"{self.path}: the disk took a part of a line")
        self._note(seen)

    def _note(self, seen: Seen) -> None:
        self._hashes[seen.head.number] = seen.head.hash
        self.last = max(self.last, seen.head.number)
        if seen.receipt:
            self._receipts.add(seen.head.number)

    def _read(self) -> None:
        """Go on with what an earlier life kept; a line that a crash tore never happened."""
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        os.ftruncate(self._file, whole)
        for line in data[:whole].splitlines():
            try:
                seen = read_seen(line)
            except ValueError as error:
                raise WireError("J07", f"{self.path}: a line was changed: {error}") from error
            self._key = bytes.fromhex(seen.key)
            self._note(seen)


def _signed(verify: Verify, run: str, plan: str, head: Head) -> bool:
    return verify(head_message(run, plan, head.number, head.hash), head.signature)
