"""HTTP/1.1 towards clients (RFC 9110, RFC 9112): reads requests, writes responses, hands over agents' WebSockets.

Rules that hold here:
- One request at a time: what a client sends ahead of its answer is held (bounded) and parsed when its turn comes.
- A body's bytes are read only as far as the stream takes them, into the loop's shared buffer.
- All that a turn of the loop brings for the client leaves in one write; what the socket does not take stays with the
  transport, and its credit with the stream.
- Framing is made anew in both directions. A response that breaks off never looks whole.
"""

import asyncio
import logging
import socket
from http import HTTPStatus

from libc.stdint cimport int64_t, uint64_t

from backstream._agents cimport AgentTable
from backstream._buffer cimport Buffer, append
from backstream._codec cimport (
    BODY_NONE, BODY_SIZED, Field, FieldArray, RequestHead, ResponseHead, Trailers, decode_request, encode_request,
)
from backstream._exchange cimport Exchange, Responder
from backstream._grammar cimport is_client_id
from backstream._http._clients cimport ClientTable
from backstream._http._final_recipient cimport own_answer
from backstream._http._forwarding cimport Forwarding
from backstream._http._message cimport (
    BODY, END, FIELD_OTHER, FIELD_UPGRADE, HEAD, NEED_DATA, READ_FINISHED, READ_HEAD, Event, RequestReader,
    is_idempotent, next_token,
)
from backstream._http._request cimport Asked, take_fields, timeout_of
from backstream._http._routing cimport Router, read_target
from backstream._http._trailers cimport keep_trailers
from backstream._http._trust cimport Networks
from backstream._http._writer cimport SocketWriter
from backstream._loop cimport READ_SIZE, loop_state, monotonic
from backstream._slice cimport Slice, bytes_of, equals, slice_of
from backstream._tls cimport TlsTransport

from backstream._http._error_pages import error_page
from backstream._http._final_recipient import options_answer
from backstream._http._handshake import judge_handshake
from backstream._http._proxy_protocol import read_proxy_header
from backstream._http.errors import MessageError
from backstream.errors import StreamError


cdef enum:
    CANCEL = 8
    PROTOCOL_ERROR = 1
    HELD_SIZE = 65536               # bytes of requests ahead of their turn
    ANSWERS_SIZE = 4096             # of answers in one turn of the loop, after which others have theirs
    LINGER_BYTES = 16777216
    TLS_RECORD = 22                 # the first byte of a TLS handshake (RFC 8446 §5.1), which begins no HTTP

cdef double LINGER_SECONDS = 5.0
cdef double RATE_GRACE_SECONDS = 5.0    # before a minimum rate counts

cdef dict WEBSOCKET = {b"websocket": b"websocket"}

logger = logging.getLogger("backstream.proxy")

cdef dict _STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}


cdef class ServerContext:

    def __init__(self, AgentTable table, ClientTable clients, settings, *, serves_clients, serves_agents, on_agent,
                 access_log, tls=None):
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
        self.scratch = Buffer()
        self.on_agent = on_agent
        self.access_log = access_log
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
            return ServerConnection(self)
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
        return ServerConnection(self)

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
        cdef ServerConnection connection
        self.draining = True
        for connection in list(self.connections):
            connection.drain()

    cdef int forget(self, ServerConnection connection) except -1:
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
        cdef ServerConnection connection
        for connection in list(self.connections):
            connection._abort()
        for transport in list(self._handshakes):
            transport.abort()


class _Refusal(asyncio.Protocol):
    """Ends a connection that there is no place for."""

    def connection_made(self, transport):
        transport.abort()


cdef list _pairs(FieldArray fields):
    cdef Py_ssize_t i
    return [(bytes_of(fields.items[i].name), bytes_of(fields.items[i].value)) for i in range(fields.count)]


cdef class _ProtocolBase(Responder):
    pass


cdef class ServerConnection(_ProtocolBase, asyncio.BufferedProtocol):

    def __init__(self, ServerContext context):
        self.context = context
        self.loop = loop_state()
        self.reader = RequestReader()
        self.reader.limits = context.limits
        self.writer = SocketWriter()
        self.held = Buffer()

    def __repr__(self):
        return f"<ServerConnection {self.client_address}>"

    @property
    def peer_certificate(self):
        """The certificate that the peer showed, as a dict, or None."""
        return (self.transport.get_extra_info("peercert") or None) if self.transport is not None else None

    # --- asyncio ---

    def connection_made(self, transport):
        cdef object address = transport.get_extra_info("peername")
        self.transport = transport
        self.reading = True
        self.writer.attach(transport)
        self._set_peer(address[:2] if isinstance(address, tuple) else None)
        if self.context.proxy_protocol is not None and address and address[0] in self.context.proxy_protocol:
            self.preface = Buffer()
        if self.context._full():
            # Told and closed at once, without waiting for a request: there is no place for it.
            return self._turn_away("the proxy has all the connections it takes")
        if self.preface is None and not self._enter():
            return
        self.context.connections.add(self)
        self.head_timed = True
        self._await_request(self.context.header_timeout)

    def _enter(self):
        """Counts the connection for its client's address; false where that has all that it may have.

        Behind a trusted peer are many clients: the limits per address are for that peer to set.
        """
        if self.peer.address is None or self.peer.trusted:
            return True
        self.client = self.context.clients.enter(self.peer.address[0])
        if self.client is None:
            self._turn_away(f"{self.peer.address[0]} has all the connections that one address may have")
        return self.client is not None

    def _turn_away(self, str why):
        """There is no place for the connection: told and closed at once, without waiting for a request."""
        self._refuse(MessageError(503, why, "connection_limit_reached"))
        self.lingering = False
        self.flush()

    def _set_peer(self, address):
        self.peer = self.context.forwarding.peer(address, b"http" if self.writer.tls is None else b"https")
        self.client_address = self.peer.address

    def get_buffer(self, sizehint):
        cdef int64_t room
        if self.request_open or self.framing == FRAMED_RAW:
            if self.exchange is not None:
                room = self.exchange.room()
                if 0 < room < READ_SIZE:
                    return self.loop.read_view[:room]
        elif self.held.size:
            return self.loop.read_view[:max(1, HELD_SIZE - self.held.size)]
        return self.loop.read_view

    def buffer_updated(self, Py_ssize_t nbytes):
        self.input(self.loop.read_buffer, nbytes)

    def eof_received(self):
        if self.framing == FRAMED_RAW and self.exchange is not None:
            self.exchange.end(NULL)
            if self.exchange.finished:
                self._raw_ended()
            return True
        self._gone("the client closed its connection")
        # What was answered before goes out within the idle limit; what is held behind it is nobody's any more.
        self.closing = True
        self.lingering = False
        self.unsent = 0
        self.loop.set_deadline(self, self.context.idle_timeout)
        self.flush()
        return False

    def pause_writing(self):
        self.writer.blocked = True
        if self.exchange is not None:
            self.exchange.held_up()

    def resume_writing(self):
        cdef int64_t taken = self.writer.resume()
        if self.line is not None:
            self.line.leave(self)
        if self.closed:
            return
        if self.exchange is not None and taken:
            self.exchange.taken(taken)
        self.loop.schedule_flush(self)
        self._update_reading()

    def connection_lost(self, exc):
        self.closed = True
        self.loop.clear_deadline(self)
        self.loop.forget_unread(self.writer.fd)
        if self.line is not None:
            self.line.leave(self)
        self.context.forget(self)
        self._gone("the client's connection was lost")
        self._leave_client()
        self.reader.close()
        self.writer.out.release()
        self.held.release()
        self.transport = None

    cdef int _leave_client(self) except -1:
        if self.client is not None:
            self.context.clients.leave(self.client)
            self.client = None
        return 0

    def _gone(self, str why):
        """No further request of this connection is served, those that came ahead of their turn neither."""
        cdef Exchange exchange = self.exchange
        self.held.release()
        self.handshake = None
        if exchange is not None:
            if not exchange.finished:
                self.status = self.status or 499
                self._log()
                if self.client is not None:
                    self.context.clients.aborted(self.client)
            self.exchange = None
            exchange.abandon(CANCEL, why)

    cdef int _abort(self) except -1:
        self._gone("the proxy dropped the connection")
        # Where the end of the connection is the end of the body, only a reset tells the client of a cut.
        return self._drop(self.framing == FRAMED_CLOSE or self.framing == FRAMED_RAW)

    cdef int _drop(self, bint reset) except -1:
        """Ends the connection, whatever waits to be sent."""
        if self.transport is None:
            return 0
        if reset:
            sock = self.transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.transport.abort()
        return 0

    def drain(self):
        """Closes with the next answer, or after a while where no request comes."""
        if self.handshake is not None:
            self._refuse_handshake(MessageError(503, "the proxy is shutting down", "http_upgrade_failed"))
        elif self.exchange is None and self.reader.between_messages() and self.held.size == 0 and not self.closing:
            self._await_request(self.context.keepalive_timeout)

    cdef int _await_request(self, double seconds) except -1:
        if self.context.draining and seconds > self.context.drain_idle_timeout:
            seconds = self.context.drain_idle_timeout
        return self.loop.set_deadline(self, seconds)

    # --- SlowReader ---

    cdef int64_t untaken_bytes(self) except -1:
        return self.writer.untaken()

    cdef bint cut_off(self, str why) except -1:
        cdef Exchange exchange = self.exchange
        if self.closed or exchange is None or exchange.finished or exchange.stream is None:
            return False
        self.status = self.status or 499
        self._log(why)
        self.exchange = None
        exchange.abandon(CANCEL, why)
        self.closing = True
        # What waits in the kernel would stay there for minutes, for a client that does not want it.
        self._drop(True)
        return True

    # --- LoopMember ---

    cdef int on_peer_gone(self, bint broken) except -1:
        # An upgraded client that has only ended its direction is heard to the end.
        if broken or self.framing != FRAMED_RAW:
            self._abort()
        return 0

    cdef int on_deadline(self) except -1:
        if self._writes_progress():
            # A slow reader is no idle one.
            if self.exchange is not None:
                self.exchange.active_at = monotonic()
            return self.loop.set_deadline(self, self.context.idle_timeout)
        if self.closing:
            return self._abort()
        if self.exchange is not None:
            return self.exchange.deadline()
        if self.preface is not None:
            return self._abort()
        if self.handshake is not None:
            return self._refuse_handshake(MessageError(503, "too many agents came at once", "http_upgrade_failed"))
        if self.reader.between_messages():
            return self._close_when_sent()
        self.is_head = self.reader.is_head
        return self._refuse(MessageError(408, f"the head did not come within {self.context.header_timeout:g} s"))

    cdef int flush(self) except -1:
        cdef int64_t taken
        if self.closed or self.transport is None:
            return 0
        taken = self.writer.send()
        if taken < 0:
            return self._abort()
        if taken and self.exchange is not None:
            self.exchange.taken(taken)
        if not self.writer.empty():
            return 0
        if self.closing:
            if self.lingering:
                self.writer.half_close()
                self.loop.set_deadline(self, LINGER_SECONDS)
            else:
                self.transport.close()
        elif self.half_closing:
            self.half_closing = False
            self.writer.half_close()
        elif self.held.size and self.exchange is None and self.handshake is None:
            self._take_held()
        return 0

    def _writes_progress(self):
        """Whether the client has taken some of what the transport holds since this was asked last."""
        before = self.unsent
        self.unsent = self.transport.get_write_buffer_size() if self.writer.blocked else 0
        return self.writer.blocked and (before == 0 or self.unsent < before)

    def _take_held(self):
        """The next request's turn has come; its bytes are here already."""
        cdef Buffer held = self.held
        self.held = Buffer()
        self.input(held.data, held.size)

    # --- reading ---

    cdef int input(self, char* data, Py_ssize_t size) except -1:
        if self.lingering:
            self.linger_bytes += size
            if self.linger_bytes > LINGER_BYTES:
                self._abort()
            return 0
        if self.closing or self.closed:
            return 0
        if self.preface is not None:
            self._proxy_header(&data, &size)
            if self.preface is not None or self.closed:
                return 0
        try:
            self._parse(data, size)
        except MessageError as error:
            if <unsigned char>data[0] == TLS_RECORD and self.writer.tls is None and not self.exchange:
                self.context.note_handshake("plain", self.client_address, "this port does not speak TLS")
            if self.reader.state == READ_HEAD:
                # What is known of the method is of the request before this one.
                self.is_head = self.reader.is_head
            if self.exchange is not None and self.head_sent:
                self._gone("the client's request is malformed")
                self._close_when_sent()
            else:
                if self.exchange is not None:
                    self.exchange.abandon(CANCEL, "the client's request is malformed")
                self.held.release()
                self._refuse(error)
        if not self.closed:
            self._update_reading()
        return 0

    cdef int _proxy_header(self, char** data, Py_ssize_t* size) except -1:
        """Takes a load balancer's word for who connected to it; without one there is no connection."""
        cdef Py_ssize_t before = self.preface.size, taken
        append(self.preface, data[0], size[0])
        try:
            header = read_proxy_header(self.preface.data[:self.preface.size])
        except MessageError as error:
            logger.debug("%s: %s", self.client_address, error)
            return self._abort()
        if header is None:
            return 0
        self.preface = None
        if header.source is not None:
            self._set_peer(header.source)
            if not self._enter():
                return 0
        taken = header.size - before
        data[0] += taken
        size[0] -= taken
        return 0

    cdef int _parse(self, char* data, Py_ssize_t size) except -1:
        cdef Event event
        while True:
            if self.framing == FRAMED_RAW:
                if size and self.exchange is not None:
                    self.exchange.body(data[:size])
                return 0
            if not self.request_open and (self.exchange is not None or self.handshake is not None
                                          or self.writer.blocked or self.held.size
                                          or self.writer.out.size >= ANSWERS_SIZE):
                if size:
                    append(self.held, data, size)
                return 0
            if self.closing or self.closed or self.context is None:
                return 0
            event = self.reader.read(&data, &size)
            if event == NEED_DATA:
                if not self.request_open and not self.reader.between_messages():
                    self._begin_head()
                return 0
            if event == HEAD:
                # Refused or not: what lies behind it is the next request, unless the connection ends here.
                self._request_head(&data, &size)
            elif event == BODY:
                body = self.reader.take_body()
                self.awaits_continue = False
                if self.exchange is not None:
                    self.read_bytes += len(body)
                    if 0 < self.context.max_body < self.read_bytes:
                        raise MessageError(413, f"the body is larger than {self.context.max_body} bytes")
                    if self._too_slow(self.read_bytes, self.context.min_body_rate):
                        raise MessageError(408, f"the body comes slower than {self.context.min_body_rate:g} bytes/s")
                    self.exchange.body(body)
                if self.reader.state == READ_FINISHED:
                    self._request_end()
            elif event == END:
                self._request_end()
                if self.exchange is None and self.reader.state == READ_FINISHED:
                    return 0        # given up: there is no next request

    cdef int _begin_head(self) except -1:
        """Part of a head came: the time that it may take runs."""
        if self.read_since == 0:
            self.read_since = monotonic()
            self.unread_seconds = 0
        if not self.head_timed:
            self.head_timed = True
            return self._await_request(self.context.header_timeout)
        if self._too_slow(self.reader.partial.size, self.context.min_head_rate):
            raise MessageError(408, f"the head comes slower than {self.context.min_head_rate:g} bytes/s")
        return 0

    cdef bint _too_slow(self, int64_t count, double rate) except -1:
        """Whether `count` bytes in the time since `read_since` are less than `rate` a second, after a grace."""
        cdef double took
        if rate <= 0:
            return False
        took = monotonic() - self.read_since - self.unread_seconds
        return took > RATE_GRACE_SECONDS and count < took * rate

    cdef int _request_end(self) except -1:
        cdef Trailers trailers
        if not self.request_open:
            return 0
        self.request_open = False
        if self.exchange is None:
            return 0
        if self.reader.trailer_fields is not None:
            trailers.fields = self.reader.trailer_fields.items
            trailers.field_count = keep_trailers(trailers.fields, self.reader.trailer_fields.count)
            self.exchange.end(&trailers)
        else:
            self.exchange.end(NULL)
        return 0

    cdef int _update_reading(self) except -1:
        cdef bint wanted
        if self.transport is None or self.closed:
            return 0
        if self.lingering:
            wanted = True
        elif self.closing:
            wanted = False
        elif self.exchange is not None and (self.request_open or self.framing == FRAMED_RAW):
            wanted = self.exchange.room() > 0
        else:
            wanted = self.held.size < HELD_SIZE
        if wanted == self.reading:
            return 0
        self.reading = wanted
        if wanted:
            self.unread_seconds += monotonic() - self.paused_at
            self.loop.forget_unread(self.writer.fd)
            self.transport.resume_reading()
        else:
            self.paused_at = monotonic()
            self.transport.pause_reading()
            if self.writer.fd >= 0:
                self.loop.watch_unread(self.writer.fd, self)
        return 0

    cdef int resume_request(self) except -1:
        return self._update_reading()

    # --- the request's head ---

    cdef bint _request_head(self, char** data, Py_ssize_t* size) except -1:
        """Judges a head and sends the request on its way; false when nothing more is to be parsed."""
        cdef RequestReader reader = self.reader
        self.loop.clear_deadline(self)
        self.minor = reader.minor
        self.keep_alive = reader.keep_alive and not self.context.draining
        self.is_head = equals(reader.method, b"HEAD", 4)
        self.head_sent = False
        self.status = 0
        self.framing = FRAMED_NONE
        self.request_open = reader.state != READ_FINISHED
        self.takes_trailers = self.awaits_continue = False
        if self.context.access_log is not None:
            self.started_at = monotonic()
            self.sent_bytes = 0
            self.logged_method = bytes_of(reader.method)
            self.logged_target = bytes_of(reader.target)
        self.in_head = True
        try:
            self._serve()
        except MessageError as error:
            self._refuse(error)
        self.in_head = False
        return not (self.closing or self.closed)

    cdef int _serve(self) except -1:
        """What becomes of a request, by its head. Raises MessageError to refuse it."""
        cdef RequestReader reader = self.reader
        cdef ServerContext context = self.context
        cdef Forwarding forwarding = context.forwarding
        cdef RequestHead head
        cdef Asked asked
        cdef Field field
        cdef bytes client_id
        cdef object own = None
        cdef bytes upgrade = None
        cdef bint offers_websocket = False
        cdef double timeout
        if equals(reader.method, b"CONNECT", 7):
            self.keep_alive = False
            raise MessageError(405, "CONNECT is not served here", "http_request_denied")
        if self.peer.trusted:
            self.client_address = forwarding.read_trail(self.peer, reader.fields) or self.peer.address
        if reader.method.ptr[0] == c'O' or reader.method.ptr[0] == c'T':
            own = own_answer(reader, context.trace)
        if reader.upgrade:
            offers_websocket = context.serves_agents and self._offered(WEBSOCKET) is not None
            if reader.minor == 1 and not self.request_open:
                upgrade = self._offered(context.upgrades)
        take_fields(reader, &asked, forwarding.name, self.peer.trusted and forwarding.x_forwarded)
        forwarding.take_request_id(asked.request_id, &self.request_id)
        self.takes_trailers = asked.takes_trailers
        self.awaits_continue = asked.awaits_continue
        head.method = reader.method
        head.authority = asked.host
        head.http_minor = reader.minor
        read_target(reader, &head)
        if offers_websocket and equals(reader.method, b"GET", 3) and self._is_agent_path(head.target):
            return self._queue_handshake()
        if not context.serves_clients:
            raise MessageError(404, f"this port is for agents, at {context.agent_path.decode()}",
                               "destination_not_found")
        if own is not None:
            return self._answer(200, own[0], own[1])
        head.prefix.size = 0
        if asked.has_client_id and not (context.id_optional and asked.client_id.size == 0):
            if self.last_id is not None and equals(asked.client_id, <const char*>self.last_id, len(self.last_id)):
                client_id = self.last_id
            elif is_client_id(asked.client_id):
                client_id = bytes_of(asked.client_id)
            else:
                raise MessageError(400, "header x-backstream-client-id is not 1 to 128 visible ASCII characters")
        else:
            client_id = context.router.route(&head) if context.router is not None else None
            if client_id is None and head.target.ptr[0] == c'*':
                own = options_answer(context.trace)
                return self._answer(200, own[0], own[1])
            if client_id is None:
                if not context.id_optional:
                    raise MessageError(400, "header x-backstream-client-id is required")
                client_id = b""
        if not asked.has_client_id and client_id:
            # The service is told what the request was routed on.
            field.name = slice_of(b"x-backstream-client-id")
            field.value = slice_of(client_id)
            field.kind = FIELD_OTHER
            reader.fields.add(field)
        if self.client is not None and not context.clients.is_calm(self.client):
            self.keep_alive = False
            raise MessageError(429, "too many requests of this address were given up", "http_request_denied")
        if context.max_body and reader.body == BODY_SIZED and reader.length > context.max_body:
            raise MessageError(413, f"the body is larger than {context.max_body} bytes")
        timeout = timeout_of(&asked, context.request_timeout, context.max_request_timeout)
        head.upgrade.size = 0
        head.client_id = slice_of(client_id)
        head.http_major = 1
        head.body = reader.body
        head.length = <uint64_t>reader.length if reader.body == BODY_SIZED else 0
        if upgrade is not None:
            head.upgrade = slice_of(upgrade)
            head.body = BODY_NONE
        head.time_budget_ms = <uint64_t>(timeout * 1000 + 0.999)
        forwarding.add_fields(self.peer, &head, reader.fields, &self.request_id)
        return self._forward(&head, client_id, timeout, upgrade)

    cdef bytes _offered(self, dict protocols):
        """The first member of Upgrade that is a key of `protocols` (in lower case): its value there, or None."""
        cdef RequestReader reader = self.reader
        cdef Slice rest, token
        cdef Py_ssize_t i
        cdef object found
        for i in range(reader.fields.count):
            if reader.fields.items[i].kind == FIELD_UPGRADE:
                rest = reader.fields.items[i].value
                while next_token(&rest, &token):
                    found = protocols.get(bytes_of(token).lower())
                    if found is not None:
                        return found
        return None

    cdef int _forward(self, RequestHead* head, bytes client_id, double timeout, bytes upgrade) except -1:
        cdef ServerContext context = self.context
        cdef Exchange exchange = Exchange.__new__(Exchange)
        exchange.responder = self
        exchange.table = context.table
        exchange.client_id = client_id
        exchange.payload = Buffer()
        encode_request(exchange.payload, head)
        exchange.is_head = self.is_head
        exchange.is_idempotent = is_idempotent(head.method)
        exchange.has_body = self.request_open
        exchange.offers_upgrade = upgrade is not None
        exchange.upgrade = upgrade
        exchange.length = <int64_t>head.length if head.body == BODY_SIZED else -1
        exchange.head_timeout = timeout
        exchange.idle_timeout = context.idle_timeout
        exchange.agent_wait = context.agent_wait
        exchange.max_retries = context.max_retries
        exchange.request_ended = not self.request_open
        context.requests += 1
        if self.request_open:
            self.read_since = monotonic()
            self.read_bytes = 0
            self.unread_seconds = 0
        self.exchange = exchange
        exchange.start()
        if exchange.link is not None:
            # The agent's own, which stays while it does, and whose hash is known.
            self.last_id = exchange.link.client_id
        return 0

    cdef bint _is_agent_path(self, Slice target) except -1:
        cdef bytes path = bytes_of(target)
        return path.partition(b"?")[0] == self.context.agent_path

    # --- agents ---

    cdef int _queue_handshake(self) except -1:
        """Judging and answering one takes as long as ten requests, and after a restart all agents come at once.

        Until its turn comes this is a connection like others, and what the agent sends is held.
        """
        fields = _pairs(self.reader.fields)
        if self.request_open:
            self._judge(fields)     # raises: it has a body
        self.handshake = fields
        self.loop.set_deadline(self, self.context.header_timeout)
        return self.loop.enqueue(self)

    cdef int on_turn(self) except -1:
        if self.handshake is None:
            return 0        # gone, or refused
        try:
            self._answer_handshake()
        except MessageError as error:
            self._refuse_handshake(error)
        except BaseException:
            if not self.closed:
                self.handshake = None
                self._abort()
            raise
        if not self.closed:
            self._update_reading()
        return 0

    cdef int _refuse_handshake(self, object error) except -1:
        self._refuse(error)
        self.handshake = None
        return 0

    def _judge(self, fields):
        return judge_handshake(fields, self.reader.minor, self.reader.body != BODY_NONE,
                               id_optional=self.context.id_optional)

    def _answer_handshake(self):
        """The WebSocket is picows' from then on."""
        handshake = self._judge(self.handshake)
        answer = self.context.on_agent(self, handshake.client_id, tuple(self.handshake))
        if isinstance(answer, tuple):
            raise MessageError(answer[0], answer[1], "http_upgrade_failed")
        self.writer.send()      # the answers to what came before it
        transport = self.transport
        rest = self.held.data[:self.held.size]
        self._detach()
        try:
            answer(transport, handshake.key, rest)
        except BaseException:
            transport.abort()
            raise

    def _detach(self):
        """The socket is somebody else's from now on."""
        self.loop.clear_deadline(self)
        self.loop.forget_unread(self.writer.fd)
        self.context.forget(self)
        self._leave_client()
        self.reader.close()
        self.held.release()
        self.handshake = None
        self.closed = True
        if not self.reading:
            self.transport.resume_reading()
        self.transport = None

    # --- responses ---

    cdef int _write_status(self, int status, Slice reason) except -1:
        cdef object line = _STATUS_LINES.get(status)
        if line is not None and (reason.size == 0 or (len(<bytes>line) == reason.size + 15
                                 and equals(reason, <const char*>(<bytes>line) + 13, reason.size))):
            return self.writer.text(<bytes>line)
        return self.writer.text(b"HTTP/1.1 %d %s\r\n" % (status, bytes_of(reason) if reason.size else b""))

    cdef int send_interim(self, const ResponseHead* head) except -1:
        if self.minor == 0 or self.head_sent or self.closing:
            return 0        # RFC 9110 §15.2: never to HTTP/1.0
        if head.status == 100:
            self.awaits_continue = False
        if self.writer.blocked or self.writer.out.size >= HELD_SIZE:
            # Interim heads cost no credit: who does not read is spared them, but for the word that it may wait for.
            if head.status != 100:
                return 0
            self.writer.text(b"HTTP/1.1 100 Continue\r\n\r\n")
            return self.loop.schedule_flush(self)
        self._write_status(head.status, head.reason)
        self.writer.fields(head.fields, head.field_count)
        self.writer.text(b"\r\n")
        return self.loop.schedule_flush(self)

    cdef int send_head(self, const ResponseHead* head, bint end) except -1:
        cdef Py_ssize_t i
        cdef const Field* field
        cdef bint dated = False, has_id = False
        cdef int status = head.status
        if self.closing:
            return 0
        self.head_sent = True
        self.status = status
        self._write_status(status, head.reason)
        for i in range(head.field_count):
            field = &head.fields[i]
            if equals(field.name, b"date", 4):
                dated = True
            elif equals(field.name, b"trailer", 7) and not self.takes_trailers:
                continue        # it announces what will be dropped
            elif equals(field.name, b"x-request-id", 12):
                has_id = True
            self.writer.fields(field, 1)
        self.writer.text(self.context.forwarding.via_line)
        if not has_id:
            self._write_request_id()
        if status == 101:
            self.framing = FRAMED_RAW
            self.writer.text(b"connection: upgrade\r\nupgrade: " + bytes_of(head.upgrade) + b"\r\n\r\n")
            self.loop.schedule_flush(self)
            if self.held.size:
                # What the client sent ahead of the answer is the new protocol's already.
                self.exchange.body(self.held.data[:self.held.size])
                self.held.release()
            self.reader.close()
            return self._update_reading()
        if status == 426 and self.context.upgrades:
            # RFC 9110 §15.5.22: it names what can be switched to, and the field is of this hop.
            self.writer.text(b"connection: upgrade\r\nupgrade: " + b", ".join(self.context.upgrades.values()) + b"\r\n")
        if not dated:
            # RFC 9110 §6.6.1: who passes a response on without a Date adds one.
            self.writer.text(b"date: ")
            self.writer.text(self.loop.http_date())
            self.writer.text(b"\r\n")
        if (self.request_open and (end or status >= 300 or self.awaits_continue)) or self.context.draining:
            # The rest of the request's body is not worth waiting for; a client that waits for 100 need not send it.
            self.keep_alive = False
        if self.is_head or status == 304:
            self.framing = FRAMED_NONE
            if head.body == BODY_SIZED:
                self._write_length(head.length)
        elif status == 204:
            self.framing = FRAMED_NONE
        elif status == 205:
            self.framing = FRAMED_NONE      # RFC 9110 §15.3.6: no content, and the client is told so
            self._write_length(0)
        elif head.body == BODY_SIZED or head.body == BODY_NONE or end:
            self.framing = FRAMED_SIZED
            self._write_length(head.length)
        elif self.minor == 0:
            self.framing = FRAMED_CLOSE
            self.keep_alive = False
        else:
            self.framing = FRAMED_CHUNKED
            self.writer.text(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive:
            self.writer.text(b"connection: close\r\n\r\n")
        elif self.minor == 0:
            self.writer.text(b"connection: keep-alive\r\n\r\n")
        else:
            self.writer.text(b"\r\n")
        return self.loop.schedule_flush(self)

    cdef int _write_length(self, uint64_t length) except -1:
        self.writer.text(b"content-length: ")
        self.writer.number(length)
        return self.writer.text(b"\r\n")

    cdef int send_data(self, const char* data, Py_ssize_t size) except -1:
        if self.closing:
            return 0
        if self.framing == FRAMED_NONE:
            return self.exchange.taken(size)
        if self.framing == FRAMED_CHUNKED:
            self.writer.chunk(data, size)
        else:
            self.writer.data(data, size)
        self.sent_bytes += size
        return self.loop.schedule_flush(self)

    cdef int send_end(self, const Trailers* trailers) except -1:
        if self.closing:
            return 0
        if self.framing == FRAMED_RAW:
            if self.exchange.finished:
                return self._raw_ended()
            self.half_closing = True
            return self.loop.schedule_flush(self)
        if self.framing == FRAMED_CHUNKED:
            self.writer.text(b"0\r\n")
            if trailers != NULL and self.takes_trailers:
                self.writer.fields(trailers.fields, keep_trailers(trailers.fields, trailers.field_count))
            self.writer.text(b"\r\n")
        return self._response_done()

    cdef int _response_done(self) except -1:
        self.loop.schedule_flush(self)
        self._log()
        self.exchange = None
        self.request_id.size = 0
        self.writer.forget_body()
        if self.request_open or not self.keep_alive:
            # A socket that is closed on bytes that nobody read is reset, and the answer with it.
            self.lingering = self.request_open or self.held.size > 0
            return self._close_when_sent()
        self.reader.next_message()
        self.head_timed = False
        self.read_since = 0
        self._await_request(self.context.keepalive_timeout)
        if not self.reading:
            self._update_reading()
        return 0

    cdef int _raw_ended(self) except -1:
        """Both directions of an upgraded stream have ended."""
        self._log()
        self.exchange = None
        self.writer.forget_body()
        return self._close_when_sent()

    cdef int _close_when_sent(self) except -1:
        self.closing = True
        self.unsent = 0
        self.loop.set_deadline(self, self.context.idle_timeout)
        self.loop.schedule_flush(self)
        return self._update_reading()

    cdef int send_cut(self, str cause) except -1:
        logger.debug("a response to %s breaks off: %r", self.client_address, cause)
        self._log(cause)
        self.exchange = None
        # What came of it goes out; the missing end says that it is not all.
        if self.framing == FRAMED_CLOSE or self.framing == FRAMED_RAW:
            self.flush()
            return self._abort()
        return self._close_when_sent()

    cdef int send_error(self, int status, str cause, str detail, str leg) except -1:
        cdef str who = ""
        if self.closing:
            return 0
        if self.exchange is not None and self.exchange.client_id:
            who = f" (id {self.exchange.client_id.decode('ascii')})"
        lines, body = error_page(status, cause, detail + who, leg, accept=self._accept(), trace=self.context.trace)
        return self._answer(status, lines, body)

    cdef int _refuse(self, object error) except -1:
        """Answers a request that goes nowhere; error: the MessageError that says why."""
        if self.request_open or self.reader.state != READ_FINISHED:
            self.keep_alive = False
            self.request_open = True
        leg = "client" if error.cause in ("http_request_error", "http_request_denied") else "proxy"
        lines, body = error_page(error.status, error.cause, str(error), leg, accept=self._accept(),
                                 trace=self.context.trace)
        return self._answer(error.status, lines, body)

    def _accept(self):
        """The request's Accept lines, as far as they are still at hand."""
        cdef RequestHead head
        cdef FieldArray fields = self.reader.fields
        if self.handshake is not None:
            return [value for name, value in self.handshake if name == b"accept"]
        if self.exchange is not None:
            fields = FieldArray()
            try:
                decode_request(self.exchange.payload.data, self.exchange.payload.size, &head, fields)
            except StreamError:
                return []
        elif not self.in_head:
            return []
        return [value for name, value in _pairs(fields) if name == b"accept"]

    cdef int _answer(self, int status, list lines, bytes body) except -1:
        """An answer of the proxy's own; lines: its fields, beside those that all have."""
        cdef bint keep = self.keep_alive and not self.request_open and not self.context.draining
        self.status = status
        self.keep_alive = keep
        connection = []
        if self.request_id.size == 0:
            self.context.forwarding.take_request_id(slice_of(b""), &self.request_id)
        head = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            *lines,
            f"content-length: {len(body)}",
            f"date: {self.loop.http_date().decode()}",
        ]
        if not keep:
            connection.append("close")
        elif self.minor == 0:
            connection.append("keep-alive")
        if status == 426:
            connection.append("upgrade")
        if connection:
            head.append(f"connection: {', '.join(connection)}")
        self.writer.text("\r\n".join(head).encode("ascii", "replace") + b"\r\n")
        self._write_request_id()
        self.writer.text(b"\r\n")
        if not self.is_head:
            self.writer.text(body)
            self.sent_bytes = len(body)
        return self._response_done()

    cdef int _write_request_id(self) except -1:
        self.writer.text(b"x-request-id: ")
        append(self.writer.out, self.request_id.text, self.request_id.size)
        return self.writer.text(b"\r\n")

    cdef int _log(self, str cut=None) except -1:
        """A line of the access log; cut: why the proxy broke the response off."""
        if self.context.access_log is not None and self.logged_method is not None:
            self.context.access_log(self, self.logged_method, self.logged_target,
                                    self.exchange.client_id if self.exchange is not None else b"", self.status,
                                    self.sent_bytes, monotonic() - self.started_at,
                                    self.request_id.text[:self.request_id.size],
                                    self.exchange.stream if self.exchange is not None else None, cut)
            self.logged_method = None
        return 0
