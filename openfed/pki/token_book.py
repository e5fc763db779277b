"""What the authority knows of its tokens: `cert/authority/tokens.jsonl`, append-only, 0600.

One line for each thing that happened: minted (with the key that verifies, never the secret), used
(with the chain that was given for it), withdrawn. A last line that a crash cut off never happened.
All is done under the office's lock.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hmac import compare_digest
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from openfed.errors import CertificateError
from openfed.parse import strict_json
from openfed.pki.authority import Enrolment
from openfed.pki.disk import append_line
from openfed.pki.office import Office
from openfed.pki.peer import AUTHORITY
from openfed.pki.request import Request, proven_key
from openfed.pki.token import Application, Token, prove

GRACE_S = 600.0
"""How long a used token still keeps enrolment open, for a node that never got the answer."""


@dataclass(frozen=True)
class Entry:
    """A token, as the authority sees it."""

    federation: str
    role: str
    name: str
    ends: float
    key: bytes = field(repr=False)
    withdrawn: bool = False
    used_at: float | None = None
    used_by: str = ""  # the digest of the keys that it was used for
    chain: bytes = b""

    def usable(self, now: float) -> bool:
        return not self.withdrawn and self.used_at is None and now < self.ends

    def open(self, now: float) -> bool:
        """Whether its holder has something to fetch: a first chain, or the one that got lost."""
        again = self.used_at is not None and now < min(self.used_at + GRACE_S, self.ends)
        return self.usable(now) or (again and not self.withdrawn)


Book = Mapping[str, Entry]
"""By the token's id."""


def judge(book: Book, application: Application, federation: str, now: float) -> bytes | None:
    """Whether a token admits this application. The chain, if these keys have used it before.

    Raises C51 (used by others), C52 (expired), C53 (of another federation or name), C54 (no
    proof), C55 (withdrawn), C56 (unknown).
    """
    entry = book.get(application.token)
    asked = (application.federation, application.role, application.name)
    if application.federation != federation:
        raise CertificateError("C53", f"a token of {asked[0]!r}; this is {federation!r}")
    if entry is None:
        raise CertificateError("C56", "this authority has issued no such token")
    if asked != (entry.federation, entry.role, entry.name):
        raise CertificateError("C53", f"this token is not for {asked[1]} {asked[2]!r}")
    if not compare_digest(application.proof, prove(entry.key, application.request)):
        raise CertificateError("C54", "the request is not proven by the token: one was changed")
    if entry.withdrawn:
        raise CertificateError("C55", f"the token for {entry.name!r} was withdrawn")
    if now >= entry.ends:
        hours = (now - entry.ends) / 3600
        raise CertificateError("C52", f"the token for {entry.name!r} expired {hours:.1f} h ago")
    if entry.used_at is not None and entry.used_by != keys_digest(application.request):
        raise CertificateError("C51", f"the token for {entry.name!r} was used, by other keys")
    return None if entry.used_at is None else entry.chain


def keys_digest(request: Request) -> str:
    """Which keys a request is for, however often it is signed again. Raises C01-C03."""
    spki = proven_key(request).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki + request.identity).hexdigest()


def read_book(cert_dir: Path) -> Book:
    """Raises C62: it is damaged."""
    path = _path(cert_dir)
    try:
        return _book(path.read_bytes(), path)
    except FileNotFoundError:
        return {}


def add_token(office: Office, token: Token, now: float) -> bool:
    """Keep what verifies `token`; one of the same name not yet used is withdrawn: True."""
    with office.locked():
        former = _unused(read_book(office.cert_dir), token.name, now)
        lines = [{"what": "withdrawn", "at": now, "id": each} for each in former]
        minted = {
            "what": "minted",
            "at": now,
            "id": token.id,
            "federation": token.federation,
            "role": token.role,
            "name": token.name,
            "ends": token.ends,
            "key": token.key.hex(),
        }
        _append(office.cert_dir, *lines, minted)
    return bool(former)


def withdraw_token(office: Office, name: str, now: float) -> None:
    """Raises C63: there is none to withdraw."""
    with office.locked():
        found = _unused(read_book(office.cert_dir), name, now)
        if not found:
            raise CertificateError("C63", f"no token for {name!r} is outstanding")
        lines = [{"what": "withdrawn", "at": now, "id": each} for each in found]
        _append(office.cert_dir, *lines)


def redeem(office: Office, application: Application, now: float) -> tuple[bytes, bool]:
    """The chain (PEM) that a token is good for, once; whether it is a new one.

    Raises what `judge` does and what `Office.certify` does; then the token is as good as before.
    """
    request = application.request
    with office.locked():
        book = read_book(office.cert_dir)
        chain = judge(book, application, office.federation, now)
        if chain is not None:
            return chain, False
        who = Enrolment(application.federation, application.role, application.name)
        chain = office.certify(request, who, now, "token")
        used = {"what": "used", "at": now, "id": application.token, "keys": keys_digest(request)}
        _append(office.cert_dir, used | {"chain": chain.decode("ascii")})
        return chain, True


def _unused(book: Book, name: str, now: float) -> list[str]:
    return [each for each, entry in book.items() if entry.name == name and entry.usable(now)]


def _append(cert_dir: Path, *lines: Mapping[str, Any]) -> None:
    for line in lines:
        append_line(_path(cert_dir), json.dumps(line, sort_keys=True).encode())


def _path(cert_dir: Path) -> Path:
    return cert_dir / AUTHORITY / "tokens.jsonl"


def _book(data: bytes, path: Path) -> dict[str, Entry]:
    book: dict[str, Entry] = {}
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            told = strict_json(line)
            book[told["id"]] = _after(book.get(told["id"]), told)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CertificateError("C62", f"{path}:{number}: not a line that fx writes") from None
    return book


def _after(entry: Entry | None, told: Mapping[str, Any]) -> Entry:
    what = told["what"]
    if what == "minted" and entry is None:
        who = (told["federation"], told["role"], told["name"])
        return Entry(*who, told["ends"], bytes.fromhex(told["key"]))
    if what == "withdrawn" and entry:
        return replace(entry, withdrawn=True)
    if what == "used" and entry:
        chain = told["chain"].encode("ascii")
        return replace(entry, used_at=told["at"], used_by=told["keys"], chain=chain)
    raise ValueError(what)
