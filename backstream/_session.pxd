from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from backstream._buffer cimport Buffer
from backstream._codec cimport FieldArray, Frame, GoAway, RequestHead, Reset, ResponseHead, Trailers
from backstream._flow cimport BudgetShare, Pace, ReceiveWindow, WindowBudget
from backstream._slice cimport Slice


cdef enum StreamState:
    # HTTP/2's (RFC 9113 §5.1), less push. A direction that ended never opens again.
    OPEN = 0
    HALF_CLOSED_LOCAL = 1       # this side has sent its end
    HALF_CLOSED_REMOTE = 2      # the peer has sent its end
    CLOSED = 3


cdef class StreamHandler:
    """What a stream tells the one who uses it; see the class in _session.pyx for what may be called when."""
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
    cdef int on_time(self, double at) except -1


cdef class Stream:
    cdef:
        # identity
        readonly uint32_t id
        readonly Session session
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
    cdef bint _grow_window(self) except -1
    cdef bint _shrink_window(self, Pace pace) except -1
    cdef int _drop_staged(self) except -1
    cdef int _check_room(self) except -1


cdef class StreamTable:
    cdef:
        Py_ssize_t count
        list _slots                     # each the first of a chain of streams, or None

    cdef Stream get(self, uint32_t stream_id)
    cdef int add(self, Stream stream) except -1
    cdef int discard(self, Stream stream) except -1
    cdef list in_order(self)
    cdef list _all(self)
    cdef int _resize(self, Py_ssize_t size) except -1


cdef class Session:
    cdef:
        # identity
        readonly bint is_proxy
        readonly SessionOwner owner
        # configuration
        readonly object local_hello
        readonly object peer_hello      # None until it came
        int64_t _initial_window
        int64_t _max_window
        int64_t _max_upgraded_window
        Py_ssize_t _max_frame_size
        uint32_t _max_streams           # that the peer may open
        int64_t _peer_window
        Py_ssize_t _peer_frame_size
        uint32_t _peer_max_streams
        uint32_t max_opened             # streams of this side, whatever the peer would take
        WindowBudget budget
        BudgetShare share
        # state
        StreamTable _streams
        readonly uint32_t opened        # streams of this side that are open
        readonly uint32_t accepted      # the peer's, and those whose work goes on after an abort
        readonly uint64_t served        # streams that were opened in all
        uint32_t _next_id
        uint32_t _last_peer_id
        uint32_t _unsent_id             # REQUESTs from this id on have not been pulled
        readonly bint draining          # the peer's GOAWAY came: no stream is opened here any more
        readonly bint leaving           # our GOAWAY went: the peer opens none
        readonly bint closed
        readonly bint congested         # the transport is above its high-water mark
        public double round_trip        # seconds
        uint32_t _last_round            # the stream that was the last to consume a whole window
        double _bucket                  # tokens left for frames that say nothing
        double _bucket_at
        uint32_t _crossing              # frames for closed streams that cost nothing yet
        # buffers
        Buffer _control                 # whole frames that go before data
        uint32_t _control_frames        # of them, counted while congested
        int64_t _max_waiting_frames     # of them, while congested
        int64_t _max_waiting_bytes
        list _grants                    # streams with a pending WINDOW
        Stream _ring_head               # streams with something to send, in turn
        Stream _ring_tail
        list _transport_waiters
        list _roomy                     # streams to tell of room after a pull
        FieldArray _fields

    cdef bint can_open(self) noexcept
    cdef Stream open(self, const char* payload, Py_ssize_t size, StreamHandler handler, bint end, bint is_head,
                     int64_t length, bint offers_upgrade)
    cdef int receive(self, const char* data, Py_ssize_t size) except -1
    cdef bint has_output(self) noexcept
    cdef Py_ssize_t pull(self, char* target, Py_ssize_t limit) except -1
    cdef Py_ssize_t _pull_control(self, char* target) except -1
    cdef int after_pull(self) except -1
    cdef int set_congested(self, bint congested) except -1
    cdef int hold_place(self) except -1
    cdef int free_place(self) except -1
    cdef int let_go(self) except -1

    cdef int _frame(self, Frame* frame) except -1
    cdef int _session_frame(self, Frame* frame) except -1
    cdef int _request_frame(self, Frame* frame) except -1
    cdef int _response_frame(self, Stream stream, Frame* frame) except -1
    cdef int _data_frame(self, Stream stream, Frame* frame) except -1
    cdef int _trailers_frame(self, Stream stream, Frame* frame) except -1
    cdef int _window_frame(self, Stream stream, Frame* frame) except -1
    cdef int _reset_frame(self, Stream stream, Frame* frame) except -1
    cdef int _hello(self, Frame* frame) except -1
    cdef int _goaway(self, Frame* frame) except -1
    cdef int _remote_end(self, Stream stream, const Trailers* trailers) except -1
    cdef int _local_end(self, Stream stream) except -1
    cdef int _forget(self, Stream stream) except -1
    cdef int _charge(self, double tokens) except -1
    cdef int _put_control(self, uint8_t kind, uint8_t flags, uint32_t stream_id, const char* payload,
                          Py_ssize_t size) except -1
    cdef int _put_reset(self, uint32_t stream_id, uint32_t code, str message) except -1
    cdef int _end_control(self, Py_ssize_t start, uint8_t kind, uint8_t flags, uint32_t stream_id) except -1
    cdef int _enter_ring(self, Stream stream) except -1
    cdef Stream _leave_ring(self)
    cdef Py_ssize_t _pull_data(self, Stream stream, char* target, Py_ssize_t room) except -1
