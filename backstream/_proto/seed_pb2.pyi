from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Message(_message.Message):
    __slots__ = ("id", "type", "data")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        NOTIFY: _ClassVar[Message.Type]
        REQUEST: _ClassVar[Message.Type]
        RESPONSE: _ClassVar[Message.Type]
    NOTIFY: Message.Type
    REQUEST: Message.Type
    RESPONSE: Message.Type
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    id: str
    type: Message.Type
    data: bytes
    def __init__(self, id: _Optional[str] = ..., type: _Optional[_Union[Message.Type, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class EventHTTPRequest(_message.Message):
    __slots__ = ("method", "rawPath", "rawQuery", "headers", "body")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _struct_pb2.ListValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.ListValue, _Mapping]] = ...) -> None: ...
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RAWPATH_FIELD_NUMBER: _ClassVar[int]
    RAWQUERY_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    method: str
    rawPath: str
    rawQuery: str
    headers: _containers.MessageMap[str, _struct_pb2.ListValue]
    body: bytes
    def __init__(self, method: _Optional[str] = ..., rawPath: _Optional[str] = ..., rawQuery: _Optional[str] = ..., headers: _Optional[_Mapping[str, _struct_pb2.ListValue]] = ..., body: _Optional[bytes] = ...) -> None: ...

class EventHTTPResponse(_message.Message):
    __slots__ = ("statusCode", "headers", "body")
    class HeadersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _struct_pb2.ListValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_struct_pb2.ListValue, _Mapping]] = ...) -> None: ...
    STATUSCODE_FIELD_NUMBER: _ClassVar[int]
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    statusCode: int
    headers: _containers.MessageMap[str, _struct_pb2.ListValue]
    body: bytes
    def __init__(self, statusCode: _Optional[int] = ..., headers: _Optional[_Mapping[str, _struct_pb2.ListValue]] = ..., body: _Optional[bytes] = ...) -> None: ...
