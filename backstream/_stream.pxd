from libc.stdint cimport int64_t, uint8_t, uint32_t

from backstream._buffer cimport Buffer
from backstream._codec cimport RequestHead, ResponseHead, Trailers
from backstream._flow cimport BudgetShare, Pace, ReceiveWindow, WindowBudget


cdef enum StreamState:
    # HTTP/2's (RFC 9113 §5.1), less push. A direction that ended never opens again.
    OPEN = 0
    HALF_CLOSED_LOCAL = 1       # this side has sent its end
    HALF_CLOSED_REMOTE = 2      # the peer has sent its end
    CLOSED = 3


cdef class StreamHandler:
    """What a stream tells the one who uses it; see the class in _stream.pyx for what may be called when."""
    cdef int on_head(self, Stream stream, const ResponseHead* head, bint interim, bint end) except -1
    cdef int on_data(self, Stream stream, const char* data, Py_ssize_t size) except -1
    cdef int on_end(self, Stream stream, const Trailers* trailers) except -1
    cdef int on_reset(self, Stream stream, uint32_t code, str message) except -1
    cdef int on_writable(self, Stream stream) except -1


cdef class SessionOwner:
    """What a session tells the one who carries its bytes and owns its policy."""
    cdef double now(self) noexcept
    cdef int wake(self) except -1
    cdef int flush_early(self) except -1
    cdef StreamHandler accept(self, Stream stream, const RequestHead* head, bint end)
    cdef int on_hello(self, object hello) except -1
    cdef int on_goaway(self, object goaway) except -1
    cdef int on_notify(self, str content_type, bytes data) except -1
    cdef int on_capacity(self) except -1
    cdef int on_close(self, uint32_t code, str message, int close_code) except -1
    cdef int on_handler_error(self, Stream stream, object error) except -1
    cdef bint on_ping_answer(self, const char* payload) except -1
    cdef int on_time(self, double at) except -1


cdef class SessionBase:
    """What a stream has of its session; `Session` derives from it."""
    cdef:
        readonly SessionOwner owner
        readonly bint congested         # the transport is above its high-water mark
        # credit
        int64_t _initial_window
        int64_t _max_window
        int64_t _max_upgraded_window
        WindowBudget budget
        BudgetShare share
        public double round_trip        # seconds
        uint32_t _last_round            # the stream that was the last to consume a whole window
        readonly uint32_t accepted      # the peer's, and those whose work goes on after an abort
        # what it sends
        Buffer _control                 # whole frames that go before data
        list _grants                    # streams with a pending WINDOW
        list _transport_waiters

    cdef int hold_place(self) except -1
    cdef int free_place(self) except -1
    cdef int _put_control(self, uint8_t kind, uint8_t flags, uint32_t stream_id, const char* payload,
                          Py_ssize_t size) except -1
    cdef int _put_reset(self, uint32_t stream_id, uint32_t code, str message) except -1
    cdef int _end_control(self, Py_ssize_t start, uint8_t kind, uint8_t flags, uint32_t stream_id) except -1
    cdef int _enter_ring(self, Stream stream) except -1
    cdef int _local_end(self, Stream stream) except -1
    cdef int _forget(self, Stream stream) except -1


cdef class Stream:
    cdef:
        # identity
        readonly uint32_t id
        readonly SessionBase session
        readonly StreamHandler handler
        readonly bint opened_here
        bint answers_head               # the request's method is HEAD
        bint offers_upgrade
        # state
        StreamState state
        bint head_done                  # the final response's head has passed, in whichever direction
        bint upgraded
        uint8_t interim_count
        # sending
        int64_t send_credit             # bytes
        int64_t send_window             # the largest credit seen: the peer's window as far as it is known here
        int64_t sent_promise            # bytes still owed of a sized body, -1 where nothing was promised
        bytes _chunk                    # the staged bytes: the first chunk from _chunk_at on, then _more
        Py_ssize_t _chunk_at
        object _more                    # a deque
        int64_t staged
        bytes _trailers                 # encoded, behind the staged bytes
        bint _ending                    # the end is behind the staged bytes
        bint _reset_behind              # RESET(NO_ERROR) follows the end
        bint _wants_room
        bint _waits_for_transport
        bint _in_ring
        Stream _ring_next
        Stream _slot_next               # in the session's table
        # receiving
        ReceiveWindow _window
        int64_t _received_promise       # bytes still due of a sized body, -1 where nothing was promised
        uint32_t _pending_grant
        int64_t _budget_bytes
        int64_t _returned_bytes         # of them, those of a halved window whose credit is still out
        readonly bint acknowledged      # a RESPONSE or WINDOW of the peer's came: it holds the request

    cdef int respond(self, const ResponseHead* head, bint end) except -1
    cdef int respond_interim(self, const ResponseHead* head) except -1
    cdef int write(self, bytes data) except -1
    cdef int end(self) except -1
    cdef int end_with_trailers(self, const Trailers* trailers) except -1
    cdef int reset(self, uint32_t code, str message) except -1
    cdef int consume(self, int64_t count) except -1
    cdef int64_t room(self) noexcept
    cdef bint is_closed(self) noexcept
    cdef bint local_ended(self) noexcept
    cdef bint remote_ended(self) noexcept
    cdef int _grow_window(self) except -1
    cdef int _shrink_window(self, Pace pace) except -1
    cdef int _drop_staged(self) except -1
    cdef int _check_room(self) except -1
