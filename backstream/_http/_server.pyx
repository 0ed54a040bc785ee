"""HTTP/1.1 towards clients (RFC 9110, RFC 9112): reads requests, writes responses, hands over agents' WebSockets.

Rules that hold here:
- One request at a time: what a client sends ahead of its answer is held (bounded) and parsed when its turn comes.
- A body's bytes are read only as far as the stream takes them, into the loop's shared buffer.
- All that a turn of the loop brings for the client leaves in one write; what the socket does not take stays with the
  transport, and its credit with the stream.
- Framing is made anew in both directions. A response that breaks off never looks whole.
"""

import asyncio
import base64
import logging
import socket
from http import HTTPStatus

from libc.stdint cimport int64_t, uint64_t

from backstream._agents cimport AgentTable
from backstream._buffer cimport Buffer, append
from backstream._codec cimport (
    BODY_NONE, BODY_SIZED, Field, FieldArray, RequestHead, ResponseHead, Slice, Trailers,
    bytes_of, encode_request, equals, equals_lower, is_authority, is_client_id, is_target, slice_of,
)
from backstream._exchange cimport Exchange, Responder
from backstream._http._message cimport (
    BODY, END, FIELD_CLIENT_ID, FIELD_DATE, FIELD_EXPECT, FIELD_HOST, FIELD_OTHER, FIELD_REQUEST_TIMEOUT, FIELD_TE,
    FIELD_TRAILER, FIELD_VIA, HEAD, NEED_DATA, READ_FINISHED, Event, RequestReader, next_token,
)
from backstream._http._writer cimport SocketWriter
from backstream._loop cimport READ_SIZE, loop_state, monotonic
from backstream._tls cimport TlsTransport

from backstream._http.errors import MessageError
from backstream.config import parse_duration
from backstream.errors import ConfigurationError


cdef enum:
    CANCEL = 8
    PROTOCOL_ERROR = 1
    HELD_SIZE = 65536               # bytes of requests ahead of their turn
    LINGER_BYTES = 16777216
    TLS_RECORD = 22                 # the first byte of a TLS handshake (RFC 8446 §5.1), which begins no HTTP

cdef double LINGER_SECONDS = 5.0

logger = logging.getLogger("backstream.proxy")

cdef dict _STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %s\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus
}

# RFC 9110 §9.2.2
cdef frozenset IDEMPOTENT = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))


cdef class ServerContext:

    def __init__(self, AgentTable table, settings, *, serves_clients, serves_agents, on_agent, access_log, tls=None):
        self.table = table
        self.settings = settings
        self.serves_clients = serves_clients
        self.serves_agents = serves_agents
        self.request_timeout = settings.request_timeout
        self.max_request_timeout = settings.max_request_timeout
        self.idle_timeout = settings.idle_timeout
        self.max_connections = settings.max_connections
        self.header_timeout = settings.header_timeout
        self.keepalive_timeout = settings.keepalive_timeout
        self.limits.head = settings.max_head_size
        self.limits.target = settings.max_target_size
        self.limits.fields = settings.max_fields
        self.limits.trailers = settings.max_trailers_size
        self.limits.extensions = 16384
        self.agent_path = settings.agent_path.encode()
        self.scratch = Buffer()
        self.on_agent = on_agent
        self.access_log = access_log
        self.tls = tls
        self.connections = set()
        self._handshakes = set()
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
        transport = TlsTransport(self.tls, self._secured, self._handshake_over, self.header_timeout)
        self._handshakes.add(transport)
        return transport

    def _secured(self):
        return ServerConnection(self)

    def _handshake_over(self, TlsTransport transport, error):
        self._handshakes.discard(transport)
        if error is not None:
            self.note_handshake(
                getattr(error, "reason", None) or type(error).__name__, transport.get_extra_info("peername"), error)
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


cdef inline Slice _head_of(Slice s, Py_ssize_t size) noexcept:
    s.size = size
    return s


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
        return f"<ServerConnection {self.peer_address}>"

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
        self.scheme = b"http" if self.writer.tls is None else b"https"
        self.peer = b""
        if isinstance(address, tuple):
            self.peer_address = address[:2]
            self.peer = (f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}").encode()
            if b"%" in self.peer:       # an IPv6 zone means nothing to others
                self.peer = f"[{address[0].partition('%')[0]}]:{address[1]}".encode()
        if self.context._full():
            # Told and closed at once, without waiting for a request: there is no place for it.
            self._refuse(503, "connection_limit_reached", "the proxy has all the connections it takes")
            self.lingering = False
            self.flush()
            return
        self.context.connections.add(self)
        self.head_timed = True
        self.loop.set_deadline(self, self.context.header_timeout)

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
        if self.reader.between_messages():
            return self._close_when_sent()
        return self._refuse(408, "http_request_error",
                            f"the head did not come within {self.context.header_timeout:g} s")

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
        try:
            self._parse(data, size)
        except MessageError as error:
            if <unsigned char>data[0] == TLS_RECORD and self.writer.tls is None and not self.exchange:
                self.context.note_handshake("plain", self.peer_address, "this port does not speak TLS")
            if self.exchange is not None and self.head_sent:
                self._gone("the client's request is malformed")
                self._close_when_sent()
            else:
                self._gone("the client's request is malformed")
                self._refuse(error.status, "http_request_error", str(error))
        if not self.closed:
            self._update_reading()
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
            trailers.field_count = self._forwardable_trailers(self.reader.trailer_fields)
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
        cdef ServerContext context = self.context
        cdef RequestHead head
        cdef Field* field
        cdef Slice client_id, timeout_text, host, rest, token
        cdef Py_ssize_t i, count = 0
        cdef int hosts = 0, ids = 0, timeouts = 0, expects = 0
        cdef bint takes_trailers = False
        cdef double timeout = context.request_timeout
        self.loop.clear_deadline(self)
        self.minor = reader.minor
        self.keep_alive = reader.keep_alive and not context.draining
        self.is_head = equals(reader.method, b"HEAD", 4)
        self.head_sent = False
        self.status = 0
        self.framing = FRAMED_NONE
        self.request_open = reader.state != READ_FINISHED
        if context.access_log is not None:
            self.started_at = monotonic()
            self.sent_bytes = 0
            self.logged_method = bytes_of(reader.method)
            self.logged_target = bytes_of(reader.target)
        if equals(reader.method, b"CONNECT", 7):
            self.keep_alive = False
            self._refuse(405, "http_request_denied", "CONNECT is not served here")
            return False
        client_id.size = 0
        host.ptr = NULL
        host.size = 0
        for i in range(reader.fields.count):
            field = &reader.fields.items[i]
            if field.kind == FIELD_HOST:
                hosts += 1
                host = field.value
                continue
            if field.kind == FIELD_TE:
                rest = field.value
                while next_token(&rest, &token):
                    if equals_lower(token, b"trailers", 8):
                        takes_trailers = True
                continue
            if field.kind == FIELD_EXPECT:
                if not equals_lower(field.value, b"100-continue", 12):
                    self._refuse(417, "http_request_error", "the only expectation met here is 100-continue")
                    return False
                expects += 1
                if reader.minor == 0 or not self.request_open or expects > 1:
                    continue
            elif field.kind == FIELD_CLIENT_ID:
                ids += 1
                client_id = field.value
            elif field.kind == FIELD_REQUEST_TIMEOUT:
                timeouts += 1
                timeout_text = field.value
            elif field.kind not in (FIELD_OTHER, FIELD_DATE, FIELD_TRAILER, FIELD_VIA):
                continue
            if count != i:
                reader.fields.items[count] = field[0]
            count += 1
        reader.fields.count = count
        if takes_trailers:
            self._add_te(reader.fields)
        # Host and the target (RFC 9112 §3.2)
        head.target = reader.target
        head.authority = host
        if hosts > 1 or hosts == 0 and reader.minor == 1:
            self._refuse(400, "http_request_error", "exactly one Host is required")
            return False
        if host.size and not is_authority(host):
            self._refuse(400, "http_request_error", "Host is no host[:port]")
            return False
        if not self._target(&head):
            return False
        if (context.serves_agents and reader.upgrade and equals(reader.method, b"GET", 3)
                and self._is_agent_path(head.target) and equals_lower(reader.upgrade_value, b"websocket", 9)):
            self._agent_handshake(bytes_of(client_id) if ids else None, ids, data[0][:size[0]])
            return False
        if not context.serves_clients:
            self._refuse(404, "destination_not_found", f"this port is for agents, at {context.agent_path.decode()}")
            return False
        if ids != 1:
            self._refuse(400, "http_request_error", "header x-backstream-client-id is required" if ids == 0
                         else "more than one header x-backstream-client-id")
            return not self.closing
        if not is_client_id(client_id):
            self._refuse(400, "http_request_error",
                         "header x-backstream-client-id is not 1 to 128 visible ASCII characters")
            return not self.closing
        if timeouts:
            try:
                if timeouts > 1:
                    raise ConfigurationError("it stands there more than once")
                timeout = parse_duration(bytes_of(timeout_text).decode("ascii", "replace"))
            except ConfigurationError as error:
                self._refuse(400, "http_request_error", f"header x-backstream-request-timeout: {error}")
                return not self.closing
        if timeout < 0:
            timeout = 0
        if context.max_request_timeout > 0 and (timeout == 0 or timeout > context.max_request_timeout):
            timeout = context.max_request_timeout
        head.method = reader.method
        head.scheme = slice_of(self.scheme)
        head.peer = slice_of(self.peer)
        head.upgrade.size = head.client_id.size = head.prefix.size = 0
        head.client_id = client_id
        if reader.upgrade and reader.body == BODY_NONE and equals_lower(reader.upgrade_value, b"websocket", 9):
            head.upgrade = slice_of(b"websocket")
        head.http_major = 1
        head.http_minor = reader.minor
        head.body = reader.body
        head.length = <uint64_t>reader.length if reader.body == BODY_SIZED else 0
        head.time_budget_ms = <uint64_t>(timeout * 1000 + 0.999)
        head.fields = reader.fields.items
        head.field_count = reader.fields.count
        self._forward(&head, bytes_of(client_id), timeout)
        return not self.closing

    def _add_te(self, FieldArray fields):
        cdef Field te
        te.name = slice_of(b"te")
        te.value = slice_of(b"trailers")
        te.kind = FIELD_TE
        fields.add(te)

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

    cdef bint _target(self, RequestHead* head) except -1:
        """Origin-form, `*` for OPTIONS, or absolute-form, whose authority is worth more than Host."""
        cdef Slice target = head.target
        cdef Py_ssize_t at, start
        cdef bint options = equals(self.reader.method, b"OPTIONS", 7)
        if target.ptr[0] != c'/' and not (target.size == 1 and target.ptr[0] == c'*'):
            start = 7
            if target.size > 8 and equals_lower(_head_of(target, 8), b"https://", 8):
                start = 8
            elif not (target.size > 7 and equals_lower(_head_of(target, 7), b"http://", 7)):
                self._refuse(400, "http_request_error", "the target is neither a path nor an http URL")
                return False
            at = start
            while at < target.size and target.ptr[at] != c'/' and target.ptr[at] != c'?':
                at += 1
            head.authority.ptr = target.ptr + start
            head.authority.size = at - start
            if not is_authority(head.authority):
                self._refuse(400, "http_request_error", "the target's authority is no host[:port]")
                return False
            head.target.ptr = target.ptr + at
            head.target.size = target.size - at
            if head.target.size == 0:
                head.target = slice_of(b"*" if options else b"/")
            elif head.target.ptr[0] == c'?':
                self.target_copy = b"/" + bytes_of(head.target)
                head.target = slice_of(self.target_copy)
        if not is_target(head.target) or (head.target.ptr[0] == c'*' and not options):
            self._refuse(400, "http_request_error", "the target has characters that may not stand in it")
            return False
        return True

    def _forwardable_trailers(self, FieldArray fields):
        """Drops trailers that may not be ones (RFC 9110 §6.5.1); returns how many are left."""
        cdef Py_ssize_t i, count = 0
        for i in range(fields.count):
            if fields.items[i].kind == FIELD_OTHER:
                fields.items[count] = fields.items[i]
                count += 1
        return count

    # --- agents ---

    def _agent_handshake(self, client_id, int ids, bytes rest):
        """RFC 6455 §4.2; the WebSocket is picows' from then on."""
        cdef RequestReader reader = self.reader
        cdef Field* field
        cdef Py_ssize_t i
        cdef dict found = {}
        cdef list fields = []
        for i in range(reader.fields.count):
            field = &reader.fields.items[i]
            name = bytes_of(field.name)
            fields.append((name, bytes_of(field.value)))
            found.setdefault(name, []).append(bytes_of(field.value))
        if ids == 0:
            return self._refuse(400, "http_request_error", "header x-backstream-client-id is required")
        if ids > 1 or not is_client_id(slice_of(client_id)):
            return self._refuse(400, "http_request_error",
                                "header x-backstream-client-id is not 1 to 128 visible ASCII characters, once")
        if reader.minor != 1 or reader.body != BODY_NONE:
            return self._refuse(400, "http_request_error", "a WebSocket handshake is an HTTP/1.1 GET without a body")
        if found.get(b"sec-websocket-version") != [b"13"]:
            return self._refuse(426, "http_upgrade_failed", "Sec-WebSocket-Version must be 13")
        key = found.get(b"sec-websocket-key", [])
        try:
            if len(key) != 1 or len(base64.b64decode(key[0], validate=True)) != 16:
                raise ValueError
        except ValueError:
            return self._refuse(400, "http_request_error", "Sec-WebSocket-Key is not 16 bytes in base64")
        offered = b",".join(found.get(b"sec-websocket-protocol", [])).split(b",")
        if b"backstream.v1" not in [name.strip() for name in offered]:
            return self._refuse(501, "http_upgrade_failed",
                                "the subprotocol backstream.v1 is required; the seed wire is not spoken yet")
        answer = self.context.on_agent(self, client_id, tuple(fields))
        if isinstance(answer, tuple):
            return self._refuse(answer[0], "http_upgrade_failed", answer[1])
        transport = self.transport
        path = bytes_of(reader.target)
        self._detach()
        answer(transport, path, key[0], rest)
        return None

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
        self._write_status(head.status, head.reason)
        self.writer.fields(head.fields, head.field_count)
        self.writer.text(b"\r\n")
        return self.loop.schedule_flush(self)

    cdef int send_head(self, const ResponseHead* head, bint end) except -1:
        cdef Py_ssize_t i
        cdef bint dated = False
        cdef int status = head.status
        if self.closing:
            return 0
        self.head_sent = True
        self.status = status
        self._write_status(status, head.reason)
        for i in range(head.field_count):
            if head.fields[i].name.size == 4 and equals(head.fields[i].name, b"date", 4):
                dated = True
        self.writer.fields(head.fields, head.field_count)
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
        if self.request_open and end or self.context.draining:
            self.keep_alive = False
        if self.is_head or status == 304:
            self.framing = FRAMED_NONE
            if head.body == BODY_SIZED:
                self._write_length(head.length)
        elif status == 204:
            self.framing = FRAMED_NONE
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
            self.writer.text(b"0\r\n\r\n")
        return self._response_done()

    cdef int _response_done(self) except -1:
        self.loop.schedule_flush(self)
        self._log()
        self.exchange = None
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
        logger.debug("a response to %s breaks off: %s", self.peer_address, cause)
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
        return self._error(status, cause, detail + who, leg)

    cdef int _refuse(self, int status, str cause, str detail) except -1:
        """A request that goes nowhere."""
        if self.request_open or self.reader.state != READ_FINISHED:
            self.keep_alive = False
            self.request_open = True
        return self._error(status, cause, detail, "client")

    cdef int _error(self, int status, str cause, str detail, str leg) except -1:
        cdef bytes body = f"{detail}\n".encode("ascii", "replace")
        cdef str quoted = detail.replace("\\", "\\\\").replace('"', '\\"')
        cdef bint keep = self.keep_alive and not self.request_open and not self.context.draining
        self.status = status
        self.keep_alive = keep
        head = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "content-type: text/plain; charset=utf-8",
            f"content-length: {len(body)}",
            f'proxy-status: backstream; error={cause}; leg={leg}; details="{quoted}"',
            f"date: {self.loop.http_date().decode()}",
        ]
        if status == 503:
            head.append("retry-after: 1")
        if status == 405:
            head.append("allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
        if status == 426:
            head.append("sec-websocket-version: 13")
            head.append("upgrade: websocket")
        if not keep:
            head.append("connection: close")
        elif self.minor == 0:
            head.append("connection: keep-alive")
        self.writer.text("\r\n".join(head).encode("ascii", "replace") + b"\r\n\r\n")
        if not self.is_head:
            self.writer.text(body)
            self.sent_bytes = len(body)
        return self._response_done()

    cdef int _log(self) except -1:
        if self.context.access_log is not None and self.logged_method is not None:
            self.context.access_log(self, self.logged_method, self.logged_target,
                                    self.exchange.client_id if self.exchange is not None else b"", self.status,
                                    self.sent_bytes, monotonic() - self.started_at)
            self.logged_method = None
        return 0
