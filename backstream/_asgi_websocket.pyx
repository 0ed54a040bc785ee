"""WebSockets in an ASGI application: RFC 6455 on the agent's side of an upgraded stream.

The frames are read and written by websockets' sans-I/O protocol; here is what lies between it, the stream's credit and
the application. No extension is negotiated: compression would cost memory and time for each connection.

Rules that hold here:
- A message is handed over whole, and its bytes are granted again when the application has it. What came of a message
  that is not whole yet is granted at once, if no other waits before it: so one message of the largest size and one
  window is all that a stream holds.
- What comes is parsed in small pieces and only a few messages ahead of the application, since an object is many times
  the size of a message of one byte.
- `send` waits while the client does not read. A ping is answered at once; while the client does not read, only the last
  one is, when it reads again (RFC 6455 §5.5.3).
- A client counts as alive by every byte that it sends and by every byte that it takes.
"""

import asyncio
import base64
import binascii
import codecs
import hashlib
import logging
from collections import deque

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_FromObject
from libc.stdint cimport int64_t, uint32_t

from backstream._asgi cimport DONE, AsgiRequest, AsgiService
from backstream._codec cimport BODY_NONE, Field, FieldArray, RequestHead, ResponseHead, Trailers
from backstream._grammar cimport equals_lower
from backstream._http._message cimport next_token
from backstream._loop cimport LoopMember, monotonic
from backstream._slice cimport Slice, bytes_of, equals, slice_of
from backstream._stream cimport Stream, StreamHandler

from websockets.exceptions import ProtocolError
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import OPEN, SERVER, Protocol

from backstream.errors import StreamError

cdef object protocol_logger = logging.getLogger("backstream.websocket")
# websockets logs each connection's end and, at DEBUG, each frame.
protocol_logger.setLevel(logging.WARNING)

cdef object utf8_decoder = codecs.getincrementaldecoder("utf-8")
cdef bytes GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"   # RFC 6455 §1.3

cdef enum:
    CANCEL = 8
    CONTINUATION = 0
    TEXT = 1
    BINARY = 2
    AHEAD = 32              # messages that are parsed before the application asks for them
    PIECE = 4096            # bytes that are parsed at once
    FRAME_OVERHEAD = 6      # the least that a client's frame has beside its payload


cdef class AsgiWebService(AsgiService):
    """app: an ASGI 3 application; settings: AgentSettings."""

    def __init__(self, app, settings):
        AsgiService.__init__(self, app, settings.root_path, settings.lifespan, settings.request_timeout)
        self.ping_interval = settings.websocket_ping_interval
        self.ping_timeout = settings.websocket_ping_timeout
        self.max_message = settings.websocket_max_message

    cdef StreamHandler open(self, Stream stream, const RequestHead* head, bint end):
        if equals_lower(head.upgrade, b"websocket", 9) and equals(head.method, b"GET", 3):
            return self.open_websocket(stream, head)
        return AsgiService.open(self, stream, head, end)

    cdef StreamHandler open_websocket(self, Stream stream, const RequestHead* head):
        cdef AsgiWebSocket websocket = AsgiWebSocket.__new__(AsgiWebSocket)
        cdef dict scope
        cdef const Field* field
        cdef Slice rest, token
        cdef Py_ssize_t i
        cdef list versions = []
        cdef list keys = []
        self.begin(websocket, stream, False)
        websocket.messages = deque()
        websocket.unparsed = deque()
        websocket.subprotocols = []
        websocket.receivers = []
        websocket.code = 1006       # of a handshake that did not lead anywhere
        websocket.reason = ""
        for i in range(head.field_count):
            field = &head.fields[i]
            if equals(field.name, b"sec-websocket-key", 17):
                keys.append(bytes_of(field.value))
            elif equals(field.name, b"sec-websocket-version", 21):
                versions.append(bytes_of(field.value))
            elif equals(field.name, b"sec-websocket-protocol", 22):
                rest = field.value
                while next_token(&rest, &token):
                    websocket.subprotocols.append(bytes_of(token).decode("latin-1"))
        if versions != [b"13"]:
            websocket._refuse(426, [(b"sec-websocket-version", b"13")], b"Sec-WebSocket-Version must be 13\n")
            return websocket
        if len(keys) != 1 or not _is_key(keys[0]):
            websocket._refuse(400, [], b"Sec-WebSocket-Key must be 16 bytes in base64\n")
            return websocket
        websocket.key = keys[0]
        scope = self._scope(websocket, head)
        scope["type"] = "websocket"
        del scope["method"]
        scope["scheme"] = "ws" if scope["scheme"] == "http" else "wss"
        scope["headers"] += [(b"connection", b"upgrade"), (b"upgrade", b"websocket")]
        scope["subprotocols"] = websocket.subprotocols
        scope["extensions"] = {"websocket.http.response": {}}
        websocket.scope = scope
        self.run(websocket)
        return websocket


def _is_key(bytes key):
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


cdef class WebSocketClock(LoopMember):

    cdef int on_deadline(self) except -1:
        # Held here: it may let go of this clock, which may be the last to hold it.
        cdef AsgiWebSocket websocket = self.websocket
        return websocket.on_clock()


cdef class AsgiWebSocket(AsgiRequest):

    # --- for the application ---

    async def _receive_later(self):
        while True:
            message = self._message()
            if message is not None:
                return message
            receiver = self.service.asyncio_loop.create_future()
            self.receivers.append(receiver)
            try:
                await receiver
            except asyncio.CancelledError:
                if receiver in self.receivers:
                    self.receivers.remove(receiver)
                raise

    cdef object _message(self):
        cdef dict message = self.returned
        cdef int64_t size
        if message is not None:
            self.returned = None
            return message
        if not self.connect_told:
            self.connect_told = True
            return {"type": "websocket.connect"}
        if self.messages:
            message, size = self.messages.popleft()
            if size > self.held:
                size = self.held
            self.held -= size
            self.stream.consume(size)
            self._advance()
            return message
        if self.state >= CLOSING or self.disconnected or self.state == REFUSED and self.completed:
            return {"type": "websocket.disconnect", "code": self.code, "reason": self.reason}
        return None

    def send(self, message):
        """ASGI's send. Raises ClientDisconnected when the client is gone, RuntimeError when the application errs."""
        cdef dict event = message if type(message) is dict else dict(message)
        cdef object said = event["type"]
        cdef str kind = <str>said if type(said) is str else <str>PyUnicode_FromObject(said)
        if self.disconnected:
            # To close what is closed already is what a tidy application does.
            return DONE if kind == "websocket.close" else self._send_to_nobody()
        if self.state == CONNECTED:
            if kind == "websocket.send":
                value = event.get("bytes")
                if value is None:
                    value = event.get("text")
                    if value is None:
                        raise RuntimeError("websocket.send with neither bytes nor text")
                    self.protocol.send_text(value.encode())
                else:
                    self.protocol.send_binary(value)
                self._write_all(self.protocol.data_to_send())
                return DONE if self.stream.room() > 0 else self._send_later()
            if kind == "websocket.close":
                self._close(event.get("code") or 1000, event.get("reason") or "")
                return DONE
        elif self.state == HANDSHAKE:
            if kind == "websocket.accept":
                self._accept(event)
                return DONE
            if kind == "websocket.close":
                self._refuse(403, [], b"")
                return DONE
            if kind == "websocket.http.response.start":
                self.state = REFUSED
                return AsgiRequest.send(self, {**event, "type": "http.response.start"})
        elif self.state == REFUSED and not self.completed and kind == "websocket.http.response.body":
            return AsgiRequest.send(self, {**event, "type": "http.response.body"})
        raise RuntimeError(f"an ASGI message that may not come now: {kind}")

    cdef int _accept(self, dict message) except -1:
        """The handshake's second half (RFC 6455 §4.2.2). Raises RuntimeError where the application's part is wrong."""
        cdef FieldArray fields = self.service.fields
        cdef ResponseHead head
        cdef AsgiWebService service = <AsgiWebService>self.service
        cdef list _kept, headers
        cdef object subprotocol = message.get("subprotocol")
        cdef bytes accept = base64.b64encode(hashlib.sha1(self.key + GUID).digest())
        headers = [(b"sec-websocket-accept", accept)]
        if subprotocol is not None:
            if subprotocol not in self.subprotocols:
                raise RuntimeError(f"websocket.accept with a subprotocol that was not offered: {subprotocol!r}")
            headers.append((b"sec-websocket-protocol", subprotocol.encode("latin-1")))
        for name, value in message.get("headers", ()):
            if name.lower().startswith(b"sec-websocket-"):
                raise RuntimeError(f"websocket.accept with a header of the handshake's own: {name!r}")
            headers.append((name, value))
        _kept = self._take_fields(fields, headers)
        self.length = -1
        head.status = 101
        head.reason.size = head.length = 0
        head.body = BODY_NONE
        head.upgrade = slice_of(b"websocket")
        head.fields = fields.items
        head.field_count = fields.count
        try:
            self.stream.respond(&head, False)
        except StreamError as error:
            raise RuntimeError(str(error)) from None
        self.protocol = Protocol(SERVER, max_size=service.max_message, logger=protocol_logger)
        self.state = CONNECTED
        self.started = True
        self.clock = WebSocketClock.__new__(WebSocketClock)
        self.clock.websocket = self
        self.clock.loop = service.loop
        self.active_at = monotonic()
        if service.ping_interval > 0:
            service.loop.set_deadline(self.clock, service.ping_interval)
        return self._advance()

    cdef int _refuse(self, int status, object headers, bytes body) except -1:
        """Answers the handshake with an ordinary response."""
        self.state = REFUSED
        if body:
            headers = [*headers, (b"content-type", b"text/plain; charset=utf-8")]
        self._respond(status, headers, body, False)
        self.completed = True
        self.connect_told = True
        self.stream.end()
        return 0

    # --- how the application ends ---

    def _cancelled(self):
        if self.state == CONNECTED:
            self._close(1012, "service restart")
        elif self.state < CONNECTED:
            AsgiRequest._cancelled(self)

    def _returned(self):
        if self.state == CONNECTED:
            self._close(1000, "")
        elif self.state < CONNECTED:
            AsgiRequest._returned(self)

    def _failed(self, str what, bint exc_info):
        cdef bint connected = self.state >= CONNECTED
        if not connected:
            self.state = REFUSED
            AsgiRequest._failed(self, what, exc_info)
            return
        if self.state == CONNECTED:
            self._close(1011, "internal error")
        AsgiRequest._log_failure(self, what, exc_info)

    # --- from the stream ---

    cdef int on_data(self, Stream stream, const char* data, Py_ssize_t size) except -1:
        cdef Py_ssize_t at = 0, part
        if self.state == DISCONNECTED or self.state == REFUSED:
            stream.consume(size)
            return 0
        self.held += size
        self.active_at = monotonic()
        while at < size:
            part = size - at if size - at < PIECE else PIECE
            self.unparsed.append(PyBytes_FromStringAndSize(data + at, part))
            at += part
        if self.state == HANDSHAKE:
            return 0
        return self._advance()

    cdef int on_end(self, Stream stream, const Trailers* trailers) except -1:
        self.ended = True
        if self.state >= CONNECTED and not self.unparsed:
            self._end_of_stream()
        return 0

    cdef int on_reset(self, Stream stream, uint32_t code, str message) except -1:
        self._stop_clock()
        if self.state == REFUSED:
            return AsgiRequest.on_reset(self, stream, code, message)
        return self._disconnect(1006, "")

    # --- from the client ---

    cdef int _advance(self) except -1:
        """Parses what came, as far ahead of the application as is allowed."""
        while self.unparsed and len(self.messages) < AHEAD:
            self._parse(self.unparsed.popleft())
        if self.ended and not self.unparsed and self.state >= CONNECTED:
            self._end_of_stream()
        return self._grant()

    cdef int _parse(self, object piece) except -1:
        cdef object protocol = self.protocol
        cdef int opcode
        if self.state == DISCONNECTED:
            return 0
        protocol.receive_data(piece)
        for frame in protocol.events_received():
            opcode = frame.opcode
            if opcode <= BINARY and self.state == CONNECTED and not self._data_frame(opcode, frame.data, frame.fin):
                return 0
        close = protocol.close_rcvd
        if close is None and protocol.parser_exc is None:
            return self._flush_protocol()
        if close is not None and protocol.parser_exc is not None and self.state == CONNECTED:
            # To websockets a close within a fragmented message is an error; RFC 6455 §5.4 lets it stand there.
            return self._answer(close.code, close.reason)
        self._flush_protocol()
        if self.state == CONNECTED:
            if close is None:
                close = protocol.close_sent
            self._disconnect(close.code, close.reason)
        self.state = DISCONNECTED
        return 0

    cdef bint _data_frame(self, int opcode, object data, bint last) except -1:
        """Puts messages together; false where the text is none."""
        cdef Py_ssize_t size
        cdef bint text
        try:
            if opcode != CONTINUATION and last:
                size = len(data)
                if opcode == TEXT:
                    self._queue({"type": "websocket.receive", "text": str(data, "utf-8")}, size)
                else:
                    self._queue({"type": "websocket.receive", "bytes": bytes(data)}, size)
                return True
            if opcode != CONTINUATION:
                self.partial = bytearray()
                self.decoder = utf8_decoder() if opcode == TEXT else None
            if self.decoder is not None:
                # Only a check, fragment by fragment: text of many small pieces would be many objects.
                self.decoder.decode(bytes(data), last)
            self.partial += data
            if last:
                size = len(self.partial)
                text = self.decoder is not None
                if text:
                    self._queue({"type": "websocket.receive", "text": self.partial.decode()}, size)
                else:
                    self._queue({"type": "websocket.receive", "bytes": bytes(self.partial)}, size)
                self.partial = self.decoder = None
        except UnicodeDecodeError:
            self._answer(1007, "text that is not UTF-8")
            return False
        return True

    cdef int _queue(self, dict event, Py_ssize_t size) except -1:
        self.messages.append((event, size + FRAME_OVERHEAD))
        return self._wake_receiver()

    cdef int _grant(self) except -1:
        if self.held and not self.messages and not self.unparsed:
            self.stream.consume(self.held)
            self.held = 0
        return 0

    cdef int _wake_receiver(self) except -1:
        cdef list receivers
        if self.receivers:
            receivers = self.receivers
            self.receivers = []
            for receiver in receivers:
                if not receiver.done():
                    receiver.set_result(None)
        return 0

    # --- to the client ---

    cdef int _flush_protocol(self) except -1:
        """Sends what the protocol has to say by itself: pongs, and a close frame with what ends the stream."""
        cdef list pieces = self.protocol.data_to_send()
        if not pieces:
            return 0
        if self.protocol.state is OPEN and self.stream.room() <= 0:
            self.pong = pieces[len(pieces) - 1]
            return 0
        return self._write_all(pieces)

    cdef int _write_all(self, list pieces) except -1:
        cdef bytes piece
        for piece in pieces:
            if piece:
                self.written += len(piece)
                self.stream.write(piece)
            else:
                self.stream.end()
        return 0

    cdef int on_writable(self, Stream stream) except -1:
        cdef bytes pong = self.pong
        if pong is not None:
            self.pong = None
            if self.state == CONNECTED:
                self._write_all([pong])
        return self._wake_sender()

    # --- ends ---

    cdef int _close(self, int code, str reason) except -1:
        """The application closes. Raises RuntimeError for a code or reason that can't be sent."""
        try:
            self.protocol.send_close(code, reason)
        except ProtocolError as error:
            raise RuntimeError(f"websocket.close with code {code}: {error}") from None
        self.state = CLOSING
        self.code = code
        self.reason = reason
        self.completed = True
        self.pong = None
        self.messages.clear()
        self._write_all(self.protocol.data_to_send())
        self._takes()
        self.service.loop.set_deadline(self.clock, (<AsgiWebService>self.service).ping_timeout)
        self._wake_receiver()
        return self._advance()

    cdef int _answer(self, int code, str reason) except -1:
        """Ends the connection with a close frame of ours (RFC 6455 §7.1.7), whatever the protocol was about to say."""
        cdef list pieces = self.protocol.data_to_send()
        if self.protocol.state is not OPEN:
            del pieces[len(pieces) - 2:]    # its own close frame, and the end
        payload = b"" if code == 1005 else Close(code, reason).serialize()
        pieces += [Frame(Opcode.CLOSE, payload).serialize(mask=False), b""]
        self._write_all(pieces)
        return self._disconnect(code, reason)

    cdef int _disconnect(self, int code, str reason) except -1:
        """The client is gone, or on its way: tells the application, behind the messages that came before."""
        cdef bint told = self.state == CLOSING or self.disconnected
        self.state = DISCONNECTED
        self.pong = self.partial = self.decoder = None
        self.unparsed.clear()
        if self.held:
            self.stream.consume(self.held)
            self.held = 0
        if self.clock is not None:
            self.service.loop.set_deadline(self.clock, (<AsgiWebService>self.service).ping_timeout)
        if told:
            return 0
        self.code = code
        self.reason = reason
        if not self.completed:
            self._hold_place()
        return self._gone()

    cdef int _end_of_stream(self) except -1:
        """The client has ended its direction, and all that it sent is parsed."""
        self.ended = False
        self.protocol.receive_eof()
        self._write_all(self.protocol.data_to_send())
        self.stream.end()
        if self.state == CONNECTED:
            self._disconnect(1006, "")
        self.state = DISCONNECTED
        if self.stream.staged == 0:
            self._stop_clock()
        return 0

    cdef int _stop_clock(self) except -1:
        if self.clock is not None:
            self.service.loop.clear_deadline(self.clock)
            self.clock.websocket = None
            self.clock = None
        return 0

    cdef bint _takes(self) noexcept:
        """Whether the client has taken anything since this was asked last."""
        cdef int64_t before = self.taken
        self.taken = self.stream.send_credit + self.written - self.stream.staged
        return self.taken != before

    cdef int on_clock(self) except -1:
        cdef AsgiWebService service = <AsgiWebService>self.service
        cdef double now = monotonic()
        cdef double left
        cdef bint takes = self._takes()
        if self.stream.is_closed():
            return self._stop_clock()
        if self.state != CONNECTED:
            # What is left to the client goes out as slowly as it likes; then it must close.
            if takes:
                return service.loop.set_deadline(self.clock, service.ping_timeout)
            self.stream.reset(CANCEL, "the client did not close")
            return self._stop_clock()
        if takes or self.unparsed or self.messages:
            # Where it is the application that does not receive, the client's answer may wait behind.
            self.active_at = now
        if self.pinged and self.active_at <= self.pinged_at:
            self.pinged = False
            return self._answer(1011, "keepalive ping timeout")
        left = self.active_at + service.ping_interval - now
        if left > 0:
            self.pinged = False
            return service.loop.set_deadline(self.clock, left)
        self.pinged = True
        self.pinged_at = now
        self.protocol.send_ping(b"")
        self._write_all(self.protocol.data_to_send())
        return service.loop.set_deadline(self.clock, service.ping_timeout)
