"""How a workspace travels to the sites: plan, lock and code, in an archive; never anything else.

In a workspace that is there already, the parts that travel are replaced, each by one rename, from
a folder that is complete before the first of them. A crash leaves that folder; the next import
goes on with it, and until then no command takes the workspace for one.
"""

import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from openfed.archive import WORKSPACE, contents, pack, unpack
from openfed.errors import PlanError, UsageError
from openfed.files import lock_file, sync_folder, write_whole
from openfed.plan.check import checked
from openfed.plan.difference import Frozen, read_frozen
from openfed.plan.load import problems, read_file, read_tree, ready_plans
from openfed.plan.lock import MAX_BYTES, Lock, code_files, read_lock, verify_files
from openfed.plan.schema import Plan, canonical
from openfed.plan.source import plain
from openfed.workspace import Workspace


@dataclass(frozen=True)
class Exported:
    path: Path
    sha256: str  # of the archive
    digest: str  # of the plan
    names: tuple[str, ...]
    fresh: bool  # false: exactly this archive was there already


@dataclass(frozen=True)
class Imported:
    root: Path
    digest: str  # of the plan
    names: tuple[str, ...]
    before: str  # digest of the plan that was there; empty: the folder is new


def export(workspace: Workspace, target: Path | None = None) -> Exported:
    """Write what goes to every site into one archive; the same workspace gives the same bytes.

    `target` is by default called like the workspace, and lies in it.
    Raises: PlanError: P19 there is no lock, P20 the code is not the lock's. UsageError: U37 the
    plan is not the lock's, or not all in plan/; U18 another file is at `target`; U31, U33: what
    every site would refuse.
    """
    lock = read_lock(workspace.lock)
    verify_files(workspace.root, lock)
    if not _as_frozen(workspace.root, lock):
        raise UsageError("U37", f"{_NOT_FROZEN}; then run fx plan initialize")
    names = sorted(_files(workspace.root, lock))
    for name in names:
        if not _may_travel(name):
            raise UsageError("U37", f"the plan extends {name}: move it into plan/")
    data = pack({name: _plain_file(workspace.root, name) for name in names})
    for _ in contents(data, WORKSPACE):
        pass  # raises what every site would raise
    target = target or workspace.root / f"{workspace.root.name}.zip"
    fresh = _put(target, data)
    digest = hashlib.sha256(data).hexdigest()
    return Exported(target, digest, lock.digest, tuple(names), fresh)


def import_archive(archive: Path, prefix: Path | None = None) -> Imported:
    """Make the workspace that `export` wrote; its folder appears when all is checked.

    Where the folder is a workspace of the same federation, the archive's plan takes the place of
    the one that is there, with its code; what is the site's own stays. The folder is by default
    the current one, where that is a workspace, else one of the archive's name.
    Raises: UsageError: U03 the folder is taken; U30 to U36: the archive; U80 a node of the
    workspace runs, U81 something would be lost, U82 it is of another federation.
    """
    here = Path()
    into = prefix or (here if _is_workspace(here) else Path(archive.name.removesuffix(".zip")))
    if _is_workspace(into):
        names, before = _renew(archive, Workspace(Path(os.path.abspath(into))))
    else:
        names, before = unpack(archive, into, WORKSPACE, _check_imported), ""
    return Imported(into, read_lock(Workspace(into).lock).digest, tuple(names), before)


def _check_imported(root: Path, names: Collection[str]) -> None:
    try:
        lock = read_lock(Workspace(root).lock)
        frozen = _as_frozen(root, lock)
        known = _files(root, lock)
        for name in names:
            if name not in known or not _may_travel(name):
                raise UsageError("U35", f"{ascii(name)}: no workspace is exported with that")
        verify_files(root, lock)
    except PlanError as error:
        problem = error.problems[0]
        where = problem.where.replace(f"{root}/", "")
        what = problem.message.rpartition("; ")[0] or problem.message  # its remedy is not ours
        raise UsageError("U36", " ".join(filter(None, (where, problem.path, what)))) from None
    if not frozen:
        raise UsageError("U36", _NOT_FROZEN)


_NOT_FROZEN = (
    "plan/plan.lock was frozen from another plan than plan/plan.yaml: each must say what the other "
    "says, also what was given with -s"
)


def _files(root: Path, lock: Lock) -> set[str]:
    """The files of a sound workspace that a site needs, by their paths in it."""
    names = {"plan/plan.yaml", "plan/plan.lock", *lock.files, *_fragments(root)}
    return names | {name for name in ("plan/plan.sig",) if os.path.lexists(root / name)}


def _may_travel(name: str) -> bool:
    return name.startswith(("plan/", "src/")) or name == "requirements.txt"


def _as_frozen(root: Path, lock: Lock) -> bool:
    """Whether plan.yaml says what the lock says, be the files that they speak of here or not."""
    tree, found = read_tree(Workspace(root).plan, (), root)
    plan, more = checked(tree, Plan) if tree else (None, [])
    if plan is None or found or more:
        raise PlanError(problems([*found, *more]))
    return canonical(plan) == canonical(lock.plan)


def _fragments(root: Path) -> list[str]:
    """The files that a plan.yaml extends which loads; those that ship with openfed are not told."""
    found: list[str] = []
    path = Workspace(root).plan
    while (tree := read_file(path, root)[0]) is not None:
        below = plain(tree).get("extends")
        if below is None or below in ready_plans():
            break
        path = Path(os.path.normpath(path.parent / below))
        found.append(Path(os.path.relpath(path, root)).as_posix())
    return found


def _plain_file(root: Path, name: str) -> bytes:
    path = root / name
    if not path.is_file() or path.resolve() != root.resolve() / name:
        raise UsageError("U37", f"{name} is a link, or lies behind one: put the file itself there")
    return path.read_bytes()


def _put(target: Path, data: bytes) -> bool:
    """Write a file that is not there yet; false where exactly this one is."""
    if not os.path.lexists(target):
        write_whole(target, data)
        return True
    if not target.is_file() or target.read_bytes() != data:
        message = f"{target} is there and is another file: remove it, or give another -o"
        raise UsageError("U18", message)
    return False


# -- a new plan for a workspace --------------------------------------------------------------------

_LOCKS = ("lock", "*/lock", "*/agents/*/lock", "exchange/*/lock")
"""Below runs/: what `fx run`, aggregators, agents, and those who start agents hold."""


def _is_workspace(root: Path) -> bool:
    workspace = Workspace(root)
    found = (workspace.plan, workspace.lock, workspace.importing)
    return any(os.path.lexists(path) for path in found)


def _renew(archive: Path, workspace: Workspace) -> tuple[list[str], str]:
    """Replace plan and code by the archive's; the names in it, and the digest of the old plan."""
    with _alone(workspace):
        _finish(workspace)
        old = _kept(workspace)

        def check(folder: Path, names: Collection[str]) -> None:
            _check_imported(folder, names)
            _check_federation(old, read_lock(Workspace(folder).lock))
            _check_idle(workspace)  # again: unpacking takes a while

        names = unpack(archive, workspace.importing, WORKSPACE, check)
        _finish(workspace)
    return names, old.digest


@contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    """One import at a time, and none while a node runs. Raises: UsageError U80."""
    try:
        held = lock_file(workspace.root, wait=False)
    except BlockingIOError:
        message = f"another import into {workspace.root} is going on: wait for it"
        raise UsageError("U80", message) from None
    try:
        _check_idle(workspace)
        for left in workspace.root.glob(f".{workspace.importing.name}.*"):
            shutil.rmtree(left)  # of an import that was killed
        yield
    finally:
        os.close(held)


def _check_idle(workspace: Workspace) -> None:
    for path in (path for each in _LOCKS for path in sorted(workspace.runs.glob(each))):
        try:
            os.close(lock_file(path, wait=False))
        except BlockingIOError:
            place = path.parent.relative_to(workspace.root)
            message = f"a node of this workspace runs (in {place}/), under the plan that is here"
            raise UsageError("U80", f"{message}; stop it or wait for its end first") from None


def _check_federation(old: Frozen, new: Lock) -> None:
    known = old.plan.get("federation")
    if new.plan.federation != known:
        message = f"is of the federation {new.plan.federation!r}, the workspace of {known!r}"
        raise UsageError("U82", f"{message}; give a new folder: --prefix DIR")


def _kept(workspace: Workspace) -> Frozen:
    """The plan that is there. Raises: UsageError U81: something of it was made or changed here, so
    that it would be lost."""
    new = "import into a new folder: --prefix DIR"
    try:
        old = _frozen(workspace)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        message = f"plan/plan.lock cannot be read ({what}), so nothing says what was changed here"
        raise UsageError("U81", f"{message}; {new}") from None
    if (name := _changed(workspace, old)) is not None:
        message = f"{name} was made or changed here, and would be lost"
        raise UsageError("U81", f"{message}: move it elsewhere and import again, or {new}")
    return old


def _changed(workspace: Workspace, old: Frozen) -> str | None:
    """The first file of plan or code that is not as it was frozen; one that is gone loses
    nothing."""
    try:
        here = code_files(workspace.root)
    except PlanError as error:
        return error.problems[0].where
    changed = (name for name in sorted(here) if old.files.get(name) != here[name])
    return next(changed, None) or _changed_plan(workspace)


def _changed_plan(workspace: Workspace) -> str | None:
    root, known = workspace.root, {"plan/plan.lock", "plan/plan.sig", "plan/plan.yaml"}
    if workspace.plan.exists():
        if _says_otherwise(workspace):
            return "plan/plan.yaml"
        known |= set(_fragments(root))
    found = (path for path in sorted((root / "plan").rglob("*")) if not path.is_dir())
    names = (path.relative_to(root).as_posix() for path in found if path.name[0] != ".")
    return next((name for name in names if name not in known), None)


def _says_otherwise(workspace: Workspace) -> bool:
    """Whether plan.yaml is not as it was frozen; the lock of another release cannot tell."""
    try:
        lock = read_lock(workspace.lock)
    except PlanError:
        return False
    try:
        return not _as_frozen(workspace.root, lock)
    except PlanError:
        return True


def _frozen(workspace: Workspace) -> Frozen:
    """Its plan.lock, whichever release wrote it. Raises: OSError, ValueError."""
    with workspace.lock.open("rb") as file:
        return read_frozen(file.read(MAX_BYTES + 1))


def _finish(workspace: Workspace) -> None:
    """Put what lies in `importing` into its place, from wherever an earlier try has come to."""
    root, new = workspace.root, workspace.importing
    if (new / "plan").is_dir():  # it goes last
        code = {name.partition("/")[0] for name in _frozen(Workspace(new)).files}
        for part in ("src", "requirements.txt"):
            if (new / part).exists() or part not in code:  # else it is in its place
                _replace(root, new, part)
        _drop_initial(workspace)
        _replace(root, new, "plan")
    if new.is_dir():
        done = root / f".{new.name}.{secrets.token_hex(8)}"
        os.rename(new, done)
        sync_folder(root)
        shutil.rmtree(done)


def _replace(root: Path, new: Path, part: str) -> None:
    if os.path.lexists(root / part):
        (new / "old").mkdir(exist_ok=True)
        os.rename(root / part, new / "old" / part)
    if os.path.lexists(new / part):
        os.rename(new / part, root / part)
    sync_folder(new)
    sync_folder(root)


def _drop_initial(workspace: Workspace) -> None:
    """Remove initial models that are not the new plan's."""
    try:
        same = _frozen(workspace).model == _frozen(Workspace(workspace.importing)).model
    except (OSError, ValueError):
        same = False
    if not same:
        for path in (workspace.root / "save").glob("*_init.safetensors"):
            path.unlink()
