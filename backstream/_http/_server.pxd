from libc.stdint cimport int64_t, uint64_t

from backstream._agents cimport AgentTable
from backstream._buffer cimport Buffer
from backstream._codec cimport RequestHead
from backstream._exchange cimport Exchange, Responder
from backstream._http._clients cimport Client, ClientTable
from backstream._http._forwarding cimport Forwarding, Peer, RequestId
from backstream._http._message cimport Limits, RequestReader
from backstream._http._routing cimport Router
from backstream._http._trust cimport Networks
from backstream._http._writer cimport SocketWriter
from backstream._slice cimport Slice


cdef class ServerContext:
    """What all connections of one listener share."""
    cdef:
        object __weakref__
        readonly AgentTable table
        ClientTable clients
        readonly object settings
        bint serves_clients
        readonly bint serves_agents
        # settings as C values, in seconds and bytes
        double request_timeout
        double max_request_timeout
        double idle_timeout
        double agent_wait
        int max_retries
        double header_timeout
        double keepalive_timeout
        Py_ssize_t max_connections
        double drain_idle_timeout
        Limits limits
        int64_t max_body                # 0 for no limit
        double min_head_rate            # bytes per second, 0 for no minimum
        double min_body_rate
        bytes agent_path
        bint trace
        bint id_optional                # requests without an id go to agents without one
        Router router                   # None: only the field names an id
        Forwarding forwarding
        Networks proxy_protocol         # whose connections begin with a PROXY header; None: nobody's
        dict upgrades                   # protocols that may be switched to: name in lower case -> name
        Buffer scratch                  # where a request's head is encoded
        # policy
        public object tls               # ssl.SSLContext for new connections, None where TLS is not spoken
        object on_agent                 # called with the connection's Handshake and what it takes to accept it
        object access_log               # called once a request, or None
        # state
        readonly bint draining
        set connections
        set _handshakes                 # TlsTransports in their handshake
        dict _shaking                   # those that are counted for an address: TlsTransport -> Client
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
        Client client                   # None on a Unix socket
        Peer peer
        # state of the connection
        Buffer preface                  # of a PROXY header that has not come whole; None: none is awaited
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
        double read_since               # seconds: when the head, or the body, that is being read began
        double unread_seconds           # of them, those in which this side did not read
        double paused_at
        int64_t read_bytes              # of the body
        bint in_head                    # its head is being judged: the reader's fields are valid
        list handshake                  # the fields of an agent's handshake whose turn has not come, or None
        bint awaits_continue            # the client sends its body when it is told to, and was not yet
        bytes last_id                   # of the request before: the next one's, as a rule
        readonly object client_address  # (host, port) of who asked, as far as that can be told
        RequestId request_id
        Buffer held                     # bytes behind the request that is being served
        # state of the response
        bint keep_alive
        bint is_head
        bint takes_trailers             # the client said TE: trailers
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
    cdef int _proxy_header(self, char** data, Py_ssize_t* size) except -1
    cdef bint _request_head(self, char** data, Py_ssize_t* size) except -1
    cdef int _serve(self) except -1
    cdef int _forward(self, RequestHead* head, bytes client_id, double timeout, bytes upgrade) except -1
    cdef bytes _offered(self, dict protocols)
    cdef int _request_end(self) except -1
    cdef int _response_done(self) except -1
    cdef int _leave_client(self) except -1
    cdef int _begin_head(self) except -1
    cdef bint _too_slow(self, int64_t count, double rate) except -1
    cdef int _await_request(self, double seconds) except -1
    cdef int _update_reading(self) except -1
    cdef int _refuse(self, object error) except -1
    cdef int _queue_handshake(self) except -1
    cdef int _refuse_handshake(self, object error) except -1
    cdef int _close_when_sent(self) except -1
    cdef int _raw_ended(self) except -1
    cdef int _write_status(self, int status, Slice reason) except -1
    cdef int _write_length(self, uint64_t length) except -1
    cdef int _write_request_id(self) except -1
    cdef bint _is_agent_path(self, Slice target) except -1
    cdef int _abort(self) except -1
    cdef int _drop(self, bint reset) except -1
    cdef int _answer(self, int status, list lines, bytes body) except -1
    cdef int _log(self, str cut=*) except -1
