from libc.stdint cimport int64_t, uint64_t

from backstream._buffer cimport Buffer
from backstream._http._front_end cimport FrontEnd
from backstream._http._writer cimport SocketWriter
from backstream._slice cimport Slice


cdef class _ProtocolBase(FrontEnd):
    pass


cdef class ServerConnection(_ProtocolBase):
    """A client's socket."""
    cdef:
        # identity
        object transport
        SocketWriter writer
        # state of the connection
        Buffer preface                  # of a PROXY header that has not come whole; None: none is awaited
        bint reading
        bint lingering                  # reads on and drops, so that the last answer is not lost to a reset
        bint skipping                   # reads the rest of a body that was answered early, and drops it
        bint half_closing               # the agent's direction of an upgraded stream has ended
        int64_t linger_bytes
        Py_ssize_t unsent               # what the transport held when its deadline passed last
        # state of the request
        bint head_timed                 # the time-out of the head being read runs
        double paused_at
        tuple handshake                 # the fields of an agent's handshake whose turn has not come, or None
        Buffer held                     # bytes behind the request that is being served

    cdef int input(self, char* data, Py_ssize_t size) except -1
    cdef int _parse(self, char* data, Py_ssize_t size) except -1
    cdef int _proxy_header(self, char** data, Py_ssize_t* size) except -1
    cdef int _sent(self, int64_t taken) except -1
    cdef int _response_done(self) except -1
    cdef int _next_request(self) except -1
    cdef bint _is_little_left(self) noexcept
    cdef int _begin_head(self) except -1
    cdef int _await_request(self, double seconds) except -1
    cdef int _update_reading(self) except -1
    cdef int _refuse_handshake(self, object error) except -1
    cdef int _close_when_sent(self) except -1
    cdef int _break_off(self) except -1
    cdef int _raw_ended(self) except -1
    cdef int _write_status(self, int status, Slice reason) except -1
    cdef int _write_length(self, uint64_t length) except -1
    cdef int _write_request_id(self) except -1
    cdef int _abort(self) except -1
