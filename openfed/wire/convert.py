"""Messages <-> the bytes of `federation.proto`, with the limits that the proto states.

Whatever `decode` returns has been checked: sizes, ranges, enums, digests, finite numbers, JSON.
Text for people is cleaned and cut by `encode`; `decode` refuses what an honest peer would not send.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import DecodeError, Message

from openfed.errors import WireError
from openfed.parse import DIGEST, strict_json
from openfed.pki.request import Request
from openfed.typing import Json
from openfed.wire import federation_pb2 as pb
from openfed.wire.messages import (
    ENOUGH,
    PROTOCOL,
    Assignment,
    Blob,
    Failure,
    Head,
    Hello,
    Next,
    Orders,
    Payload,
    Pull,
    Push,
    Renew,
    Renewed,
    Report,
    Ruling,
    RunState,
    Stamp,
    Verdict,
    Welcome,
)

M = TypeVar("M")
E = TypeVar("E", bound=StrEnum)

MOST_MESSAGE = 1 << 20  # bytes
MOST_ID, MOST_TEXT, MOST_TRACEBACK, MOST_ITEMS, MOST_SETTINGS = 200, 4_000, 20_000, 1_024, 1 << 18
MOST_SIZE = 1 << 50  # bytes of a blob
MOST_PEM = 64 << 10  # bytes of a request, a chain, roots
MOST_RECEIPT = 4 << 10
MOST_ROUND = 1 << 31
MOST_SECONDS = 1e9

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal would obey them
_FILE_NAME = re.compile(r"[0-9A-Za-z-]{1,32}")  # shorter than a digest: never that of a blob
_STATES = dict(enumerate(RunState, start=1))
_RULINGS = dict(enumerate(Ruling, start=1))


def encode(message: object) -> bytes:
    """The protobuf bytes of a message. Raises W10 for a value that no field can hold."""
    try:
        data = _TO[type(message)](message).SerializeToString()
    except (ValueError, TypeError) as error:
        raise WireError("W10", f"{type(message).__name__}: {error}") from error
    assert isinstance(data, bytes)
    return data


def decode(kind: type[M], data: bytes) -> M:
    """Raises W10 (what is wrong, and where), W11 (another major version of the protocol)."""
    parse, build = _FROM[kind]
    if len(data) > MOST_MESSAGE:
        _refuse(kind.__name__, f"at most {MOST_MESSAGE} bytes", f"{len(data)}")
    try:
        found = parse.FromString(data)
    except DecodeError as error:
        raise WireError("W10", f"{kind.__name__}: these bytes are not one") from error
    message = build(found)
    assert isinstance(message, kind)
    return message


def encode_offset(offset: int) -> bytes:
    return pb.PushOffset(offset=offset).SerializeToString()


def decode_offset(data: bytes) -> int:
    """Where an upload goes on, or `ENOUGH`."""
    try:
        offset = pb.PushOffset.FromString(data).offset
    except DecodeError as error:
        raise WireError("W10", "PushOffset: these bytes are not one") from error
    return ENOUGH if offset == ENOUGH else _integer("PushOffset.offset", offset)


# -- messages to protobuf --------------------------------------------------------------------------


def _to_stamp(stamp: Stamp) -> pb.Stamp:
    return pb.Stamp(
        federation=stamp.federation,
        run=stamp.run,
        plan_digest=stamp.plan_digest,
        operation=stamp.operation,
        attempt=stamp.attempt,
        major=stamp.protocol[0],
        minor=stamp.protocol[1],
        capabilities=stamp.capabilities,
    )


def _to_hello(hello: Hello) -> pb.Hello:
    facts = {key: _clean(value, MOST_ID) for key, value in hello.facts.items()}
    return pb.Hello(stamp=_to_stamp(hello.stamp), facts=facts, approval=hello.approval)


def _to_welcome(welcome: Welcome) -> pb.Welcome:
    return pb.Welcome(
        stamp=_to_stamp(welcome.stamp),
        state=_to_state(welcome.state),
        lease_s=welcome.lease_s,
        identity=welcome.identity,
        head=_to_head(welcome.head),
    )


def _to_head(head: Head | None) -> pb.Head | None:
    if head is None or not head.number:
        return None
    return pb.Head(number=head.number, hash=head.hash, signature=head.signature)


def _to_assignment(assignment: Assignment) -> pb.Assignment:
    payloads = [_to_payload(payload) for payload in assignment.payloads]
    return pb.Assignment(
        ask=assignment.ask,
        task=assignment.task,
        round=assignment.round,
        settings=json.dumps(dict(assignment.settings), allow_nan=False, sort_keys=True),
        payloads=payloads,
        updates=assignment.updates,
        limit=assignment.limit,
    )


def _to_next(next: Next) -> pb.Next:
    return pb.Next(stamp=_to_stamp(next.stamp), wait_s=next.wait_s, holding=next.holding)


def _to_orders(orders: Orders) -> pb.Orders:
    return pb.Orders(
        stamp=_to_stamp(orders.stamp),
        state=_to_state(orders.state),
        reason=_clean(orders.reason, MOST_TEXT),
        lease_s=orders.lease_s,
        assignment=None if orders.assignment is None else _to_assignment(orders.assignment),
        cancel=orders.cancel,
        head=_to_head(orders.head),
    )


def _to_payload(payload: Payload) -> pb.Payload:
    blobs = [pb.Blob(digest=b.digest, size=b.size, base=b.base) for b in payload.blobs]
    return pb.Payload(name=payload.name, digest=payload.digest, size=payload.size, blobs=blobs)


def _to_pull(pull: Pull) -> pb.Pull:
    return pb.Pull(stamp=_to_stamp(pull.stamp), digest=pull.digest, offset=pull.offset)


def _to_push(push: Push) -> pb.Push:
    return pb.Push(
        stamp=_to_stamp(push.stamp), ask=push.ask, upload=push.upload, digest=push.digest
    )


def _to_report(report: Report) -> pb.Report:
    return pb.Report(
        stamp=_to_stamp(report.stamp),
        ask=report.ask,
        digest=report.digest,
        size=report.size,
        failure=None if report.failure is None else _to_failure(report.failure),
    )


def _to_failure(failure: Failure) -> pb.Failure:
    return pb.Failure(
        code=failure.code,
        message=_clean(failure.message, MOST_TEXT),
        traceback=_clean(failure.traceback, MOST_TRACEBACK, keep_end=True),
    )


def _to_verdict(verdict: Verdict) -> pb.Verdict:
    return pb.Verdict(
        stamp=_to_stamp(verdict.stamp),
        ruling=pb.Ruling.Name(list(Ruling).index(verdict.ruling) + 1),
        code=verdict.code,
        message=_clean(verdict.message, MOST_TEXT),
        receipt=verdict.receipt,
    )


def _to_renew(renew: Renew) -> pb.Renew:
    asked = renew.request
    return pb.Renew(
        stamp=_to_stamp(renew.stamp),
        csr=asked.csr,
        identity=asked.identity,
        signature=asked.signature,
    )


def _to_renewed(renewed: Renewed) -> pb.Renewed:
    return pb.Renewed(stamp=_to_stamp(renewed.stamp), chain=renewed.chain, anchors=renewed.anchors)


def _to_state(state: RunState) -> str:
    return pb.RunState.Name(list(RunState).index(state) + 1)


def _clean(text: str, most: int, *, keep_end: bool = False) -> str:
    text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.encode("utf-8", "replace").decode())
    return text[-most:] if keep_end else text[:most]


# -- protobuf to messages --------------------------------------------------------------------------


def _from_stamp(where: str, found: Any) -> Stamp:
    stamp = found.stamp
    if stamp.major != PROTOCOL[0]:
        raise WireError(
            "W11",
            f"{where}: the peer speaks protocol {stamp.major}.{stamp.minor}, "
            f"this side {PROTOCOL[0]}.{PROTOCOL[1]}",
        )
    return Stamp(
        federation=_id(f"{where}.federation", stamp.federation),
        run=_id(f"{where}.run", stamp.run, empty=True),
        plan_digest=_id(f"{where}.plan_digest", stamp.plan_digest, empty=True),
        operation=_id(f"{where}.operation", stamp.operation),
        attempt=_integer(f"{where}.attempt", stamp.attempt, least=1),
        protocol=(stamp.major, stamp.minor),
        capabilities=_ids(f"{where}.capabilities", stamp.capabilities),
    )


def _from_hello(found: pb.Hello) -> Hello:
    facts = dict(found.facts)
    if len(facts) > MOST_ITEMS:
        _refuse("Hello.facts", f"at most {MOST_ITEMS}", f"{len(facts)}")
    for key, value in facts.items():
        _text(f"Hello.facts.{_id('Hello.facts', key)}", value, MOST_ID)
    return Hello(
        _from_stamp("Hello", found), facts, _bytes("Hello.approval", found.approval, MOST_TEXT)
    )


def _from_welcome(found: pb.Welcome) -> Welcome:
    return Welcome(
        _from_stamp("Welcome", found),
        _enum("Welcome.state", _STATES, found.state),
        _seconds("Welcome.lease_s", found.lease_s),
        _bytes("Welcome.identity", found.identity, 32),
        _from_head("Welcome", found),
    )


def _from_head(where: str, found: Any) -> Head | None:
    if not found.HasField("head"):
        return None
    return Head(
        _integer(f"{where}.head.number", found.head.number, least=1),
        _digest(f"{where}.head.hash", found.head.hash),
        _bytes(f"{where}.head.signature", found.head.signature, 64),
    )


def _from_payload(found: pb.Payload) -> Payload:
    if len(found.blobs) > MOST_ITEMS:
        _refuse("Payload.blobs", f"at most {MOST_ITEMS}", f"{len(found.blobs)}")
    blobs = tuple(
        Blob(
            _digest("Blob.digest", blob.digest),
            _integer("Blob.size", blob.size),
            _digest("Blob.base", blob.base) if blob.base else "",
        )
        for blob in found.blobs
    )
    return Payload(
        _id("Payload.name", found.name),
        _digest("Payload.digest", found.digest),
        _integer("Payload.size", found.size),
        blobs,
    )


def _from_assignment(found: pb.Assignment) -> Assignment:
    if len(found.payloads) > MOST_ITEMS:
        _refuse("Assignment.payloads", f"at most {MOST_ITEMS}", f"{len(found.payloads)}")
    payloads = tuple(_from_payload(payload) for payload in found.payloads)
    if len({payload.name for payload in payloads}) < len(payloads):
        _refuse("Assignment.payloads", "each name once", "a name twice")
    return Assignment(
        ask=_id("Assignment.ask", found.ask),
        task=_id("Assignment.task", found.task),
        round=_integer("Assignment.round", found.round, most=MOST_ROUND),
        settings=_settings(found.settings),
        payloads=payloads,
        updates=found.updates,
        limit=_integer("Assignment.limit", found.limit),
    )


def _from_next(found: pb.Next) -> Next:
    return Next(
        _from_stamp("Next", found),
        _seconds("Next.wait_s", found.wait_s),
        _ids("Next.holding", found.holding),
    )


def _from_orders(found: pb.Orders) -> Orders:
    return Orders(
        _from_stamp("Orders", found),
        _enum("Orders.state", _STATES, found.state),
        _text("Orders.reason", found.reason, MOST_TEXT),
        _seconds("Orders.lease_s", found.lease_s),
        _from_assignment(found.assignment) if found.HasField("assignment") else None,
        _ids("Orders.cancel", found.cancel),
        _from_head("Orders", found),
    )


def _from_pull(found: pb.Pull) -> Pull:
    return Pull(
        _from_stamp("Pull", found),
        _digest("Pull.digest", found.digest),
        _integer("Pull.offset", found.offset),
    )


def _from_push(found: pb.Push) -> Push:
    return Push(
        _from_stamp("Push", found),
        _id("Push.ask", found.ask),
        _file_name("Push.upload", found.upload),
        _digest("Push.digest", found.digest) if found.digest else "",
    )


def _from_report(found: pb.Report) -> Report:
    failed = found.HasField("failure")
    if failed == bool(found.digest):
        _refuse("Report", "a digest or a failure", "both" if failed else "neither")
    failure = Failure(
        _id("Failure.code", found.failure.code, empty=not failed),
        _text("Failure.message", found.failure.message, MOST_TEXT),
        _text("Failure.traceback", found.failure.traceback, MOST_TRACEBACK),
    )
    return Report(
        stamp=_from_stamp("Report", found),
        ask=_id("Report.ask", found.ask),
        digest="" if failed else _digest("Report.digest", found.digest),
        size=_integer("Report.size", found.size),
        failure=failure if failed else None,
    )


def _from_verdict(found: pb.Verdict) -> Verdict:
    return Verdict(
        _from_stamp("Verdict", found),
        _enum("Verdict.ruling", _RULINGS, found.ruling),
        _id("Verdict.code", found.code, empty=True),
        _text("Verdict.message", found.message, MOST_TEXT),
        _bytes("Verdict.receipt", found.receipt, MOST_RECEIPT),
    )


def _from_renew(found: pb.Renew) -> Renew:
    csr = _bytes("Renew.csr", found.csr, MOST_PEM)
    identity = _bytes("Renew.identity", found.identity, 32)
    signature = _bytes("Renew.signature", found.signature, 64)
    return Renew(_from_stamp("Renew", found), Request(csr, identity, signature))


def _from_renewed(found: pb.Renewed) -> Renewed:
    return Renewed(
        _from_stamp("Renewed", found),
        _bytes("Renewed.chain", found.chain, MOST_PEM),
        _bytes("Renewed.anchors", found.anchors, MOST_PEM),
    )


# -- the checks ------------------------------------------------------------------------------------


def _refuse(where: str, expected: str, found: str) -> NoReturn:
    raise WireError("W10", f"{where}: expected {expected}, found {found}")


def _text(where: str, text: str, most: int) -> str:
    if len(text) > most:
        _refuse(where, f"at most {most} characters", f"{len(text)}")
    if _CONTROL.search(text):
        _refuse(where, "text", "control characters")
    return text


def _bytes(where: str, data: bytes, most: int) -> bytes:
    if len(data) > most:
        _refuse(where, f"at most {most} bytes", f"{len(data)}")
    return data


def _id(where: str, text: str, *, empty: bool = False) -> str:
    if not text and not empty:
        _refuse(where, "an identifier", "nothing")
    if not _text(where, text, MOST_ID).isprintable():
        _refuse(where, "printable characters", repr(text))
    return text


def _ids(where: str, texts: Iterable[str]) -> tuple[str, ...]:
    found = tuple(texts)
    if len(found) > MOST_ITEMS:
        _refuse(where, f"at most {MOST_ITEMS}", f"{len(found)}")
    return tuple(_id(where, text) for text in found)


def _file_name(where: str, text: str) -> str:
    if not _FILE_NAME.fullmatch(text):
        _refuse(where, "1 to 32 letters, digits and hyphens", repr(text[:80]))
    return text


def _digest(where: str, text: str) -> str:
    if not DIGEST.fullmatch(text):
        _refuse(where, "64 lower-case hexadecimal digits", repr(text[:80]))
    return text


def _integer(where: str, value: int, *, least: int = 0, most: int = MOST_SIZE) -> int:
    if not least <= value <= most:
        _refuse(where, f"{least} to {most}", f"{value}")
    return value


def _seconds(where: str, value: float) -> float:
    if not (math.isfinite(value) and 0 <= value <= MOST_SECONDS):
        _refuse(where, f"0 to {MOST_SECONDS:g} seconds", f"{value}")
    return value


def _enum(where: str, names: Mapping[int, E], value: int) -> E:
    if value not in names:
        _refuse(where, f"one of {', '.join(names.values())}", f"the unknown value {value}")
    return names[value]


def _settings(text: str) -> Mapping[str, Json]:
    if len(text) > MOST_SETTINGS:
        _refuse("Assignment.settings", f"at most {MOST_SETTINGS} characters", f"{len(text)}")
    try:
        value: Mapping[str, Json] = strict_json(text)
    except ValueError as error:
        raise WireError("W10", f"Assignment.settings: not canonical JSON: {error}") from error
    if not isinstance(value, dict):
        _refuse("Assignment.settings", "a JSON object", type(value).__name__)
    return value


_TO: Mapping[type, Callable[[Any], Message]] = {
    Hello: _to_hello,
    Welcome: _to_welcome,
    Next: _to_next,
    Orders: _to_orders,
    Pull: _to_pull,
    Push: _to_push,
    Report: _to_report,
    Verdict: _to_verdict,
    Renew: _to_renew,
    Renewed: _to_renewed,
}

_FROM: Mapping[type, tuple[Any, Callable[[Any], object]]] = {
    Hello: (pb.Hello, _from_hello),
    Welcome: (pb.Welcome, _from_welcome),
    Next: (pb.Next, _from_next),
    Orders: (pb.Orders, _from_orders),
    Pull: (pb.Pull, _from_pull),
    Push: (pb.Push, _from_push),
    Report: (pb.Report, _from_report),
    Verdict: (pb.Verdict, _from_verdict),
    Renew: (pb.Renew, _from_renew),
    Renewed: (pb.Renewed, _from_renewed),
}
