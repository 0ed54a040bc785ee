"""HTTP/1.1 towards the service behind an agent: a bounded pool of kept-alive connections, streaming both ways.

Rules that hold here:
- A connection serves one request at a time and goes back to the pool only when both messages ended as framed and not
  a byte is left over, read or not.
- What cannot be sent again goes on a pooled connection only where neither a byte nor its end has come on it.
- A request that a pooled connection did not answer at all, because the upstream closed it in the same moment, is sent
  once more on a fresh one: if it is idempotent and no byte of a body has been sent.
- The upstream's socket is read only as far as the stream takes its bytes.
"""

import asyncio
import errno
import logging
import re
import socket
import ssl

from libc.errno cimport EAGAIN, errno as c_errno
from libc.stdint cimport int64_t, uint32_t

from backstream._buffer cimport Buffer, append
from backstream._codec cimport BODY_CHUNKED, BODY_NONE, BODY_SIZED, Field, RequestHead, ResponseHead, Trailers
from backstream._http._message cimport (
    BODY, HEAD, NEED_DATA, READ_FINISHED, READ_TO_CLOSE, Event, ResponseReader, goes_on, is_idempotent,
)
from backstream._http._trailers cimport keep_trailers
from backstream._http._writer cimport SocketWriter
from backstream._loop cimport READ_SIZE, LoopMember, loop_state, monotonic
from backstream._send_batch cimport SendBatch
from backstream._service cimport Service
from backstream._slice cimport Slice, bytes_of, equals, slice_of
from backstream._stream cimport Stream, StreamHandler

from backstream._http.errors import MessageError
from backstream._tls import connect_tls
from backstream.certificates import describe
from backstream.errors import StreamError

logger = logging.getLogger("backstream.agent")


cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_recv "recv" (int fd, void* data, size_t size, int flags)
    int MSG_PEEK
    int MSG_DONTWAIT

cdef enum:
    REFUSED = 7
    CANCEL = 8
    TIMEOUT = 32
    UPSTREAM_UNREACHABLE = 33
    UPSTREAM_RESET = 34
    UPSTREAM_PROTOCOL = 35
    TOO_LARGE = 37
    UPSTREAM_CONNECT_TIMEOUT = 39
    UPSTREAM_DNS = 40
    UPSTREAM_UNROUTABLE = 41
    UPSTREAM_TLS = 42
    UPSTREAM_CERTIFICATE = 43
    MAX_WAITING = 10000
    MAX_INTERIM = 16                # that a stream carries
    MOST_INTERIM = 512              # that an upstream may send

cdef object REQUEST_ID = re.compile(rb"\r\nx-request-id: ([^\r\n]*)")


cdef tuple _unreachable(error):
    """The code for a connection that did not come about, and what clients are told: nothing of names and addresses."""
    if isinstance(error, TimeoutError):
        return UPSTREAM_CONNECT_TIMEOUT, "no connection in time"
    if isinstance(error, socket.gaierror):
        return UPSTREAM_DNS, "its name cannot be resolved"
    if isinstance(error, ssl.SSLCertVerificationError):
        return UPSTREAM_CERTIFICATE, "its certificate is not accepted"
    if isinstance(error, ssl.SSLError):
        return UPSTREAM_TLS, "the TLS handshake failed"
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return UPSTREAM_UNROUTABLE, "no route to it"
    return UPSTREAM_UNREACHABLE, "no connection"


cdef class UpstreamService(Service):
    """target: a config.Upstream; settings: AgentSettings; tls: an ssl.SSLContext where the target speaks TLS."""

    def __init__(self, target, settings, tls=None):
        self.target = target
        self.tls = tls
        host, port, path, _ = target
        self.host = b"localhost" if path else (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
        self.connect_timeout = settings.connect_timeout
        self.idle_timeout = settings.idle_timeout
        self.request_timeout = settings.request_timeout
        self.pool_idle_timeout = settings.upstream_idle_timeout
        self.max_connections = settings.upstream_connections
        self.time_left_header = settings.time_left_header
        self.limits.head = settings.max_response_head
        self.limits.target = settings.max_response_head
        self.limits.fields = 1000
        self.limits.trailers = 16384
        self.limits.extensions = 16384
        self.idle = {}
        self.waiting = {}
        self.all_connections = set()
        self.tasks = set()

    async def start(self):
        """Nothing is dialled before the first request: the service may come up later than its agent."""
        self.loop = loop_state()
        self.asyncio_loop = asyncio.get_running_loop()

    async def stop(self):
        """Closes every connection."""
        cdef UpstreamConnection connection
        self.stopping = True
        for task in list(self.tasks):
            task.cancel()
        for connection in list(self.all_connections):
            connection.close()
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=5.0)

    cdef StreamHandler open(self, Stream stream, const RequestHead* head, bint end):
        cdef UpstreamRequest request = UpstreamRequest.__new__(UpstreamRequest)
        cdef SocketWriter writer
        cdef Slice authority = head.authority
        cdef Py_ssize_t i
        cdef bint takes_trailers = False
        self.requests += 1
        request.service = self
        request.stream = stream
        request.body = <BodyKind>head.body
        request.request_ended = end
        request.head_timeout = head.time_budget_ms / 1000.0 if head.time_budget_ms else self.request_timeout
        if end or head.upgrade.size:
            request.wait_for_head()
        request.is_head = stream.answers_head
        request.is_idempotent = is_idempotent(head.method)
        if head.upgrade.size:
            request.upgrade = bytes_of(head.upgrade)
        writer = SocketWriter()
        append(writer.out, head.method.ptr, head.method.size)
        writer.text(b" ")
        append(writer.out, head.target.ptr, head.target.size)
        writer.text(b" HTTP/1.1\r\nhost: ")
        if authority.size == 0:
            authority = slice_of(self.host)
        append(writer.out, authority.ptr, authority.size)
        writer.text(b"\r\n")
        writer.fields(head.fields, head.field_count)
        if head.prefix.size:
            writer.text(b"x-forwarded-prefix: ")
            append(writer.out, head.prefix.ptr, head.prefix.size)
            writer.text(b"\r\n")
        if self.time_left_header and head.time_budget_ms:
            writer.text(b"x-backstream-time-left: ")
            writer.number(head.time_budget_ms)
            writer.text(b"ms\r\n")
        for i in range(head.field_count):
            if equals(head.fields[i].name, b"te", 2):
                takes_trailers = True
        if takes_trailers and request.upgrade is None:
            writer.text(b"connection: te\r\n")       # RFC 9110 §10.1.4
        if head.body == BODY_SIZED:
            writer.text(b"content-length: ")
            writer.number(head.length)
            writer.text(b"\r\n\r\n")
        elif head.body == BODY_CHUNKED:
            writer.text(b"transfer-encoding: chunked\r\n\r\n")
        elif request.upgrade is not None:
            writer.text(b"connection: upgrade, te\r\n" if takes_trailers else b"connection: upgrade\r\n")
            writer.text(b"upgrade: " + request.upgrade + b"\r\n\r\n")
        else:
            writer.text(b"\r\n")
        request.head = writer.out
        self.assign(request, False)
        return request

    cdef int assign(self, UpstreamRequest request, bint fresh) except -1:
        """Finds a connection for a request: the pooled one used last, else a new one, else it waits its turn."""
        cdef UpstreamConnection connection
        while not fresh and self.idle:
            connection = <UpstreamConnection>self.idle.popitem()[0]
            if connection.may_carry(request):
                return connection.begin(request)
            connection.close()
        if self.connections < self.max_connections:
            self.connections += 1
            task = self.asyncio_loop.create_task(self._connect(request))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            return 0
        if len(self.waiting) >= MAX_WAITING:
            return request.failed(REFUSED, "too many requests wait for the upstream")
        self.waiting[request] = None
        return 0

    async def _connect(self, UpstreamRequest request):
        host, port, path, tls = self.target
        cdef UpstreamConnection connection = UpstreamConnection(self)
        connection.counted = True
        try:
            async with asyncio.timeout(self.connect_timeout):
                if tls:
                    await connect_tls(lambda: connection, host, port, self.tls)
                elif path:
                    await self.asyncio_loop.create_unix_connection(lambda: connection, path)
                else:
                    await self.asyncio_loop.create_connection(lambda: connection, host, port)
        except (OSError, TimeoutError) as error:
            self._give_up(connection)
            why = describe(error)
            if isinstance(error, TimeoutError):
                why = f"no connection within {self.connect_timeout:g} s"
            logger.warning("the upstream %s cannot be reached: %s", self.where, why, extra=request.log_fields())
            code, words = _unreachable(error)
            request.failed(code, f"the upstream cannot be reached: {words}")
            self._serve_waiting()
            return
        except BaseException:
            self._give_up(connection)
            request.failed(CANCEL, "the agent is stopping")
            raise
        if connection.closed:
            request.failed(UPSTREAM_RESET, "the upstream closed the connection at once")
        elif request.over:
            self.give_back(connection)
        else:
            connection.begin(request)

    cdef int _give_up(self, UpstreamConnection connection) except -1:
        """Nothing came of it, or it was there and the time was up before the loop said so."""
        connection.close()
        return self._uncount(connection)

    cdef int _uncount(self, UpstreamConnection connection) except -1:
        """The connection takes up no place of the pool's any more; once is enough, more does nothing."""
        if connection.counted:
            connection.counted = False
            self.connections -= 1
        return 0

    @property
    def where(self) -> str:
        """The upstream as text, for logs."""
        host, port, path, _ = self.target
        return f"unix:{path}" if path else f"{host}:{port}"

    cdef int give_back(self, UpstreamConnection connection) except -1:
        """A connection is free again."""
        cdef UpstreamRequest request
        while self.waiting:
            request = <UpstreamRequest>next(iter(self.waiting))
            if not request.over and not connection.may_carry(request):
                return connection.close()       # whereupon it has a new one
            del self.waiting[request]
            if not request.over:
                return connection.begin(request)
        if self.stopping:
            return connection.close()
        self.idle[connection] = None
        return self.loop.set_deadline(connection, self.pool_idle_timeout)

    cdef int gone(self, UpstreamConnection connection) except -1:
        """A connection is closed."""
        if connection in self.all_connections:
            self.all_connections.discard(connection)
            self._uncount(connection)
            self.idle.pop(connection, None)
            self._serve_waiting()
        return 0

    cdef int leave_pool(self, UpstreamConnection connection) except -1:
        """A connection is upgraded: it lives as long as its stream, and only max_streams bounds how many there are."""
        self._uncount(connection)
        return self._serve_waiting()

    cdef int _serve_waiting(self) except -1:
        cdef UpstreamRequest request
        while self.waiting and self.connections < self.max_connections and not self.stopping:
            request = <UpstreamRequest>next(iter(self.waiting))
            del self.waiting[request]
            if not request.over:
                self.assign(request, True)
        return 0


cdef class UpstreamRequest(StreamHandler):

    cdef int connected(self, UpstreamConnection connection) except -1:
        """There is a connection: sends what came so far."""
        self.connection = connection
        append(connection.writer.out, self.head.data, self.head.size)
        if self.upgrade is None:
            if self.early is not None:
                self._write_body(self.early.data, self.early.size)
                self.early = None
            if self.request_ended:
                self._write_end()
        connection.loop.schedule_flush(connection)
        return 0

    cdef dict log_fields(self):
        """What log records about it carry."""
        match = REQUEST_ID.search(self.head.data[:self.head.size])
        return self.stream.session.owner.log_fields | {
            "stream": self.stream.id, "request": match[1].decode("latin-1") if match is not None else None}

    cdef int failed(self, uint32_t code, str message) except -1:
        """No answer, or no whole one, will come."""
        if self.over:
            return 0
        self.over = True
        self.connection = None
        return self.stream.reset(code, message)

    cdef int _write_body(self, const char* data, Py_ssize_t size) except -1:
        if self.body == BODY_CHUNKED and not self.connection.raw:
            return self.connection.writer.chunk(data, size)
        return self.connection.writer.data(data, size)

    cdef int _write_end(self) except -1:
        if self.body == BODY_CHUNKED:
            self.connection.writer.text(b"0\r\n")
            if self.early_trailers is not None:
                self.connection.writer.text(self.early_trailers)
            self.connection.writer.text(b"\r\n")
        return 0

    # --- from the stream ---

    cdef int on_data(self, Stream stream, const char* data, Py_ssize_t size) except -1:
        self.body_begun = True
        if self.over:
            stream.consume(size)
            return 0
        if self.connection is None or self.upgrade is not None and not self.connection.raw:
            # What is meant for the new protocol would be another request to an upstream that stays with HTTP.
            if self.early is None:
                self.early = Buffer()
            return append(self.early, data, size)
        self.connection.active_at = monotonic()
        if self.connection.can_send_at_once(size):
            return self.connection.send_body(data, size, self.body == BODY_CHUNKED and not self.connection.raw)
        self._write_body(data, size)
        return self.connection.loop.schedule_flush(self.connection)

    cdef int on_end(self, Stream stream, const Trailers* trailers) except -1:
        cdef SocketWriter lines
        self.request_ended = True
        if self.over:
            return 0
        self.wait_for_head()
        if trailers != NULL and self.body == BODY_CHUNKED:
            lines = SocketWriter()
            lines.fields(trailers.fields, keep_trailers(trailers.fields, trailers.field_count))
            self.early_trailers = lines.out.data[:lines.out.size]
        if self.connection is not None:
            if self.connection.raw:
                self.connection.half_closing = True
                self.connection._raw_half_ended()
            elif self.upgrade is None:
                self._write_end()
            self.connection.loop.schedule_flush(self.connection)
        return 0

    cdef int wait_for_head(self) except -1:
        """The request is complete: from now on the response's head has its limit."""
        if self.head_timeout > 0:
            self.head_due = monotonic() + self.head_timeout
            if self.connection is not None:
                self.connection.set_deadline()
        return 0

    cdef int on_reset(self, Stream stream, uint32_t code, str message) except -1:
        cdef UpstreamConnection connection = self.connection
        if self.over:
            return 0
        self.over = True
        self.connection = None
        self.early = None
        self.service.waiting.pop(self, None)
        if connection is not None:
            # An answer is under way that nobody wants: the connection can't be used for another.
            connection.request = None
            if connection.raw:
                # Of an upgraded stream, only a reset tells the upstream that it is cut.
                sock = connection.transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            connection.close()
        return 0

    cdef int on_writable(self, Stream stream) except -1:
        if self.connection is not None:
            self.connection._update_reading()
        return 0


cdef class _ProtocolBase(LoopMember):
    pass


cdef class UpstreamConnection(_ProtocolBase, asyncio.BufferedProtocol):

    def __init__(self, UpstreamService service):
        self.service = service
        self.loop = service.loop
        self.writer = SocketWriter()
        self.reader = ResponseReader()
        self.reader.limits = service.limits
        self.reading = True

    # --- asyncio ---

    def connection_made(self, transport):
        self.transport = transport
        self.writer.attach(transport)
        self.service.all_connections.add(self)

    def get_buffer(self, sizehint):
        cdef int64_t room
        self.offered = READ_SIZE
        if self.request is not None:
            room = self.request.stream.room()
            if 4096 < room < READ_SIZE:
                self.offered = room
                return self.loop.read_view[:room]
        return self.loop.read_view

    def buffer_updated(self, Py_ssize_t nbytes):
        self.filled = nbytes == self.offered
        self.input(self.loop.read_buffer, nbytes)

    def eof_received(self):
        cdef UpstreamRequest request = self.request
        if request is None:
            self.close()
            return False
        if self.raw:
            self.upstream_ended = True
            request.stream.end()
            self._raw_half_ended()
            return True
        if self.reader.state == READ_TO_CLOSE and not self.unwritable:
            self.reader.at_end_of_file()
            self._response_end()
        elif not self._send_again():
            self._broken(UPSTREAM_RESET, "the upstream closed the connection before its answer was complete")
        return False

    def pause_writing(self):
        self.writer.blocked = True

    def resume_writing(self):
        cdef int64_t taken = self.writer.resume()
        if taken and self.request is not None:
            self.active_at = monotonic()
            self.request.stream.consume(taken)
        if not self.closed:
            self.loop.schedule_flush(self)

    def connection_lost(self, exc):
        self.closed = True
        self.loop.clear_deadline(self)
        if self.request is not None:
            if not self._send_again():
                self._broken(UPSTREAM_RESET, "the upstream reset the connection")
        self.service.gone(self)
        self.reader.close()
        self.writer.out.release()
        self.transport = None

    def _send_again(self):
        """Whether the request goes to a fresh connection, since this one ended without a byte of an answer."""
        cdef UpstreamRequest request = self.request
        if (request is None or self.answered or not self.reused or request.retried or request.body_begun
                or request.body == BODY_CHUNKED or not request.is_idempotent or request.over):
            return False
        self.request = None
        request.connection = None
        request.retried = True
        self.close()
        self.service.assign(request, True)
        return True

    # --- LoopMember ---

    cdef int on_deadline(self) except -1:
        cdef double left
        if self.request is None:
            return self.close()
        if self.request.head_due and self.request.head_due <= monotonic():
            return self._broken(TIMEOUT, f"no response within {self.request.head_timeout:g} s")
        left = self.active_at + self.service.idle_timeout - monotonic()
        if left > 0:
            return self.set_deadline()
        if not self.reading:
            # This side pauses the reading: it is the proxy that judges its client.
            return self.loop.set_deadline(self, self.service.idle_timeout)
        return self._broken(TIMEOUT, f"the upstream was silent for {self.service.idle_timeout:g} s")

    cdef bint can_send_at_once(self, Py_ssize_t size) noexcept:
        return self.writer.sends_at_once(size) and not self.unwritable and not self.closed

    cdef int send_body(self, const char* data, Py_ssize_t size, bint chunked) except -1:
        return self._sent(self.writer.send_body(data, size, chunked))

    cdef int _sent(self, int64_t taken) except -1:
        """Grants again what the upstream has taken, -1 where it takes no more."""
        if taken < 0:
            # An answer that came before the reset is still to be read: reading says when it is over.
            self.unwritable = True
            self.loop.schedule_flush(self)
        elif taken and self.request is not None:
            self.request.stream.consume(taken)
        return 0

    cdef int flush(self) except -1:
        cdef int64_t left = self.writer.body
        if self.closed or self.transport is None:
            return 0
        if self.unwritable:
            self.writer.out.size = self.writer.body = 0
            self._sent(left)
        else:
            self._sent(self.writer.send())
        return self._half_close_when_sent()

    cdef bint join(self, SendBatch batch) noexcept:
        return not self.closed and self.transport is not None and not self.unwritable and self.writer.join(batch)

    cdef int flushed(self, Py_ssize_t sent) except -1:
        if self.closed or self.transport is None:
            return 0
        self._sent(self.writer.settle(sent))
        return self._half_close_when_sent()

    cdef int _half_close_when_sent(self) except -1:
        if self.half_closing and self.writer.empty():
            self.half_closing = False
            if self.upstream_ended:
                return self._finish_raw()
            self.writer.half_close()
        return 0

    # --- requests and responses ---

    cdef bint may_carry(self, UpstreamRequest request) except -1:
        """Whether a request may go on this connection, which has served before: one that is safe to repeat always may.

        For another, who asks pays a system call: it would fail for an end that came and is not read yet.
        """
        return request.is_idempotent and request.body == BODY_NONE or self._is_quiet()

    cdef bint _is_quiet(self) except -1:
        """Whether there is nothing to read, not even the end."""
        cdef char byte
        if self.writer.tls is not None and self.writer.tls.has_unread():
            return False
        return self.writer.fd < 0 or (c_recv(self.writer.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0
                                      and c_errno == EAGAIN)

    cdef int begin(self, UpstreamRequest request) except -1:
        self.request = request
        self.answered = False
        self.reader.answers_head = request.is_head
        self.active_at = monotonic()
        self.set_deadline()
        return request.connected(self)

    cdef int set_deadline(self) except -1:
        """Whichever comes first: the upstream is silent for too long, or the response's head is overdue."""
        cdef double at = self.active_at + self.service.idle_timeout
        if self.request.head_due:
            at = min(at, self.request.head_due)
        return self.loop.set_deadline(self, max(0.0, at - monotonic()))

    cdef int input(self, char* data, Py_ssize_t size) except -1:
        cdef Event event
        if self.closed:
            return 0
        if self.request is None:
            # Nobody asked for it.
            return self.close()
        self.answered = True
        self.active_at = monotonic()
        try:
            while self.request is not None and not self.closed:
                if self.raw:
                    if size:
                        self.request.stream.write(data[:size])
                    break
                event = self.reader.read(&data, &size)
                self.spoilt = size > 0
                if event == NEED_DATA:
                    break
                if event == HEAD:
                    self._response_head()
                    if self.reader.state == READ_FINISHED and self.request is not None and not self.raw:
                        if self.reader.status < 200:
                            self.reader.next_message()
                            self.reader.answers_head = self.request.is_head
                        else:
                            self._response_end()
                            break
                elif event == BODY:
                    self.request.stream.write(self.reader.take_body())
                    if self.reader.state == READ_FINISHED:
                        self._response_end()
                        break
                else:
                    self._response_end()
                    break
            if size and not self.raw and not self.closed:
                # Bytes behind a complete answer that nobody asked for.
                return self.close()
        except MessageError as error:
            logger.warning("the upstream %s sent a malformed answer: %s", self.service.where, error,
                           extra=None if self.request is None else self.request.log_fields())
            if error.cause == "http_response_header_section_size":
                self._broken(TOO_LARGE, f"the upstream's answer: {error}")
            else:
                self._broken(UPSTREAM_PROTOCOL, f"the upstream's answer is malformed: {error}")
        except StreamError as error:
            self._broken(error.code, f"the upstream's answer: {error}")
        if self.request is not None and not self.closed:
            self._update_reading()
        return 0

    cdef int _response_head(self) except -1:
        cdef ResponseReader reader = self.reader
        cdef UpstreamRequest request = self.request
        cdef ResponseHead head
        cdef Field* field
        cdef Py_ssize_t i, count = 0
        for i in range(reader.fields.count):
            field = &reader.fields.items[i]
            if not goes_on(field.kind):
                continue
            if count != i:
                reader.fields.items[count] = field[0]
            count += 1
        head.status = reader.status
        head.reason = reader.reason
        head.upgrade.size = 0
        head.fields = reader.fields.items
        head.field_count = count
        head.length = 0
        if reader.status == 101:
            return self._switch(&head)
        if reader.status < 200:
            head.body = BODY_NONE
            request.interim_count += 1
            if request.interim_count > MOST_INTERIM:
                raise MessageError(502, f"more than {MOST_INTERIM} interim heads")
            # RFC 9110 §15.2: more than a stream carries may be dropped. While the client may wait for a 100, the last
            # place is kept for that.
            if request.stream.interim_count < (MAX_INTERIM if reader.status == 100 or request.request_ended
                                               else MAX_INTERIM - 1):
                return request.stream.respond_interim(&head)
            return 0
        request.head_timeout = request.head_due = 0.0
        head.body = reader.body
        if reader.body == BODY_SIZED:
            head.length = reader.length
        elif reader.body == BODY_NONE and reader.length >= 0 and reader.status != 204:
            # An answer to HEAD, or a 304, describes what a GET would have had.
            head.body = BODY_SIZED
            head.length = reader.length
        return request.stream.respond(&head, reader.state == READ_FINISHED)

    cdef int _switch(self, ResponseHead* head) except -1:
        """101: the connection is raw bytes from here on, both ways."""
        cdef UpstreamRequest request = self.request
        if request.upgrade is None:
            raise MessageError(502, "101 to a request that offered no upgrade")
        if not self.reader.upgrade or bytes_of(self.reader.upgrade_value).lower() != request.upgrade.lower():
            raise MessageError(502, "101 to another protocol than was offered")
        head.upgrade = slice_of(request.upgrade)
        head.body = BODY_NONE
        self.raw = True
        request.head_timeout = request.head_due = 0.0
        self.service.leave_pool(self)
        # An idle one is ended by its own peers: protocols that switch have pings of their own.
        self.loop.clear_deadline(self)
        request.stream.respond(head, False)
        if request.early is not None:
            request._write_body(request.early.data, request.early.size)
            request.early = None
            self.loop.schedule_flush(self)
        if request.request_ended:
            self.half_closing = True
            self.loop.schedule_flush(self)
            return self._raw_half_ended()
        return 0

    cdef int _raw_half_ended(self) except -1:
        """One direction of an upgraded connection has ended: the other may go on, within the idle limit."""
        if self.upstream_ended and self.request.request_ended and not self.half_closing and self.writer.empty():
            return self._finish_raw()
        self.active_at = monotonic()
        return self.loop.set_deadline(self, self.service.idle_timeout)

    cdef int _response_end(self) except -1:
        """The answer is complete; the connection is reused if its framing was clean on both sides."""
        cdef UpstreamRequest request = self.request
        cdef Trailers trailers
        cdef bint reusable = (self.reader.keep_alive and request.request_ended and request.upgrade is None
                              and self.writer.empty() and not self.spoilt and not self.unwritable)
        self.request = None
        request.over = True
        request.connection = None
        if self.reader.trailer_fields is not None:
            trailers.fields = self.reader.trailer_fields.items
            trailers.field_count = keep_trailers(trailers.fields, self.reader.trailer_fields.count)
            request.stream.end_with_trailers(&trailers)
        else:
            request.stream.end()
        if not reusable:
            return self.close()
        if (self.filled or self.writer.tls is not None and self.writer.tls.may_have_more()) and not self._is_quiet():
            # The answer ends where a read did, and behind it lies what nobody asked for.
            return self.close()
        self.reader.next_message()
        self.writer.forget_body()
        self.reused = True
        if not self.reading:
            self.reading = True
            self.transport.resume_reading()
        return self.service.give_back(self)

    cdef int _finish_raw(self) except -1:
        """Both directions of an upgraded connection have ended, and the kernel has all that was written."""
        cdef UpstreamRequest request = self.request
        self.request = None
        request.over = True
        request.connection = None
        return self.close()

    cdef int _update_reading(self) except -1:
        cdef bint wanted
        if self.transport is None or self.closed or self.request is None:
            return 0
        wanted = self.request.stream.room() > 0
        if wanted == self.reading:
            return 0
        self.reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()
        return 0

    cdef int _broken(self, uint32_t code, str message) except -1:
        cdef UpstreamRequest request = self.request
        self.request = None
        if request is not None:
            request.failed(code, message)
        return self.close()

    cdef int close(self) except -1:
        if not self.closed:
            self.closed = True
            self.loop.clear_deadline(self)
            self.service.gone(self)
            if self.transport is not None:
                self.transport.abort()
        return 0
