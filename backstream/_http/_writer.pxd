from libc.stdint cimport int64_t, uint64_t

from backstream._buffer cimport Buffer
from backstream._codec cimport Field
from backstream._send_batch cimport SendBatch
from backstream._tls cimport TlsTransport


cdef class SocketWriter:
    """What one connection has to say, and whose credit it holds."""
    cdef:
        object transport
        TlsTransport tls            # the transport again where it is one of TLS, else None
        int fd                      # of the socket, -1 where there is none
        bint blocked                # the transport holds bytes that the peer does not take
        Buffer out
        int64_t body                # of them, bytes of the current message's body
        int64_t transport_body      # body bytes that the transport holds
        Py_ssize_t chunk_begin      # of the last chunk, in `out`
        Py_ssize_t chunk_size
        Py_ssize_t chunk_end        # 0 when it has left

    cdef int attach(self, object transport) except -1
    cdef int64_t send(self) except -2
    cdef bint join(self, SendBatch batch) noexcept
    cdef int64_t settle(self, Py_ssize_t sent) except -2
    cdef bint sends_at_once(self, Py_ssize_t size) noexcept
    cdef int64_t send_body(self, const char* data, Py_ssize_t size, bint chunked) except -2
    cdef int64_t _sent(self, Py_ssize_t sent) except -2
    cdef int64_t resume(self) noexcept
    cdef int forget_body(self) except -1
    cdef bint empty(self) noexcept
    cdef int64_t untaken(self) except -1
    cdef int half_close(self) except -1
    cdef int text(self, bytes value) except -1
    cdef int number(self, uint64_t value) except -1
    cdef int fields(self, const Field* fields, Py_ssize_t count) except -1
    cdef int data(self, const char* data, Py_ssize_t size) except -1
    cdef int chunk(self, const char* data, Py_ssize_t size) except -1
    cdef int _lengthen_chunk(self, const char* data, Py_ssize_t size) except -1
