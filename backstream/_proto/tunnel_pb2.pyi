from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Body(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NONE: _ClassVar[Body]
    SIZED: _ClassVar[Body]
    CHUNKED: _ClassVar[Body]

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NO_ERROR: _ClassVar[ErrorCode]
    PROTOCOL_ERROR: _ClassVar[ErrorCode]
    INTERNAL: _ClassVar[ErrorCode]
    FLOW_CONTROL_ERROR: _ClassVar[ErrorCode]
    STREAM_CLOSED: _ClassVar[ErrorCode]
    FRAME_SIZE_ERROR: _ClassVar[ErrorCode]
    REFUSED: _ClassVar[ErrorCode]
    CANCEL: _ClassVar[ErrorCode]
    ENHANCE_YOUR_CALM: _ClassVar[ErrorCode]
    TIMEOUT: _ClassVar[ErrorCode]
    UPSTREAM_UNREACHABLE: _ClassVar[ErrorCode]
    UPSTREAM_RESET: _ClassVar[ErrorCode]
    UPSTREAM_PROTOCOL: _ClassVar[ErrorCode]
    APP_ERROR: _ClassVar[ErrorCode]
    TOO_LARGE: _ClassVar[ErrorCode]
    DRAINING: _ClassVar[ErrorCode]
    UPSTREAM_CONNECT_TIMEOUT: _ClassVar[ErrorCode]
    UPSTREAM_DNS: _ClassVar[ErrorCode]
    UPSTREAM_UNROUTABLE: _ClassVar[ErrorCode]
    UPSTREAM_TLS: _ClassVar[ErrorCode]
    UPSTREAM_CERTIFICATE: _ClassVar[ErrorCode]
NONE: Body
SIZED: Body
CHUNKED: Body
NO_ERROR: ErrorCode
PROTOCOL_ERROR: ErrorCode
INTERNAL: ErrorCode
FLOW_CONTROL_ERROR: ErrorCode
STREAM_CLOSED: ErrorCode
FRAME_SIZE_ERROR: ErrorCode
REFUSED: ErrorCode
CANCEL: ErrorCode
ENHANCE_YOUR_CALM: ErrorCode
TIMEOUT: ErrorCode
UPSTREAM_UNREACHABLE: ErrorCode
UPSTREAM_RESET: ErrorCode
UPSTREAM_PROTOCOL: ErrorCode
APP_ERROR: ErrorCode
TOO_LARGE: ErrorCode
DRAINING: ErrorCode
UPSTREAM_CONNECT_TIMEOUT: ErrorCode
UPSTREAM_DNS: ErrorCode
UPSTREAM_UNROUTABLE: ErrorCode
UPSTREAM_TLS: ErrorCode
UPSTREAM_CERTIFICATE: ErrorCode

class Field(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: bytes
    value: bytes
    def __init__(self, name: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class RequestHead(_message.Message):
    __slots__ = ("method", "target", "authority", "scheme", "http_minor", "fields", "body", "length", "time_budget_ms", "peer", "upgrade", "id", "prefix", "http_major")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    SCHEME_FIELD_NUMBER: _ClassVar[int]
    HTTP_MINOR_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    TIME_BUDGET_MS_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    UPGRADE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    HTTP_MAJOR_FIELD_NUMBER: _ClassVar[int]
    method: bytes
    target: bytes
    authority: bytes
    scheme: bytes
    http_minor: int
    fields: _containers.RepeatedCompositeFieldContainer[Field]
    body: Body
    length: int
    time_budget_ms: int
    peer: bytes
    upgrade: bytes
    id: bytes
    prefix: bytes
    http_major: int
    def __init__(self, method: _Optional[bytes] = ..., target: _Optional[bytes] = ..., authority: _Optional[bytes] = ..., scheme: _Optional[bytes] = ..., http_minor: _Optional[int] = ..., fields: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., body: _Optional[_Union[Body, str]] = ..., length: _Optional[int] = ..., time_budget_ms: _Optional[int] = ..., peer: _Optional[bytes] = ..., upgrade: _Optional[bytes] = ..., id: _Optional[bytes] = ..., prefix: _Optional[bytes] = ..., http_major: _Optional[int] = ...) -> None: ...

class ResponseHead(_message.Message):
    __slots__ = ("status", "reason", "fields", "body", "length", "upgrade")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    UPGRADE_FIELD_NUMBER: _ClassVar[int]
    status: int
    reason: bytes
    fields: _containers.RepeatedCompositeFieldContainer[Field]
    body: Body
    length: int
    upgrade: bytes
    def __init__(self, status: _Optional[int] = ..., reason: _Optional[bytes] = ..., fields: _Optional[_Iterable[_Union[Field, _Mapping]]] = ..., body: _Optional[_Union[Body, str]] = ..., length: _Optional[int] = ..., upgrade: _Optional[bytes] = ...) -> None: ...

class Trailers(_message.Message):
    __slots__ = ("fields",)
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    fields: _containers.RepeatedCompositeFieldContainer[Field]
    def __init__(self, fields: _Optional[_Iterable[_Union[Field, _Mapping]]] = ...) -> None: ...

class Reset(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class GoAway(_message.Message):
    __slots__ = ("last_stream", "code", "message", "retry_after_ms")
    LAST_STREAM_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    last_stream: int
    code: int
    message: str
    retry_after_ms: int
    def __init__(self, last_stream: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "software", "instance", "generation", "initial_window", "max_frame_size", "max_streams", "capabilities")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    INITIAL_WINDOW_FIELD_NUMBER: _ClassVar[int]
    MAX_FRAME_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    version: int
    software: str
    instance: bytes
    generation: int
    initial_window: int
    max_frame_size: int
    max_streams: int
    capabilities: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., software: _Optional[str] = ..., instance: _Optional[bytes] = ..., generation: _Optional[int] = ..., initial_window: _Optional[int] = ..., max_frame_size: _Optional[int] = ..., max_streams: _Optional[int] = ..., capabilities: _Optional[_Iterable[str]] = ...) -> None: ...

class Notify(_message.Message):
    __slots__ = ("content_type", "data")
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    content_type: str
    data: bytes
    def __init__(self, content_type: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...
