from libc.stdint cimport int64_t, uint8_t

from backstream._buffer cimport Buffer
from backstream._codec cimport BodyKind, FieldArray
from backstream._slice cimport Slice


cdef enum Event:
    NEED_DATA = 0       # all that was given is used up
    HEAD = 1            # the reader's attributes hold the head
    BODY = 2            # `take_body()` gives bytes of it
    END = 3             # the message is complete; trailers are in the reader's attributes

cdef enum ReaderState:
    READ_HEAD = 0
    READ_BODY = 1
    READ_CHUNKS = 2
    READ_TO_CLOSE = 3
    READ_FINISHED = 4   # nothing is read until `next_message()`

cdef enum FieldKind:
    # What goes on to the other side, unless something else is said about it:
    FIELD_OTHER = 0
    FIELD_DATE
    FIELD_TRAILER
    FIELD_EXPECT            # these four for one hop only, where a client's Connection names them
    FIELD_VIA
    FIELD_MAX_FORWARDS
    FIELD_REQUEST_ID
    FIELD_FORWARDED
    FIELD_X_FORWARDED_FOR
    FIELD_X_FORWARDED_PROTO
    FIELD_X_FORWARDED_HOST
    FIELD_X_FORWARDED       # x-forwarded-… beside these, x-real-ip; up to here where a service's does
    # What belongs to this hop:
    FIELD_HOST
    FIELD_CONNECTION
    FIELD_KEEP_ALIVE
    FIELD_PROXY_CONNECTION
    FIELD_TE
    FIELD_TRANSFER_ENCODING
    FIELD_UPGRADE
    FIELD_CONTENT_LENGTH
    FIELD_CLIENT_ID
    FIELD_REQUEST_TIMEOUT
    FIELD_OWN               # x-backstream-… beside these two; with "_" for "-", what some servers take for ours
    FIELD_NOMINATED         # named by Connection: of this hop only


cdef inline bint goes_on(int kind) noexcept:
    """Whether a field of this kind is one of the message, not of the hop (RFC 9110 §7.6.1)."""
    return kind < FIELD_HOST


cdef struct Limits:
    Py_ssize_t head         # bytes
    Py_ssize_t target       # bytes
    Py_ssize_t fields       # number
    Py_ssize_t trailers     # bytes
    Py_ssize_t extensions   # bytes of chunk extensions in one message


cdef class MessageReader:
    cdef:
        Limits limits
        ReaderState state
        object parser
        # of the head
        FieldArray fields           # names in lower case; valid until the next call of `read`
        int minor                   # of HTTP/1.x
        bint keep_alive
        bint upgrade                # Connection: upgrade and an Upgrade field
        Slice upgrade_value
        BodyKind body
        int64_t length              # of a sized body, -1 otherwise
        FieldArray trailer_fields
        bint nominates              # Connection names fields
        int last_nominable          # kind of field that it may name
        frozenset nominated         # which ones, of a chunked message that nominates
        # in progress
        Buffer partial              # of a head that has not come whole; of the trailers
        Buffer head_copy            # keeps a head valid beyond the read buffer
        int64_t body_left
        list body_pieces
        bint message_complete
        bint parser_spent           # llhttp reads nothing more of this message
        bint parser_ends            # it reads this message, and may refuse the next one
        char* fed                   # to the parser at this moment, NULL between
        Py_ssize_t fed_size
        int empty_lines             # before the start line
        # the chunk scanner
        int chunk_state
        int64_t chunk_left
        Py_ssize_t chunk_content        # bytes of the body in what was scanned last
        Py_ssize_t extension_bytes
        Py_ssize_t trailer_bytes

    cdef Event read(self, char** data, Py_ssize_t* size) except *
    cdef bytes take_body(self)
    cdef int next_message(self) except -1
    cdef int at_end_of_file(self) except -1
    cdef int close(self) except -1
    cdef bint between_messages(self) noexcept
    cdef int start_line(self, char* line, Py_ssize_t size) except -1
    cdef int judge(self) except -1
    cdef int new_parser(self) except -1
    cdef int feed(self, char* data, Py_ssize_t size) except -1
    cdef int too_large(self, str what) except -1
    cdef Event _read_head(self, char** data, Py_ssize_t* size) except *
    cdef int _count_empty_line(self) except -1
    cdef int _parse_head(self, char* head, Py_ssize_t size) except -1
    cdef int _split_fields(self, char* at, char* end, FieldArray fields) except -1
    cdef int _connection(self) except -1
    cdef int _nominate(self, Slice name) except -1
    cdef int _count_extension(self) except -1
    cdef Py_ssize_t _scan_chunks(self, char* data, Py_ssize_t size) except -1


cdef class RequestReader(MessageReader):
    cdef:
        Slice method                # empty before the start line
        Slice target
        bytes target_copy           # what a target that had to be written anew lives in
        bytes max_forwards          # likewise

    cdef int read_begun_line(self) noexcept


cdef class ResponseReader(MessageReader):
    cdef:
        int status
        Slice reason
        bint answers_head       # set before the head is read


cdef FieldKind kind_of(Slice lower_name) noexcept
cdef bint is_idempotent(Slice method) noexcept
cdef bint next_token(Slice* rest, Slice* token) noexcept
cdef int64_t content_length(Slice value) except -1
