from libc.stdint cimport int64_t, uint32_t

from backstream._buffer cimport Buffer
from backstream._codec cimport BodyKind, RequestHead, ResponseHead
from backstream._http._message cimport Limits, ResponseReader
from backstream._http._writer cimport SocketWriter
from backstream._loop cimport LoopMember
from backstream._service cimport Service
from backstream._stream cimport Stream, StreamHandler


cdef class UpstreamService(Service):
    """A local HTTP server and the pool of connections to it."""
    cdef:
        # identity
        readonly object target          # config.Upstream
        object tls                      # ssl.SSLContext where the target speaks TLS
        bytes host                      # for requests that bring no authority
        # configuration, in seconds and bytes
        double connect_timeout
        double idle_timeout
        double request_timeout
        double pool_idle_timeout
        Limits limits
        Py_ssize_t max_connections
        bint time_left_header
        # state
        dict idle                       # connections as keys, the one used last at the end
        dict waiting                    # as keys: requests for which there is no connection yet, in order
        readonly Py_ssize_t connections
        set all_connections
        set tasks                       # that connect
        object asyncio_loop
        bint stopping

    cdef int assign(self, UpstreamRequest request, bint fresh) except -1
    cdef int give_back(self, UpstreamConnection connection) except -1
    cdef int gone(self, UpstreamConnection connection) except -1
    cdef int _give_up(self, UpstreamConnection connection) except -1
    cdef int _uncount(self, UpstreamConnection connection) except -1
    cdef int leave_pool(self, UpstreamConnection connection) except -1
    cdef int _serve_waiting(self) except -1


cdef class UpstreamRequest(StreamHandler):
    """One request on its way to the upstream."""
    cdef:
        UpstreamService service
        Stream stream
        UpstreamConnection connection
        Buffer head                     # the request's head as HTTP/1.1
        BodyKind body
        bint is_head
        bint is_idempotent
        bytes upgrade                   # the protocol that the client offers to switch to, or None
        bint request_ended
        bint body_begun                 # bytes of the body came
        bint retried
        bint over
        int interim_count               # of the upstream's interim heads
        double head_timeout             # seconds from the request's end to the response's head, 0 for no limit
        double head_due                 # when that has passed, 0 while the request goes on
        Buffer early                    # body bytes that came before there was a connection, or before the upgrade
        bytes early_trailers

    cdef int connected(self, UpstreamConnection connection) except -1
    cdef int failed(self, uint32_t code, str message) except -1
    cdef int wait_for_head(self) except -1
    cdef dict log_fields(self)
    cdef int _write_body(self, const char* data, Py_ssize_t size) except -1
    cdef int _write_end(self) except -1


cdef class _ProtocolBase(LoopMember):
    pass


cdef class UpstreamConnection(_ProtocolBase):
    cdef:
        UpstreamService service
        object transport
        SocketWriter writer
        ResponseReader reader
        UpstreamRequest request
        bint reused                     # it has served a request before
        bint answered                   # bytes of the answer to the current request came
        bint spoilt                     # bytes came behind what was read last
        Py_ssize_t offered              # bytes that the next read takes at most
        bint filled                     # the last read took that many: there may be more
        bint raw                        # upgraded
        bint counted                    # it takes up a place of the pool's
        bint reading
        bint closed
        bint unwritable                 # the upstream's side is gone, what it sent before may still be read
        bint half_closing               # the client's direction of an upgraded stream has ended
        bint upstream_ended             # the upstream's has
        double active_at

    cdef bint may_carry(self, UpstreamRequest request) except -1
    cdef bint _is_quiet(self) except -1
    cdef int begin(self, UpstreamRequest request) except -1
    cdef int input(self, char* data, Py_ssize_t size) except -1
    cdef bint can_send_at_once(self, Py_ssize_t size) noexcept
    cdef int send_body(self, const char* data, Py_ssize_t size, bint chunked) except -1
    cdef int _sent(self, int64_t taken) except -1
    cdef int set_deadline(self) except -1
    cdef int _response_head(self) except -1
    cdef int _response_end(self) except -1
    cdef int _switch(self, ResponseHead* head) except -1
    cdef int _raw_half_ended(self) except -1
    cdef int _finish_raw(self) except -1
    cdef int _update_reading(self) except -1
    cdef int _broken(self, uint32_t code, str message) except -1
    cdef int _half_close_when_sent(self) except -1
    cdef int close(self) except -1
