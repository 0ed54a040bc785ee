from libc.stdint cimport int64_t, uint32_t, uint64_t

from backstream._codec cimport RequestHead
from backstream._seed_reader cimport SeedReader, SeedType
from backstream._session cimport Session
from backstream._slice cimport Slice
from backstream._stream cimport Stream


cdef enum:
    MAX_QUEUED = 1024               # messages that wait for the transport


cdef class SeedStream(Stream):
    """A request and its response, each of which is one message."""
    cdef:
        # identity
        bytes message_id
        bint is_notify                  # nobody waits for the answer
        bint json
        # state
        bint _holds_place               # counts against what the peer may have open
        uint32_t _doom                  # the code that the stream ends with at the turn's end
        str _doom_why
        double expires_at               # seconds, 0 for never
        # sending
        object _start                   # of the event, until its body is whole
        list _body
        int64_t _body_size
        OutMessage _message             # that waits for the transport
        # receiving
        bytes _rest                     # of the body, not handed on yet
        Py_ssize_t _rest_at
        int64_t _unconsumed
        bint _feeds                     # it is in the session's list of those with something to hand on
        # bytes of the budget
        int64_t _booked_in              # for what is received
        int64_t _booked_out             # for what is sent


cdef class OutMessage:
    """A message on its way to the transport."""
    cdef:
        bytes head                      # all that comes before `body`
        list body
        Py_ssize_t left                 # bytes
        Py_ssize_t _part                # of `body`, -1 for the head
        Py_ssize_t _at
        bint json
        bint begun
        SeedStream stream               # None once it has ended, and for events
        int64_t booked


cdef class SeedSession(Session):
    cdef:
        # configuration
        readonly bint json              # what this side writes; the peer's choice is followed
        readonly Py_ssize_t max_message     # bytes
        double request_timeout          # seconds that the peer's requests may take where they don't say, 0 for no limit
        # counts
        readonly uint64_t late          # answers that nobody waited for any more
        readonly uint64_t dropped       # messages that could not be read, or taken
        set _complained
        # state
        double next_expiry              # when a stream may be too old, 0 for none
        uint32_t _last_id
        dict _by_message_id             # -> SeedStream, in place of the base's table
        # buffers
        SeedReader _reader
        object _queue                   # a deque of OutMessage
        list _feeding
        list _doomed
        list _expecting

    cdef int take(self, bint json, const char* data, Py_ssize_t size) except -1
    cdef int miss(self, bint json, const char* data, Py_ssize_t size, str why) except -1
    cdef Py_ssize_t next_piece(self, Py_ssize_t limit, int* opcode, bint* last) except -1
    cdef int pull_piece(self, char* target, Py_ssize_t size) except -1
    cdef int expire(self, double now) except -1
    cdef SeedStream _new_stream(self, bint json)
    cdef int _set_expiry(self, SeedStream stream, RequestHead* head) except -1
    cdef int _response(self, bint json) except -1
    cdef int _request(self, bint json, bint is_notify) except -1
    cdef int _begin_body(self, SeedStream stream, Slice body) except -1
    cdef int _feed(self, SeedStream stream) except -1
    cdef int _complain(self, str kind, str detail) except -1
    cdef bint _book_in(self, SeedStream stream, int64_t size) noexcept
    cdef bint _book_out(self, SeedStream stream, int64_t size) noexcept
    cdef int _take(self, bint json) except -1
    cdef int _gather(self, SeedStream stream, bytes data) except -1
    cdef int _doom_stream(self, SeedStream stream, uint32_t code, str why) except -1
    cdef int _send(self, SeedStream stream, SeedType kind) except -1
    cdef int _answer(self, SeedStream stream, int status, str why) except -1
    cdef int _enqueue(self, OutMessage message) except -1
    cdef int _sent(self, OutMessage message) except -1
    cdef int _release(self, SeedStream stream) except -1
