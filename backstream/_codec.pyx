"""Frames and their payloads, to and from bytes: pure functions without state.

Rules that hold here: nothing is read outside the slice that was handed in; whatever cannot be read, or breaks the
wire's grammar, raises (FrameError ends the session, HeadError the stream); what is written is canonical protobuf
(members in order, defaults left out). Decoded slices point into the input.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.string cimport memchr, memcmp, memcpy, memset

from backstream import _messages
from backstream._buffer cimport Buffer, reserve
from backstream._protobuf cimport (
    BYTES, VARINT, Cursor, member_size, put_member, put_varint, read_bytes, read_tag, read_varint, skip_member,
)
from backstream.errors import FrameError, HeadError


cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char* text, void* address)
    int AF_INET
    int AF_INET6

cdef enum:
    INET6_ADDRSTRLEN = 46


# --- grammar -----------------------------------------------------------------------------------------------------

cdef enum CharClass:
    TOKEN = 1           # RFC 9110 §5.6.2 tchar
    UPPER = 2
    VALUE = 4           # RFC 9110 §5.5: HTAB, SP, VCHAR, obs-text
    TARGET = 8          # visible ASCII but "#"
    REG_NAME = 16       # RFC 3986 §3.2.2 reg-name without "," (which would join two Hosts)
    DIGIT = 32
    HEX = 64
    VISIBLE = 128

cdef uint8_t CLASSES[256]

cdef void _fill_classes() noexcept:
    cdef int c
    memset(CLASSES, 0, sizeof(CLASSES))
    for c in range(256):
        if c == 9 or 0x20 <= c <= 0x7e or c >= 0x80:
            CLASSES[c] |= VALUE
        if 0x21 <= c <= 0x7e:
            CLASSES[c] |= VISIBLE
            if c != c'#':
                CLASSES[c] |= TARGET
        if c'0' <= c <= c'9':
            CLASSES[c] |= TOKEN | DIGIT | HEX | REG_NAME
        if c'a' <= c <= c'z' or c'A' <= c <= c'Z':
            CLASSES[c] |= TOKEN | REG_NAME
        if c'A' <= c <= c'Z':
            CLASSES[c] |= UPPER
        if c'a' <= c <= c'f' or c'A' <= c <= c'F':
            CLASSES[c] |= HEX
    for c in b"!#$%&'*+-.^_`|~":
        CLASSES[c] |= TOKEN
    for c in b"-._~!$&'()*+;=%":
        CLASSES[c] |= REG_NAME

_fill_classes()


cdef inline bint _all(Slice s, uint8_t wanted) noexcept:
    cdef Py_ssize_t i
    for i in range(s.size):
        if not CLASSES[<uint8_t>s.ptr[i]] & wanted:
            return False
    return True


cdef bint is_token(Slice s) noexcept:
    return s.size > 0 and _all(s, TOKEN)


cdef bint is_lower_token(Slice s) noexcept:
    cdef Py_ssize_t i
    cdef uint8_t c
    if s.size == 0:
        return False
    for i in range(s.size):
        c = CLASSES[<uint8_t>s.ptr[i]]
        if not c & TOKEN or c & UPPER:
            return False
    return True


cdef inline bint _may_end_a_value(const char* at) noexcept:
    """Whether any of eight bytes is below 0x20 (a tab among them) or 0x7f."""
    cdef uint64_t word, deletes
    memcpy(&word, at, 8)
    deletes = word ^ 0x7f7f7f7f7f7f7f7fULL
    return ((word - 0x2020202020202020ULL & ~word | deletes - 0x0101010101010101ULL & ~deletes)
            & 0x8080808080808080ULL) != 0


cdef bint is_field_value(Slice s) noexcept:
    # Eight bytes at once, as a value is a head's longest part: 12 instructions where one by one takes 60.
    cdef Py_ssize_t at = 0
    if s.size < 8:
        return _all(s, VALUE)
    while at <= s.size - 8:
        if _may_end_a_value(s.ptr + at):
            return _all(s, VALUE)
        at += 8
    return not _may_end_a_value(s.ptr + s.size - 8) or _all(s, VALUE)


cdef bint is_target(Slice s) noexcept:
    if s.size == 1 and s.ptr[0] == c'*':
        return True
    return s.size > 0 and s.ptr[0] == c'/' and _all(s, TARGET)


cdef bint is_client_id(Slice s) noexcept:
    return 0 < s.size <= 128 and _all(s, VISIBLE)


cdef bint is_authority(Slice s) noexcept:
    """host[:port]; the host a registered name, an IPv4 address or an IPv6 address in brackets."""
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t host
    if s.size == 0:
        return False
    if s.ptr[0] == c'[':
        i = 1
        while i < s.size and (CLASSES[<uint8_t>s.ptr[i]] & HEX or s.ptr[i] == c':' or s.ptr[i] == c'.'):
            i += 1
        if i < 3 or i == s.size or s.ptr[i] != c']':
            return False
        i += 1
    else:
        while i < s.size and CLASSES[<uint8_t>s.ptr[i]] & REG_NAME:
            if s.ptr[i] == c'%':
                if (i + 2 >= s.size or not CLASSES[<uint8_t>s.ptr[i + 1]] & HEX
                        or not CLASSES[<uint8_t>s.ptr[i + 2]] & HEX):
                    return False
                i += 2
            i += 1
        if i == 0:
            return False
    if i == s.size:
        return True
    if s.ptr[i] != c':':
        return False
    host = i
    i += 1
    while i < s.size:
        if not CLASSES[<uint8_t>s.ptr[i]] & DIGIT:
            return False
        i += 1
    return i - host <= 6


cdef bint _is_peer(Slice s) noexcept:
    """ip:port, or nothing where the client has no such address (a Unix socket)."""
    cdef char ip[INET6_ADDRSTRLEN]
    cdef char address[16]
    cdef Py_ssize_t end = s.size, skip = 0
    cdef int port = 0, scale = 1
    if s.size == 0:
        return True
    while end and CLASSES[<uint8_t>s.ptr[end - 1]] & DIGIT and s.size - end < 5:
        end -= 1
        port += (s.ptr[end] - c'0') * scale
        scale *= 10
    if end == s.size or port > 65535 or end == 0 or s.ptr[end - 1] != c':':
        return False
    end -= 1
    if end > 1 and s.ptr[0] == c'[' and s.ptr[end - 1] == c']':
        skip = 1
        end -= 1
    if end - skip >= INET6_ADDRSTRLEN or memchr(s.ptr, 0, s.size) != NULL:
        return False
    memcpy(ip, s.ptr + skip, end - skip)
    ip[end - skip] = 0
    return inet_pton(AF_INET6 if skip else AF_INET, ip, address) == 1


cdef bint equals(Slice s, const char* text, Py_ssize_t size) noexcept:
    return s.size == size and memcmp(s.ptr, text, size) == 0


cdef bint equals_lower(Slice s, const char* text, Py_ssize_t size) noexcept:
    """Whether `s` is `text` (in lower case) without regard to the case of its letters."""
    cdef Py_ssize_t i
    cdef uint8_t c
    if s.size != size:
        return False
    for i in range(size):
        c = <uint8_t>s.ptr[i]
        if CLASSES[c] & UPPER:
            c |= 0x20
        if c != <uint8_t>text[i]:
            return False
    return True


cdef bint is_connection_field(Slice name) noexcept:
    """Fields that belong to one connection or to its framing (RFC 9110 §7.6.1, RFC 9112 §6): never on the wire."""
    if name.size == 4:
        return memcmp(name.ptr, b"host", 4) == 0
    if name.size == 7:
        return memcmp(name.ptr, b"upgrade", 7) == 0
    if name.size == 10:
        return memcmp(name.ptr, b"connection", 10) == 0 or memcmp(name.ptr, b"keep-alive", 10) == 0
    if name.size == 14:
        return memcmp(name.ptr, b"content-length", 14) == 0
    if name.size == 16:
        return memcmp(name.ptr, b"proxy-connection", 16) == 0
    if name.size == 17:
        return memcmp(name.ptr, b"transfer-encoding", 17) == 0
    return False


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
    if not _is_peer(head.peer):
        _malformed("the peer is no ip:port")
    if head.upgrade.size and not is_token(head.upgrade):
        _malformed("the upgrade is no token")
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
    if head.upgrade.size and not is_token(head.upgrade):
        _malformed("the upgrade is no token")
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


# --- for Python callers ------------------------------------------------------------------------------------------

cdef tuple _fields_of(const Field* fields, Py_ssize_t count):
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
        fields=_fields_of(head.fields, head.field_count), body=_messages.Body(head.body), length=head.length,
        time_budget_ms=head.time_budget_ms, peer=bytes_of(head.peer), upgrade=bytes_of(head.upgrade),
        client_id=bytes_of(head.client_id), prefix=bytes_of(head.prefix))


cdef object response_object(const ResponseHead* head):
    return _messages.ResponseHead(
        status=head.status, reason=bytes_of(head.reason), fields=_fields_of(head.fields, head.field_count),
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
    return _fields_of(raw.fields, raw.field_count)


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
