"""HTTP/1.1 on clients' sockets (RFC 9112): reads requests, writes responses, hands over agents' WebSockets.

Rules that hold here:
- One request at a time: what a client sends ahead of its answer is held (bounded) and parsed when its turn comes.
- A body's bytes are read only as far as the stream takes them, into the loop's shared buffer.
- All that a turn of the loop brings for the client leaves in one write, but for large pieces of a body, which leave as
  they come; what the socket does not take stays with the transport, and its credit with the stream.
- Framing is made anew in both directions. A response that breaks off never looks whole.
"""

import asyncio
import logging
import socket
from http import HTTPStatus

from libc.stdint cimport int64_t, uint64_t

from backstream._buffer cimport Buffer, append
from backstream._codec cimport BODY_NONE, BODY_SIZED, Field, ResponseHead, Trailers
from backstream._http._context cimport ServerContext
from backstream._http._front_end cimport (
    FRAMED_CHUNKED, FRAMED_CLOSE, FRAMED_NONE, FRAMED_RAW, FRAMED_SIZED, FrontEnd,
)
from backstream._http._message cimport BODY, END, HEAD, NEED_DATA, READ_BODY, READ_FINISHED, READ_HEAD, Event
from backstream._http._trailers cimport keep_trailers
from backstream._http._writer cimport SocketWriter
from backstream._loop cimport READ_SIZE, monotonic
from backstream._message_codec cimport pairs_of
from backstream._send_batch cimport SendBatch
from backstream._slice cimport Slice, bytes_of, equals, slice_of

from backstream._http._handshake import CLIENT_ID, judge_handshake
from backstream._http._proxy_protocol import read_proxy_header
from backstream._http.errors import MessageError


cdef enum:
    CANCEL = 8
    HELD_SIZE = 65536               # bytes of requests ahead of their turn
    ANSWERS_SIZE = 4096             # of answers in one turn of the loop, after which others have theirs
    LINGER_BYTES = 16777216
    SKIPPED_SIZE = 65536            # bytes of an answered request's body that are read off for the sake of the next one
    TLS_RECORD = 22                 # the first byte of a TLS handshake (RFC 8446 §5.1), which begins no HTTP

cdef double LINGER_SECONDS = 5.0

logger = logging.getLogger("backstream.proxy")

# By their numbers; not a dict, which would want each as an object.
cdef list _STATUS_LINES = [None] * 600
for _status in HTTPStatus:
    _STATUS_LINES[_status.value] = b"HTTP/1.1 %d %s\r\n" % (_status.value, _status.phrase.encode())


cdef class _ProtocolBase(FrontEnd):
    pass


cdef class ServerConnection(_ProtocolBase, asyncio.BufferedProtocol):

    def __init__(self, ServerContext context):
        FrontEnd.__init__(self, context)
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

    def _turn_away(self, str why):
        """Told and closed at once, without waiting for a request."""
        FrontEnd._turn_away(self, why)
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
        cut = self.framing == FRAMED_CLOSE and self.exchange is not None
        self._gone("the client closed its connection")
        if cut:
            # It may only have ended its direction, and would take the end of the connection for that of the body.
            self._break_off()
            return False
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

    cdef int _gone(self, str why, str cut=None) except -1:
        """No further request of this connection is served, those that came ahead of their turn neither."""
        self.held.release()
        self.handshake = None
        return FrontEnd._gone(self, why, cut)

    cdef int _abort(self) except -1:
        self._gone("the proxy dropped the connection")
        # Where the end of the connection is the end of the body, only a reset tells the client of a cut.
        return self._drop(self.framing == FRAMED_CLOSE or self.framing == FRAMED_RAW)

    def abort(self):
        self._abort()

    cdef int _drop(self, bint reset) except -1:
        if self.transport is None:
            return 0
        if reset:
            sock = self.transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.transport.abort()
        return 0

    def drain(self):
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
        if self.skipping:
            # The rest of the body is late.
            self.lingering = True
            return self._close_when_sent()
        if self.reader.between_messages():
            return self._close_when_sent()
        return self._refuse_head(MessageError(408, f"the head did not come within {self.context.header_timeout:g} s"))

    cdef int flush(self) except -1:
        return 0 if self.closed or self.transport is None else self._sent(self.writer.send())

    cdef bint join(self, SendBatch batch) noexcept:
        return not self.closed and self.transport is not None and self.writer.join(batch)

    cdef int flushed(self, Py_ssize_t sent) except -1:
        return 0 if self.closed or self.transport is None else self._sent(self.writer.settle(sent))

    cdef int _sent(self, int64_t taken) except -1:
        """The socket took so many bytes of the body, -1 where it takes no more."""
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
            if self.exchange is not None and self.head_sent:
                self._gone("the client's request is malformed", str(error))
                self._break_off()
            else:
                if self.exchange is not None:
                    self.exchange.abandon(CANCEL, "the client's request is malformed")
                self.held.release()
                if self.reader.state == READ_HEAD:
                    self._refuse_head(error)
                else:
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
                    if self.skipping:
                        self.skipping = False
                        self._next_request()
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

    # --- agents ---

    cdef int _queue_handshake(self) except -1:
        """Judging and answering one takes as long as ten requests, and after a restart all agents come at once.

        Until its turn comes this is a connection like others, and what the agent sends is held.
        """
        fields = pairs_of(self.reader.fields.items, self.reader.fields.count)
        if self.request_open:
            self._judge(fields)     # raises: it has a body
        self.handshake = fields
        self.loop.set_deadline(self, self.context.header_timeout)
        client_id = dict(fields).get(CLIENT_ID)
        return self.loop.enqueue(self, client_id, self.context.table.awaits(client_id))

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
        return judge_handshake(fields, self.reader.minor, self.reader.body != BODY_NONE and self.reader.length != 0,
                               id_optional=self.context.id_optional)

    def _answer_handshake(self):
        """The WebSocket is picows' from then on."""
        handshake = self._judge(self.handshake)
        answer = self.context.on_agent(self, handshake.client_id, self.handshake)
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
        cdef object line = _STATUS_LINES[status] if status < 600 else None
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
            self.writer.text(self.loop.date_line())
        if self.context.draining:
            self.keep_alive = False
        elif self.request_open and (end or status >= 300 or self.awaits_continue or head.body == BODY_SIZED
                                    and not self._is_little_left()):
            # The rest of the request's body is not worth waiting for; a client that waits for 100 need not send it.
            # RFC 9112 §9.6: who is going to close says so, even if the body might end before the answer after all.
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
        cdef int64_t taken
        if self.closing:
            return 0
        if self.framing == FRAMED_NONE:
            return self.exchange.taken(size)
        self.sent_bytes += size
        if self.writer.sends_at_once(size):
            taken = self.writer.send_body(data, size, self.framing == FRAMED_CHUNKED)
            return self._abort() if taken < 0 else self.exchange.taken(taken)
        if self.framing == FRAMED_CHUNKED:
            self.writer.chunk(data, size)
        else:
            self.writer.data(data, size)
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
        if self.request_open and self.keep_alive and self._is_little_left():
            self.skipping = True
            self.loop.set_deadline(self, LINGER_SECONDS)
            return self._update_reading()
        if self.request_open or not self.keep_alive:
            # A socket that is closed on bytes that nobody read is reset, and the answer with it.
            self.lingering = self.request_open or self.held.size > 0
            return self._close_when_sent()
        return self._next_request()

    cdef bint _is_little_left(self) noexcept:
        """Whether the rest of the request's body is known to be small."""
        return self.reader.state == READ_BODY and self.reader.body_left <= SKIPPED_SIZE

    cdef int _next_request(self) except -1:
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
        return self._break_off()

    cdef int _break_off(self) except -1:
        """What came of a response goes out; the missing end says that it is not all."""
        if self.framing == FRAMED_CLOSE or self.framing == FRAMED_RAW:
            self.flush()
            return self._abort()
        return self._close_when_sent()

    cdef list _accept(self):
        if self.handshake is not None:
            return [value for name, value in self.handshake if name == b"accept"]
        return FrontEnd._accept(self)

    cdef int _answer(self, int status, list lines, bytes body) except -1:
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
            self.loop.date_line().decode().rstrip(),
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
