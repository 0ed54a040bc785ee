"""What all connections of one listener share: its settings as C values, who may connect, and which are open.

An open connection counts, and so does one in its TLS handshake, which costs more.
"""

import asyncio
import logging

from backstream._agents cimport AgentTable
from backstream._http._clients cimport ClientTable
from backstream._http._forwarding cimport Forwarding
from backstream._http._routing cimport Router
from backstream._http._trust cimport Networks
from backstream._tls cimport TlsTransport


logger = logging.getLogger("backstream.proxy")


cdef class ServerContext:

    def __init__(self, AgentTable table, ClientTable clients, settings, *, serves_clients, serves_agents, on_agent,
                 access_log, protocol, tls=None):
        self.table = table
        self.clients = clients
        self.settings = settings
        self.serves_clients = serves_clients
        self.serves_agents = serves_agents
        self.request_timeout = settings.request_timeout
        self.max_request_timeout = settings.max_request_timeout
        self.idle_timeout = settings.idle_timeout
        self.max_connections = settings.max_connections
        self.agent_wait = settings.agent_wait
        self.max_retries = settings.max_retries
        self.header_timeout = settings.header_timeout
        self.keepalive_timeout = settings.keepalive_timeout
        self.drain_idle_timeout = settings.drain_idle_timeout
        self.limits.head = settings.max_head_size
        self.limits.target = settings.max_target_size
        self.limits.fields = settings.max_fields
        self.limits.trailers = settings.max_trailers_size
        self.limits.extensions = settings.max_extensions_size
        self.max_body = settings.max_body_size
        self.min_head_rate = settings.min_head_rate
        self.min_body_rate = settings.min_body_rate
        self.agent_path = settings.agent_path.encode()
        self.trace = settings.trace
        self.id_optional = settings.client_id_optional
        routed = settings.route_host or settings.route_path or settings.default_id is not None
        self.router = Router(settings) if routed else None
        self.forwarding = Forwarding(settings)
        self.proxy_protocol = Networks(settings.proxy_protocol) if settings.proxy_protocol else None
        self.upgrades = {name.lower().encode(): name.encode() for name in settings.upgrade}
        self.on_agent = on_agent
        self.access_log = access_log
        self.protocol = protocol
        self.tls = tls
        self.connections = set()
        self._handshakes = set()
        self._shaking = {}
        self._noted = set()
        self._emptied = asyncio.Event()

    def connection(self):
        """A protocol for one accepted socket."""
        cdef TlsTransport transport
        if self.tls is None:
            return self.protocol(self)
        if self._full():
            # There is no telling it so before a handshake, which costs more than the connection.
            return _Refusal()
        transport = TlsTransport(self.tls, self._secured, self._handshake_over, self.header_timeout, None, self._admit)
        self._handshakes.add(transport)
        return transport

    def _admit(self, TlsTransport transport, address):
        """Counts a connection for its client's address while its handshake lasts; false where that has all it may."""
        if not isinstance(address, tuple):
            return True
        host = address[0].partition("%")[0]
        if self.forwarding.trusted is not None and host in self.forwarding.trusted:
            return True
        client = self.clients.enter(address[0])
        if client is not None:
            self._shaking[transport] = client
        return client is not None

    def _secured(self):
        return self.protocol(self)

    def _handshake_over(self, TlsTransport transport, error):
        self._handshakes.discard(transport)
        client = self._shaking.pop(transport, None)
        if client is not None:
            self.clients.leave(client)      # an open connection is counted by itself
        if error is not None:
            kind = getattr(error, "reason", None) or type(error).__name__
            self.note_handshake(kind, transport.get_extra_info("peername"), error)
            self._note_emptied()

    def note_handshake(self, str kind, peer, why):
        """Logs a TLS handshake that failed; of each kind the first, since whoever scans ports brings them about."""
        if kind not in self._noted:
            self._noted.add(kind)
            logger.debug("a TLS handshake with %s failed: %s (the next ones of this kind are not logged)", peer, why)

    cdef bint _full(self) noexcept:
        return len(self.connections) + len(self._handshakes) >= self.max_connections

    @property
    def connection_count(self) -> int:
        """Connections that are open, those in a TLS handshake among them."""
        return len(self.connections) + len(self._handshakes)

    def drain(self):
        """Closes idle connections, and the others after the answer that they wait for."""
        self.draining = True
        for connection in list(self.connections):
            connection.drain()

    cdef int forget(self, connection) except -1:
        self.connections.discard(connection)
        return self._note_emptied()

    cdef int _note_emptied(self) except -1:
        if not self.connections and not self._handshakes:
            self._emptied.set()
        return 0

    async def wait_empty(self):
        """Waits until no connection is open."""
        while self.connections or self._handshakes:
            self._emptied.clear()
            await self._emptied.wait()

    def abort(self):
        """Drops every connection."""
        for connection in list(self.connections):
            connection.abort()
        for transport in list(self._handshakes):
            transport.abort()


class _Refusal(asyncio.Protocol):
    """Ends a connection that there is no place for."""

    def connection_made(self, transport):
        transport.abort()
