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
    BODY_NONE, BODY_SIZED, Field, FieldArray, RequestHead, ResponseHead, Slice, Trailers,
    bytes_of, decode_request, encode_request, equals, equals_lower, is_client_id, slice_of,
)
from backstream._exchange cimport Exchange, Responder
from backstream._http._final_recipient cimport own_answer
from backstream._http._forwarding cimport Forwarding
from backstream._http._message cimport (
    BODY, END, FIELD_OTHER, HEAD, NEED_DATA, READ_FINISHED, Event, RequestReader,
)
from backstream._http._request cimport Asked, take_fields, timeout_of
from backstream._http._routing cimport Router, read_target
from backstream._http._trailers cimport keep_trailers
from backstream._http._trust cimport Networks
from backstream._http._writer cimport SocketWriter
from backstream._loop cimport READ_SIZE, loop_state, monotonic

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
    LINGER_BYTES = 16777216

cdef double LINGER_SECONDS = 5.0

logger = logging.getLogger("backstream.proxy")

cdef dict _STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}

# RFC 9110 §9.2.2
cdef frozenset IDEMPOTENT = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))


cdef class ServerContext:

    def __init__(self, AgentTable table, settings, *, serves_clients, serves_agents, on_agent, access_log):
        self.table = table
        self.settings = settings
        self.serves_clients = serves_clients
        self.serves_agents = serves_agents
        self.request_timeout = settings.request_timeout
        self.max_request_timeout = settings.max_request_timeout
        self.idle_timeout = settings.idle_timeout
        self.header_timeout = settings.header_timeout
        self.keepalive_timeout = settings.keepalive_timeout
        self.limits.head = settings.max_head_size
        self.limits.target = settings.max_target_size
        self.limits.fields = settings.max_fields
        self.limits.trailers = settings.max_trailers_size
        self.limits.extensions = 16384
        self.agent_path = settings.agent_path.encode()
        self.trace = settings.trace
        routed = settings.route_host or settings.route_path or settings.default_id is not None
        self.router = Router(settings) if routed else None
        self.forwarding = Forwarding(settings)
        self.proxy_protocol = Networks(settings.proxy_protocol) if settings.proxy_protocol else None
        self.on_agent = on_agent
        self.access_log = access_log
        self.connections = set()
        self._emptied = asyncio.Event()

    def connection(self):
        """A protocol for one accepted socket."""
        return ServerConnection(self)

    @property
    def connection_count(self) -> int:
        """Connections that are open."""
        return len(self.connections)

    def drain(self):
        """Closes idle connections, and the others after the answer that they wait for."""
        cdef ServerConnection connection
        self.draining = True
        for connection in list(self.connections):
            connection.drain()

    cdef int forget(self, ServerConnection connection) except -1:
        self.connections.discard(connection)
        if not self.connections:
            self._emptied.set()
        return 0

    async def wait_empty(self):
        """Waits until no connection is open."""
        while self.connections:
            self._emptied.clear()
            await self._emptied.wait()

    def abort(self):
        """Drops every connection."""
        cdef ServerConnection connection
        for connection in list(self.connections):
            connection._abort()


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

    # --- asyncio ---

    def connection_made(self, transport):
        cdef object address = transport.get_extra_info("peername")
        self.transport = transport
        self.reading = True
        self.writer.attach(transport)
        self._set_peer(address[:2] if isinstance(address, tuple) else None)
        if self.context.proxy_protocol is not None and address and address[0] in self.context.proxy_protocol:
            self.preface = Buffer()
        if len(self.context.connections) >= self.context.settings.max_connections:
            # Told and closed at once, without waiting for a request: there is no place for it.
            self._refuse(MessageError(503, "the proxy has all the connections it takes", "connection_limit_reached"))
            self.lingering = False
            self.flush()
            return
        self.context.connections.add(self)
        self.head_timed = True
        self.loop.set_deadline(self, self.context.header_timeout)

    def _set_peer(self, address):
        cdef bint secure = self.transport.get_extra_info("ssl_object") is not None
        self.peer = self.context.forwarding.peer(address, b"https" if secure else b"http")
        self.client_address = self.peer.address

    def get_buffer(self, sizehint):
        cdef int64_t room
        if self.request_open or self.framing == FRAMED_RAW:
            if self.exchange is not None:
                room = self.exchange.room()
                if 0 < room < READ_SIZE:
                    return self.loop.read_view[:room]
        elif self.exchange is not None and self.held.size:
            return self.loop.read_view[:max(1, HELD_SIZE - self.held.size)]
        return self.loop.read_view

    def buffer_updated(self, Py_ssize_t nbytes):
        self.input(self.loop.read_buffer, nbytes)

    def eof_received(self):
        if self.framing == FRAMED_RAW and self.exchange is not None:
            self.exchange.end(NULL)
            if self.exchange.stream is None or self.exchange.stream.remote_ended():
                self._close_when_sent()
            return True
        self._gone("the client closed its connection")
        self.flush()
        return False

    def pause_writing(self):
        self.writer.blocked = True

    def resume_writing(self):
        cdef int64_t taken = self.writer.resume()
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
        self.context.forget(self)
        self._gone("the client's connection was lost")
        self.reader.close()
        self.writer.out.release()
        self.held.release()
        self.transport = None

    def _gone(self, str why):
        cdef Exchange exchange = self.exchange
        if exchange is not None:
            self.exchange = None
            if not exchange.finished:
                self.status = self.status or 499
                self._log()
            exchange.abandon(CANCEL, why)

    cdef int _abort(self) except -1:
        self._gone("the proxy dropped the connection")
        if self.transport is not None:
            self.transport.abort()
        return 0

    def drain(self):
        """Stops after the answer that is under way, at once where there is none."""
        if self.exchange is None and self.reader.between_messages() and self.held.size == 0 and not self.closing:
            self._close_when_sent()

    # --- LoopMember ---

    cdef int on_peer_gone(self) except -1:
        if self.framing != FRAMED_RAW:
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
        if self.reader.between_messages():
            return self._close_when_sent()
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
        elif self.held.size and self.exchange is None:
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
            if self.exchange is not None and self.head_sent:
                self._gone("the client's request is malformed")
                self._close_when_sent()
            else:
                self._gone("the client's request is malformed")
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
            if not self.request_open and (self.exchange is not None or self.writer.blocked):
                if size:
                    append(self.held, data, size)
                return 0
            if self.closing or self.closed or self.context is None:
                return 0
            event = self.reader.read(&data, &size)
            if event == NEED_DATA:
                if not self.request_open and not self.head_timed and not self.reader.between_messages():
                    self.head_timed = True
                    self.loop.set_deadline(self, self.context.header_timeout)
                return 0
            if event == HEAD:
                if not self._request_head(&data, &size):
                    return 0
            elif event == BODY:
                self.awaits_continue = False
                if self.exchange is not None:
                    self.exchange.body(self.reader.take_body())
                else:
                    self.reader.take_body()
                if self.reader.state == READ_FINISHED:
                    self._request_end()
            elif event == END:
                self._request_end()

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
        elif self.exchange is None and not self.writer.blocked:
            wanted = True
        elif self.exchange is not None and (self.request_open or self.framing == FRAMED_RAW):
            wanted = self.exchange.room() > 0
        else:
            wanted = self.held.size < HELD_SIZE
        if wanted == self.reading:
            return 0
        self.reading = wanted
        if wanted:
            self.loop.forget_unread(self.writer.fd)
            self.transport.resume_reading()
        else:
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
            self._serve(data[0], size[0])
        except MessageError as error:
            self._refuse(error)
        self.in_head = False
        return not (self.closing or self.closed)

    cdef int _serve(self, char* rest, Py_ssize_t rest_size) except -1:
        """What becomes of a request, by its head. Raises MessageError to refuse it."""
        cdef RequestReader reader = self.reader
        cdef ServerContext context = self.context
        cdef Forwarding forwarding = context.forwarding
        cdef RequestHead head
        cdef Asked asked
        cdef Field field
        cdef bytes client_id
        cdef object own = None
        cdef double timeout
        if equals(reader.method, b"CONNECT", 7):
            self.keep_alive = False
            raise MessageError(405, "CONNECT is not served here", "http_request_denied")
        if self.peer.trusted:
            self.client_address = forwarding.read_trail(self.peer, reader.fields) or self.peer.address
        if reader.method.ptr[0] == c'O' or reader.method.ptr[0] == c'T':
            own = own_answer(reader, context.trace)
        take_fields(reader, &asked, forwarding.name, self.peer.trusted and forwarding.x_forwarded)
        forwarding.take_request_id(asked.request_id, &self.request_id)
        self.takes_trailers = asked.takes_trailers
        self.awaits_continue = asked.awaits_continue
        head.method = reader.method
        head.authority = asked.host
        head.http_minor = reader.minor
        read_target(reader, &head)
        if (context.serves_agents and reader.upgrade and equals(reader.method, b"GET", 3)
                and self._is_agent_path(head.target) and equals_lower(reader.upgrade_value, b"websocket", 9)):
            return self._agent_handshake(rest[:rest_size])
        if not context.serves_clients:
            raise MessageError(404, f"this port is for agents, at {context.agent_path.decode()}",
                               "destination_not_found")
        if own is not None:
            return self._answer(200, own[0], own[1])
        head.prefix.size = 0
        if asked.has_client_id:
            if not is_client_id(asked.client_id):
                raise MessageError(400, "header x-backstream-client-id is not 1 to 128 visible ASCII characters")
            client_id = bytes_of(asked.client_id)
        else:
            client_id = context.router.route(&head) if context.router is not None else None
            if client_id is None and head.target.ptr[0] == c'*':
                own = options_answer(context.trace)
                return self._answer(200, own[0], own[1])
            if client_id is None:
                raise MessageError(400, "header x-backstream-client-id is required")
            field.name = slice_of(b"x-backstream-client-id")
            field.value = slice_of(client_id)
            field.kind = FIELD_OTHER
            reader.fields.add(field)
        timeout = timeout_of(&asked, context.request_timeout, context.max_request_timeout)
        head.client_id = slice_of(client_id)
        head.upgrade.size = 0
        if reader.upgrade and reader.body == BODY_NONE and equals_lower(reader.upgrade_value, b"websocket", 9):
            head.upgrade = slice_of(b"websocket")
        head.http_major = 1
        head.body = reader.body
        head.length = <uint64_t>reader.length if reader.body == BODY_SIZED else 0
        head.time_budget_ms = <uint64_t>(timeout * 1000 + 0.999)
        forwarding.add_fields(self.peer, &head, reader.fields, &self.request_id)
        return self._forward(&head, client_id, timeout)

    cdef int _forward(self, RequestHead* head, bytes client_id, double timeout) except -1:
        cdef ServerContext context = self.context
        cdef Exchange exchange = Exchange.__new__(Exchange)
        exchange.responder = self
        exchange.table = context.table
        exchange.client_id = client_id
        exchange.payload = Buffer()
        encode_request(exchange.payload, head)
        exchange.is_head = self.is_head
        exchange.is_idempotent = bytes_of(head.method) in IDEMPOTENT
        exchange.has_body = self.request_open
        exchange.offers_upgrade = head.upgrade.size > 0
        exchange.length = <int64_t>head.length if head.body == BODY_SIZED else -1
        exchange.head_timeout = timeout
        exchange.idle_timeout = context.idle_timeout
        exchange.request_ended = not self.request_open
        context.requests += 1
        self.exchange = exchange
        return exchange.start()

    cdef bint _is_agent_path(self, Slice target) except -1:
        cdef bytes path = bytes_of(target)
        return path.partition(b"?")[0] == self.context.agent_path

    # --- agents ---

    def _agent_handshake(self, bytes rest):
        """The WebSocket is picows' from then on."""
        cdef RequestReader reader = self.reader
        fields = _pairs(reader.fields)
        handshake = judge_handshake(fields, reader.minor, reader.body != BODY_NONE)
        answer = self.context.on_agent(self, handshake.client_id, tuple(fields))
        if isinstance(answer, tuple):
            raise MessageError(answer[0], answer[1], "http_upgrade_failed")
        transport = self.transport
        path = bytes_of(reader.target)
        self._detach()
        answer(transport, path, handshake.key, rest)
        return 0

    def _detach(self):
        """The socket is somebody else's from now on."""
        self.loop.clear_deadline(self)
        self.loop.forget_unread(self.writer.fd)
        self.context.forget(self)
        self.reader.close()
        self.closed = True
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
            self.loop.clear_deadline(self)
            self.loop.schedule_flush(self)
            return self._update_reading()
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
            self.half_closing = True
            if self.exchange is not None and self.exchange.stream.is_closed():
                return self._close_when_sent()
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
        self.loop.set_deadline(self, self.context.keepalive_timeout)
        if not self.reading:
            self._update_reading()
        return 0

    cdef int _close_when_sent(self) except -1:
        self.closing = True
        self.unsent = 0
        self.loop.set_deadline(self, self.context.idle_timeout)
        self.loop.schedule_flush(self)
        return self._update_reading()

    cdef int send_cut(self, str cause) except -1:
        logger.debug("a response to %s breaks off: %s", self.client_address, cause)
        self._log()
        self.exchange = None
        # What came of it goes out; the missing end says that it is not all.
        if self.framing == FRAMED_CLOSE or self.framing == FRAMED_RAW:
            self.flush()
            self._reset_connection()
            return 0
        return self._close_when_sent()

    def _reset_connection(self):
        """Where the end of the connection is the end of the body, only a reset tells the client of a cut."""
        cdef object sock = self.transport.get_extra_info("socket") if self.transport is not None else None
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self._abort()

    cdef int send_error(self, int status, str cause, str detail, str leg) except -1:
        cdef str who = ""
        if self.closing:
            return 0
        if self.exchange is not None:
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
        if self.request_id.size == 0:
            self.context.forwarding.take_request_id(slice_of(b""), &self.request_id)
        head = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            *lines,
            f"content-length: {len(body)}",
            f"date: {self.loop.http_date().decode()}",
        ]
        if not keep:
            head.append("connection: close")
        elif self.minor == 0:
            head.append("connection: keep-alive")
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

    cdef int _log(self) except -1:
        if self.context.access_log is not None and self.logged_method is not None:
            self.context.access_log(self, self.logged_method, self.logged_target,
                                    self.exchange.client_id if self.exchange is not None else b"", self.status,
                                    self.sent_bytes, monotonic() - self.started_at,
                                    self.request_id.text[:self.request_id.size])
            self.logged_method = None
        return 0
