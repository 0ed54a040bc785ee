from libc.stdint cimport int64_t, uint64_t

from backstream._agents cimport AgentTable
from backstream._buffer cimport Buffer
from backstream._codec cimport RequestHead, Slice
from backstream._exchange cimport Exchange, Responder
from backstream._http._message cimport Limits, RequestReader
from backstream._http._writer cimport SocketWriter


cdef class ServerContext:
    """What all connections of one listener share."""
    cdef:
        object __weakref__
        readonly AgentTable table
        readonly object settings
        bint serves_clients
        readonly bint serves_agents
        # settings as C values, in seconds and bytes
        double request_timeout
        double max_request_timeout
        double idle_timeout
        double header_timeout
        double keepalive_timeout
        Py_ssize_t max_connections
        Limits limits
        bytes agent_path
        Buffer scratch                  # where a request's head is encoded
        # policy
        public object tls               # ssl.SSLContext for new connections, None where TLS is not spoken
        object on_agent                 # called with the connection's Handshake and what it takes to accept it
        object access_log               # called once a request, or None
        # state
        readonly bint draining
        set connections
        set _handshakes                 # TlsTransports in their handshake
        set _noted                      # kinds of failed handshakes that were logged
        object _emptied                 # an asyncio.Event
        readonly long long requests

    cdef int forget(self, ServerConnection connection) except -1
    cdef bint _full(self) noexcept
    cdef int _note_emptied(self) except -1


cdef enum ResponseFraming:
    FRAMED_NONE = 0         # no body
    FRAMED_SIZED = 1
    FRAMED_CHUNKED = 2
    FRAMED_CLOSE = 3        # ends with the connection (HTTP/1.0)
    FRAMED_RAW = 4          # upgraded


cdef class _ProtocolBase(Responder):
    pass


cdef class ServerConnection(_ProtocolBase):
    cdef:
        object __weakref__
        # identity
        ServerContext context
        object transport
        SocketWriter writer
        bytes peer                      # ip:port
        bytes scheme                    # http or https
        readonly object peer_address
        # state of the connection
        bint reading
        bint closing                    # closes once everything is sent
        bint lingering                  # reads on and drops, so that the last answer is not lost to a reset
        bint closed
        bint half_closing               # the agent's direction of an upgraded stream has ended
        int64_t linger_bytes
        Py_ssize_t unsent               # what the transport held when its deadline passed last
        # state of the request
        RequestReader reader
        Exchange exchange
        bint request_open               # its body is still being read
        bint head_timed                 # the time-out of the head being read runs
        bytes target_copy
        Buffer held                     # bytes behind the request that is being served
        # state of the response
        bint keep_alive
        bint is_head
        int minor
        bint head_sent
        ResponseFraming framing
        int status
        # for the access log
        double started_at
        bytes logged_method
        bytes logged_target
        int64_t sent_bytes

    cdef int input(self, char* data, Py_ssize_t size) except -1
    cdef int _parse(self, char* data, Py_ssize_t size) except -1
    cdef bint _request_head(self, char** data, Py_ssize_t* size) except -1
    cdef int _forward(self, RequestHead* head, bytes client_id, double timeout) except -1
    cdef int _request_end(self) except -1
    cdef int _response_done(self) except -1
    cdef int _update_reading(self) except -1
    cdef int _refuse(self, int status, str cause, str detail) except -1
    cdef int _close_when_sent(self) except -1
    cdef int _write_status(self, int status, Slice reason) except -1
    cdef int _write_length(self, uint64_t length) except -1
    cdef bint _is_agent_path(self, Slice target) except -1
    cdef bint _target(self, RequestHead* head) except -1
    cdef int _abort(self) except -1
    cdef int _error(self, int status, str cause, str detail, str leg) except -1
    cdef int _log(self) except -1
