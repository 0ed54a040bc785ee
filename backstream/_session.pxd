from libc.stdint cimport int64_t, uint32_t, uint64_t

from backstream._codec cimport FieldArray, Frame, Trailers
from backstream._sending cimport SendingSession
from backstream._stream cimport SessionOwner, Stream, StreamHandler
from backstream._stream_table cimport StreamTable


cdef class FormerOwner(SessionOwner):
    cdef dict fields


cdef class Session(SendingSession):
    cdef:
        # identity
        readonly bint is_proxy
        # configuration
        readonly object local_hello
        readonly object peer_hello      # None until it came
        bint wants_pings                # the peer can't see WebSocket pings
        Py_ssize_t _max_frame_size
        uint32_t _max_streams           # that the peer may open
        int64_t _peer_window
        uint32_t _peer_max_streams
        uint32_t max_opened             # streams of this side, whatever the peer would take
        # state
        StreamTable _streams
        readonly uint32_t opened        # streams of this side that are open
        readonly uint64_t served        # streams that were opened in all
        uint32_t _last_peer_id
        readonly bint draining          # the peer's GOAWAY came: no stream is opened here any more
        readonly bint leaving           # our GOAWAY went: the peer opens none
        double _bucket                  # tokens left for frames that say nothing
        double _bucket_at
        uint32_t _crossing              # frames for closed streams that cost nothing yet
        FieldArray _fields

    cdef bint can_open(self) noexcept
    cdef Stream open(self, const char* payload, Py_ssize_t size, StreamHandler handler, bint end, bint is_head,
                     int64_t length, bint offers_upgrade)
    cdef int receive(self, const char* data, Py_ssize_t size) except -1
    cdef int let_go(self) except -1
    cdef int ping(self, const char* payload) except -1

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
    cdef int _charge(self, double tokens) except -1
