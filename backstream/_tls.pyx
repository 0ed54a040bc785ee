"""TLS on TCP connections, for clients, agents and upstreams alike; OpenSSL by way of Python's `ssl`.

It stands where the event loop's own TLS could, because the parts above need what that does not give:
- Nothing is kept here. Ciphertext goes to the socket at once, and what the socket does not take lies in the TCP
  transport, whose water marks and pauses are passed on as they are: back-pressure is exact, also at a limit of 0.
- What comes is decrypted only as far as the protocol above reads; while it does not, the socket is not read either.
- The handshake has a deadline and an owner that counts it, and says why it failed.
- The write side can be ended alone (RFC 8446 §6.1), and an end without close_notify is an error, never an end of file.
"""

import asyncio
import ssl

from cpython.buffer cimport PyBUF_READ, PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.memoryview cimport PyMemoryView_FromMemory

from backstream._loop cimport LoopMember, loop_state


cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_send "send" (int fd, const void* data, size_t size, int flags)
    int MSG_NOSIGNAL
    int MSG_DONTWAIT

cdef enum:
    PIECE = 32768           # bytes read, or encrypted, at once: OpenSSL's buffers stay about as large
    MOST_UNASKED = 1048576  # bytes of answers to the peer's TLS messages that may wait for a peer that does not read

cdef object WantRead = ssl.SSLWantReadError

# What a client hears that speaks HTTP where TLS is spoken.
cdef bytes PLAIN_TEXT = b"this port speaks TLS: https:// or wss://\n"
cdef bytes PLAIN_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
    b"connection: close\r\n\r\n%b" % (len(PLAIN_TEXT), PLAIN_TEXT)
)


cdef class _TransportBase(LoopMember):
    pass


cdef class TlsTransport(_TransportBase, asyncio.BufferedProtocol):
    """context: an ssl.SSLContext; make_protocol: makes the BufferedProtocol above, once the handshake is done;
    on_handshake: called with (self, None or an exception) when the handshake is over; handshake_timeout: seconds;
    hostname: the server's, for the client side; admit: called with (self, the peer's address) before the handshake,
    false drops the connection."""

    def __init__(self, context, make_protocol, on_handshake, double handshake_timeout, hostname=None, admit=None):
        self.loop = loop_state()
        self._context = context
        self._hostname = hostname
        self._admit = admit
        self._make_protocol = make_protocol
        self._on_handshake = on_handshake
        self._handshake_timeout = handshake_timeout
        self._fd = -1
        self._reading = True

    def __repr__(self):
        return f"<TlsTransport {self.get_extra_info('peername')}>"

    # --- the protocol towards the TCP transport ---

    def connection_made(self, transport):
        sock = transport.get_extra_info("socket")
        self._raw = transport
        self._fd = sock.fileno() if sock is not None else -1
        transport.set_write_buffer_limits(0)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object = self._context.wrap_bio(
            self._incoming, self._outgoing, server_side=self._hostname is None, server_hostname=self._hostname)
        self._ssl_read = self.ssl_object.read
        self._ssl_write = self.ssl_object.write
        self._take_outgoing = self._outgoing.read
        if self._error is None and self._admit is not None:
            if not self._admit(self, transport.get_extra_info("peername")):
                self._error = ConnectionRefusedError("its address has all the connections that one may have")
            self._admit = None
        if self._error is not None:
            transport.abort()
            return
        self.loop.set_deadline(self, self._handshake_timeout)
        self._handshake()

    def get_buffer(self, sizehint):
        return self.loop.read_view[:PIECE]

    def buffer_updated(self, Py_ssize_t nbytes):
        if self._peer_ended or self._state >= TLS_CLOSING:
            return
        self._filled = nbytes == PIECE
        self._incoming.write(self.loop.read_view[:nbytes])
        if self._state == TLS_HANDSHAKE:
            self._handshake()
        else:
            self._deliver()

    def eof_received(self):
        self._raw_ended = True
        if self._state == TLS_HANDSHAKE:
            return False
        self._deliver()
        # Whatever becomes of it is this class's decision.
        return True

    def pause_writing(self):
        self._full = True
        if self._protocol is not None:
            self._protocol.pause_writing()

    def resume_writing(self):
        self._full = False
        if self._protocol is not None:
            self._protocol.resume_writing()

    def connection_lost(self, exc):
        cdef object protocol = self._protocol
        cdef bint shaking = self._state == TLS_HANDSHAKE
        self._state = TLS_CLOSED
        self._fd = -1
        self.loop.clear_deadline(self)
        error = self._error if self._error is not None else exc
        try:
            if shaking:
                self._handshake_over(error or ConnectionResetError("the connection ended in the TLS handshake"))
            elif protocol is not None:
                protocol.connection_lost(error)
        finally:
            self._raw = self._protocol = self._get_buffer = self._buffer_updated = None
            self._ssl_read = self._ssl_write = self._take_outgoing = self._make_protocol = self._on_handshake = None
            self.ssl_object = self._incoming = self._outgoing = None

    # --- LoopMember ---

    cdef int on_deadline(self) except -1:
        if self._state == TLS_HANDSHAKE:
            self._error = TimeoutError(f"no TLS handshake within {self._handshake_timeout:g} s")
            self._raw.abort()
        return 0

    # --- handshake ---

    cdef int _handshake(self) except -1:
        cdef object protocol
        try:
            self.ssl_object.do_handshake()
        except WantRead:
            return self._flush_outgoing()
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST" and self._hostname is None:
                self._take_outgoing()
                self._raw.write(PLAIN_ANSWER)
            return self._fail(error)
        self._flush_outgoing()
        self.loop.clear_deadline(self)
        self._state = TLS_OPEN
        protocol = self._make_protocol()
        self.set_protocol(protocol)
        self._handshake_over(None)
        protocol.connection_made(self)
        if self._full:
            protocol.pause_writing()
        return self._deliver()

    cdef int _handshake_over(self, object error) except -1:
        cdef object on_handshake = self._on_handshake
        self._on_handshake = None
        if on_handshake is not None:
            on_handshake(self, error)
        return 0

    # --- reading ---

    cdef bint may_have_more(self) noexcept:
        """Whether something may lie behind what was delivered last; where not, that is known without a look."""
        return self._filled or self._peer_ended or self._raw_ended

    cdef bint has_unread(self) except -1:
        """Whether there are bytes here that were not delivered, or an end; the socket may have some beside that."""
        return self._peer_ended or self._raw_ended or self._pending()

    cdef int _deliver(self) except -1:
        """Hands on what came, as far as the protocol above reads."""
        cdef Py_ssize_t count
        if self._delivering:
            return 0
        self._delivering = True
        try:
            while self._reading and self._state == TLS_OPEN and not self._peer_ended:
                count = self._read_into(self._get_buffer(-1))
                if count > 0:
                    self._buffer_updated(count)
                if count <= 0 or not self._pending():
                    break
            if self._state != TLS_OPEN:
                return 0
            if self._outgoing.pending:
                # Answers to TLS's own messages (key updates): a peer that only asks for them is cut off.
                self._flush_outgoing()
                if self._full and self._raw.get_write_buffer_size() > MOST_UNASKED:
                    return self._fail(ConnectionAbortedError("the peer asks for TLS messages that it does not read"))
            if not self._reading:
                return 0
            if self._peer_ended:
                if not self._eof_told:
                    self._eof_told = True
                    if not self._protocol.eof_received():
                        self.close()
            elif self._raw_ended:
                self._fail(ConnectionResetError("the connection ended without TLS's close_notify"))
        finally:
            self._delivering = False
        return 0

    cdef Py_ssize_t _read_into(self, object view) except -2:
        """Fills a view of the protocol's; returns how many bytes came, -1 when the connection has failed."""
        cdef Py_ssize_t size = len(view), filled = 0, count
        if self._rest is not None:
            filled = min(size, <Py_ssize_t>len(self._rest))
            view[:filled] = self._rest[:filled]
            self._rest = self._rest[filled:] or None
            return filled
        try:
            while filled < size and (filled == 0 or self._pending()):
                count = self._ssl_read(size - filled, view[filled:] if filled else view)
                if count == 0:
                    self._peer_ended = True
                    break
                filled += count
        except WantRead:
            pass
        except ssl.SSLZeroReturnError:
            self._peer_ended = True
        except ssl.SSLError as error:
            # What was decrypted before goes with it: nobody may take it for all.
            self._fail(error)
            return -1
        return filled

    cdef bint _pending(self) except -1:
        # OpenSSL does not read ahead here: it takes no more from `_incoming` than the record that it needs.
        return bool(self._incoming.pending) or bool(self.ssl_object.pending()) or self._rest is not None

    def _deliver_later(self):
        self._scheduled = False
        if self._state == TLS_OPEN:
            self._deliver()

    # --- writing ---

    cdef int send(self, const char* data, Py_ssize_t size) except -1:
        """Encrypts `size` bytes and sends them; what the socket does not take lies in the TCP transport."""
        cdef Py_ssize_t piece, at
        cdef object view
        if self._state != TLS_OPEN or self._write_ended:
            return 0
        while size > 0:
            piece = size if size < PIECE else PIECE
            view = PyMemoryView_FromMemory(<char*>data, piece, PyBUF_READ)
            at = 0
            try:
                while at < piece:
                    at += self._ssl_write(view[at:] if at else view)
            except ssl.SSLError as error:
                return self._fail(error)
            self._flush_outgoing()
            data += piece
            size -= piece
        return 0

    cdef int _flush_outgoing(self) except -1:
        cdef bytes data = self._take_outgoing()
        cdef Py_ssize_t size = len(data), sent = 0
        if size == 0 or self._write_ended or self._raw.is_closing():
            return 0
        if self._fd >= 0 and not self._raw.get_write_buffer_size():
            sent = c_send(self._fd, PyBytes_AS_STRING(data), size, MSG_NOSIGNAL | MSG_DONTWAIT)
            if sent < 0:
                # Full or broken: the transport's own attempt tells them apart.
                sent = 0
        if sent < size:
            self._raw.write(data[sent:] if sent else data)
        return 0

    cdef int _end_writing(self) except -1:
        """Sends close_notify (RFC 8446 §6.1); nothing more is written after it."""
        cdef bytes held
        if self._write_ended:
            return 0
        # OpenSSL takes bytes of the peer's that are still to be read for a mistake here: they step aside.
        held = self._incoming.read()
        try:
            if self.ssl_object.pending():
                self._rest = (self._rest or b"") + self.ssl_object.read(self.ssl_object.pending())
            self.ssl_object.unwrap()
        except WantRead:
            pass
        except ssl.SSLError:
            # Whoever still reads is told by the next read.
            pass
        if held:
            self._incoming.write(held)
        self._flush_outgoing()
        self._write_ended = True
        return 0

    cdef int _fail(self, object error) except -1:
        """The connection is broken; an alert that says so still goes out if the socket takes it."""
        if self._error is None:
            self._error = error
        if self._state == TLS_CLOSED or self._raw is None:
            return 0
        self._flush_outgoing()
        self._write_ended = True
        if self._state == TLS_OPEN:
            self._state = TLS_CLOSING
        if self._raw.get_write_buffer_size():
            self._raw.abort()
        else:
            self._raw.close()
        return 0

    # --- the transport towards the protocol above ---

    def get_extra_info(self, name, default=None):
        if name == "ssl_object":
            return self.ssl_object
        if name == "sslcontext":
            return self._context
        if name == "peercert":
            return self.ssl_object.getpeercert() if self.ssl_object is not None else default
        return self._raw.get_extra_info(name, default) if self._raw is not None else default

    def set_protocol(self, protocol):
        self._protocol = protocol
        self._get_buffer = protocol.get_buffer
        self._buffer_updated = protocol.buffer_updated

    def get_protocol(self):
        return self._protocol

    def is_closing(self):
        return self._state >= TLS_CLOSING

    def is_reading(self):
        return self._reading and self._state == TLS_OPEN

    def pause_reading(self):
        if self._reading and self._state == TLS_OPEN:
            self._reading = False
            if not self._raw_ended:
                self._raw.pause_reading()

    def resume_reading(self):
        if self._reading or self._state != TLS_OPEN:
            return
        self._reading = True
        if not self._raw_ended:
            self._raw.resume_reading()
        # What was read before and not decrypted, nothing else would bring up.
        if not self._scheduled:
            self._scheduled = True
            self.loop.asyncio_loop.call_soon(self._deliver_later)

    def write(self, data):
        cdef Py_buffer buffer
        PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
        try:
            self.send(<const char*>buffer.buf, buffer.len)
        finally:
            PyBuffer_Release(&buffer)

    def writelines(self, pieces):
        for piece in pieces:
            self.write(piece)

    def can_write_eof(self):
        return True

    def write_eof(self):
        """Ends this side's direction; the peer's goes on."""
        if self._state == TLS_OPEN and not self._write_ended:
            self._end_writing()
            self._raw.write_eof()

    def close(self):
        if self._state == TLS_OPEN:
            self._end_writing()
            self._state = TLS_CLOSING
            self._raw.close()
        elif self._state == TLS_HANDSHAKE:
            self.abort()

    def abort(self):
        if self._raw is not None:
            if self._state == TLS_OPEN:
                self._state = TLS_CLOSING
            self._raw.abort()
        elif self._state == TLS_HANDSHAKE:
            # asyncio has the connection, and has not said so yet.
            self._error = ConnectionAbortedError("the connection was not wanted any more")

    def set_write_buffer_limits(self, high=None, low=None):
        if self._raw is not None:
            self._raw.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self):
        return self._raw.get_write_buffer_limits() if self._raw is not None else (0, 0)

    def get_write_buffer_size(self):
        return self._raw.get_write_buffer_size() if self._raw is not None else 0


async def connect_tls(make_protocol, host, port, context, sock=None):
    """A TLS connection to a server, whose certificate must be valid for `host`; returns its TlsTransport.

    sock: a socket that is connected already, by way of a forward proxy. The caller limits the time. Raises
    OSError, ssl.SSLError among them.
    """
    cdef TlsTransport transport
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def on_handshake(transport, error):
        if done.done():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    transport = TlsTransport(context, make_protocol, on_handshake, 3600.0, host)
    try:
        if sock is None:
            await loop.create_connection(lambda: transport, host, port)
        else:
            await loop.create_connection(lambda: transport, sock=sock)
        try:
            await done
        except ConnectionError as error:
            # TCP's connection had come about: it is the handshake that failed.
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the connection ended in the TLS handshake") from error
    except BaseException:
        done.cancel()       # how the handshake ends is of no interest any more
        transport.abort()
        raise
    return transport
