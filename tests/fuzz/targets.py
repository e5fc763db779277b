"""Everything that reads what others wrote, as functions of bytes.

The rule of each: it returns, or raises an `OpenFedError`; nothing else, with at most `MEMORY`
bytes, within a second. Where a checksum or a signature stands before what is to be tried, the
target makes it fit.
"""

import asyncio
import base64
import json
import os
import socket
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from openfed.archive import PACKAGE, contents, pack, read_package
from openfed.codec.base import Draw
from openfed.codec.chain import make_chain
from openfed.codec.packet import Head, packet_blocks
from openfed.codec.pipeline import Pipeline
from openfed.errors import OpenFedError
from openfed.node.admission import check_reply
from openfed.parse import strict_json
from openfed.pki.authority import create_authority, sign_as_authority
from openfed.pki.keys import create_identity_key, create_key, identity_public, sign
from openfed.pki.leaf import inspect, signed_by, unknown_roots
from openfed.pki.messages import read_answer
from openfed.pki.request import create_request, proven_key
from openfed.pki.roster import Member, Roster, _message, read_roster, sign_roster
from openfed.pki.token import (
    PREFIX,
    _checksum,
    _token,
    apply_with,
    mint,
    parse_token,
    read_application,
    token_text,
    write_application,
)
from openfed.plan.approval import sign_digest, verify_approval
from openfed.plan.digest import canonical_json
from openfed.plan.load import load_plan
from openfed.plan.local import read_local
from openfed.plan.lock import make_lock, read_lock, write_lock
from openfed.plan.site import read_site
from openfed.store.packets import open_packet
from openfed.tasks.channel import encode as encode_told
from openfed.tasks.channel import read_message, receive
from openfed.tensors.frame import CHUNK, Held, chunks, open_frame, unpack
from openfed.tensors.frame import pack as pack_frame
from openfed.tensors.model_file import model_bytes, read_model
from openfed.tensors.record import DTYPES, Record, signature_of
from openfed.tensors.update import update_signature
from openfed.transport.crossing import pack as pack_error
from openfed.transport.crossing import unpack as unpack_error
from openfed.wire import convert
from openfed.wire.messages import (
    Assignment,
    Blob,
    Failure,
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
from tests.unit.codec.conftest import CHAINS

LIMIT = 1 << 20
"""Bytes that a frame, a packet or what is in an archive may have here."""
MEMORY = 100 << 20
"""Most of it is set aside, and hardly ever touched, where a plan.lock is read: it may have 64 MiB.
"""
SECONDS = 1.0
LONGEST = 4096
"""Bytes of an input."""

MODEL = {"b": np.arange(3, dtype=np.int64), "w": np.linspace(-1, 1, 6, dtype=np.float32)}
PLAN = """\
federation: lab
name: toy
rounds: 3
collaborators: [one, two]
task_runner: {numpy: {train: "src.toy:f", validate: "src.toy:f", shapes: {w: [6]}}}
data_loader: "src.toy:D"
metrics: [accuracy]
compression_pipeline: {uplink: {codecs: [{quantize: {bits: 8}}, zstd]}}
"""
SITE = """\
name: mill
address: localhost:50051
data: data/mill.csv
proxy: none
"""
LOCAL = "sites: {one: data/one.csv, two: data/two.csv}\n"
CODE = "class D:\n    def __init__(self, source): ...\ndef f(record, data, settings): ...\n"
STAMP = Stamp("lab", "r1", "d" * 64, "op", 2)


@cache
def folder() -> Path:
    """A workspace in memory, whose files the targets write over."""
    within = "/dev/shm" if os.path.isdir("/dev/shm") else None
    root = Path(tempfile.mkdtemp(prefix="openfed-fuzz-", dir=within))
    for name in ("plan", "src"):
        (root / name).mkdir()
    (root / "src" / "toy.py").write_text(CODE)
    return root


def written(name: str, data: bytes) -> Path:
    path = folder() / name
    path.write_bytes(data)
    return path


# -- tensors ---------------------------------------------------------------------------------------


def frame(data: bytes) -> None:
    with suppress(OpenFedError):
        unpack(data, limit=LIMIT)
    with open_frame(written("frame", data), limit=LIMIT) as file:
        file.record()


STAGED = [make_chain(stages) for stages in CHAINS.values()]


def packet(data: bytes) -> None:
    with open_packet(written("packet", data), limit=LIMIT, allowed=STAGED) as file:
        for spec in file.specs:
            out = np.empty(min(CHUNK, spec.count), DTYPES[spec.dtype])
            for start, count in chunks(spec):
                file.read(spec.name, start, out[:count])


@cache
def lock():
    written("plan/plan.yaml", PLAN.encode())
    return make_lock(load_plan(folder() / "plan" / "plan.yaml"), {}, "a" * 64, signature_of(MODEL))


@cache
def chains():
    return Pipeline(lock().plan.compression_pipeline.uplink).chains(
        update_signature(lock().signature)
    )


ASKED = Assignment("ask1", "train", 1, {}, (Payload("model", "a" * 64, 9),), True, LIMIT)


def reply(data: bytes) -> None:
    """What the aggregator asks of an upload."""
    with open_packet(written("packet", data), limit=LIMIT, allowed=chains()) as file:
        check_reply(lock(), file, ASKED, update_signature(lock().signature))


def chunk(data: bytes) -> None:
    if len(data) < 3:
        return
    chain = STAGED[data[0] % len(STAGED)]
    count = 1 + int.from_bytes(data[1:3], "little") % 5000
    chain.decode(data[3:], np.empty(count, np.float32), Draw(seed=7, entry=3, chunk=1))


def model_file(data: bytes) -> None:
    read_model(written("model.safetensors", data))


# -- messages --------------------------------------------------------------------------------------

KINDS = (Hello, Welcome, Next, Orders, Pull, Push, Report, Verdict, Renew, Renewed)


def message(data: bytes) -> None:
    """What is read can be written, and read again as the same."""
    if data:
        kind = KINDS[data[0] % len(KINDS)]
        found = convert.decode(kind, data[1:])
        assert convert.decode(kind, convert.encode(found)) == found


def offset(data: bytes) -> None:
    assert convert.decode_offset(data) >= 0


def error(data: bytes) -> None:
    assert isinstance(unpack_error(data), OpenFedError)


@cache
def loop():
    return asyncio.new_event_loop()


def told(data: bytes) -> None:
    """The trainer's socket, as the task process and as the agent read it; both see the same."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(data[:LONGEST])
        theirs.shutdown(socket.SHUT_WR)
        blocking = _all(lambda: receive(ours))
    stream = asyncio.StreamReader(loop=loop())
    stream.feed_data(data[:LONGEST])
    stream.feed_eof()
    assert _all(lambda: loop().run_until_complete(read_message(stream))) == blocking


def _all(read: Callable[[], object]) -> list[object]:
    found: list[object] = []
    try:
        while (each := read()) is not None:
            found.append(each)
    except OpenFedError as failure:
        found.append(failure.code)
    return found


# -- files -----------------------------------------------------------------------------------------


def plan(data: bytes) -> None:
    load_plan(written("plan/plan.yaml", data))


def plan_lock(data: bytes) -> None:
    read_lock(written("plan/plan.lock", data))


def site(data: bytes) -> None:
    path = written("site.yaml", data)
    path.chmod(0o600)
    read_site(path)


def local(data: bytes) -> None:
    read_local(written("local.yaml", data), ("one", "two"))


def archive(data: bytes) -> None:
    for _, content in contents(data, PACKAGE):
        assert len(content) <= PACKAGE.size


def package(data: bytes) -> None:
    """In an archive whose checksums fit, and as it is."""
    name = "x" + data[:8].decode("latin-1").replace("/", "")
    made = folder() / "q.zip"
    with zipfile.ZipFile(made, "w") as file, suppress(ValueError):
        file.writestr(name, zlib.compress(data))
    with suppress(OpenFedError):
        read_package(made, (name,))
    read_package(written("p.zip", data), ("request.json",))


# -- keys and names --------------------------------------------------------------------------------


def token(data: bytes) -> None:
    """As what is inside, with a checksum that fits; and as it is."""
    coded = base64.urlsafe_b64encode(data + _checksum(data)).rstrip(b"=").decode()
    try:
        parse_token(PREFIX + coded)
    except OpenFedError:
        parse_token(data.decode("utf-8", "replace"))


def application(data: bytes) -> None:
    proven_key(read_application(data).request)


def answer(data: bytes) -> None:
    read_answer(data, "chain authority roster")


def certificate(data: bytes) -> None:
    with suppress(OpenFedError):
        signed_by(authority().certificate, data, b"message", b"signature")
    with suppress(OpenFedError):
        unknown_roots(authority().certificate, data, data)
    inspect(data)


@cache
def authority():
    return create_authority("lab", 1.7e9)


def roster(data: bytes) -> None:
    """As it is, and as if the authority had signed it."""
    with suppress(OpenFedError):
        read_roster(data, authority().certificate)
    try:
        content = strict_json(data)
        signature = sign_as_authority(authority(), _message(content["roster"])).hex()
        data = json.dumps({**content, "signature": signature}).encode()
    except (ValueError, TypeError, KeyError, RecursionError):
        return
    read_roster(data, authority().certificate)


@cache
def identity() -> bytes:
    return create_identity_key()


def approval(data: bytes) -> None:
    """As it is, and signed by the site's own key."""
    public = identity_public(identity())
    with suppress(OpenFedError):
        verify_approval(data, public, "a" * 64, "one")
    try:
        content = {**strict_json(data), "public_key": public.hex()}
        content.pop("signature", None)
        bare = canonical_json(content)
        signature = sign(identity(), b"openfed plan approval v1\0" + bare).hex()
        data = canonical_json({**content, "signature": signature})
    except (ValueError, TypeError, RecursionError):
        return
    verify_approval(data, public, "a" * 64, "one")


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each
    for each in (
        frame, packet, reply, chunk, model_file, message, offset, error, told, plan, plan_lock,
        site, local, archive, package, token, application, answer, certificate, roster, approval,
    )
}  # fmt: skip


def attempt(target: Callable[[bytes], None], data: bytes) -> bool:
    """Whether it took the bytes. Raises what breaks the rule."""
    try:
        target(data)
    except OpenFedError:
        return False
    return True


# -- what honest peers send ------------------------------------------------------------------------


def honest() -> dict[str, list[bytes]]:
    """Inputs that each target takes."""
    record = Record(MODEL, {"n": (5.0,)})
    head = Head(signature_of(MODEL), chains(), {"n": (5.0,)}, "a" * 64)
    coded = b"".join(bytes(block) for block in packet_blocks(head, Held(record)))
    write_lock(folder() / "plan" / "plan.lock", lock())
    entitled = mint("lab", "collaborator", "one", 2e9, "localhost:50052")
    asked = create_request("one", create_key("P-256"), identity())
    public = identity_public(identity())
    listed = Roster(
        "lab", 3, 1.7e9, (Member("collaborator", "one", public, False),), frozenset({7})
    )
    signed = sign_digest("approval", "a" * 64, "lab", "one", identity(), 1.7e9)
    x = np.linspace(-2, 2, 40, dtype=np.float32)
    draw = Draw(seed=7, entry=3, chunk=1)
    body = entitled.ends.to_bytes(8, "big") + entitled.secret + b"lab\ncollaborator\none\nh:1"
    assert _token(body)
    return {
        "frame": [pack_frame(record), pack_frame(Record({}, {}))],
        "packet": [_packet(record, chain) for chain in STAGED],
        "reply": [coded],
        "chunk": [
            bytes([index, 39, 0]) + bytes(chain.encode(x, draw))
            for index, chain in enumerate(STAGED)
        ],
        "model_file": [model_bytes(MODEL)],
        "message": [
            bytes([KINDS.index(type(each))]) + convert.encode(each) for each in _messages(asked)
        ],
        "offset": [convert.encode_offset(0), convert.encode_offset(2**63 - 1)],
        "error": [pack_error(OpenFedError("W10", "no"))],
        "told": [encode_told({"do": "train", "round": 1}) + encode_told({})],
        "plan": [PLAN.encode(), b"extends: lossless\n" + PLAN.encode()],
        "plan_lock": [(folder() / "plan" / "plan.lock").read_bytes()],
        "site": [SITE.encode()],
        "local": [LOCAL.encode()],
        "archive": [pack({"a/b.txt": b"hello" * 20, "c": b""})],
        "package": [pack({"request.json": b"{}"})],
        "token": [token_text(entitled).encode(), body],
        "application": [write_application(apply_with(entitled, asked))],
        "answer": [b'{"chain": "a", "authority": "b", "roster": "c"}'],
        "certificate": [authority().certificate],
        "roster": [sign_roster(listed, authority())],
        "approval": [signed.data()],
    }


def _packet(record: Record, chain) -> bytes:
    held = Held(Record({"w": record.tensors["w"]}))
    head = Head(held.specs, (chain,), {"n": (5.0,)}, "a" * 64, 3)
    return b"".join(bytes(block) for block in packet_blocks(head, held))


def _messages(asked) -> list[object]:
    payload = Payload("model", "a" * 64, 9, (Blob("b" * 64, 5, "a" * 64),))
    given = Assignment("ask1", "train", 1, {"lr": 0.5, "x": [1]}, (payload,), True, LIMIT)
    return [
        Hello(STAMP, {"isolation": "process"}, b"{}"),
        Welcome(STAMP, RunState.RUNNING, 60.0),
        Next(STAMP, 25.0, ("ask1",)),
        Orders(STAMP, RunState.RUNNING, "", 60.0, given, ("ask0",)),
        Pull(STAMP, "a" * 64, 5),
        Push(STAMP, "ask1", "upload", "a" * 64),
        Report(STAMP, "ask1", "a" * 64, 77),
        Report(STAMP, "ask1", failure=Failure("K20", "no", "Traceback")),
        Verdict(STAMP, Ruling.REFUSED, "K23", "w: nan"),
        Renew(STAMP, asked),
        Renewed(STAMP, b"chain", b"anchors"),
    ]
