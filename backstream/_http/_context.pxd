from libc.stdint cimport int64_t

from backstream._agents cimport AgentTable
from backstream._http._clients cimport ClientTable
from backstream._http._forwarding cimport Forwarding
from backstream._http._message cimport Limits
from backstream._http._routing cimport Router
from backstream._http._trust cimport Networks


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
        # policy
        object protocol                 # called with this, makes the protocol of one connection
        public object tls               # ssl.SSLContext for new connections, None where TLS is not spoken
        # Called with (connection, client id, fields): (status, reason), or a function that takes the connection over.
        object on_agent
        object access_log               # called once a request, or None
        # state
        readonly bint draining
        set connections                 # of FrontEnd
        set _handshakes                 # TlsTransports in their handshake
        dict _shaking                   # those that are counted for an address: TlsTransport -> Client
        set _noted                      # kinds of failed handshakes that were logged
        object _emptied                 # an asyncio.Event

    cdef int forget(self, connection) except -1
    cdef bint _full(self) noexcept
    cdef int _note_emptied(self) except -1
