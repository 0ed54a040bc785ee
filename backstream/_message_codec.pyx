"""The values of `_messages` to and from C heads and frames' bytes: for handlers, tests and tools in Python.

Nothing that happens once a request passes here, but for those of the program's own and of Python handlers.
"""

from backstream._buffer cimport Buffer
from backstream._codec cimport (
    FRAME_HEADER_SIZE, Field, FieldArray, Frame, GoAway, Notify, RequestHead, Reset, ResponseHead, Trailers,
    decode_goaway, decode_notify, decode_request, decode_reset, decode_response, decode_trailers, encode_goaway,
    encode_notify, encode_request, encode_reset, encode_response, encode_trailers, read_frame, write_frame_header,
)
from backstream._slice cimport bytes_of, slice_of

from backstream import _messages


cdef tuple pairs_of(const Field* fields, Py_ssize_t count):
    cdef Py_ssize_t i
    return tuple([(bytes_of(fields[i].name), bytes_of(fields[i].value)) for i in range(count)])


cdef int _collect(object pairs, FieldArray fields) except -1:
    cdef Field field
    cdef bytes name, value
    for name, value in pairs:
        field.name = slice_of(name)
        field.value = slice_of(value)
        fields.add(field)
    return 0


cdef object request_object(const RequestHead* head):
    return _messages.RequestHead(
        method=bytes_of(head.method), target=bytes_of(head.target), authority=bytes_of(head.authority),
        scheme=bytes_of(head.scheme), http_minor=head.http_minor, http_major=head.http_major,
        fields=pairs_of(head.fields, head.field_count), body=_messages.Body(head.body), length=head.length,
        time_budget_ms=head.time_budget_ms, peer=bytes_of(head.peer), upgrade=bytes_of(head.upgrade),
        client_id=bytes_of(head.client_id), prefix=bytes_of(head.prefix))


cdef object response_object(const ResponseHead* head):
    return _messages.ResponseHead(
        status=head.status, reason=bytes_of(head.reason), fields=pairs_of(head.fields, head.field_count),
        body=_messages.Body(head.body), length=head.length, upgrade=bytes_of(head.upgrade))


cdef int fill_request(object source, RequestHead* head, FieldArray fields) except -1:
    """Points `head` at the members of a Python RequestHead, which must outlive it."""
    fields.count = 0
    _collect(source.fields, fields)
    head.method = slice_of(source.method)
    head.target = slice_of(source.target)
    head.authority = slice_of(source.authority)
    head.scheme = slice_of(source.scheme)
    head.peer = slice_of(source.peer)
    head.upgrade = slice_of(source.upgrade)
    head.client_id = slice_of(source.client_id)
    head.prefix = slice_of(source.prefix)
    head.fields = fields.items
    head.field_count = fields.count
    head.http_major = source.http_major
    head.http_minor = source.http_minor
    head.body = source.body
    head.length = source.length
    head.time_budget_ms = source.time_budget_ms
    return 0


cdef int fill_response(object source, ResponseHead* head, FieldArray fields) except -1:
    """As `fill_request`, for a ResponseHead."""
    fields.count = 0
    _collect(source.fields, fields)
    head.reason = slice_of(source.reason)
    head.upgrade = slice_of(source.upgrade)
    head.fields = fields.items
    head.field_count = fields.count
    head.status = source.status
    head.body = source.body
    head.length = source.length
    return 0


cdef int fill_trailers(object pairs, Trailers* trailers, FieldArray fields) except -1:
    fields.count = 0
    _collect(pairs, fields)
    trailers.fields = fields.items
    trailers.field_count = fields.count
    return 0


cdef bytes _taken(Buffer out):
    return out.data[:out.size]


def pack_request(head) -> bytes:
    """The payload of a REQUEST frame for a `RequestHead`, as canonical protobuf."""
    cdef RequestHead raw
    cdef FieldArray fields = FieldArray()
    cdef Buffer out = Buffer()
    fill_request(head, &raw, fields)
    encode_request(out, &raw)
    return _taken(out)


def unpack_request(bytes payload):
    """A REQUEST frame's payload as a `RequestHead`. Raises HeadError when it is malformed."""
    cdef RequestHead raw
    cdef FieldArray fields = FieldArray()
    decode_request(payload, len(payload), &raw, fields)
    return request_object(&raw)


def pack_response(head) -> bytes:
    """The payload of a RESPONSE frame for a `ResponseHead`, as canonical protobuf."""
    cdef ResponseHead raw
    cdef FieldArray fields = FieldArray()
    cdef Buffer out = Buffer()
    fill_response(head, &raw, fields)
    encode_response(out, &raw)
    return _taken(out)


def unpack_response(bytes payload):
    """A RESPONSE frame's payload as a `ResponseHead`. Raises HeadError when it is malformed."""
    cdef ResponseHead raw
    cdef FieldArray fields = FieldArray()
    decode_response(payload, len(payload), &raw, fields)
    return response_object(&raw)


def pack_trailers(pairs) -> bytes:
    """The payload of a TRAILERS frame for (name, value) pairs of bytes."""
    cdef Trailers raw
    cdef FieldArray fields = FieldArray()
    cdef Buffer out = Buffer()
    fill_trailers(pairs, &raw, fields)
    encode_trailers(out, &raw)
    return _taken(out)


def unpack_trailers(bytes payload) -> tuple:
    """A TRAILERS frame's payload as (name, value) pairs of bytes. Raises HeadError when it is malformed."""
    cdef Trailers raw
    cdef FieldArray fields = FieldArray()
    decode_trailers(payload, len(payload), &raw, fields)
    return pairs_of(raw.fields, raw.field_count)


def pack_reset(reset) -> bytes:
    """The payload of a RESET frame for a `Reset`."""
    cdef Buffer out = Buffer()
    cdef bytes message = reset.message.encode()
    encode_reset(out, reset.code, slice_of(message))
    return _taken(out)


def unpack_reset(bytes payload):
    """A RESET frame's payload as a `Reset`. Raises HeadError when it is malformed."""
    cdef Reset raw
    decode_reset(payload, len(payload), &raw)
    return _messages.Reset(code=raw.code, message=bytes_of(raw.message).decode())


def pack_goaway(goaway) -> bytes:
    """The payload of a GOAWAY frame for a `GoAway`."""
    cdef Buffer out = Buffer()
    cdef bytes message = goaway.message.encode()
    cdef GoAway raw
    raw.message = slice_of(message)
    raw.last_stream = goaway.last_stream
    raw.code = goaway.code
    raw.retry_after_ms = goaway.retry_after_ms
    encode_goaway(out, &raw)
    return _taken(out)


def unpack_goaway(bytes payload):
    """A GOAWAY frame's payload as a `GoAway`. Raises HeadError when it is malformed."""
    cdef GoAway raw
    decode_goaway(payload, len(payload), &raw)
    return goaway_object(&raw)


cdef object goaway_object(const GoAway* raw):
    return _messages.GoAway(last_stream=raw.last_stream, code=raw.code, message=bytes_of(raw.message).decode(),
                            retry_after_ms=raw.retry_after_ms)


def pack_notify(notify) -> bytes:
    """The payload of a NOTIFY frame for a `Notify`."""
    cdef Buffer out = Buffer()
    cdef bytes content_type = notify.content_type.encode()
    encode_notify(out, slice_of(content_type), slice_of(notify.data))
    return _taken(out)


def unpack_notify(bytes payload):
    """A NOTIFY frame's payload as a `Notify`. Raises HeadError when it is malformed."""
    cdef Notify raw
    decode_notify(payload, len(payload), &raw)
    return _messages.Notify(content_type=bytes_of(raw.content_type).decode(), data=bytes_of(raw.data))


def pack_frame(int kind, int stream_id, bytes payload=b"", int flags=0) -> bytes:
    """A whole frame: its 9-byte header and its payload of at most 2**24 - 1 bytes."""
    cdef char header[FRAME_HEADER_SIZE]
    if len(payload) > 0xffffff:
        raise ValueError("a frame's payload has at most 16,777,215 bytes")
    write_frame_header(header, len(payload), kind, flags, stream_id)
    return header[:FRAME_HEADER_SIZE] + payload


def unpack_frames(bytes message) -> list:
    """The frames of one message as (type, flags, stream id, payload). Raises FrameError."""
    cdef Frame frame
    cdef Py_ssize_t at = 0
    cdef list frames = []
    while at < len(message):
        at += read_frame(<const char*>message + at, len(message) - at, &frame)
        frames.append((frame.type, frame.flags, frame.stream_id, frame.payload[:frame.size]))
    return frames
