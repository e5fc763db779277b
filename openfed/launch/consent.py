"""Consent on disk: the author's signature beside the plan, and what each site here has approved.

plan/plan.sig                          the author's signature of plan.lock's digest
approved/<digest>/<name>.json          site <name>'s approval, signed with its identity key
approved/<digest>/plan.lock, src/...   the plan and the code as they were approved
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openfed.codec.advice import ratio
from openfed.errors import OpenFedError, PlanError, PolicyError, Problem, UsageError
from openfed.files import write_whole
from openfed.parse import DIGEST
from openfed.pki.files import load_identity_key
from openfed.pki.keys import identity_public
from openfed.pki.roster import read_roster
from openfed.plan.approval import MAX_BYTES as SIGNED_BYTES
from openfed.plan.approval import (
    Signed,
    check_signature,
    fingerprint,
    sign_digest,
    verify_approval,
)
from openfed.plan.chains import ways
from openfed.plan.difference import (
    Change,
    Frozen,
    differences,
    frozen_lock,
    plan_changes,
    read_frozen,
    text_changes,
)
from openfed.plan.explain import code_lines, explain
from openfed.plan.load import load_plan, problems, read_file
from openfed.plan.local import check_named
from openfed.plan.lock import MAX_BYTES, Lock, code_files, read_lock, verify_files, write_lock
from openfed.plan.schema import RESERVED, Plan, canonical
from openfed.tensors.record import Signature
from openfed.workspace import Workspace

SITE = "site.yaml"
SIGNATURE = "plan/plan.sig"
APPROVED = "approved"
MOST_TEXT = 1 << 20
"""Bytes of a file whose changes are shown line by line."""


# -- the author -----------------------------------------------------------------------------------


def kept_address(plan: Plan, lock: Lock) -> Plan:
    """`plan` with the addresses that collaborators dial as the lock has them: `plan initialize -a`
    may have given them."""
    aggregator = plan.aggregator.model_copy(update={"advertise": lock.advertise})
    return plan.model_copy(update={"aggregator": aggregator})


def frozen(workspace: Workspace, plan: Plan) -> Lock | None:
    """plan.lock, if it is of this plan and of the code that is here."""
    try:
        lock = read_lock(workspace.lock)
        same = canonical(lock.plan) == canonical(plan)
        return lock if same and dict(lock.files) == code_files(workspace.root) else None
    except OpenFedError:
        return None


def outdated(workspace: Workspace, lock: Lock) -> Change | None:
    """The first thing that plan.yaml says otherwise than plan.lock. Raises: PlanError."""
    plan = load_plan(workspace.plan)
    return next(plan_changes(canonical(lock.plan), canonical(plan)), None)


def sign_plan(workspace: Workspace, name: str, now: float) -> tuple[Signed, tuple[Path, ...]]:
    """Sign plan.lock as its author, with the identity key of node `name`; the files written.

    Raises: PlanError: P30, P20 the lock is not of this plan.yaml and this code. CertificateError:
    the key is not here.
    """
    lock = read_lock(workspace.lock)
    if (first := outdated(workspace, lock)) is not None:
        message = f"plan.lock is of another plan: {first}; freeze it first: fx plan freeze"
        raise PlanError((Problem("P30", "plan/plan.yaml", "", message),))
    verify_files(workspace.root, lock)
    key = load_identity_key(workspace.cert, name)
    try:
        kept = author(workspace, lock.digest)
    except PolicyError:
        kept = None
    if kept is not None and (kept.name, kept.public) == (name, identity_public(key)):
        return kept, ()
    signed = sign_digest("signature", lock.digest, lock.plan.federation, name, key, now)
    return signed, (write_whole(workspace.root / SIGNATURE, signed.data()),)


def author(workspace: Workspace, digest: str) -> Signed | None:
    """Who signed the plan of this digest; None: nobody.

    Raises: PolicyError: R20 it does not verify, or is of another key than the roster has for that
    node; R21 it is of another plan.
    """
    data = _contents(workspace.root / SIGNATURE, SIGNED_BYTES + 1)
    if data is None:
        return None
    signed = check_signature(data, digest)
    known = _known(workspace, signed.name)
    if known is not None and known != signed.public:
        message = (
            f"{SIGNATURE}: expected the key of {signed.name} on the roster, {fingerprint(known)}, "
            f"found {fingerprint(signed.public)}; ask {signed.name} who signed it"
        )
        raise PolicyError("R20", message)
    return signed


def is_signed(workspace: Workspace, lock: Lock) -> bool | None:
    """Whether the signature that is here is one of this plan; None: there is none."""
    try:
        return None if author(workspace, lock.digest) is None else True
    except PolicyError:
        return False


def author_words(workspace: Workspace, digest: str) -> str:
    """Who signed, for people, and who vouches for the key; empty: nobody. Raises: PolicyError."""
    if (signed := author(workspace, digest)) is None:
        return ""
    if _known(workspace, signed.name) is not None:
        return f"{signed.who} (as on the authority's roster)"
    return f"{signed.who} (compare the key with its owner: no roster here has it)"


def _known(workspace: Workspace, name: str) -> bytes | None:
    """The identity key that the authority's roster has for a node, where there is one here."""
    roster = _contents(workspace.cert / "roster.json", MAX_BYTES)
    anchors = _contents(workspace.cert / "authority.pem", MAX_BYTES)
    if roster is None or anchors is None:
        return None
    return read_roster(roster, anchors).identity(name)


def explained(
    workspace: Workspace,
    plan: Plan,
    lock: Lock | None,
    model: Signature | None,
    limits: Sequence[str] = (),
) -> str:
    """`plan explain`. `model`: what the plan is known to make. Raises: PolicyError: R20, R21."""
    sizes = {way: ratio(direction, model) for way, direction in ways(plan.compression_pipeline)}
    signed = author_words(workspace, lock.digest) if lock else ""
    lines = code_lines(workspace.root, lock) if lock else {}
    return explain(plan, lock, lines, sizes, signed, limits)


# -- the site -------------------------------------------------------------------------------------


def site_name(workspace: Workspace, given: str | None = None) -> str:
    """The site that this workspace belongs to: as given, as site.yaml says, or the only one that
    has a key here.

    Raises: UsageError: P32 there is none, or several. PlanError: site.yaml cannot be read.
    """
    if given is not None:
        return given
    if (said := _said_name(workspace.root / SITE)) is not None:
        return said
    names = _sites_here(workspace)
    if len(names) == 1:
        return names[0]
    found = f"there are keys of {', '.join(names)}" if names else "no site has its keys here"
    raise UsageError("P32", f"which site is to approve? {found}: say it with -n NAME")


def _said_name(path: Path) -> str | None:
    if not path.exists():
        return None
    tree, found = read_file(path, path.parent)
    if found or tree is None:
        raise PlanError(problems(found))
    name = tree.value.get("name") if isinstance(tree.value, dict) else None
    return name.value if name is not None and isinstance(name.value, str) else None


def _sites_here(workspace: Workspace) -> list[str]:
    keys = sorted(workspace.cert.glob("*/identity.key"))
    return [key.parent.name for key in keys if key.parent.name not in RESERVED]


def review(
    workspace: Workspace, lock: Lock, name: str, limits: Sequence[str] = ()
) -> Iterator[str]:
    """What site `name` is shown before it approves: who signed, and what differs from what it
    approved last or, the first time, everything.

    Raises: PlanError: P20 the code is not the lock's. PolicyError: R20, R21.
    """
    verify_files(workspace.root, lock)
    last = last_approved(workspace, name, but=lock.digest)
    if last is None:
        yield explained(workspace, lock.plan, lock, lock.signature, limits)
    else:
        yield f"Plan digest: {lock.digest}"
        signed = author_words(workspace, lock.digest)
        yield f"Signed by its author: {signed}" if signed else "Nobody has signed it"
        yield f"What differs from plan {last.content.digest[:16]}, which {name} approved last:"
        now = Side("this workspace", frozen_lock(lock), workspace.root)
        yield from (f"  {line}" for line in compared(last, now))
        yield "The whole plan in plain words: fx plan explain"
    if (first := _said_otherwise(workspace, lock)) is not None:
        yield f"Note that plan.yaml says something else; what runs is plan.lock. {first}"


def _said_otherwise(workspace: Workspace, lock: Lock) -> str | None:
    try:
        first = outdated(workspace, lock)
    except PlanError as error:
        return str(error)
    return None if first is None else f"plan.lock -> plan.yaml: {first}"


def check_consent(
    lock: Lock, name: str, digest: str | None, *, silent: bool, terminal: bool
) -> bool:
    """Whether a person is still to be asked.

    Raises: PolicyError: R24 consent was given to another digest, R25 there is nobody to ask.
    """
    if digest is not None and digest != lock.digest:
        message = f"you consent to plan {digest[:64]}, but plan.lock here is plan {lock.digest}"
        raise PolicyError("R24", f"{message}; nothing was approved")
    if digest is not None or silent:
        return False
    if not terminal:
        message = (
            "there is no terminal to ask at: name the plan that you have reviewed, "
            f"fx collaborator approve -n {name} {lock.digest}, or give --silent"
        )
        raise PolicyError("R25", message)
    return True


def approve(
    workspace: Workspace, lock: Lock, name: str, now: float
) -> tuple[Signed, tuple[Path, ...]]:
    """Site `name` approves the plan; the files written: copies of plan and code, then the approval.

    Raises: UsageError: U16 not in the plan. PlanError: P20 the code is not the lock's.
    """
    check_named(lock.plan, name)
    key = load_identity_key(workspace.cert, name)
    verify_files(workspace.root, lock)
    folder = _folder(workspace, lock.digest)
    try:
        return _approval(folder, name, identity_public(key)), ()
    except PolicyError:
        signed = sign_digest("approval", lock.digest, lock.plan.federation, name, key, now)
    written = list(_copied(workspace.root, folder, lock))
    written.append(write_whole(_path(folder, name), signed.data()))  # last: now it counts
    return signed, tuple(written)


def _copied(root: Path, folder: Path, lock: Lock) -> Iterator[Path]:
    """Copies of the plan and of the code, for a later comparison; what is huge is left out."""
    for file, digest in lock.files.items():
        content = _text(root, file, digest, MAX_BYTES)
        if content is not None:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            yield write_whole(folder / file, content)
    write_lock(folder / "plan.lock", lock)
    yield folder / "plan.lock"


def approval_for(workspace: Workspace, lock: Lock, name: str) -> Signed:
    """Site `name`'s approval of the plan and of the code beside it; call it before anything else.

    Raises: PolicyError: R23 it was not approved, naming the first difference to what was, R22 its
    approval does not verify. PlanError: P20, naming the first file that is not the lock's.
    """
    verify_files(workspace.root, lock)
    public = identity_public(load_identity_key(workspace.cert, name))
    folder = _folder(workspace, lock.digest)
    if _path(folder, name).exists():
        return _approval(folder, name, public)
    last = last_approved(workspace, name)
    how = f"review and approve it: fx collaborator approve -n {name}"
    if last is None:
        found = "nor any other before"
    else:
        first = differences(last.content, frozen_lock(lock))[0]
        found = f"the first difference to {last.content.digest[:16]}, which it approved: {first}"
    message = f"site {name} has not approved plan {lock.digest[:16]}, {found}; {how}"
    raise PolicyError("R23", message)


def unapproved(workspace: Workspace, name: str) -> Lock | None:
    """The plan here, where all that it lacks is site `name`'s approval. Raises: PlanError: P19, and
    as `approval_for`."""
    lock = read_lock(workspace.lock)
    try:
        approval_for(workspace, lock, name)
    except PolicyError as error:
        if error.code == "R23":
            return lock
        raise
    return None


def _folder(workspace: Workspace, digest: str) -> Path:
    return workspace.root / APPROVED / digest


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _approval(folder: Path, name: str, public: bytes) -> Signed:
    """Raises: PolicyError: R22, also where there is none."""
    data = _contents(_path(folder, name), SIGNED_BYTES + 1)
    return verify_approval(data or b"", public, folder.name, name)


# -- comparing ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """A frozen plan that is to be compared, and the folder that its code lies in."""

    label: str
    content: Frozen
    root: Path


def here(workspace: Workspace, label: str = "this workspace") -> Side:
    """Its plan.lock. Raises: PlanError: P19."""
    return Side(label, frozen_lock(read_lock(workspace.lock)), workspace.root)


def last_approved(workspace: Workspace, name: str, but: str = "") -> Side | None:
    """The plan that site `name` approved last, apart from the one of digest `but`."""
    public = identity_public(load_identity_key(workspace.cert, name))
    best: tuple[float, Side] | None = None
    for path in sorted((workspace.root / APPROVED).glob(f"*/{name}.json")):
        folder = path.parent
        try:
            at = _approval(folder, name, public).at
            content = _read(folder / "plan.lock")
        except (PolicyError, ValueError):
            continue  # damaged, or another site's: nothing to go by
        if folder.name == content.digest != but and (best is None or at > best[0]):
            best = at, Side(f"approved by {name}", content, folder)
    return best[1] if best else None


def sides(workspace: Workspace, a: str | None, b: str | None) -> tuple[Side, Side]:
    """What `plan diff A B` compares: by default the last approved, and this workspace.

    Raises: UsageError: P31 there is no such thing.
    """
    if a is not None:
        return _side(workspace, a), here(workspace) if b is None else _side(workspace, b)
    names = [site_name(workspace)] if (workspace.root / SITE).exists() else _sites_here(workspace)
    approved = [side for name in names if (side := last_approved(workspace, name))]
    if not approved:
        message = (
            "no site here has approved a plan yet: say what to compare, as in fx plan diff A B: "
            "workspaces, plan.lock files, or digests of approved plans"
        )
        raise UsageError("P31", message)
    return approved[-1], here(workspace)


def _side(workspace: Workspace, text: str) -> Side:
    path = Path(text)
    if path.is_dir():
        path = path / "plan" / "plan.lock"
    elif not path.exists() and DIGEST.fullmatch(text):
        path = _folder(workspace, text) / "plan.lock"
    root = path.parent.parent if path.parent.name == "plan" else path.parent
    try:
        return Side(text, _read(path), root)
    except ValueError as error:
        expected = "expected a workspace, a plan.lock file, or the digest of an approved plan"
        raise UsageError("P31", f"{text}: {expected}; {path}: {error}") from None


def _read(path: Path) -> Frozen:
    """Raises: ValueError."""
    data = _contents(path, MAX_BYTES + 1)
    if data is None:
        raise ValueError("it is not there")
    return read_frozen(data)


def compared(old: Side, new: Side) -> Iterator[str]:
    """Each difference on a line, and below it, of code that is at hand, line by line."""
    for change in differences(old.content, new.content):
        yield str(change)
        if change.part == "code" and change.new is not None:
            yield from (f"    {line}" for line in _code_changes(change.path, old, new))


def difference_json(old: Side, new: Side) -> dict[str, Any]:
    changes = differences(old.content, new.content)
    return {
        "same": old.content.digest == new.content.digest,
        "old": old.content.digest,
        "new": new.content.digest,
        "changes": [asdict(change) for change in changes],
    }


def _code_changes(name: str, old: Side, new: Side) -> Iterator[str]:
    texts: list[bytes | None] = []
    for side in (old, new):
        digest = side.content.files.get(name)
        text = None if digest is None else _text(side.root, name, digest, MOST_TEXT)
        if digest is not None and text is None:
            yield f"(not shown: it is too large, or not at hand as it was frozen: {side.label})"
            return
        texts.append(text)
    yield from text_changes(name, *texts)


def _text(root: Path, name: str, digest: str, limit: int) -> bytes | None:
    """The file's content, if it is at hand as it was frozen, and no larger than `limit`."""
    content = _contents(root / name, limit + 1)
    if content is None or len(content) > limit:
        return None
    return content if hashlib.sha256(content).hexdigest() == digest else None


def _contents(path: Path, most: int) -> bytes | None:
    """The first `most` bytes of a plain file; None: there is none."""
    if path.is_symlink() or not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(most)
