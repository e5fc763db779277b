"""The authority's office: enrols, issues, renews, revokes; each is on its record before it answers.

    cert/authority.pem                 what nodes are to trust, public; two roots in a roll-over
    cert/roster.json                   who takes part, signed, public
    cert/authority/                    0700
        authority.key, authority.pem   the root that signs
        record.jsonl                   0600, append-only: the truth about every node
        profile.yaml                   the operator's own issuance profiles, if any
        cross.pem                      after a roll-over: the root, certified by the one before it
        previous.key, previous.pem     during a roll-over: the one before it

A roll-over appears as the folder `next/`, in one step; what a crash leaves of it is settled when
the office is opened.
"""

import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openfed.errors import CertificateError
from openfed.files import lock_file, sync_folder, write_whole
from openfed.pki.authority import (
    Authority,
    Enrolment,
    create_authority,
    cross_sign,
    issue,
    revocation_list,
)
from openfed.pki.disk import (
    append_line,
    create_secret,
    load_authority,
    load_profiles,
    make_folder,
    read,
    read_secret,
)
from openfed.pki.keys import curve_kind, load_key
from openfed.pki.leaf import fingerprint, inspect, read_certificate
from openfed.pki.peer import AUTHORITY, Peer
from openfed.pki.record import (
    RENEWAL,
    TRIAL,
    Issued,
    Node,
    Record,
    check_enrolable,
    created_line,
    gives_way,
    holding_on,
    issued_line,
    read_record,
    renewable,
    revoked_line,
    root_line,
)
from openfed.pki.request import Request
from openfed.pki.roster import Member, Roster, read_roster, sign_roster

__all__ = ["Issued", "Node", "Office", "create_office", "open_office"]

RECORD, ROSTER = "record.jsonl", "roster.json"
_MOST_RECORD = 1 << 30


class Office:
    """The authority below `cert_dir`. Every method may be called from any thread."""

    def __init__(self, cert_dir: Path, passphrase: bytes | None = None) -> None:
        self.cert_dir = cert_dir
        self.federation = inspect(read(cert_dir / AUTHORITY / "authority.pem")).federation
        self._folder, self._passphrase = cert_dir / AUTHORITY, passphrase
        self._mine, self._depth, self._held = threading.RLock(), 0, -1

    def certify(
        self, request: Request, enrolment: Enrolment, now: float, how: str = "hand"
    ) -> bytes:
        """Enrol, or certify the same identity again; returns the chain (PEM, the leaf first).

        Names, role and hosts are those of `enrolment`; of the request only its keys count. A name
        that only a trial enrolled is taken over. Raises C01-C04, C07, C14, C15, C19, C30, C31, C33.
        """
        with self.locked():
            record = self.record()
            check_enrolable(record, enrolment, request.identity, now)
            leaf, issued = self._issue(request, enrolment, now, how)
            if gives_way(record, enrolment, request.identity):
                self._append(revoked_line(enrolment.name, "a trial's keys, replaced", now))
            self._append(issued_line(enrolment, request.identity, issued))
            self.publish(now)
        return self.chain(leaf)

    def renew(self, request: Request, peer: Peer, now: float) -> bytes:
        """A new chain (PEM) for a peer that showed a valid certificate; same identity, same name.

        Raises what `certify` does, C16 (of another federation) and C32 (not issued to it).
        """
        with self.locked():
            if peer.federation != self.federation:
                message = f"expected a peer of {self.federation!r}, found {peer.federation!r}"
                raise CertificateError("C16", message)
            node = renewable(self.record(), peer, request.identity, now)
            enrolment = Enrolment(self.federation, node.role, node.name, node.hosts, node.until)
            leaf, issued = self._issue(request, enrolment, now, RENEWAL)
            self._append(issued_line(enrolment, request.identity, issued))
        return self.chain(leaf)

    def revoke(self, name: str, reason: str, now: float) -> Node:
        """Revoke a name with all that was issued to it. Again changes nothing. Raises C15, C32."""
        with self.locked():
            node = self.record().nodes.get(name)
            if node is None:
                known = ", ".join(self.record().nodes) or "nobody"
                raise CertificateError("C32", f"{name!r} is not enrolled here; enrolled: {known}")
            if node.revoked_at is None:
                load_key(self.authority.key, self._passphrase)  # or the roster could not follow
                self._append(revoked_line(name, reason, now))
            self.publish(now)
            return self.record().nodes[name]

    def nodes(self) -> tuple[Node, ...]:
        """Every enrolment, in the order of their names; of each name the newest."""
        return tuple(node for _, node in sorted(self.record().nodes.items()))

    def record(self) -> Record:
        """Raises C36: it is damaged."""
        path = self._folder / RECORD
        data = read_secret(path, _MOST_RECORD) if path.exists() else b""
        return read_record(data, str(path))

    def crl(self, now: float) -> bytes:
        """PEM; during a roll-over a list of either root. Raises C15."""
        record, lists = self.record(), b""
        current = _hash(self.authority.certificate)
        for signer in self._signers():
            here = _hash(signer.certificate)
            revoked = [(e.serial, at) for e, at in record.revoked if (e.root or current) == here]
            lists += revocation_list(signer, revoked, record.number, now)
        return lists

    def anchors(self) -> bytes:
        """PEM of what nodes are to trust: one root, two during a roll-over (the new one first)."""
        previous = self._folder / "previous.pem"
        former = read(previous) if previous.exists() else b""
        return self.authority.certificate + former

    def fingerprint(self) -> str:
        """`sha256:` and the hexadecimal digits of the (newest) root's DER."""
        return fingerprint(self.authority.certificate)

    @property
    def authority(self) -> Authority:
        """What signs now. The key is only as good as the passphrase."""
        return load_authority(self.cert_dir, self._passphrase)

    @property
    def encrypted(self) -> bool:
        return b"ENCRYPTED" in self.authority.key

    def chain(self, leaf: bytes) -> bytes:
        """A leaf of `authority`, with what a node needs that still trusts the root before it."""
        return leaf + self._cross()

    def publish(self, now: float) -> list[Path]:
        """Bring authority.pem and roster.json up to date with the record; the files written."""
        with self.locked():
            written = []
            public, anchors = self.cert_dir / "authority.pem", self.anchors()
            if not public.exists() or read(public) != anchors:
                written.append(write_whole(public, anchors))
            if not self._roster_is_current():
                roster = self._roster(self.record(), now)
                text = sign_roster(roster, self.authority, self._cross())
                written.append(write_whole(self.cert_dir / ROSTER, text))
            return written

    def roll_over(self, now: float) -> None:
        """Begin to replace the root: a new one signs, both are trusted. Raises C15, C39."""
        with self.locked():
            if (self._folder / "previous.pem").exists():
                raise CertificateError("C39", "a roll-over is going on: finish it first")
            old = self.authority
            kind = curve_kind(load_key(old.key, old.passphrase))
            new = create_authority(
                self.federation,
                now,
                kind=kind,
                passphrase=old.passphrase if self.encrypted else None,
                suffix=f" {secrets.token_hex(4)}",
            )
            cross = cross_sign(old, new.certificate, now)
            _appear(self._folder / "next", new, {"cross.pem": cross})
            _settle(self._folder)
            self._append(root_line("rolled-over", _hash(new.certificate), now))
            self.publish(now)

    def finish_roll_over(self, now: float, *, force: bool = False) -> None:
        """Drop the old root. Raises C39: none is going on, or nodes still hold its certificates."""
        with self.locked():
            if not (self._folder / "previous.pem").exists():
                raise CertificateError("C39", "no roll-over is going on")
            current = _hash(self.authority.certificate)
            if (late := sorted(holding_on(self.record(), current, now))) and not force:
                names = ", ".join(late)
                message = f"valid certificates of the old root are held by {names}: renew them"
                raise CertificateError("C39", f"{message} first, or --force leaves them out")
            load_key(self.authority.key, self._passphrase)
            (self._folder / "previous.key").unlink(missing_ok=True)
            (self._folder / "previous.pem").unlink()
            sync_folder(self._folder)
            self._append(root_line("finished", current, now))
            self.publish(now)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the office, also against other processes; its own thread may enter again."""
        with self._mine:
            if not self._depth:
                self._held = lock_file(self.cert_dir, wait=True)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if not self._depth:
                    os.close(self._held)

    def _issue(
        self, request: Request, enrolment: Enrolment, now: float, how: str
    ) -> tuple[bytes, Issued]:
        """A leaf that nobody may see before it is on the record."""
        profiles, authority = load_profiles(self.cert_dir), self.authority
        if enrolment.role not in profiles:
            known = ", ".join(profiles)
            message = f"no profile for the role {enrolment.role!r}; there are: {known}"
            raise CertificateError("C19", message)
        leaf = issue(authority, request, enrolment, profiles[enrolment.role], now)
        found = read_certificate(leaf)
        begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
        root = _hash(authority.certificate)
        dates = (begins.timestamp(), ends.timestamp())
        return leaf, Issued(found.serial_number, *dates, now, how, root)

    def _append(self, line: bytes) -> None:
        append_line(self._folder / RECORD, line)

    def _roster_is_current(self) -> bool:
        """By its number, and signed by the newest root."""
        path = self.cert_dir / ROSTER
        if not path.exists():
            return False
        try:
            found = read_roster(read(path, _MOST_RECORD), self.authority.certificate)
        except CertificateError:
            return False
        return found.number == self.record().number

    def _roster(self, record: Record, now: float) -> Roster:
        members = tuple(
            Member(node.role, node.name, node.identity, node.revoked_at is not None)
            for node in record.nodes.values()
        )
        return Roster(self.federation, record.number, now, members, record.revoked_serials)

    def _cross(self) -> bytes:
        path = self._folder / "cross.pem"
        return read(path) if path.exists() else b""

    def _signers(self) -> Iterator[Authority]:
        yield self.authority
        if (self._folder / "previous.pem").exists():
            yield load_authority(self.cert_dir, self._passphrase, "previous")


def create_office(
    cert_dir: Path,
    federation: str,
    now: float,
    *,
    passphrase: bytes | None = None,
    kind: str = "P-256",
    how: str = "hand",
) -> list[Path]:
    """A new authority, unless it is here already; the files written. `how` is hand or trial.

    By hand, the authority of a trial becomes a real one. Raises C14 (expired), C16 (of another
    federation), C34 (this is a node's folder), C35 (it is here with another passphrase).
    """
    make_folder(cert_dir, 0o755)
    folder, written = cert_dir / AUTHORITY, list[Path]()
    held = lock_file(cert_dir, wait=True)
    try:
        if not folder.exists():
            check_own(cert_dir, how)
            made = create_authority(federation, now, kind=kind, passphrase=passphrase)
            line = created_line(federation, _hash(made.certificate), how, now)
            written += _appear(folder, made, {}, line)
        _settle(folder)
    finally:
        os.close(held)
    office = Office(cert_dir, passphrase)
    _check_found(office, federation, now, passphrase)
    with office.locked():
        if how == "hand" and office.record().trial:
            root = _hash(office.authority.certificate)
            append_line(folder / RECORD, created_line(federation, root, how, now))
        return written + office.publish(now)


def open_office(cert_dir: Path, passphrase: bytes | None = None) -> Office:
    """The authority that is here. Raises C12 (it is not), C15 (wrong passphrase).

    Without a passphrase an encrypted office can still be read; what needs its key raises C15.
    """
    folder = cert_dir / AUTHORITY
    if not folder.is_dir():
        raise CertificateError("C12", f"{folder} is missing: the authority is not in this folder")
    if (folder / "next").exists() or (folder / "issued.jsonl").exists():
        held = lock_file(cert_dir, wait=True)
        try:
            _settle(folder)
        finally:
            os.close(held)
    office = Office(cert_dir, passphrase)
    if passphrase is not None:
        load_key(office.authority.key, passphrase)
    return office


def check_own(cert_dir: Path, how: str) -> None:
    """Raises C34: a node's folder, whose authority is elsewhere. It makes none of its own; for a
    trial, neither where a node's keys wait for their certificate.
    """
    found = [cert_dir / "authority.pem", cert_dir.parent / "site.yaml"]
    found += cert_dir.glob("*/node.key") if how == TRIAL else []
    for path in found:
        if path.exists():
            raise CertificateError(
                "C34",
                f"{path} is here and {cert_dir / AUTHORITY} is not: this folder belongs to a node "
                "of a federation whose authority is elsewhere",
            )


def _check_found(office: Office, federation: str, now: float, passphrase: bytes | None) -> None:
    authority, folder = office.authority, office.cert_dir / AUTHORITY
    if office.federation != federation:
        raise CertificateError(
            "C16",
            f"{folder}: expected the authority of federation {federation!r}, found that of "
            f"{office.federation!r}",
        )
    if now >= inspect(authority.certificate).not_after:
        raise CertificateError("C14", f"{folder}: the authority has expired")
    if passphrase is not None:
        load_key(authority.key, passphrase)
        if not office.encrypted:
            message = f"{folder}: the authority is here already, and its key has no passphrase"
            raise CertificateError("C35", message)


def _appear(
    folder: Path, authority: Authority, more: dict[str, bytes], record: bytes = b""
) -> list[Path]:
    """Appears whole: a folder that lacks its key was emptied by someone, and is not refilled."""
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    make_folder(beside, 0o700)
    for name, content in {"authority.pem": authority.certificate, **more}.items():
        write_whole(beside / name, content)
    create_secret(beside / "authority.key", authority.key)
    if record:
        append_line(beside / RECORD, record)
    os.rename(beside, folder)
    sync_folder(folder.parent)
    return [folder / "authority.pem", folder / "authority.key"]


def _settle(folder: Path) -> None:
    """Finish what was begun before a crash, under the lock; and take over an older record."""
    older, following = folder / "issued.jsonl", folder / "next"
    if older.exists() and not (folder / RECORD).exists():
        os.rename(older, folder / RECORD)
        sync_folder(folder)
    if not following.exists():
        return
    if not (folder / "previous.pem").exists():  # written last of the two
        (folder / "previous.key").unlink(missing_ok=True)
        create_secret(folder / "previous.key", read_secret(folder / "authority.key"))
        write_whole(folder / "previous.pem", read(folder / "authority.pem"))
    write_whole(folder / "authority.key", read_secret(following / "authority.key"), 0o600)
    write_whole(folder / "authority.pem", read(following / "authority.pem"))
    write_whole(folder / "cross.pem", read(following / "cross.pem"))
    gone = folder / f".next.{secrets.token_hex(8)}"
    os.rename(following, gone)
    sync_folder(folder)
    shutil.rmtree(gone)


def _hash(certificate: bytes) -> str:
    return fingerprint(certificate).removeprefix("sha256:")
