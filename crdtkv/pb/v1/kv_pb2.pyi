from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RequestBatch(_message.Message):
    __slots__ = ("rows", "deadline_ms")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    rows: bytes
    deadline_ms: int
    def __init__(self, rows: _Optional[bytes] = ..., deadline_ms: _Optional[int] = ...) -> None: ...

class ReplyBatch(_message.Message):
    __slots__ = ("rows", "token")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    rows: bytes
    token: str
    def __init__(self, rows: _Optional[bytes] = ..., token: _Optional[str] = ...) -> None: ...

class StreamRequest(_message.Message):
    __slots__ = ("op", "args")
    OP_FIELD_NUMBER: _ClassVar[int]
    ARGS_FIELD_NUMBER: _ClassVar[int]
    op: str
    args: bytes
    def __init__(self, op: _Optional[str] = ..., args: _Optional[bytes] = ...) -> None: ...

class Page(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: bytes
    def __init__(self, rows: _Optional[bytes] = ...) -> None: ...

class Row(_message.Message):
    __slots__ = ("row", "token")
    ROW_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    row: bytes
    token: str
    def __init__(self, row: _Optional[bytes] = ..., token: _Optional[str] = ...) -> None: ...

class Value(_message.Message):
    __slots__ = ("msgpack", "text", "integer", "real", "truth", "data")
    MSGPACK_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INTEGER_FIELD_NUMBER: _ClassVar[int]
    REAL_FIELD_NUMBER: _ClassVar[int]
    TRUTH_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    msgpack: bytes
    text: str
    integer: int
    real: float
    truth: bool
    data: bytes
    def __init__(self, msgpack: _Optional[bytes] = ..., text: _Optional[str] = ..., integer: _Optional[int] = ..., real: _Optional[float] = ..., truth: bool = ..., data: _Optional[bytes] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("origin", "seq", "hlc")
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    HLC_FIELD_NUMBER: _ClassVar[int]
    origin: str
    seq: int
    hlc: int
    def __init__(self, origin: _Optional[str] = ..., seq: _Optional[int] = ..., hlc: _Optional[int] = ...) -> None: ...

class KeyRequest(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: str
    def __init__(self, key: _Optional[str] = ...) -> None: ...

class FieldRequest(_message.Message):
    __slots__ = ("key", "field", "request_id")
    KEY_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    key: str
    field: str
    request_id: bytes
    def __init__(self, key: _Optional[str] = ..., field: _Optional[str] = ..., request_id: _Optional[bytes] = ...) -> None: ...

class ValueReply(_message.Message):
    __slots__ = ("found", "value", "token")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    found: bool
    value: Value
    token: str
    def __init__(self, found: bool = ..., value: _Optional[_Union[Value, _Mapping]] = ..., token: _Optional[str] = ...) -> None: ...

class PutRequest(_message.Message):
    __slots__ = ("key", "value", "ttl_s", "request_id")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: Value
    ttl_s: float
    request_id: bytes
    def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ..., ttl_s: _Optional[float] = ..., request_id: _Optional[bytes] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("key", "request_id")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    key: str
    request_id: bytes
    def __init__(self, key: _Optional[str] = ..., request_id: _Optional[bytes] = ...) -> None: ...

class WriteReply(_message.Message):
    __slots__ = ("commit", "token")
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    commit: Commit
    token: str
    def __init__(self, commit: _Optional[_Union[Commit, _Mapping]] = ..., token: _Optional[str] = ...) -> None: ...

class ElementsRequest(_message.Message):
    __slots__ = ("key", "elements", "ttl_s", "request_id")
    KEY_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    key: str
    elements: _containers.RepeatedCompositeFieldContainer[Value]
    ttl_s: float
    request_id: bytes
    def __init__(self, key: _Optional[str] = ..., elements: _Optional[_Iterable[_Union[Value, _Mapping]]] = ..., ttl_s: _Optional[float] = ..., request_id: _Optional[bytes] = ...) -> None: ...

class MembersReply(_message.Message):
    __slots__ = ("elements",)
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    elements: _containers.RepeatedCompositeFieldContainer[Value]
    def __init__(self, elements: _Optional[_Iterable[_Union[Value, _Mapping]]] = ...) -> None: ...

class IncrementRequest(_message.Message):
    __slots__ = ("key", "by", "request_id")
    KEY_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    key: str
    by: int
    request_id: bytes
    def __init__(self, key: _Optional[str] = ..., by: _Optional[int] = ..., request_id: _Optional[bytes] = ...) -> None: ...

class CounterReply(_message.Message):
    __slots__ = ("found", "value", "token")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    found: bool
    value: int
    token: str
    def __init__(self, found: bool = ..., value: _Optional[int] = ..., token: _Optional[str] = ...) -> None: ...

class PutFieldRequest(_message.Message):
    __slots__ = ("key", "field", "value", "ttl_s", "request_id")
    KEY_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TTL_S_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    key: str
    field: str
    value: Value
    ttl_s: float
    request_id: bytes
    def __init__(self, key: _Optional[str] = ..., field: _Optional[str] = ..., value: _Optional[_Union[Value, _Mapping]] = ..., ttl_s: _Optional[float] = ..., request_id: _Optional[bytes] = ...) -> None: ...
