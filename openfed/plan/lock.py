"""`plan.lock`: the plan as it was frozen, with the digests of its code and its initial model.

Every node reads this file only, checks its digest, and checks the code beside it.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from openfed.errors import PlanError, Problem
from openfed.files import write_whole
from openfed.parse import DIGEST, strict_json
from openfed.plan.digest import plan_digest
from openfed.plan.schema import ADDRESSES, SCHEMA, Plan, canonical, codec_versions
from openfed.tensors.record import Signature, spec_json, spec_of

MAX_BYTES = 64 << 20
_CACHES = frozenset({"__pycache__", ".ipynb_checkpoints", ".mypy_cache", ".pytest_cache"})


@dataclass(frozen=True)
class Lock:
    """A frozen plan. `digest` covers everything but the plan's addresses."""

    digest: str
    plan: Plan
    files: Mapping[str, str]  # path in the workspace -> SHA-256
    codecs: Mapping[str, int]  # those that the plan uses -> version
    model_digest: str  # of the frame of all global entries of the initial model
    signature: Signature
    schema: int = SCHEMA

    @property
    def listen(self) -> str:
        return self.plan.aggregator.listen

    @property
    def advertise(self) -> tuple[str, ...]:
        return self.plan.aggregator.advertise


def make_lock(
    plan: Plan, files: Mapping[str, str], model_digest: str, signature: Signature
) -> Lock:
    codecs = codec_versions(plan)
    digest = plan_digest(plan, files, codecs, _model(model_digest, signature))
    return Lock(digest, plan, dict(files), codecs, model_digest, signature)


def write_lock(path: Path, lock: Lock) -> None:
    """Write it whole or not at all, readable for people."""
    content = {
        "schema": lock.schema,
        "digest": lock.digest,
        "plan": canonical(lock.plan),
        "addresses": lock.plan.aggregator.model_dump(mode="json"),
        "files": dict(lock.files),
        "codecs": dict(lock.codecs),
        "model": _model(lock.model_digest, lock.signature),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    write_whole(path, text.encode() + b"\n")


def read_lock(path: Path) -> Lock:
    """Raises: PlanError: P19, it is missing, changed, or of another version."""
    content = _content(path)
    if content.get("schema") != SCHEMA:
        raise _unusable(path, f"expected schema {SCHEMA}, got {content.get('schema')!r}")
    try:
        lock = _lock(content)
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        what = "its plan" if isinstance(error, ValidationError) else str(error)[:100]
        raise _unusable(path, f"is not what fx writes: {what}") from None
    if canonical(lock.plan) != content["plan"]:
        raise _unusable(path, "has a plan whose defaults are not written out")
    if lock.digest != content["digest"]:
        found = str(content["digest"])[:16]
        raise _unusable(path, f"says digest {found}, but its content gives {lock.digest[:16]}")
    return lock


def _content(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        content = strict_json(data)
    except FileNotFoundError:
        message = "is not there yet; write it: fx plan initialize"
        raise PlanError((Problem("P19", str(path), "", message),)) from None
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise _unusable(path, f"is not JSON: {str(error)[:100]}") from None
    if not isinstance(content, dict):
        raise _unusable(path, "is not a JSON object")
    return content


def _lock(content: Mapping[str, Any]) -> Lock:
    wanted = {"schema", "digest", "plan", "addresses", "files", "codecs", "model"}
    if set(content) != wanted:
        raise ValueError(f"expected the keys {', '.join(sorted(wanted))}")
    if ADDRESSES in content["plan"]:
        raise ValueError("addresses in the plan")
    plan = Plan.model_validate({**content["plan"], ADDRESSES: content["addresses"]})
    files, codecs, model = content["files"], content["codecs"], content["model"]
    if codecs != (ours := codec_versions(plan)) or any(type(v) is not int for v in codecs.values()):
        raise ValueError(f"its codecs are {str(codecs)[:60]}, here they are {ours}")
    if set(model) != {"digest", "signature"}:
        raise ValueError("model")
    if not all(DIGEST.fullmatch(each) for each in [model["digest"], *files.values()]):
        raise ValueError("a digest that is none")
    signature = tuple(spec_of(each) for each in model["signature"])
    return make_lock(plan, files, model["digest"], signature)


def _model(digest: str, signature: Signature) -> dict[str, Any]:
    ordered = sorted(signature, key=lambda spec: spec.name)
    return {"digest": digest, "signature": [spec_json(spec) for spec in ordered]}


def _unusable(path: Path, message: str) -> PlanError:
    remedy = "write it again: fx plan initialize"
    return PlanError((Problem("P19", str(path), "", f"{message}; {remedy}"),))


# -- the code beside it ---------------------------------------------------------------------------


def code_files(workspace: Path) -> dict[str, str]:
    """SHA-256 of every file below `src/` (caches apart) and of `requirements.txt`, by path.

    Raises: PlanError: P20, a link or anything else that is no plain file.
    """
    found = [*_below(workspace / "src"), workspace / "requirements.txt"]
    names = {path.relative_to(workspace).as_posix(): path for path in found}
    return {name: _sha256(name, names[name]) for name in sorted(names) if _there(names[name])}


def _there(path: Path) -> bool:
    return os.path.lexists(path)


def _below(folder: Path) -> Iterator[Path]:
    if folder.is_symlink():
        raise _differs("src", "is a link: code must lie in the workspace itself")
    for parent, folders, files in os.walk(folder):
        for name in [name for name in folders if Path(parent, name).is_symlink()]:
            files.append(name)
        folders[:] = sorted(set(folders) - _CACHES - set(files))
        yield from (Path(parent, name) for name in files if not name.endswith((".pyc", ".pyo")))


def _sha256(name: str, path: Path) -> str:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        why = "is a link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise _differs(name, f"{why}: code must lie in the workspace itself") from None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _differs(name, "is no plain file")
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_files(workspace: Path, lock: Lock) -> None:
    """Raises: PlanError: P20, naming the first file that is not the one of the lock."""
    here = code_files(workspace)
    for name in sorted(here.keys() | lock.files.keys()):
        if name not in here:
            raise _differs(name, "is missing")
        if name not in lock.files:
            raise _differs(name, "is new: it is not in plan.lock")
        if here[name] != lock.files[name]:
            raise _differs(name, "is not the file that plan.lock was written with")


def _differs(name: str, message: str) -> PlanError:
    remedy = "restore it, or run fx plan initialize: every site then approves the new plan"
    return PlanError((Problem("P20", name, "", f"{message}; {remedy}"),))
