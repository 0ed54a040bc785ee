"""Frames and their payloads, to and from bytes: pure functions without state.

Rules that hold here: nothing is read outside the slice that was handed in; whatever cannot be read, or breaks the
wire's grammar, raises (FrameError ends the session, HeadError the stream); what is written is canonical protobuf
(members in order, defaults left out). Decoded slices point into the input.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.string cimport memcpy, memset

from backstream._buffer cimport Buffer, reserve
from backstream._grammar cimport (
    equals_lower, is_authority, is_client_id, is_connection_field, is_field_value, is_lower_token, is_peer,
    is_switchable, is_target, is_token,
)
from backstream._protobuf cimport (
    BYTES, VARINT, Cursor, member_size, put_member, put_varint, read_bytes, read_tag, read_varint, skip_member,
)
from backstream._slice cimport bytes_of, equals, slice_of

from backstream import _messages
from backstream.errors import FrameError, HeadError


# --- frames ------------------------------------------------------------------------------------------------------

cdef uint32_t read_u32(const char* data) noexcept:
    cdef const uint8_t* p = <const uint8_t*>data
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef void write_u32(char* target, uint32_t value) noexcept:
    target[0] = <char>(value >> 24)
    target[1] = <char>(value >> 16)
    target[2] = <char>(value >> 8)
    target[3] = <char>value


cdef Py_ssize_t read_frame(const char* data, Py_ssize_t size, Frame* frame) except -1:
    """Reads the frame at the start of `data` and returns how many bytes it takes; raises FrameError."""
    cdef const uint8_t* p = <const uint8_t*>data
    cdef uint32_t length, stream_id
    if size < FRAME_HEADER_SIZE:
        raise FrameError("a frame's header is cut off by the end of its message")
    length = (<uint32_t>p[0] << 16) | (<uint32_t>p[1] << 8) | p[2]
    stream_id = read_u32(data + 5)
    if stream_id & 0x80000000u:
        raise FrameError("a frame has its reserved bit set")
    if <Py_ssize_t>length > size - FRAME_HEADER_SIZE:
        raise FrameError("a frame runs past the end of its message")
    frame.type = p[3]
    frame.flags = p[4]
    frame.stream_id = stream_id
    frame.payload = data + FRAME_HEADER_SIZE
    frame.size = length
    return FRAME_HEADER_SIZE + <Py_ssize_t>length


cdef void write_frame_header(char* target, Py_ssize_t length, uint8_t kind, uint8_t flags,
                             uint32_t stream_id) noexcept:
    target[0] = <char>(length >> 16)
    target[1] = <char>(length >> 8)
    target[2] = <char>length
    target[3] = <char>kind
    target[4] = <char>flags
    write_u32(target + 5, stream_id)


# --- protobuf: reading -------------------------------------------------------------------------------------------

cdef int _malformed(str what) except -1:
    raise HeadError(f"malformed payload: {what}")


cdef int _varint(Cursor* c, uint64_t* value) except -1:
    if not read_varint(c, value):
        _malformed("a number is cut off, or of more than 64 bits")
    return 0


cdef int _number32(Cursor* c, int wire_type, uint32_t* value) except -1:
    cdef uint64_t wide = 0
    if wire_type != VARINT:
        _malformed("a number was expected")
    _varint(c, &wide)
    if wide > 0xffffffffu:
        _malformed("a number out of range")
    value[0] = <uint32_t>wide
    return 0


cdef int _number64(Cursor* c, int wire_type, uint64_t* value) except -1:
    if wire_type != VARINT:
        _malformed("a number was expected")
    return _varint(c, value)


cdef inline int _bytes(Cursor* c, int wire_type, Slice* value) except -1:
    # A length of one byte is nearly every one, and inline: a head has a dozen.
    if wire_type == BYTES and c.at < c.end and c.at[0] < 0x80 and c.at[0] < c.end - c.at:
        value.ptr = <const char*>c.at + 1
        value.size = c.at[0]
        c.at += 1 + c.at[0]
        return 0
    return _any_bytes(c, wire_type, value)


cdef int _any_bytes(Cursor* c, int wire_type, Slice* value) except -1:
    if wire_type != BYTES:
        _malformed("bytes were expected")
    if not read_bytes(c, value):
        _malformed("a length runs past the end")
    return 0


cdef int _text(Cursor* c, int wire_type, Slice* value) except -1:
    _bytes(c, wire_type, value)
    try:
        value.ptr[:value.size].decode("utf-8")
    except UnicodeDecodeError:
        _malformed("text that is not UTF-8")
    return 0


cdef inline int _tag(Cursor* c, uint32_t* number, int* wire_type) except -1:
    # As the lengths: the members that are known here have numbers below 16, and so tags of one byte.
    if c.at < c.end and 8 <= c.at[0] < 0x80:
        number[0] = c.at[0] >> 3
        wire_type[0] = c.at[0] & 7
        c.at += 1
        return 0
    return _any_tag(c, number, wire_type)


cdef int _any_tag(Cursor* c, uint32_t* number, int* wire_type) except -1:
    if not read_tag(c, number, wire_type):
        _malformed("a member's number is cut off or out of range")
    return 0


cdef int _skip(Cursor* c, int wire_type) except -1:
    """Passes over a member that this version does not know."""
    if not skip_member(c, wire_type):
        _malformed("an unknown member is cut off or of no known type")
    return 0


cdef class FieldArray:

    def __dealloc__(self):
        PyMem_Free(self.items)

    cdef int add(self, Field field) except -1:
        _make_room(self)
        self.items[self.count] = field
        self.count += 1
        return 0


cdef inline int _make_room(FieldArray fields) except -1:
    """For one more."""
    return _grow(fields) if fields.count == fields.capacity else 0


cdef int _grow(FieldArray fields) except -1:
    cdef Py_ssize_t capacity = fields.capacity * 2 if fields.capacity else 32
    cdef Field* items = <Field*>PyMem_Realloc(fields.items, capacity * sizeof(Field))
    if items == NULL:
        raise MemoryError()
    fields.items = items
    fields.capacity = capacity
    return 0


cdef int _field(Cursor* outer, int wire_type, FieldArray fields) except -1:
    cdef Slice message
    cdef Cursor c
    cdef Field* field
    cdef uint32_t number = 0
    cdef int kind = 0
    if fields.count >= MAX_FIELDS:
        _malformed(f"more than {MAX_FIELDS} fields")
    _make_room(fields)
    field = &fields.items[fields.count]
    memset(field, 0, sizeof(Field))
    _bytes(outer, wire_type, &message)
    c.at = <const uint8_t*>message.ptr
    c.end = c.at + message.size
    while c.at < c.end:
        _tag(&c, &number, &kind)
        if number == 1:
            _bytes(&c, kind, &field.name)
        elif number == 2:
            _bytes(&c, kind, &field.value)
        else:
            _skip(&c, kind)
    if not is_lower_token(field.name):
        _malformed("a field's name is no lower-case token")
    if not is_field_value(field.value):
        _malformed("a field's value has a control character")
    if is_connection_field(field.name):
        _malformed(f"the field {bytes_of(field.name).decode()} does not travel")
    fields.count += 1
    return 0


cdef int _check_no_te(FieldArray fields) except -1:
    """TE is of the hop (RFC 9110 §10.1.4) and travels only where a client takes trailers: in a request's head."""
    cdef Py_ssize_t i
    for i in range(fields.count):
        if fields.items[i].name.size == 2 and equals(fields.items[i].name, b"te", 2):
            _malformed("the field te does not travel here")
    return 0


cdef int _check_body(uint32_t body, uint64_t length) except -1:
    if body > BODY_CHUNKED:
        _malformed("an unknown kind of body")
    if length and body != BODY_SIZED:
        _malformed("a length without a sized body")
    if length >> 63:
        _malformed("a length out of range")
    return 0


cdef int decode_request(const char* data, Py_ssize_t size, RequestHead* head, FieldArray fields) except -1:
    """A REQUEST's payload; what it points to lives as long as `data` and `fields`. Raises HeadError."""
    cdef Cursor c
    cdef uint32_t number = 0
    cdef int kind = 0
    cdef Py_ssize_t i
    cdef Field* field
    cdef Slice* text
    memset(head, 0, sizeof(RequestHead))
    fields.count = 0
    c.at = <const uint8_t*>data
    c.end = c.at + size
    while c.at < c.end:
        _tag(&c, &number, &kind)
        text = NULL
        if number == 1:
            text = &head.method
        elif number == 2:
            text = &head.target
        elif number == 3:
            text = &head.authority
        elif number == 4:
            text = &head.scheme
        elif number == 5:
            _number32(&c, kind, &head.http_minor)
        elif number == 6:
            _field(&c, kind, fields)
        elif number == 7:
            _number32(&c, kind, &head.body)
        elif number == 8:
            _number64(&c, kind, &head.length)
        elif number == 9:
            _number64(&c, kind, &head.time_budget_ms)
        elif number == 10:
            text = &head.peer
        elif number == 11:
            text = &head.upgrade
        elif number == 12:
            text = &head.client_id
        elif number == 13:
            text = &head.prefix
        elif number == 14:
            _number32(&c, kind, &head.http_major)
        else:
            _skip(&c, kind)
        if text != NULL:
            _bytes(&c, kind, text)
    head.fields = fields.items
    head.field_count = fields.count
    if head.http_major == 0:
        head.http_major = 1
    if not is_token(head.method) or equals(head.method, b"CONNECT", 7):
        _malformed("the method")
    if not is_target(head.target):
        _malformed("the target is neither origin-form nor *")
    if head.target.ptr[0] == c'*' and not equals(head.method, b"OPTIONS", 7):
        _malformed("the target * is for OPTIONS")     # RFC 9112 §3.2.4
    if head.authority.size and not is_authority(head.authority):
        _malformed("the authority is no host[:port]")
    if not equals(head.scheme, b"http", 4) and not equals(head.scheme, b"https", 5):
        _malformed("the scheme is neither http nor https")
    if not is_peer(head.peer):
        _malformed("the peer is no ip:port")
    if head.upgrade.size and not is_switchable(head.upgrade):
        _malformed("the upgrade is no protocol to switch to")
    if head.client_id.size and not is_client_id(head.client_id):
        _malformed("the client id")
    if head.prefix.size and (head.prefix.ptr[0] != c'/' or not is_target(head.prefix)):
        _malformed("the prefix is no path")
    _check_body(head.body, head.length)
    if head.upgrade.size and head.body != BODY_NONE:
        _malformed("an upgrade with a body")
    for i in range(fields.count):
        field = &fields.items[i]
        if field.name.size != 2 and field.name.size != 6:
            continue
        if equals(field.name, b"te", 2) and not equals_lower(field.value, b"trailers", 8):
            _malformed("te says more than trailers")
        if equals(field.name, b"expect", 6) and not equals_lower(field.value, b"100-continue", 12):
            _malformed("expect says more than 100-continue")
    return 0


cdef int decode_response(const char* data, Py_ssize_t size, ResponseHead* head, FieldArray fields) except -1:
    """A RESPONSE's payload, as `decode_request`."""
    cdef Cursor c
    cdef uint32_t number = 0
    cdef int kind = 0
    memset(head, 0, sizeof(ResponseHead))
    fields.count = 0
    c.at = <const uint8_t*>data
    c.end = c.at + size
    while c.at < c.end:
        _tag(&c, &number, &kind)
        if number == 1:
            _number32(&c, kind, &head.status)
        elif number == 2:
            _bytes(&c, kind, &head.reason)
        elif number == 3:
            _field(&c, kind, fields)
        elif number == 4:
            _number32(&c, kind, &head.body)
        elif number == 5:
            _number64(&c, kind, &head.length)
        elif number == 6:
            _bytes(&c, kind, &head.upgrade)
        else:
            _skip(&c, kind)
    head.fields = fields.items
    head.field_count = fields.count
    if head.status < 100 or head.status > 999:
        _malformed("a status outside 100 to 999")
    if not is_field_value(head.reason):
        _malformed("the reason has a control character")
    if head.upgrade.size and not is_switchable(head.upgrade):
        _malformed("the upgrade is no protocol to switch to")
    if (head.status == 101) != (head.upgrade.size > 0):
        _malformed("101 and an upgrade come together or not at all")
    _check_no_te(fields)
    return _check_body(head.body, head.length)


cdef int decode_trailers(const char* data, Py_ssize_t size, Trailers* trailers, FieldArray fields) except -1:
    """A TRAILERS' payload, as `decode_request`."""
    cdef Cursor c
    cdef uint32_t number = 0
    cdef int kind = 0
    fields.count = 0
    c.at = <const uint8_t*>data
    c.end = c.at + size
    while c.at < c.end:
        _tag(&c, &number, &kind)
        if number == 1:
            _field(&c, kind, fields)
        else:
            _skip(&c, kind)
    trailers.fields = fields.items
    trailers.field_count = fields.count
    return _check_no_te(fields)


cdef int decode_reset(const char* data, Py_ssize_t size, Reset* reset) except -1:
    cdef Cursor c
    cdef uint32_t number = 0
    cdef int kind = 0
    memset(reset, 0, sizeof(Reset))
    c.at = <const uint8_t*>data
    c.end = c.at + size
    while c.at < c.end:
        _tag(&c, &number, &kind)
        if number == 1:
            _number32(&c, kind, &reset.code)
        elif number == 2:
            _text(&c, kind, &reset.message)
        else:
            _skip(&c, kind)
    return 0


cdef int decode_goaway(const char* data, Py_ssize_t size, GoAway* goaway) except -1:
    cdef Cursor c
    cdef uint32_t number = 0
    cdef int kind = 0
    memset(goaway, 0, sizeof(GoAway))
    c.at = <const uint8_t*>data
    c.end = c.at + size
    while c.at < c.end:
        _tag(&c, &number, &kind)
        if number == 1:
            _number32(&c, kind, &goaway.last_stream)
        elif number == 2:
            _number32(&c, kind, &goaway.code)
        elif number == 3:
            _text(&c, kind, &goaway.message)
        elif number == 4:
            _number32(&c, kind, &goaway.retry_after_ms)
        else:
            _skip(&c, kind)
    return 0


cdef int decode_notify(const char* data, Py_ssize_t size, Notify* notify) except -1:
    cdef Cursor c
    cdef uint32_t number = 0
    cdef int kind = 0
    memset(notify, 0, sizeof(Notify))
    c.at = <const uint8_t*>data
    c.end = c.at + size
    while c.at < c.end:
        _tag(&c, &number, &kind)
        if number == 1:
            _text(&c, kind, &notify.content_type)
        elif number == 2:
            _bytes(&c, kind, &notify.data)
        else:
            _skip(&c, kind)
    return 0


cpdef object decode_hello(bytes payload):
    """A HELLO's payload as a `Hello`; raises HeadError. Once a session, so it may build an object."""
    cdef Cursor c
    cdef uint32_t number = 0, version = 0, initial_window = 0, max_frame_size = 0, max_streams = 0
    cdef uint64_t generation = 0
    cdef int kind = 0
    cdef Slice software, instance, capability
    cdef list capabilities = []
    software.size = instance.size = 0
    software.ptr = instance.ptr = NULL
    c.at = <const uint8_t*><const char*>payload
    c.end = c.at + len(payload)
    while c.at < c.end:
        _tag(&c, &number, &kind)
        if number == 1:
            _number32(&c, kind, &version)
        elif number == 2:
            _text(&c, kind, &software)
        elif number == 3:
            _bytes(&c, kind, &instance)
        elif number == 4:
            _number64(&c, kind, &generation)
        elif number == 5:
            _number32(&c, kind, &initial_window)
        elif number == 6:
            _number32(&c, kind, &max_frame_size)
        elif number == 7:
            _number32(&c, kind, &max_streams)
        elif number == 8:
            _text(&c, kind, &capability)
            if len(capabilities) >= MAX_CAPABILITIES:
                _malformed(f"more than {MAX_CAPABILITIES} capabilities")
            capabilities.append(bytes_of(capability).decode())
        else:
            _skip(&c, kind)
    return _messages.Hello(
        version=version, software=bytes_of(software).decode() if software.size else "",
        instance=bytes_of(instance) if instance.size else b"", generation=generation,
        initial_window=initial_window, max_frame_size=max_frame_size, max_streams=max_streams,
        capabilities=tuple(capabilities),
    )


# --- protobuf: writing -------------------------------------------------------------------------------------------

cdef inline Py_ssize_t _bytes_size(Slice s) noexcept:
    """Size of a member of bytes with a number below 16; nothing when it is empty."""
    return member_size(s.size) if s.size else 0


cdef inline char* _put_bytes(char* at, int number, Slice s) noexcept:
    return put_member(at, number, s) if s.size else at


cdef inline char* _put_number(char* at, int number, uint64_t value) noexcept:
    if value:
        at[0] = <char>(number << 3 | VARINT)
        at = put_varint(at + 1, value)
    return at


cdef Py_ssize_t _fields_room(const Field* fields, Py_ssize_t count) noexcept:
    cdef Py_ssize_t i, total = 0
    for i in range(count):
        total += fields[i].name.size + fields[i].value.size + 34    # three tags and lengths of up to ten bytes
    return total


cdef char* _put_fields(char* at, int number, const Field* fields, Py_ssize_t count) noexcept:
    cdef Py_ssize_t i
    for i in range(count):
        at[0] = <char>(number << 3 | BYTES)
        at = put_varint(at + 1, _bytes_size(fields[i].name) + _bytes_size(fields[i].value))
        at = _put_bytes(at, 1, fields[i].name)
        at = _put_bytes(at, 2, fields[i].value)
    return at


cdef enum:
    MEMBER_ROOM = 11        # tag and varint of a number or of a length


cdef int encode_request(Buffer out, const RequestHead* head) except -1:
    """Appends a REQUEST's payload."""
    cdef char* at = reserve(
        out, head.method.size + head.target.size + head.authority.size + head.scheme.size + head.peer.size
        + head.upgrade.size + head.client_id.size + head.prefix.size + 14 * MEMBER_ROOM
        + _fields_room(head.fields, head.field_count))
    at = _put_bytes(at, 1, head.method)
    at = _put_bytes(at, 2, head.target)
    at = _put_bytes(at, 3, head.authority)
    at = _put_bytes(at, 4, head.scheme)
    at = _put_number(at, 5, head.http_minor)
    at = _put_fields(at, 6, head.fields, head.field_count)
    at = _put_number(at, 7, head.body)
    at = _put_number(at, 8, head.length)
    at = _put_number(at, 9, head.time_budget_ms)
    at = _put_bytes(at, 10, head.peer)
    at = _put_bytes(at, 11, head.upgrade)
    at = _put_bytes(at, 12, head.client_id)
    at = _put_bytes(at, 13, head.prefix)
    at = _put_number(at, 14, head.http_major if head.http_major != 1 else 0)
    out.size = at - out.data
    return 0


cdef int encode_response(Buffer out, const ResponseHead* head) except -1:
    """Appends a RESPONSE's payload."""
    cdef char* at = reserve(
        out, head.reason.size + head.upgrade.size + 6 * MEMBER_ROOM + _fields_room(head.fields, head.field_count))
    at = _put_number(at, 1, head.status)
    at = _put_bytes(at, 2, head.reason)
    at = _put_fields(at, 3, head.fields, head.field_count)
    at = _put_number(at, 4, head.body)
    at = _put_number(at, 5, head.length)
    at = _put_bytes(at, 6, head.upgrade)
    out.size = at - out.data
    return 0


cdef int encode_trailers(Buffer out, const Trailers* trailers) except -1:
    cdef char* at = reserve(out, _fields_room(trailers.fields, trailers.field_count))
    at = _put_fields(at, 1, trailers.fields, trailers.field_count)
    out.size = at - out.data
    return 0


cdef int encode_reset(Buffer out, uint32_t code, Slice message) except -1:
    cdef char* at = reserve(out, 2 * MEMBER_ROOM + message.size)
    at = _put_number(at, 1, code)
    at = _put_bytes(at, 2, message)
    out.size = at - out.data
    return 0


cdef int encode_goaway(Buffer out, const GoAway* goaway) except -1:
    cdef char* at = reserve(out, 4 * MEMBER_ROOM + goaway.message.size)
    at = _put_number(at, 1, goaway.last_stream)
    at = _put_number(at, 2, goaway.code)
    at = _put_bytes(at, 3, goaway.message)
    at = _put_number(at, 4, goaway.retry_after_ms)
    out.size = at - out.data
    return 0


cdef int encode_notify(Buffer out, Slice content_type, Slice data) except -1:
    cdef char* at = reserve(out, 2 * MEMBER_ROOM + content_type.size + data.size)
    at = _put_bytes(at, 1, content_type)
    at = _put_bytes(at, 2, data)
    out.size = at - out.data
    return 0


cpdef bytes encode_hello(object hello):
    """The payload of a HELLO frame for a `Hello`."""
    cdef Buffer out = Buffer()
    cdef bytes software = hello.software.encode()
    cdef bytes instance = hello.instance
    cdef list capabilities = [text.encode() for text in hello.capabilities]
    cdef bytes name
    cdef char* at = reserve(out, (8 + len(capabilities)) * MEMBER_ROOM + len(software) + len(instance)
                            + len("".join(hello.capabilities).encode()))
    at = _put_number(at, 1, hello.version)
    at = _put_bytes(at, 2, slice_of(software))
    at = _put_bytes(at, 3, slice_of(instance))
    at = _put_number(at, 4, hello.generation)
    at = _put_number(at, 5, hello.initial_window)
    at = _put_number(at, 6, hello.max_frame_size)
    at = _put_number(at, 7, hello.max_streams)
    for name in capabilities:
        at[0] = <char>(8 << 3 | BYTES)
        at = put_varint(at + 1, len(name))
        memcpy(at, <const char*>name, len(name))
        at += len(name)
    return out.data[:at - out.data]
