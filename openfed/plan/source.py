"""YAML text -> a tree of plain values, each with the place it came from.

Read from PyYAML's events, so nothing is constructed and nothing recurses unbounded. Scalars are
those of YAML 1.2 (and JSON): what YAML 1.1 readers would take for something else (`no`, `010`,
`1:30`, `2024-01-01`) is refused and must be quoted. Tags, anchors, aliases, merge keys, several
documents and duplicate keys are refused.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from openfed.errors import Problem
from openfed.plan.values import shown

MAX_BYTES = 256 * 1024
MAX_NODES = 12_000
MAX_DEPTH = 24


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands. `rank` orders files: the plan, what it extends, overrides."""

    rank: int
    line: int  # 1-based; 0: the file as a whole, or an override
    column: int
    file: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Finding:
    """A problem whose place can still be sorted."""

    at: Place
    code: str
    path: str
    message: str

    def problem(self) -> Problem:
        return Problem(self.code, str(self.at), self.path, self.message)


@dataclass(frozen=True)
class Node:
    """One value. `keys` are the places of a mapping's keys; `choice` marks `{name, settings}`."""

    value: "None | bool | int | float | str | list[Node] | dict[str, Node]"
    at: Place
    keys: dict[str, Place] = field(default_factory=dict)
    choice: bool = False


def plain(node: Node) -> Any:
    """The value without places."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return node.value


class _Stop(Exception):
    """Reading on makes no sense."""


def parse(data: bytes, file: str, rank: int = 0) -> tuple[Node | None, list[Finding]]:
    """The tree of a YAML document, and what is wrong with it; None where no tree can be had."""
    reader = _Reader(file, rank)
    try:
        if len(data) > MAX_BYTES:
            raise reader.stop("P04", f"expected at most {MAX_BYTES} bytes, got {len(data)}")
        return reader.document(yaml.parse(data.decode(), Loader=yaml.SafeLoader)), reader.found
    except UnicodeDecodeError as error:
        reader.report(reader.place(None), "P02", "", f"expected UTF-8 text: {error.reason}")
    except yaml.MarkedYAMLError as error:
        at = reader.place(error.problem_mark)
        reader.report(at, "P02", "", f"expected YAML: {error.problem or error.context}")
    except (yaml.YAMLError, ValueError) as error:  # ValueError: "\U00110000" in PyYAML
        reader.report(reader.place(None), "P02", "", f"expected YAML: {str(error).splitlines()[0]}")
    except _Stop:
        pass
    return None, reader.found


class _Reader:
    """Walks the events of one document; keeps what it found wrong."""

    def __init__(self, file: str, rank: int) -> None:
        self.file, self.rank = file, rank
        self.found: list[Finding] = []
        self.nodes = 0
        self.last = Place(rank, 1, 1, file)

    def place(self, mark: Any) -> Place:
        return Place(self.rank, mark.line + 1, mark.column + 1, self.file) if mark else self.last

    def report(self, at: Place, code: str, path: str, message: str) -> None:
        self.found.append(Finding(at, code, path, message))

    def stop(self, code: str, message: str) -> _Stop:
        self.report(self.last, code, "", message)
        return _Stop()

    def document(self, events: Iterator[Any]) -> Node:
        root: Node | None = None
        for event in events:
            self.last = self.place(event.start_mark)
            if isinstance(event, yaml.DocumentStartEvent) and root is not None:
                raise self.stop("P04", "expected one document: remove what follows the --- line")
            if isinstance(event, yaml.NodeEvent):
                root = self.node(event, events, ())
        if root is None:
            raise self.stop("P02", "expected a mapping (key: value), got an empty file")
        return root

    def node(self, event: Any, events: Iterator[Any], path: tuple[str, ...]) -> Node:
        at = self.last = self.place(event.start_mark)
        self.nodes += 1
        if self.nodes > MAX_NODES or len(path) > MAX_DEPTH:
            raise self.stop("P04", f"expected at most {MAX_NODES} values and {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self.stop("P04", "anchors (&) and aliases (*) are not read: write the value out")
        if event.tag is not None:
            raise self.stop("P04", f"tags such as {event.tag} are not read: write a plain value")
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(at, events, path)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(child := next(events), yaml.SequenceEndEvent):
                items.append(self.node(child, events, (*path, str(len(items)))))
            return Node(items, at)
        return Node(self.scalar(event, at, path), at)

    def mapping(self, at: Place, events: Iterator[Any], path: tuple[str, ...]) -> Node:
        values: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            here = self.last = self.place(event.start_mark)
            if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag:
                raise self.stop("P04", "expected a plain text as key")
            key = event.value
            if key == "<<" and event.style is None:
                raise self.stop("P04", "merge keys (<<) are not read: write the keys out")
            child = self.node(next(events), events, (*path, key))
            if key in values:
                message = f"given twice: first in line {keys[key].line}. Keep one of them"
                self.report(here, "P03", ".".join((*path, key)), message)
            else:
                values[key], keys[key] = child, here
        return Node(values, at, keys)

    def scalar(self, event: Any, at: Place, path: tuple[str, ...]) -> Any:
        try:
            return _scalar(event.value, event.style is None)
        except _Refused as error:
            self.report(at, error.code, ".".join(path), error.message)
            return event.value


class _Refused(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE, _FALSE = frozenset({"true", "True", "TRUE"}), frozenset({"false", "False", "FALSE"})
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_OCTAL = re.compile(r"[-+]?0(o[0-7]+|[0-9]+)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")
_RESOLVER = yaml.resolver.Resolver()


def _scalar(text: str, bare: bool) -> None | bool | int | float | str:
    if not bare:
        if _CONTROL.search(text):
            raise _Refused("P04", "expected text without control characters")
        return text
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.fullmatch(text):
        if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
            raise _Refused("P08", f"expected a number of 64 bits, got {shown(text)}")
        return int(text)
    if _NOT_FINITE.fullmatch(text) or (
        _FLOAT.fullmatch(text) and (len(text) > 400 or not math.isfinite(float(text)))
    ):
        raise _Refused("P08", f"expected a finite number, got {text[:40]}")
    if _FLOAT.fullmatch(text):
        return float(text)
    return _unambiguous(text)


def _unambiguous(text: str) -> str:
    """The text, unless some reader of YAML takes it for something else."""
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    kind = str(tag).rpartition(":")[2]
    if kind == "bool":
        word = "true" if text.lower() in ("yes", "on") else "false"
        remedy = f"write {word} for the truth value, or '{text}' in quotes for the text"
    elif kind in ("int", "float") or _OCTAL.fullmatch(text):
        remedy = f"write a plain decimal number, or '{text}' in quotes for the text"
    elif kind != "str":
        remedy = f"write '{text}' in quotes for the text"
    else:
        return text
    raise _Refused("P05", f"{text[:40]} means different things to different YAML readers: {remedy}")
