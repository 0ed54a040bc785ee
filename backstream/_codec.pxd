from libc.stdint cimport uint8_t, uint32_t, uint64_t

from backstream._buffer cimport Buffer
from backstream._slice cimport Slice


cdef enum:
    FRAME_HEADER_SIZE = 9
    MAX_FIELDS = 4096               # of a head, of trailers
    MAX_CAPABILITIES = 64           # of a HELLO
    MAX_HEAD_SIZE = 131072          # payload of REQUEST, RESPONSE, TRAILERS, and of the session's own frames
    MAX_MESSAGE_SIZE = 262144       # one WebSocket message

cdef enum FrameType:
    FRAME_DATA = 0
    FRAME_REQUEST = 1
    FRAME_RESPONSE = 2
    FRAME_TRAILERS = 3
    FRAME_WINDOW = 4
    FRAME_RESET = 5
    FRAME_HELLO = 6
    FRAME_GOAWAY = 7
    FRAME_NOTIFY = 8
    FRAME_PING = 9

cdef enum FrameFlag:
    FLAG_END_STREAM = 1
    FLAG_ACK = 1
    FLAG_INTERIM = 2

cdef enum BodyKind:
    BODY_NONE = 0
    BODY_SIZED = 1
    BODY_CHUNKED = 2


cdef struct Field:
    Slice name
    Slice value
    int kind        # what HTTP's rules make of it; nothing here looks at it

cdef struct Frame:
    uint32_t stream_id
    uint8_t type
    uint8_t flags
    const char* payload
    Py_ssize_t size

cdef struct RequestHead:
    Slice method
    Slice target
    Slice authority
    Slice scheme
    Slice peer
    Slice upgrade
    Slice client_id
    Slice prefix
    Field* fields
    Py_ssize_t field_count
    uint32_t http_major
    uint32_t http_minor
    uint32_t body
    uint64_t length
    uint64_t time_budget_ms

cdef struct ResponseHead:
    Slice reason
    Slice upgrade
    Field* fields
    Py_ssize_t field_count
    uint32_t status
    uint32_t body
    uint64_t length

cdef struct Trailers:
    Field* fields
    Py_ssize_t field_count

cdef struct Reset:
    Slice message
    uint32_t code

cdef struct GoAway:
    Slice message
    uint32_t last_stream
    uint32_t code
    uint32_t retry_after_ms

cdef struct Notify:
    Slice content_type
    Slice data


cdef class FieldArray:
    """The memory that a decoder's `fields` point into; reused from head to head."""
    cdef:
        Field* items
        Py_ssize_t count
        Py_ssize_t capacity

    cdef int add(self, Field field) except -1


# Frames.
cdef Py_ssize_t read_frame(const char* data, Py_ssize_t size, Frame* frame) except -1
cdef void write_frame_header(char* target, Py_ssize_t length, uint8_t kind, uint8_t flags, uint32_t stream_id) noexcept
cdef uint32_t read_u32(const char* data) noexcept
cdef void write_u32(char* target, uint32_t value) noexcept

# Payloads: decoders raise HeadError; encoders append to the buffer.
cdef int decode_request(const char* data, Py_ssize_t size, RequestHead* head, FieldArray fields) except -1
cdef int decode_response(const char* data, Py_ssize_t size, ResponseHead* head, FieldArray fields) except -1
cdef int decode_trailers(const char* data, Py_ssize_t size, Trailers* trailers, FieldArray fields) except -1
cdef int decode_reset(const char* data, Py_ssize_t size, Reset* reset) except -1
cdef int decode_goaway(const char* data, Py_ssize_t size, GoAway* goaway) except -1
cdef int decode_notify(const char* data, Py_ssize_t size, Notify* notify) except -1
cpdef object decode_hello(bytes payload)

cdef int encode_request(Buffer out, const RequestHead* head) except -1
cdef int encode_response(Buffer out, const ResponseHead* head) except -1
cdef int encode_trailers(Buffer out, const Trailers* trailers) except -1
cdef int encode_reset(Buffer out, uint32_t code, Slice message) except -1
cdef int encode_goaway(Buffer out, const GoAway* goaway) except -1
cdef int encode_notify(Buffer out, Slice content_type, Slice data) except -1
cpdef bytes encode_hello(object hello)
