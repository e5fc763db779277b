from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_WAITING: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_COMPLETED: _ClassVar[RunState]
    RUN_STATE_FAILED: _ClassVar[RunState]
    RUN_STATE_ABORTED: _ClassVar[RunState]

class Ruling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RULING_UNSPECIFIED: _ClassVar[Ruling]
    RULING_ACCEPTED: _ClassVar[Ruling]
    RULING_DUPLICATE: _ClassVar[Ruling]
    RULING_LATE: _ClassVar[Ruling]
    RULING_REFUSED: _ClassVar[Ruling]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_WAITING: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_COMPLETED: RunState
RUN_STATE_FAILED: RunState
RUN_STATE_ABORTED: RunState
RULING_UNSPECIFIED: Ruling
RULING_ACCEPTED: Ruling
RULING_DUPLICATE: Ruling
RULING_LATE: Ruling
RULING_REFUSED: Ruling

class Block(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Stamp(_message.Message):
    __slots__ = ("federation", "run", "plan_digest", "operation", "attempt", "major", "minor", "capabilities")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    MAJOR_FIELD_NUMBER: _ClassVar[int]
    MINOR_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    federation: str
    run: str
    plan_digest: str
    operation: str
    attempt: int
    major: int
    minor: int
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, federation: _Optional[str] = ..., run: _Optional[str] = ..., plan_digest: _Optional[str] = ..., operation: _Optional[str] = ..., attempt: _Optional[int] = ..., major: _Optional[int] = ..., minor: _Optional[int] = ..., capabilities: _Optional[_Iterable[str]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("stamp", "facts", "approval")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STAMP_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    APPROVAL_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    facts: _containers.ScalarMap[str, str]
    approval: bytes
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., facts: _Optional[_Mapping[str, str]] = ..., approval: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("stamp", "state", "lease_s", "identity", "head")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    state: RunState
    lease_s: float
    identity: bytes
    head: Head
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., state: _Optional[_Union[RunState, str]] = ..., lease_s: _Optional[float] = ..., identity: _Optional[bytes] = ..., head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("number", "hash", "signature")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    number: int
    hash: str
    signature: bytes
    def __init__(self, number: _Optional[int] = ..., hash: _Optional[str] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Payload(_message.Message):
    __slots__ = ("name", "digest", "size", "blobs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    size: int
    blobs: _containers.RepeatedCompositeFieldContainer[Blob]
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., blobs: _Optional[_Iterable[_Union[Blob, _Mapping]]] = ...) -> None: ...

class Blob(_message.Message):
    __slots__ = ("digest", "size", "base")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    digest: str
    size: int
    base: str
    def __init__(self, digest: _Optional[str] = ..., size: _Optional[int] = ..., base: _Optional[str] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("ask", "task", "round", "settings", "payloads", "updates", "limit")
    ASK_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    ask: str
    task: str
    round: int
    settings: str
    payloads: _containers.RepeatedCompositeFieldContainer[Payload]
    updates: bool
    limit: int
    def __init__(self, ask: _Optional[str] = ..., task: _Optional[str] = ..., round: _Optional[int] = ..., settings: _Optional[str] = ..., payloads: _Optional[_Iterable[_Union[Payload, _Mapping]]] = ..., updates: _Optional[bool] = ..., limit: _Optional[int] = ...) -> None: ...

class Next(_message.Message):
    __slots__ = ("stamp", "wait_s", "holding")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    WAIT_S_FIELD_NUMBER: _ClassVar[int]
    HOLDING_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    wait_s: float
    holding: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., wait_s: _Optional[float] = ..., holding: _Optional[_Iterable[str]] = ...) -> None: ...

class Orders(_message.Message):
    __slots__ = ("stamp", "state", "reason", "lease_s", "assignment", "cancel", "head")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LEASE_S_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    state: RunState
    reason: str
    lease_s: float
    assignment: Assignment
    cancel: _containers.RepeatedScalarFieldContainer[str]
    head: Head
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., state: _Optional[_Union[RunState, str]] = ..., reason: _Optional[str] = ..., lease_s: _Optional[float] = ..., assignment: _Optional[_Union[Assignment, _Mapping]] = ..., cancel: _Optional[_Iterable[str]] = ..., head: _Optional[_Union[Head, _Mapping]] = ...) -> None: ...

class Pull(_message.Message):
    __slots__ = ("stamp", "digest", "offset")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    digest: str
    offset: int
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., digest: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Push(_message.Message):
    __slots__ = ("stamp", "ask", "upload", "digest")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    ask: str
    upload: str
    digest: str
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., ask: _Optional[str] = ..., upload: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class PushOffset(_message.Message):
    __slots__ = ("offset",)
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    offset: int
    def __init__(self, offset: _Optional[int] = ...) -> None: ...

class PushEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "message", "traceback")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    traceback: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("stamp", "ask", "digest", "size", "failure")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    ASK_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    ask: str
    digest: str
    size: int
    failure: Failure
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., ask: _Optional[str] = ..., digest: _Optional[str] = ..., size: _Optional[int] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ...) -> None: ...

class Renew(_message.Message):
    __slots__ = ("stamp", "csr", "identity", "signature")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    CSR_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    csr: bytes
    identity: bytes
    signature: bytes
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., csr: _Optional[bytes] = ..., identity: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Renewed(_message.Message):
    __slots__ = ("stamp", "chain", "anchors")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    ANCHORS_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    chain: bytes
    anchors: bytes
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., chain: _Optional[bytes] = ..., anchors: _Optional[bytes] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("stamp", "ruling", "code", "message", "receipt")
    STAMP_FIELD_NUMBER: _ClassVar[int]
    RULING_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    stamp: Stamp
    ruling: Ruling
    code: str
    message: str
    receipt: bytes
    def __init__(self, stamp: _Optional[_Union[Stamp, _Mapping]] = ..., ruling: _Optional[_Union[Ruling, str]] = ..., code: _Optional[str] = ..., message: _Optional[str] = ..., receipt: _Optional[bytes] = ...) -> None: ...
