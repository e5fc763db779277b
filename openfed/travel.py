"""How a workspace travels to the sites: plan, lock and code, in an archive; never anything else."""

import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from openfed.archive import WORKSPACE, contents, pack, unpack
from openfed.errors import PlanError, UsageError
from openfed.files import write_whole
from openfed.plan.check import checked
from openfed.plan.load import problems, read_file, read_tree, ready_plans
from openfed.plan.lock import Lock, read_lock, verify_files
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

    It is by default called like the archive, and made in the current folder.
    Raises: UsageError: U03 the folder is taken; U30 to U36: the archive.
    """
    into = prefix or Path(archive.name.removesuffix(".zip"))
    names = unpack(archive, into, WORKSPACE, _check_imported)
    return Imported(into, read_lock(Workspace(into).lock).digest, tuple(names))


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
