"""Sessions on picows WebSocket transports.

Rules that hold here:
- Whatever a session has to say in one turn of the loop leaves as few messages as it takes, in one flush.
- DATA waits while the transport is above its high-water mark; reading never does.
- Any byte is a sign of life; ours is a WebSocket ping, which also measures the round trip.
- What picows does not document of itself, `WSProtocol` and how its `WSTransport` writes, is used in this file only, and
  tests say when it changes. It reads frames and makes those of control; messages are written without it.
"""

import asyncio
import logging
import os
import socket
import struct
import sys

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from picows.picows cimport WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from backstream._buffer cimport Buffer, append
from backstream._codec cimport MAX_MESSAGE_SIZE
from backstream._loop cimport READ_SIZE, LoopMember, LoopState, monotonic
from backstream._session cimport Session
from backstream._stream cimport SessionOwner
from backstream._tls cimport TlsTransport
from backstream._websocket_frames cimport FrameWriter

from backstream._http._handshake import plain_connection
from backstream._tls import connect_tls
from picows import WSAutoPingStrategy, WSUpgradeResponse
from picows.common import WSUpgradeResponseWithListener
from picows.picows import WSProtocol


SUBPROTOCOL = "backstream.v1"

cdef extern from "<sys/socket.h>" nogil:
    int setsockopt(int fd, int level, int name, const void* value, unsigned int size)

cdef enum:
    PROTOCOL_ERROR = 1
    INTERNAL = 2

    HIGH_WATER = 131072             # bytes in the transport's buffer
    LOW_WATER = 32768
    SLOW_MESSAGE = 32768            # bytes of DATA in a message while the transport is slow to drain
    # picows doubles its buffer when a read fills it to 90 %. Beginning here it comes to 384 KiB, where a whole
    # message and one more read fit, and stays there.
    FIRST_READ_BUFFER = 6144 + 256

    FIRST_PINGS = 3                 # beside the one at once, whose answer may have met a busy moment
    QUIET_BYTES = 16384             # of messages, which no queue is made of
    LARGE_READ = 131072             # bytes
    SPARE = 49152                   # bytes of picows' buffer that a large read leaves free
    TURN_BYTES = 131072             # written in one turn of the loop
    TURN_READ = 130560              # bytes of full reads in one turn: two pieces, or a large one
    # Of DATA in a message: with the headers of WebSocket, TCP and IP it is one segment for loopback and for the
    # kernel's segmentation, which have 65,536 bytes at most. The rest of a larger one would be a segment of its own.
    MESSAGE_BYTES = 65408
    MAX_ANSWER = 16384              # bytes of an answer's head, from where on picows refuses it
    SMALL_FRAGMENT = 128            # bytes
    FREE_SMALL_FRAGMENTS = 8        # of a message, such as headers that come by themselves
    LONGEST_UNCUT = 65536           # bytes of a frame; a multiple of four, so that the mask goes on as it is

cdef double CLOSE_SECONDS = 2.0     # for the peer to answer a close frame

TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", 25)

# asyncio's own transports of Python 3.12.0 to 3.12.8, 3.13.0 and 3.13.1 do not say in `writelines` that they are full
# (CVE-2024-12254). Setting the limits, as publicly as one may, has them look.
PAUSES_LATE = (3, 12) <= sys.version_info < (3, 12, 9) or (3, 13) <= sys.version_info < (3, 13, 2)

# picows says at ERROR what its peers do wrong; here that is the peer's business, and the session's log line says it.
# In an adapter, since it would make every connection a Logger of its own.
logging.getLogger("backstream.picows").setLevel(logging.CRITICAL)
_picows_logger = logging.LoggerAdapter(logging.getLogger("backstream.picows"))

logger = logging.getLogger("backstream.session")


cdef int _set_option(int fd, int level, int name, int value) except -1:
    """As `socket.setsockopt`, for which uvloop's sockets make an object each time."""
    if setsockopt(fd, level, name, &value, sizeof(value)):
        raise OSError(errno, os.strerror(errno))
    return 0


cdef WSCloseCode _close_answer(WSFrame frame) except *:
    """The code that answers a close frame: its own, if it may stand in one (RFC 6455 §7.4; picows refuses others)."""
    cdef int code
    if frame.payload_size == 0:
        return WSCloseCode.OK
    code = <int>frame.get_close_code()
    return WSCloseCode.PROTOCOL_ERROR if code < 1000 or code == 1006 or code >= 5000 else frame.get_close_code()


cdef class _ProtocolBase:
    pass


cdef class LinkMember(LoopMember):
    """A link's place on its loop."""

    cdef int flush(self) except -1:
        return 0 if self.link is None else self.link.flush()

    cdef int on_deadline(self) except -1:
        return 0 if self.link is None else self.link.deadline()

    cdef int on_turn(self) except -1:
        return 0 if self.link is None or self.link._guard is None else self.link._guard.take_first()


cdef class LinkListener(WSListener):
    """picows' view of a link; of one that has let go it hears no more."""

    cpdef on_ws_connected(self, WSTransport transport):
        if self.link is None:
            transport.disconnect(False)
        else:
            self.link.connected(transport)

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        if self.link is not None:
            self.link.frame(frame)

    cpdef on_ws_disconnected(self, WSTransport transport):
        if self.link is not None:
            self.link.lose("the connection was lost")

    def control(self, frame):
        """picows' way to the socket."""
        if self.link is not None:
            self.link.control(bytes(frame))

    cpdef pause_writing(self):
        if self.link is None:
            return
        self.link._slow = True
        self.link.session.set_congested(True)
        if self.link._carrier is not None:
            self.link._carrier.paused()

    cpdef resume_writing(self):
        if self.link is not None:
            self.link.session.set_congested(False)
            self.link.wake()


cdef class FrameCutter:
    """Cuts large WebSocket frames into fragments (RFC 6455 §5.4) on their way to picows.

    It would hold a frame whole, in a buffer that never becomes smaller again.
    """

    cdef int take(self, ReadGuard guard, const char* data, Py_ssize_t size) except -1:
        cdef Py_ssize_t at = 0, run = 0, count      # data[run:at] goes on as it is
        while at < size:
            if self.piece_left:
                count = size - at
                if <uint64_t>count > self.piece_left:
                    count = <Py_ssize_t>self.piece_left
                at += count
                self.piece_left -= count
                self.left -= count
                if self.piece_left == 0 and self.left:
                    guard.pass_on(data + run, at - run)
                    run = at
                    self._next_piece(guard)
                continue
            count = self._head_size(<const uint8_t*>data + at, size - at) if self.head_size == 0 else 0
            if 0 < count <= size - at:
                # The whole head is here.
                if self._begin(<const uint8_t*>data + at):
                    guard.pass_on(data + run, at - run)
                    run = at + count
                    memcpy(self.head, data + at, count)
                    self._next_piece(guard)
                at += count
                continue
            # It comes in several reads: gathered, and passed on when it is whole.
            guard.pass_on(data + run, at - run)
            self.head[self.head_size] = <uint8_t>data[at]
            self.head_size += 1
            at += 1
            run = at
            count = self._head_size(self.head, self.head_size)
            if count == self.head_size:
                self.head_size = 0
                if self._begin(self.head):
                    self._next_piece(guard)
                else:
                    guard.pass_on(<const char*>self.head, count)
        return guard.pass_on(data + run, at - run)

    cdef Py_ssize_t _head_size(self, const uint8_t* head, Py_ssize_t known) noexcept:
        """The bytes of a frame's head, 0 where too few are known to tell."""
        cdef int length
        if known < 2:
            return 0
        length = head[1] & 0x7f
        return 2 + (2 if length == 126 else 8 if length == 127 else 0) + (4 if head[1] & 0x80 else 0)

    cdef bint _begin(self, const uint8_t* head) noexcept:
        """A frame begins; whether it is to be cut. One that is too long for picows is left to it."""
        cdef int i, length = head[1] & 0x7f
        self.left = length
        if length >= 126:
            self.left = 0
            for i in range(2 if length == 126 else 8):
                self.left = self.left << 8 | head[2 + i]
        self.first = True
        if LONGEST_UNCUT < self.left <= <uint64_t>self.max_frame_size and not head[0] & 0x08:
            return True
        self.piece_left = self.left
        return False

    cdef int _next_piece(self, ReadGuard guard) except -1:
        """Passes the head of the next fragment on."""
        cdef uint8_t head[14]
        cdef Py_ssize_t size = 4
        cdef bint last = self.left <= LONGEST_UNCUT
        self.piece_left = self.left if last else LONGEST_UNCUT
        head[0] = self.head[0] & 0x7f if self.first else 0
        if last:
            head[0] |= self.head[0] & 0x80
        self.first = False
        head[1] = self.head[1] & 0x80
        if self.piece_left < 126:
            head[1] |= <uint8_t>self.piece_left
            size = 2
        elif self.piece_left < 65536:
            head[1] |= 126
            head[2] = <uint8_t>(self.piece_left >> 8)
            head[3] = <uint8_t>self.piece_left
        else:
            head[1] |= 127
            head[2] = head[3] = head[4] = head[5] = head[6] = 0
            head[7] = <uint8_t>(self.piece_left >> 16)
            head[8] = <uint8_t>(self.piece_left >> 8)
            head[9] = <uint8_t>self.piece_left
            size = 10
        if head[1] & 0x80:
            memcpy(head + size, self.head + 10, 4)      # a frame that is cut has a length of 8 bytes
            size += 4
        return guard.pass_on(<const char*>head, size)


cdef class AnswerReader(FrameCutter):
    """Gathers the answer to a handshake, for the sake of one field that picows knows one value of only."""

    def __init__(self):
        self.answer = Buffer()

    cdef int take(self, ReadGuard guard, const char* data, Py_ssize_t size) except -1:
        cdef bytes whole, head
        append(self.answer, data, size)
        whole = self.answer.data[:self.answer.size]
        head, end, rest = whole.partition(b"\r\n\r\n")
        if not end and len(whole) < MAX_ANSWER:
            return 0
        self.answer.release()
        whole = plain_connection(head) + end + rest
        guard._cutter = None
        return guard.pass_on(whole, len(whole))


cdef class ReadGuard(_ProtocolBase, asyncio.BufferedProtocol):
    """Between the socket and picows: reads in pieces, so that picows' buffer stays bounded, and sees every byte."""

    def __init__(self, protocol, SessionLink link):
        self._protocol = protocol
        self._get_buffer = protocol.get_buffer
        self._buffer_updated = protocol.buffer_updated
        self._link = link

    def get_buffer(self, sizehint):
        cdef Py_ssize_t room
        if self._cutter is not None:
            self._offered = READ_SIZE
            return self._link.loop.read_view
        view = self._get_buffer(sizehint)
        # More than one piece where picows' buffer does not grow by it.
        room = max(READ_SIZE, min(LARGE_READ, len(view) - SPARE))
        if len(view) > room:
            view = view[:room]
        self._offered = len(view)
        return view

    def buffer_updated(self, Py_ssize_t nbytes):
        if self._spread and self._link.session.peer_hello is None:
            # The HELLOs of agents that come at once: 200 of them took 5 ms of one turn.
            self._first_bytes = nbytes
            self.hold(True)
            self._link.queue_hello()
            return
        self._take(nbytes)

    cdef int take_first(self) except -1:
        """Takes what came when it was not its turn."""
        cdef Py_ssize_t count = self._first_bytes
        self._first_bytes = 0
        if count and not self._link._lost:
            self.hold(False)
            self._take(count)
            self._link.greeted()
        return 0

    cdef int _take(self, Py_ssize_t nbytes) except -1:
        cdef FrameCutter cutter
        self._link._received_at = monotonic()
        if self._cutter is not None:
            cutter = self._cutter       # it may be done with, and is not to go within its own method
            cutter.take(self, self._link.loop.read_buffer, nbytes)
        else:
            self._buffer_updated(nbytes)
        if self._link._transport is None:
            return 0
        self._judge()
        if nbytes < self._offered and not self._decrypts:
            # The socket is empty.
            self._turn_bytes = 0
            return 0
        self._turn_bytes += nbytes
        if self._turn_bytes >= TURN_READ and not self._paused and not self._link._lost:
            # libuv reads on as long as a read is full, 32 times: others wait for their turn meanwhile.
            self._paused = True
            self._link._transport.underlying_transport.pause_reading()
            self._link.loop.schedule_flush(self._link._member)
        return 0

    cdef int feed(self, bytes data) except -1:
        """Takes what was read before the connection was this guard's."""
        cdef FrameCutter cutter = self._cutter
        if cutter is not None:
            cutter.take(self, data, len(data))
        else:
            self.pass_on(data, len(data))
        return 0 if self._link._transport is None else self._judge()

    cdef int _judge(self) except -1:
        if self._link._broken and not self._link._lost:
            # What is wrong was said, and picows would go on reading.
            self._link._transport.disconnect()
            self._link.lose("the peer broke the WebSocket protocol")
        return 0

    cdef int pass_on(self, const char* data, Py_ssize_t size) except -1:
        """Hands picows bytes that are not in its buffer yet."""
        cdef Py_buffer room
        cdef Py_ssize_t count
        # picows closes on what it refuses, and asyncio complains of a protocol that is given more all the same.
        while size > 0 and not self._link._lost and not self._raw.is_closing():
            PyObject_GetBuffer(self._get_buffer(-1), &room, PyBUF_WRITABLE)
            count = min(size, room.len)
            memcpy(room.buf, data, count)
            PyBuffer_Release(&room)
            data += count
            size -= count
            self._buffer_updated(count)
        return 0

    cdef int next_turn(self) except -1:
        self._turn_bytes = 0
        if self._paused:
            self._paused = False
            if not self._link._lost and not self._held:
                self._link._transport.underlying_transport.resume_reading()
        return 0

    cdef int hold(self, bint held) except -1:
        """Stops the reading, or lets it go on."""
        if held == self._held or self._link._lost:
            return 0
        self._held = held
        if not self._paused:
            if held:
                self._link._transport.underlying_transport.pause_reading()
            else:
                self._link._transport.underlying_transport.resume_reading()
        return 0

    def connection_made(self, transport):
        self._raw = transport
        self._decrypts = isinstance(transport, TlsTransport)
        self._protocol.connection_made(transport)

    def connection_lost(self, exc):
        self.error = exc
        self._protocol.connection_lost(exc)
        self._raw = self._protocol = self._get_buffer = self._buffer_updated = None
        self._link.lose("the connection was lost")
        self._link.let_go()

    def eof_received(self):
        return self._protocol.eof_received()

    def pause_writing(self):
        self._protocol.pause_writing()

    def resume_writing(self):
        self._protocol.resume_writing()


cdef class Carrier:

    cdef int send(self) except -1:
        """Writes what the session has to say, about as much as one turn of the loop should."""
        return 0

    cdef int frame(self, WSFrame frame) except -1:
        """A frame of a message came."""
        return 0

    cdef int paused(self) except -1:
        """The transport is above its high-water mark."""
        return 0

    cdef double next_deadline(self, double at) noexcept:
        """When `deadline` is to be called, `at` or sooner, in seconds."""
        return at

    cdef int deadline(self, double now) except -1:
        return 0

    cdef int lost(self) except -1:
        return 0


cdef class SessionLink(SessionOwner):

    cdef int begin(self, LoopState loop, Session session, object settings) except -1:
        """Sets up the parts; `settings` are SessionSettings."""
        self.loop = loop
        self.session = session
        self._ping_interval = settings.ping_interval
        self._ping_timeout = settings.ping_timeout
        self._hello_timeout = settings.hello_timeout
        self._message_timeout = settings.message_timeout
        self._fragments = Buffer()
        self._member = LinkMember()
        self._member.loop = loop
        self._member.link = self
        self._listener = LinkListener()
        self._listener.link = self
        return 0

    cdef int queue_hello(self) except -1:
        """What is to be taken of the session first waits for its turn."""
        return self.loop.enqueue(self._member, None, False)

    cdef int connected(self, WSTransport transport) except -1:
        cdef object raw = transport.underlying_transport
        cdef object sock = raw.get_extra_info("socket")
        self._transport = transport
        self._writer = FrameWriter(raw, transport.is_client_side, transport.is_secure)
        # As under TLS it does not write to the socket then: whatever it makes, be it on its own, comes here.
        transport.is_secure = True
        transport._tr_write = self._listener.control
        self._received_at = monotonic()
        raw.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        self._pauses_late = PAUSES_LATE and type(raw).__module__ == "asyncio.selector_events"
        if sock is not None and sock.family != socket.AF_UNIX:
            _set_option(sock.fileno(), socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, HIGH_WATER)
            _set_option(sock.fileno(), socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._hello_due = self._received_at + self._hello_timeout
        self.loop.set_deadline(self._member, self._hello_timeout)
        self._first_pings = FIRST_PINGS
        self._send_ping()
        return self.wake()

    def begin_service(self):
        """The link is where it belongs: a session that needs no HELLO is ready."""
        if self._carrier is not None and not self._lost:
            self.on_hello(self.session.peer_hello)

    # --- from the session ---

    @property
    def log_fields(self) -> dict:
        """What log records about it carry: its id and its session."""
        return {"id": str(self.name), "session": self.session_name}

    cdef int set_session_name(self, bytes instance, generation) except -1:
        self.session_name = f"{instance[:4].hex()}-{generation}"
        return 0

    cdef double now(self) noexcept:
        return monotonic()

    cdef int wake(self) except -1:
        if self._transport is not None and not self._lost:
            self.loop.schedule_flush(self._member)
        return 0

    cdef int on_time(self, double at) except -1:
        return self._set_deadline()

    cdef int flush_early(self) except -1:
        if self._transport is not None and not self._lost:
            if self.loop.pulling:       # ending a stream within `pull` may open others: the buffer is in use
                return self.wake()
            self._send_messages()
        return 0

    cdef int on_close(self, uint32_t code, str message, int close_code) except -1:
        if message:
            logger.info("session of %s ends: %s", self.name, message, extra=self.log_fields)
        self._closing = True
        self._close_code = close_code
        self._close_reason = message
        return self.wake()

    # --- sending ---

    cdef int flush(self) except -1:
        if self._guard is not None:
            self._guard.next_turn()
        if self._lost:
            return 0
        self._send_messages()
        self.session.after_pull()
        if self.session.has_output() and not self.session.congested:
            self.wake()
        elif self._closing and not self._transport.is_close_frame_sent:
            self.end(self._close_code, self._close_reason)
        return 0

    def _send_messages(self):
        cdef Py_ssize_t size, sent = 0
        cdef char* message = self.loop.message_buffer
        if self._carrier is not None:
            return self._carrier.send()
        while (not self.session.congested or self.session.closed) and self.session.has_output():
            self.loop.pulling = True
            try:
                size = self.session.pull(message, SLOW_MESSAGE if self._slow else MESSAGE_BYTES)
            finally:
                self.loop.pulling = False
            if size == 0:
                break
            if not self._transport.is_close_frame_sent:
                self._writer.message(message, size)
            if self._pauses_late:
                self._transport.underlying_transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
            sent += size
            if sent > TURN_BYTES - MESSAGE_BYTES:
                # Bulk goes on in the next turn; what came in meanwhile goes before it.
                break
        self.bytes_sent += sent
        if (self._slow and not self.session.congested
                and self._transport.underlying_transport.get_write_buffer_size() == 0):
            self._slow = False

    cdef int control(self, bytes frame) except -1:
        """picows has made a control frame: one that it was asked for, or a close frame since it can't read on."""
        if frame[0] & 0x0f == WSMsgType.CLOSE and not self._says_close:
            self._break_off(self._writer.payload_of(frame))
        self._writer.control(frame)
        return 0

    def _break_off(self, bytes close):
        """The peer broke a rule of RFC 6455's that picows watches over: it is told as of others. close: the payload."""
        cdef int close_code = int.from_bytes(close[:2], "big")
        cdef str why = close[2:].decode("utf-8", "replace")
        self._broken = True
        if self._lost or self.session.closed:
            return
        logger.info("session of %s ends: %s", self.name, why, extra=self.log_fields)
        if self._carrier is None:
            self.session.tell_end(INTERNAL if close_code == WSCloseCode.INTERNAL_ERROR else PROTOCOL_ERROR, why)
            self.flush_early()

    cdef int _send_close(self, WSCloseCode code, bytes reason) except -1:
        self._says_close = True
        self._transport.send_close(code, reason)
        return 0

    cdef int end(self, int close_code, str reason) except -1:
        """Sends a close frame and gives the peer a moment to answer it."""
        self._send_close(<WSCloseCode>close_code, reason.encode()[:120])
        if self.session.congested:
            self.abort("the peer does not read")
            return 0
        return self.loop.set_deadline(self._member, CLOSE_SECONDS)

    def abort(self, str message):
        """Drops the connection at once."""
        if self._transport is not None:
            self._transport.underlying_transport.abort()
        self.lose(message)

    # --- receiving ---

    cdef int frame(self, WSFrame frame) except -1:
        cdef WSMsgType kind = frame.msg_type
        if self._lost:
            return 0
        if kind == WSMsgType.CLOSE:
            if not self._transport.is_close_frame_sent:
                self._send_close(_close_answer(frame), b"")
            # Gracefully only where nothing waits: no deadline watches over the socket from here on.
            self._transport.disconnect(self._transport.underlying_transport.get_write_buffer_size() == 0)
            self.lose(f"the peer closed the session ({<int>frame.get_close_code()})")
            return 0
        if self.session.closed:
            return 0
        if kind <= WSMsgType.BINARY:
            self.bytes_received += frame.payload_size
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self.session.close(1, "a reserved bit in a WebSocket frame", 1002)     # RFC 6455 §5.2
            return 0
        if self._carrier is not None and kind <= WSMsgType.BINARY:
            return self._carrier.frame(frame)
        if kind == WSMsgType.BINARY and frame.fin and self._fragments.size == 0 and self._fragments_at == 0:
            if frame.payload_size == 0:
                self.session.charge_idle_frame()
            if frame.payload_size > MAX_MESSAGE_SIZE:
                self.session.close(1, "a message of more than 262144 bytes", 1009)
            self.session.receive(frame.payload_ptr, frame.payload_size)
        elif kind == WSMsgType.BINARY or kind == WSMsgType.CONTINUATION:
            self._fragment(frame)
        elif kind == WSMsgType.PING:
            self._ping(frame)
        elif kind == WSMsgType.PONG:
            self._pong(frame)
        else:
            self.session.close(1, "a text message on the native wire", 1003)
        return 0

    def _fragment(self, WSFrame frame):
        """Puts a message together that came in WebSocket fragments (RFC 6455 §5.4), up to a whole message's size."""
        if (frame.msg_type == WSMsgType.CONTINUATION) != (self._fragments_at != 0):
            self.session.close(1, "WebSocket fragments out of order", 1002)
            return
        self.charge_fragment(frame)
        if self.session.closed:
            return
        if self._fragments.size + frame.payload_size > MAX_MESSAGE_SIZE:
            self.session.close(1, "a message of more than 262144 bytes", 1009)
            return
        append(self._fragments, frame.payload_ptr, frame.payload_size)
        if frame.fin:
            self._fragments_at = 0
            self.session.receive(self._fragments.data, self._fragments.size)
            self._fragments.release()
        elif self._fragments_at == 0:
            self._fragments_at = monotonic()
            self._set_deadline()

    cdef int charge_fragment(self, WSFrame frame) except -1:
        """A fragment costs as much work as a whole frame: those that bring nothing, or many that bring little, cost."""
        cdef bint costs = False
        if frame.payload_size == 0:
            # But an empty one may end a message: senders that write in pieces do not know their last one before.
            costs = not frame.fin or self._fragments.size == 0
        elif not frame.fin and frame.payload_size < SMALL_FRAGMENT:
            self._small_fragments += 1
            costs = self._small_fragments > FREE_SMALL_FRAGMENTS
        if frame.fin:
            self._small_fragments = 0
        if costs:
            self.session.charge_idle_frame()
        return 0

    def _ping(self, WSFrame frame):
        """Answers a ping, unless the peer reads nothing: then its pongs would only gather here."""
        self.session.charge_idle_frame()
        if not self.session.congested and not self.session.closed:
            self._transport.send_pong(frame.get_payload_as_bytes())

    def _pong(self, WSFrame frame):
        if frame.payload_size != 8 or not self.on_ping_answer(frame.payload_ptr):
            self.session.charge_idle_frame()    # nobody waits for it

    cdef bint on_ping_answer(self, const char* payload) except -1:
        cdef double sent, sample
        cdef uint64_t moved
        memcpy(&sent, payload, 8)
        if not self._ping_sent_at or sent != self._ping_sent_at:
            return False
        sample = monotonic() - sent
        # Near the shortest of late: what a queue adds must not make the windows that fill it grow. So a longer one
        # counts for next to nothing where bulk was on its way with it.
        if self.session.round_trip == 0 or sample < self.session.round_trip:
            self.session.round_trip = sample
        else:
            moved = self.bytes_sent + self.bytes_received - self._ping_bytes
            self.session.round_trip += (sample - self.session.round_trip) / (8 if moved < QUIET_BYTES else 64)
        self._ping_sent_at = 0
        if self._first_pings:
            self._first_pings -= 1
            if self.loop.has_queue():
                self._first_pings = 0       # of many agents that come at once each would cost three more
            else:
                self._send_ping()
        return True

    cdef int greeted(self) except -1:
        """The first bytes have had their turn: how long they waited for it is no part of the round trip."""
        if self.session.peer_hello is not None and not self._lost and not self.session.closed:
            self.session.round_trip = 0
            self._send_ping()
        return 0

    # --- time ---

    cdef int _send_ping(self) except -1:
        cdef double now = monotonic()
        self._ping_at = now + self._ping_interval
        self._ping_sent_at = now
        self._ping_bytes = self.bytes_sent + self.bytes_received
        if self.session.wants_pings:
            return self.session.ping(<const char*>&now)
        self._transport.send_ping(struct.pack("=d", now))
        return 0

    cdef int hello_came(self) except -1:
        """The session has its peer's HELLO: what may follow has other time limits."""
        if self.session.wants_pings:
            self._send_ping()       # it has not seen the first one
        return self._set_deadline()

    cdef int _set_deadline(self) except -1:
        cdef double now = monotonic()
        cdef double at = min(self._ping_at, self._received_at + self._ping_timeout)
        if self._lost:
            return 0
        if self.session.peer_hello is None:
            # Whatever else has begun: a HELLO in fragments has no more time than one in a piece.
            return self.loop.set_deadline(self._member, max(self._hello_due - now, 0.0))
        if self._fragments_at:
            at = min(at, self._fragments_at + self._message_timeout)
        if self._carrier is not None:
            at = self._carrier.next_deadline(at)
        return self.loop.set_deadline(self._member, max(at - now, 0.0))

    cdef int deadline(self) except -1:
        cdef double now = monotonic()
        if self._lost:
            return 0
        if self._transport.is_close_frame_sent:
            self.abort("the session is closed")
            return 0
        if self.session.peer_hello is None and self._guard is not None:
            self._guard.take_first()        # it may be here, and wait for its turn
            if self._lost:
                return 0
        if self.session.peer_hello is None:
            self.session.close(1, f"no HELLO within {self._hello_timeout:g} s", 1002)
            return 0
        if self._fragments_at and now - self._fragments_at >= self._message_timeout:
            self.session.close(1, f"a message unfinished after {self._message_timeout:g} s", 1002)
            return 0
        if self._guard is not None and self._guard._held:
            # It is this side that does not read; that the peer takes something is the carrier's to watch.
            self._received_at = now
        if now - self._received_at >= self._ping_timeout:
            self.abort(f"nothing was heard for {self._ping_timeout:g} s")
            return 0
        if now >= self._ping_at:
            self._send_ping()
        if self._carrier is not None:
            self._carrier.deadline(now)
            if self._lost:
                return 0
        return self._set_deadline()

    # --- the end ---

    cdef int lose(self, str message) except -1:
        if self._lost:
            return 0
        self._lost = True
        self.loop.clear_deadline(self._member)
        self.session.lost(message)
        if self._carrier is not None:
            self._carrier.lost()
        self.lost(message)
        return 0

    cdef int lost(self, str message) except -1:
        """The link is gone for good; for subclasses."""
        return 0

    cdef int let_go(self) except -1:
        """The link is lost: parts that refer to each other are freed at once, not by some late collection."""
        if self._member.link is None:
            return 0
        self.session.let_go()
        self._member.link = None
        self._listener.link = None
        self._guard = None
        return 0

    def discard(self, str message):
        """Ends a link that has no connection which would, or is not to wait for its end."""
        if not self._lost:
            self.abort(message)
        self.let_go()

    @property
    def listener(self) -> WSListener:
        """For picows, which holds it weakly; the link keeps it."""
        return self._listener

    @property
    def is_lost(self):
        """Whether it is gone for good."""
        return self._lost

    @property
    def close_code(self):
        """The code of the peer's close frame, or None."""
        handshake = self._transport.close_handshake if self._transport is not None else None
        return int(handshake.recv.code) if handshake is not None and handshake.recv is not None else None


def accept_websocket(object transport, SessionLink link, bytes key, bytes rest):
    """Makes a connection whose upgrade request was read and judged elsewhere the WebSocket of `link`.

    transport: an asyncio transport; key: the client's Sec-WebSocket-Key; rest: what was read behind its request.
    """
    cdef bint native = link._carrier is None
    cdef FrameCutter cutter
    cdef ReadGuard guard

    def answer(request):
        response = WSUpgradeResponse.create_101_response([("Sec-WebSocket-Protocol", SUBPROTOCOL)] if native else [])
        return WSUpgradeResponseWithListener(response, link.listener)

    protocol = WSProtocol(None, None, False, answer, _picows_logger, True, None, False, 10, 10,
                          WSAutoPingStrategy.PING_WHEN_IDLE, False,
                          MAX_MESSAGE_SIZE if native else link._carrier.max_frame_size, None, FIRST_READ_BUFFER)
    guard = ReadGuard(protocol, link)
    link._guard = guard
    transport.set_protocol(guard)
    guard.connection_made(transport)
    # Not the path that was asked for: picows has a limit of its own, below the proxy's.
    guard.feed(b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
               b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n")
    if link._transport is None:
        transport.abort()
        link.lose("the handshake failed")
        return guard
    link.begin_service()
    if not native:
        cutter = FrameCutter()
        cutter.max_frame_size = link._carrier.max_frame_size
        guard._cutter = cutter
    guard.feed(rest)
    guard._spread = native
    return guard


async def dial_websocket(SessionLink link, url, list headers, tls, Py_ssize_t max_frame_size=0, sock=None):
    """Dials, and makes the connection the WebSocket of `link`; returns its WSTransport.

    url: a config.ProxyUrl; headers: (name, value) beside those of RFC 6455 §4.1; tls: an ssl.SSLContext, or None for
    plain TCP; max_frame_size: bytes, where messages may be larger than those of the native wire; sock: a socket that is
    connected already, by way of a forward proxy. The caller limits the time. Raises OSError (ssl.SSLError among them),
    WSError.
    """
    cdef ReadGuard guard
    loop = asyncio.get_running_loop()
    protocol = WSProtocol(url.authority, url.path, True, _listener_of(link), _picows_logger, True, None, False,
                          10, 10, WSAutoPingStrategy.PING_WHEN_IDLE, False,
                          max(max_frame_size, <Py_ssize_t>MAX_MESSAGE_SIZE), headers, FIRST_READ_BUFFER)
    guard = ReadGuard(protocol, link)
    guard._cutter = AnswerReader()
    link._guard = guard
    if tls is not None:
        transport = await connect_tls(lambda: guard, url.host, url.port, tls, sock)
    elif sock is not None:
        transport, _ = await loop.create_connection(lambda: guard, sock=sock)
    else:
        transport, _ = await loop.create_connection(lambda: guard, url.host, url.port)
    try:
        await protocol.wait_until_handshake_complete()
        if protocol.transport.response is None:
            raise guard.error or ConnectionResetError("it closed the connection during the handshake")
    except BaseException:
        transport.abort()
        raise
    # Nobody waits for it; without this the loop would log what the peer did wrong as if it were a defect.
    (<WSTransport>protocol.transport).disconnected_future.add_done_callback(_retrieve)
    return protocol.transport


def _listener_of(SessionLink link):
    """What picows asks for the listener: it keeps that, which must not keep all that `dial_websocket` knows."""
    return lambda: link.listener


def _retrieve(future):
    if not future.cancelled():
        future.exception()
