"""Certificates and keys on disk: the only module of pki that touches it.

    cert/authority.pem                 public copy, for everyone
    cert/authority/                    0700: authority.key 0600, authority.pem, issued.jsonl
    cert/<name>/                       0700: node.key 0600, identity.key 0600, node.pem, chain.pem

A key is written once, whole or not at all, and never overwritten. `issued.jsonl` is append-only:
one line per certificate, what renewal and revocation will read.
"""

import json
import os
import secrets
import stat
import time
from collections.abc import Mapping
from pathlib import Path

import yaml

from openfed.errors import CertificateError
from openfed.files import lock_file, shipped, sync_folder, write_beside, write_whole
from openfed.pki.authority import Authority, Enrolment, create_authority, issue
from openfed.pki.keys import create_identity_key, create_key, identity_public
from openfed.pki.leaf import Identity, check_leaf, inspect, leaf_hosts, read_certificate
from openfed.pki.peer import AGGREGATOR, AUTHORITY, COLLABORATOR, host_name, node_name
from openfed.pki.profile import Profile, parse_profiles
from openfed.pki.request import create_request

_MOST_BYTES = 1 << 20
_REISSUED = {"C05", "C06", "C07", "C08", "C09", "C10", "C12", "C16", "C17"}
"""What a new leaf heals. Loose modes and unreadable keys are for a person to look at."""


def ensure_federation(
    cert_dir: Path,
    federation: str,
    aggregator_names: tuple[str, ...],
    collaborators: tuple[str, ...],
    now: float,
) -> list[Path]:
    """Everything that `fx run` needs below `cert_dir`; returns the files it wrote.

    Creates what is missing and keeps what is valid. A leaf is issued anew, for the same key, when
    more than half its life is over, when the aggregator's hosts changed, or when it does not belong
    to this authority. Raises C04, C11, C13-C16.
    """
    profiles, written = load_profiles(), list[Path]()
    nodes = [Enrolment(federation, AGGREGATOR, AGGREGATOR, aggregator_names)]
    nodes += [Enrolment(federation, COLLABORATOR, name) for name in collaborators]
    _make_folder(cert_dir, 0o755)
    held = lock_file(cert_dir, wait=True)  # other commands may write certificates there
    try:
        authority = _ensure_authority(cert_dir, federation, now, written)
        for node in nodes:
            _ensure_node(cert_dir, authority, node, profiles[node.role], now, written)
    finally:
        os.close(held)
    return written


def may_issue(cert_dir: Path) -> bool:
    """Whether the authority is here, or there is none yet."""
    return (cert_dir / AUTHORITY).exists() or not (cert_dir / "authority.pem").exists()


def load_identity(
    cert_dir: Path,
    name: str,
    *,
    federation: str | None = None,
    role: str | None = None,
    now: float | None = None,
) -> Identity:
    """What node `name` shows and trusts, after every check that needs no network."""
    folder = cert_dir / node_name(name)
    key, chain = _read_secret(folder / "node.key"), _read(folder / "chain.pem")
    authority = _read(cert_dir / "authority.pem")
    peer = check_leaf(
        chain,
        key,
        authority,
        federation=federation,
        role=role,
        name=name,
        now=time.time() if now is None else now,
    )
    return Identity(key, chain, authority, peer)


def load_identity_key(cert_dir: Path, name: str) -> bytes:
    """The node's Ed25519 key (PEM), for `keys.sign`."""
    return _read_secret(cert_dir / node_name(name) / "identity.key")


def load_profiles() -> Mapping[str, Profile]:
    """The issuance profiles that ship: role -> profile."""
    path = shipped("certs") / "standard.yaml"
    return parse_profiles(yaml.safe_load(_read(path)), path.name)


def load_authority(cert_dir: Path, passphrase: bytes | None = None) -> Authority:
    folder = cert_dir / AUTHORITY
    certificate = _read(folder / "authority.pem")
    return Authority(certificate, _read_secret(folder / "authority.key"), passphrase)


def _ensure_authority(
    cert_dir: Path, federation: str, now: float, written: list[Path]
) -> Authority:
    folder = cert_dir / AUTHORITY
    if not folder.exists():
        written += _create_authority_folder(folder, create_authority(federation, now))
    authority = load_authority(cert_dir)
    found = inspect(authority.certificate)
    if found.federation != federation:
        raise CertificateError(
            "C16",
            f"{folder}: expected the authority of federation {federation!r}, found that of "
            f"{found.federation!r}",
        )
    if now >= found.not_after:
        raise CertificateError("C14", f"{folder}: the authority has expired")
    public = cert_dir / "authority.pem"
    if not public.exists() or _read(public) != authority.certificate:
        written.append(write_whole(public, authority.certificate))
    return authority


def _create_authority_folder(folder: Path, authority: Authority) -> list[Path]:
    """Appears whole: a folder that lacks its key was emptied by someone, and is not refilled."""
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    _make_folder(beside, 0o700)
    write_whole(beside / "authority.pem", authority.certificate)
    _create(beside / "authority.key", authority.key)
    os.rename(beside, folder)
    sync_folder(folder.parent)
    return [folder / "authority.pem", folder / "authority.key"]


def _ensure_node(
    cert_dir: Path,
    authority: Authority,
    node: Enrolment,
    profile: Profile,
    now: float,
    written: list[Path],
) -> None:
    folder = cert_dir / node_name(node.name)
    _make_folder(folder, 0o700)
    for key, create in (("node.key", create_key), ("identity.key", create_identity_key)):
        if not (folder / key).exists():
            written.append(_create(folder / key, create()))
    if (folder / "node.pem").exists() and not _needs_leaf(cert_dir, node, now):
        return
    identity = load_identity_key(cert_dir, node.name)
    request = create_request(node.name, _read_secret(folder / "node.key"), identity)
    leaf = issue(authority, request, node, profile, now)
    _record(cert_dir / AUTHORITY / "issued.jsonl", node, leaf, identity_public(identity), now)
    written.append(write_whole(folder / "node.pem", leaf))
    written.append(write_whole(folder / "chain.pem", leaf))


def _needs_leaf(cert_dir: Path, node: Enrolment, now: float) -> bool:
    try:
        identity = load_identity(
            cert_dir, node.name, federation=node.federation, role=node.role, now=now
        )
    except CertificateError as error:
        if error.code in _REISSUED:
            return True
        raise
    leaf = read_certificate(identity.chain_pem)
    begins, ends = leaf.not_valid_before_utc.timestamp(), identity.peer.not_after
    hosts = frozenset(str(host_name(host)) for host in node.hosts)
    return now > (begins + ends) / 2 or leaf_hosts(identity.chain_pem) != hosts


def _record(path: Path, node: Enrolment, leaf: bytes, identity: bytes, now: float) -> None:
    peer = inspect(leaf)
    line = {
        "at": now,
        "federation": node.federation,
        "role": node.role,
        "name": node.name,
        "hosts": list(node.hosts),
        "serial": f"{peer.serial:032x}",
        "not_after": peer.not_after,
        "identity": identity.hex(),
    }
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "ab") as file:
        file.write(json.dumps(line, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _make_folder(path: Path, mode: int) -> None:
    """Creates the folder if it is missing; refuses (C11) a private one that others can enter."""
    if not path.exists() and not path.is_symlink():
        path.mkdir(mode=mode, parents=True)
    if mode == 0o700:
        _check_folder(path)


def _check_folder(path: Path) -> None:
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise CertificateError("C11", f"{path}: expected a folder, found a link or a file")
    _check_mode(path, found, 0o700)


def _check_mode(path: Path, found: os.stat_result, mode: int) -> None:
    if stat.S_IMODE(found.st_mode) & ~mode & 0o7777:
        raise CertificateError(
            "C11",
            f"{path}: expected mode {mode:04o}, found {stat.S_IMODE(found.st_mode):04o}; "
            f"run: chmod {mode:o} {path}",
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()[:_MOST_BYTES]
    except FileNotFoundError as error:
        raise CertificateError("C12", f"{path} is missing") from error
    except OSError as error:
        raise CertificateError("C12", f"{path}: {error.strerror}") from error


def _read_secret(path: Path) -> bytes:
    """Reads a key, unless someone else could have read or replaced it. Raises C11, C12."""
    try:
        _check_folder(path.parent)
        if path.is_symlink():
            raise CertificateError("C11", f"{path}: expected a file, found a link")
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            _check_mode(path, os.fstat(file.fileno()), 0o600)
            return file.read(_MOST_BYTES)
    except FileNotFoundError as error:
        raise CertificateError("C12", f"{path} is missing") from error
    except OSError as error:
        raise CertificateError("C12", f"{path}: {error.strerror}") from error


def _create(path: Path, content: bytes) -> Path:
    """A new secret file, 0600: appears whole, and only where there was none. Raises C13."""
    beside = write_beside(path, content, 0o600)
    try:
        os.link(beside, path)
    except FileExistsError as error:
        raise CertificateError("C13", f"{path} is there already; keys are not replaced") from error
    finally:
        beside.unlink()
    sync_folder(path.parent)
    return path
