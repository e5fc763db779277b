"""What differs between two frozen plans, in the words of the plan.

A frozen plan is compared as the JSON of its `plan.lock`, so that one that another release of
openfed froze can still be compared.
"""

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar

from openfed.parse import DIGEST, strict_json
from openfed.plan.digest import canonical_json, digest_of
from openfed.plan.lock import MAX_BYTES, Lock
from openfed.plan.schema import canonical
from openfed.tensors.record import spec_json

T = TypeVar("T")
Part = Literal["plan", "code", "codec", "model"]
MAX_DEPTH = 50
MAX_LINES = 20_000
"""Of a file whose changes are shown line by line."""


@dataclass(frozen=True)
class Frozen:
    """What a plan's digest covers."""

    digest: str
    schema: int
    plan: Mapping[str, Any]  # in canonical form
    files: Mapping[str, str]  # path in the workspace -> SHA-256
    codecs: Mapping[str, int]
    model: str  # digest of the initial model
    entries: Mapping[str, str]  # name -> "float32 [3, 4], parameter"


@dataclass(frozen=True)
class Change:
    """One thing that differs. `path` is a plan key as a person wrote it (`strategy.fedadam.lr`), a
    file, a codec, or an entry of the model. None: it is not there."""

    part: Part
    path: str
    old: str | None
    new: str | None

    def __str__(self) -> str:
        what = {"plan": "", "code": "", "codec": "codec ", "model": "model "}[self.part] + self.path
        if self.old is None:
            return f"{what}: added, {self.new}"
        if self.new is None:
            return f"{what}: removed, was {self.old}"
        return f"{what}: {self.old} -> {self.new}"


# -- reading --------------------------------------------------------------------------------------


def frozen_lock(lock: Lock) -> Frozen:
    signature = [spec_json(spec) for spec in lock.signature]
    plan, model = canonical(lock.plan), lock.model_digest
    return Frozen(
        lock.digest, lock.schema, plan, lock.files, lock.codecs, model, _entries(signature)
    )


def read_frozen(data: bytes) -> Frozen:
    """From the bytes of a `plan.lock`, whichever release wrote it. Raises: ValueError: it is none,
    or was changed."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    content = strict_json(data)
    if _depth(content) > MAX_DEPTH:
        raise ValueError("it is nested too deeply")
    try:
        covered = {key: content[key] for key in ("schema", "plan", "files", "codecs", "model")}
        said, (schema, plan, files, codecs, model) = content["digest"], covered.values()
        entries = _entries(model["signature"])
        right = type(schema) is int and isinstance(plan, dict) and isinstance(model["digest"], str)
        right = right and all(map(_is_file, files.items()))
        right = right and all(type(version) is int for version in codecs.values())
    except (KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise ValueError("it is not what fx writes")
    if digest_of(covered) != said:
        raise ValueError(f"it says digest {str(said)[:16]}, but its content has another")
    return Frozen(said, schema, plan, files, codecs, model["digest"], entries)


def _depth(value: object) -> int:
    depth, layer = 0, [value]
    while layer:
        inner = [each for each in layer if isinstance(each, dict | list)]
        layer = [
            child for each in inner for child in (each.values() if isinstance(each, dict) else each)
        ]
        depth += 1
    return depth


def _is_file(item: tuple[str, object]) -> bool:
    """A path below `src/`, or `requirements.txt`, and a digest."""
    name, digest = item
    parts = PurePosixPath(name).parts
    inside = name == "requirements.txt" or (parts[:1] == ("src",) and ".." not in parts)
    return inside and isinstance(digest, str) and DIGEST.fullmatch(digest) is not None


def _entries(signature: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {
        str(each["name"]): f"{each['dtype']} {each['shape']}, {each['kind']}" for each in signature
    }


# -- comparing ------------------------------------------------------------------------------------


def differences(old: Frozen, new: Frozen) -> tuple[Change, ...]:
    """Everything that differs: plan keys, then code, codecs, and the model. Nothing, exactly when
    the digests are equal."""
    found = tuple(_differences(old, new))
    if not found and old.digest != new.digest:
        return (Change("plan", "plan.lock", old.digest[:12], new.digest[:12]),)
    return found


def _differences(old: Frozen, new: Frozen) -> Iterator[Change]:
    if old.schema != new.schema:
        yield Change("plan", "schema", str(old.schema), str(new.schema))
    yield from plan_changes(old.plan, new.plan)
    yield from _changes("code", old.files, new.files, lambda digest: f"SHA-256 {digest[:12]}")
    both = sorted(old.codecs.keys() & new.codecs.keys())  # the plan says which are used
    was, now = ({name: each.codecs[name] for name in both} for each in (old, new))
    yield from _changes("codec", was, now, lambda version: f"version {version}")
    yield from _changes("model", old.entries, new.entries, str)
    if old.model != new.model:
        yield Change("model", "initial values", old.model[:12], new.model[:12])


def _changes(
    part: Part, old: Mapping[str, T], new: Mapping[str, T], told: Callable[[T], str]
) -> Iterator[Change]:
    for name in sorted(old.keys() | new.keys()):
        was, now = old.get(name), new.get(name)
        if was != now:
            yield Change(
                part,
                name,
                None if was is None else told(was),
                None if now is None else told(now),
            )


def plan_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    """Of two plans in canonical form."""
    yield from _below("", _written(old), _written(new))


def _written(plan: Mapping[str, Any]) -> dict[str, Any]:
    """With the rules of `scope` as a person writes them."""
    rules = plan.get("scope", [])
    if isinstance(rules, list) and all(isinstance(rule, list) and len(rule) == 2 for rule in rules):
        return {**plan, "scope": [{str(glob): where} for glob, where in rules]}
    return dict(plan)


_ABSENT = object()


def _below(path: str, old: Any, new: Any) -> Iterator[Change]:
    if old is _ABSENT or new is _ABSENT:
        yield Change("plan", path, _worded(old), _worded(new))
    elif canonical_json(old) == canonical_json(new):  # 1, 1.0 and true are not the same
        return
    elif _is_choice(old) and _is_choice(new) and old["name"] == new["name"]:
        yield from _below(f"{path}.{old['name']}", old["settings"], new["settings"])
    elif isinstance(old, dict) and isinstance(new, dict) and not (_is_choice(old, new)):
        for key in [*old, *(key for key in new if key not in old)]:
            at = f"{path}.{key}" if path else key
            yield from _below(at, old.get(key, _ABSENT), new.get(key, _ABSENT))
    elif isinstance(old, list) and isinstance(new, list):
        for index, (was, now) in enumerate(_pairs(old, new)):
            yield from _below(f"{path}[{index}]", was, now)
    else:
        yield Change("plan", path, _worded(old), _worded(new))


def _is_choice(*values: Any) -> bool:
    """Whether any is `{name, settings}`."""
    return any(
        isinstance(value, dict)
        and value.keys() == {"name", "settings"}
        and isinstance(value["name"], str)
        and isinstance(value["settings"], dict)
        for value in values
    )


def _pairs(old: list[Any], new: list[Any]) -> Iterator[tuple[Any, Any]]:
    """Items that stand for one another; those that were put in or taken out stand alone."""
    if len(old) == len(new):
        yield from zip(old, new, strict=True)
        return
    was, now = ([canonical_json(item) for item in items] for items in (old, new))
    for _, a, b, c, d in difflib.SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        yield from zip_longest(old[a:b], new[c:d], fillvalue=_ABSENT)


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]*|[0-9.]+[smhd]")
_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def _worded(value: Any) -> str | None:
    """A value as a plan would have it on one line, whole; other alphabets are spelt out."""
    return None if value is _ABSENT else _yaml(value)


def _yaml(value: Any) -> str:
    if _is_choice(value):
        name, settings = _yaml(value["name"]), value["settings"]
        return f"{{{name}: {_yaml(settings)}}}" if settings else name
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{_yaml(key)}: {_yaml(child)}" for key, child in value.items()) + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value)


# -- showing --------------------------------------------------------------------------------------


def text_changes(path: str, old: bytes | None, new: bytes | None) -> Iterator[str]:
    """The lines of a unified diff of a file's contents; None: it is not there. Where they cannot be
    compared line by line, one line that says so."""
    try:
        was, now = _lines(old), _lines(new)
    except UnicodeDecodeError:
        yield "(not text: look at it with a program that knows its format)"
        return
    if max(len(was), len(now)) > MAX_LINES:
        yield f"(more than {MAX_LINES} lines: compare the files yourself)"
        return
    before, after = ("/dev/null" if each is None else path for each in (old, new))
    yield from difflib.unified_diff(was, now, before, after, lineterm="")


def _lines(content: bytes | None) -> list[str]:
    """Split where every reader of code does, and only there."""
    lines = (content or b"").decode().split("\n")
    return [*lines[:-1], *([f"{lines[-1]} (no end of line)"] if lines[-1] else [])]
