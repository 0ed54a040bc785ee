"""A session: many streams over one WebSocket, under per-stream flow control (docs/reference/protocol.md).

How streams begin and end, what the peer's frames do to them, and how the session itself begins and ends; what a stream
is stands in `_stream`, and in which order things are sent in `_sending`. Rules that hold in the three:
- No sockets, no asyncio, no clock: bytes of whole messages come in by `receive` and go out by `pull`; time and
  everything else comes from the `SessionOwner`.
- A stream's state changes in `_remote_end`, `_local_end` and `_forget` and nowhere else.
- What the peer does wrong to one stream fails that stream; what it does wrong to the session raises ProtocolError
  inside `receive`, which turns it into GOAWAY and a close.
- Reading never waits: credit alone bounds what a peer may send.
"""

from libc.stdint cimport int64_t, uint32_t

from backstream._buffer cimport Buffer
from backstream._codec cimport (
    BODY_CHUNKED, BODY_NONE, BODY_SIZED, FLAG_ACK, FLAG_END_STREAM, FLAG_INTERIM, FRAME_DATA, FRAME_GOAWAY,
    FRAME_HEADER_SIZE, FRAME_HELLO, FRAME_NOTIFY, FRAME_PING, FRAME_REQUEST, FRAME_RESPONSE, FRAME_TRAILERS,
    FRAME_WINDOW, MAX_HEAD_SIZE, FieldArray,
    Frame, GoAway, Notify, RequestHead, Reset, ResponseHead, Trailers, decode_goaway, decode_hello, decode_notify,
    decode_request, decode_reset, decode_response, decode_trailers, encode_goaway, encode_hello, encode_notify,
    read_frame, read_u32,
)
from backstream._flow cimport BudgetShare, WindowBudget, window_open, window_receive
from backstream._message_codec cimport goaway_object
from backstream._slice cimport bytes_of, slice_of
from backstream._stream cimport (
    CLOSED, HALF_CLOSED_LOCAL, HALF_CLOSED_REMOTE, OPEN, SessionOwner, Stream, StreamHandler,
)
from backstream._stream_table cimport StreamTable

from backstream.errors import ErrorCode, FrameError, HeadError, ProtocolError, StreamError


cdef enum:
    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED = 7
    CANCEL = 8
    ENHANCE_YOUR_CALM = 11
    TIMEOUT = 32            # from here on codes that say how the service failed
    TOO_LARGE = 37
    DRAINING = 38
    SESSION_LOST = 256

    DEFAULT_WINDOW = 65536
    DEFAULT_FRAME_SIZE = 65536
    MAX_STREAM_ID = 0x7fffffff
    MAX_CREDIT = 0x7fffffff
    MAX_INTERIM = 16
    MAX_WAITING_BYTES = 262144      # of control frames, beside what the answers of all streams may take
    MAX_WAITING_FRAMES = 1000
    STREAM_WAITING_BYTES = 1024     # of a stream's answer: its head, and how it ends
    STREAM_WAITING_FRAMES = 2
    SMALL_GRANT = 128               # a WINDOW below this says next to nothing
    REAL_DATA = 1024                # DATA from here on pays for itself
    CROSSING_FRAMES = 8             # that an honest peer may send before it knows that a stream is over
    MAX_CROSSING_FRAMES = 8000

cdef double BUCKET_SIZE = 2000.0
cdef double BUCKET_REFILL = 200.0   # per second

KNOWN_CODES = frozenset(int(code) for code in ErrorCode if code < ErrorCode.SESSION_LOST)


cdef class FormerOwner(SessionOwner):
    """In the place of an owner that is gone, for the log records of what goes on without its session."""

    @property
    def log_fields(self) -> dict:
        return self.fields


cdef class Session(SendingSession):
    """One end of a session. `is_proxy`: this end opens odd streams, the agent even ones.

    hello: the Hello that this end sends, with every number filled in.
    max_window, max_upgraded_window: bytes that a stream's receive window grows to.
    """

    def __cinit__(self):
        self._streams = StreamTable()

    def __init__(self, SessionOwner owner, bint is_proxy, hello, WindowBudget budget, int64_t max_window,
                 int64_t max_upgraded_window):
        self.owner = owner
        self.is_proxy = is_proxy
        self.local_hello = hello
        self._initial_window = hello.initial_window
        self._max_frame_size = hello.max_frame_size
        self._max_streams = hello.max_streams
        # As many answers as an honest peer can ask for may become ready at once, and it may be slow to read them.
        self._max_waiting_frames = MAX_WAITING_FRAMES + STREAM_WAITING_FRAMES * <int64_t>self._max_streams
        self._max_waiting_bytes = MAX_WAITING_BYTES + STREAM_WAITING_BYTES * <int64_t>self._max_streams
        self.max_opened = MAX_STREAM_ID
        self._max_window = max_window
        self._max_upgraded_window = max_upgraded_window
        self.budget = budget
        self.share = BudgetShare()
        self._next_id = 1 if is_proxy else 2
        self._bucket = BUCKET_SIZE
        self._bucket_at = owner.now()
        self._fields = FieldArray()
        cdef bytes payload = encode_hello(hello)
        self._put_control(FRAME_HELLO, 0, 0, payload, len(payload))

    # --- opening ---

    cdef bint can_open(self) noexcept:
        """Whether `open` would give a stream now."""
        return (self.peer_hello is not None and not self.draining and not self.closed and not self.congested
                and self.opened < self._peer_max_streams and self._next_id <= MAX_STREAM_ID)

    cdef Stream open(self, const char* payload, Py_ssize_t size, StreamHandler handler, bint end, bint is_head,
                     int64_t length, bint offers_upgrade):
        """Opens a stream with an encoded REQUEST. `can_open()` must hold.

        length: the bytes of a sized body, -1 where their number is not known.
        Raises StreamError (TOO_LARGE) when the head exceeds 128 KiB.
        """
        cdef Stream stream
        if size > MAX_HEAD_SIZE:
            raise StreamError(TOO_LARGE, "the request's head exceeds 131072 bytes")
        stream = Stream.__new__(Stream)
        stream.id = self._next_id
        self._next_id += 2
        if self._next_id > MAX_STREAM_ID:
            self.go_away(0, "the stream ids are used up")   # a fresh connection takes over
        stream.session = self
        stream.handler = handler
        stream.opened_here = True
        stream.answers_head = is_head
        stream.offers_upgrade = offers_upgrade
        stream.send_credit = stream.send_window = self._peer_window
        stream.sent_promise = length
        window_open(&stream._window, self._initial_window)
        stream._received_promise = -1
        self._streams.add(stream)
        self.opened += 1
        self.served += 1
        if end:
            stream.state = HALF_CLOSED_LOCAL
        self._put_control(FRAME_REQUEST, FLAG_END_STREAM if end else 0, stream.id, payload, size)
        self.owner.on_capacity()
        return stream

    # --- receiving ---

    cdef int receive(self, const char* data, Py_ssize_t size) except -1:
        """Takes one whole message. Whatever is wrong with it ends the session by `SessionOwner.on_close`."""
        cdef Frame frame
        cdef Py_ssize_t at = 0
        try:
            while at < size and not self.closed:
                at += read_frame(data + at, size - at, &frame)
                self._frame(&frame)
        except ProtocolError as error:
            self.close(error.code, str(error), error.close_code)
        return 0

    cdef int _frame(self, Frame* frame) except -1:
        cdef Stream stream
        if self.peer_hello is None and frame.type != FRAME_HELLO:
            raise FrameError("the first frame is no HELLO")
        if frame.type > FRAME_PING:
            return self._charge(1)
        if frame.type >= FRAME_HELLO:
            if frame.stream_id:
                raise FrameError("a session's frame on a stream")
            return self._session_frame(frame)
        if frame.stream_id == 0:
            raise FrameError("a stream's frame on stream 0")
        if frame.type == FRAME_REQUEST:
            return self._request_frame(frame)
        stream = self._streams.get(frame.stream_id)
        if stream is None:
            if frame.stream_id & 1 == self._next_id & 1:
                if frame.stream_id >= self._next_id:
                    raise ProtocolError("a frame for a stream that was never opened")
            elif frame.stream_id > self._last_peer_id:
                raise ProtocolError("a frame for a stream that was never opened")
            if frame.type == FRAME_DATA and frame.size >= REAL_DATA:
                return 0
            if self._crossing:
                self._crossing -= 1
                return 0
            return self._charge(1)
        try:
            if frame.type == FRAME_DATA:
                self._data_frame(stream, frame)
            elif frame.type == FRAME_RESPONSE:
                self._response_frame(stream, frame)
            elif frame.type == FRAME_WINDOW:
                self._window_frame(stream, frame)
            elif frame.type == FRAME_TRAILERS:
                self._trailers_frame(stream, frame)
            else:
                self._reset_frame(stream, frame)
        except ProtocolError:
            raise
        except StreamError as error:
            self.fail(stream, error.code, str(error))
        except Exception as error:
            self.owner.on_handler_error(stream, error)
            self.fail(stream, INTERNAL, "internal error")
        return 0

    cdef int _session_frame(self, Frame* frame) except -1:
        cdef Notify notify
        if frame.type == FRAME_NOTIFY and frame.size > self._max_frame_size or frame.size > MAX_HEAD_SIZE:
            raise FrameError("a frame exceeds the largest size", FRAME_SIZE_ERROR)
        try:
            if frame.type == FRAME_HELLO:
                return self._hello(frame)
            if frame.type == FRAME_GOAWAY:
                return self._goaway(frame)
            if frame.type == FRAME_NOTIFY:
                if frame.size == 0:
                    self._charge(1)
                decode_notify(frame.payload, frame.size, &notify)
                return self.owner.on_notify(bytes_of(notify.content_type).decode() if notify.content_type.size else "",
                                            bytes_of(notify.data) if notify.data.size else b"")
        except HeadError as error:
            raise FrameError(str(error)) from None
        if frame.size != 8:
            raise FrameError("a PING without its 8 bytes", FRAME_SIZE_ERROR)
        if frame.flags & FLAG_ACK:
            if not self.owner.on_ping_answer(frame.payload):
                self._charge(1)
            return 0
        self._charge(1)
        return self._put_control(FRAME_PING, FLAG_ACK, 0, frame.payload, 8)

    cdef int ping(self, const char* payload) except -1:
        """Sends PING with these 8 bytes; `SessionOwner.on_ping_answer` hears of the answer."""
        return self._put_control(FRAME_PING, 0, 0, payload, 8)

    cdef int _hello(self, Frame* frame) except -1:
        cdef object hello
        if self.peer_hello is not None:
            raise ProtocolError("a second HELLO")
        hello = decode_hello(frame.payload[:frame.size])
        if hello.version != 1:
            raise ProtocolError(f"version {hello.version} of the protocol, 1 is spoken here")
        if len(hello.instance) != 16:
            raise ProtocolError("an instance in HELLO that is not 16 bytes")
        if hello.initial_window > MAX_CREDIT:
            raise ProtocolError("an initial_window in HELLO above 2147483647")
        if hello.max_frame_size and not 16384 <= hello.max_frame_size <= 131072:
            raise ProtocolError("a max_frame_size in HELLO outside 16384 to 131072")
        self._peer_window = hello.initial_window or DEFAULT_WINDOW
        self._peer_frame_size = hello.max_frame_size or DEFAULT_FRAME_SIZE
        self._peer_max_streams = min(<uint32_t>hello.max_streams, self.max_opened)
        self.peer_hello = hello
        self.wants_pings = "ping" in hello.capabilities
        self.owner.on_hello(hello)
        return self.owner.on_capacity()

    cdef int _goaway(self, Frame* frame) except -1:
        cdef GoAway goaway
        cdef Stream stream
        decode_goaway(frame.payload, frame.size, &goaway)
        if self.draining:
            self._charge(1)
        self.draining = True
        self.owner.on_capacity()
        self.owner.on_goaway(goaway_object(&goaway))
        for stream in self._streams.in_order():
            if stream.opened_here and stream.id > goaway.last_stream and not stream.acknowledged:
                self._drop(stream, DRAINING, "the peer is leaving and did not process it")
        return 0

    cdef int _request_frame(self, Frame* frame) except -1:
        cdef RequestHead head
        cdef Stream stream
        cdef bint end = frame.flags & FLAG_END_STREAM
        if frame.stream_id & 1 == self._next_id & 1:
            raise ProtocolError("a REQUEST with an id of the wrong parity")
        if frame.stream_id <= self._last_peer_id:
            raise ProtocolError("a REQUEST whose id is not above the last")
        self._last_peer_id = frame.stream_id
        if self.leaving:
            # The peer drops it without a word when it reads our GOAWAY: accepted, it would never end.
            return self._put_reset(frame.stream_id, DRAINING, "the agent is leaving" if not self.is_proxy
                                   else "the proxy is leaving")
        if self.accepted >= self._max_streams:
            if self.is_proxy:
                self._charge(1)
            return self._put_reset(frame.stream_id, REFUSED, "too many streams")
        if frame.size > MAX_HEAD_SIZE:
            return self._put_reset(frame.stream_id, FRAME_SIZE_ERROR, "the head exceeds 131072 bytes")
        stream = Stream.__new__(Stream)
        stream.id = frame.stream_id
        stream.session = self
        stream.send_credit = stream.send_window = self._peer_window
        stream.sent_promise = -1
        window_open(&stream._window, self._initial_window)
        try:
            decode_request(frame.payload, frame.size, &head, self._fields)
            if end and head.body == BODY_SIZED and head.length:
                raise HeadError("the body is shorter than its length")
            if end and head.upgrade.size:
                raise HeadError("an upgrade that ends at once")
        except HeadError as error:
            return self._put_reset(frame.stream_id, error.code, str(error))
        stream.offers_upgrade = head.upgrade.size > 0
        stream.answers_head = head.method.size == 4 and head.method.ptr[:4] == b"HEAD"
        if head.upgrade.size or head.body == BODY_CHUNKED:
            stream._received_promise = -1
        else:
            stream._received_promise = <int64_t>head.length
        if end:
            stream.state = HALF_CLOSED_REMOTE
        self._streams.add(stream)
        self.accepted += 1
        self.served += 1
        try:
            stream.handler = self.owner.accept(stream, &head, end)
            if stream.handler is None and stream.state != CLOSED:
                stream.reset(REFUSED, "refused")
            elif stream.state == CLOSED and not stream._reset_behind:
                stream.handler = None
        except StreamError as error:
            stream.reset(error.code, str(error))
        except Exception as error:
            self.owner.on_handler_error(stream, error)
            stream.reset(INTERNAL, "internal error")
        return 0

    cdef int _response_frame(self, Stream stream, Frame* frame) except -1:
        cdef ResponseHead head
        cdef bint end = frame.flags & FLAG_END_STREAM
        cdef bint interim = (frame.flags & FLAG_INTERIM) != 0
        if not stream.opened_here:
            raise ProtocolError("a RESPONSE on a stream that its receiver did not open")
        if stream.remote_ended():
            raise StreamError(STREAM_CLOSED, "a head after the end")
        if stream.head_done:
            raise StreamError(PROTOCOL_ERROR, "a second final head")
        if frame.size > MAX_HEAD_SIZE:
            raise StreamError(FRAME_SIZE_ERROR, "the head exceeds 131072 bytes")
        decode_response(frame.payload, frame.size, &head, self._fields)
        stream.acknowledged = True
        if interim != (100 <= head.status < 200 and head.status != 101):
            raise HeadError("a 1xx head and the flag INTERIM come together or not at all")
        if interim:
            if end:
                raise HeadError("an interim head that ends the stream")
            if stream.interim_count == MAX_INTERIM:
                raise HeadError("more than 16 interim heads")
            stream.interim_count += 1
            stream.handler.on_head(stream, &head, True, False)
            return 0
        stream.head_done = True
        if head.status == 101:
            if not stream.offers_upgrade or stream.state != OPEN or end:
                raise HeadError("101 to a request that offered no upgrade")
            stream.upgraded = True
        elif stream.answers_head or head.status == 304 or head.status == 204 or head.body == BODY_NONE:
            stream._received_promise = 0
        elif head.body == BODY_SIZED:
            stream._received_promise = <int64_t>head.length
            if end and head.length:
                raise HeadError("the body is shorter than its length")
        stream.handler.on_head(stream, &head, False, end)
        if end and stream.state != CLOSED:
            self._remote_end(stream, NULL)
        return 0

    cdef int _data_frame(self, Stream stream, Frame* frame) except -1:
        cdef bint end = frame.flags & FLAG_END_STREAM
        if stream.remote_ended():
            raise StreamError(STREAM_CLOSED, "body bytes after the end")
        if stream.opened_here and not stream.head_done:
            raise StreamError(PROTOCOL_ERROR, "body bytes before the head")
        if frame.size > self._max_frame_size:
            raise StreamError(FRAME_SIZE_ERROR, "a frame exceeds the largest size")
        if frame.size == 0 and not end:
            self._charge(1)
            return 0
        if not window_receive(&stream._window, frame.size):
            raise StreamError(FLOW_CONTROL_ERROR, "body bytes beyond the credit")
        if stream._received_promise >= 0:
            if frame.size > stream._received_promise:
                raise StreamError(PROTOCOL_ERROR, "the body is longer than its length")
            stream._received_promise -= frame.size
            if end and stream._received_promise:
                raise StreamError(PROTOCOL_ERROR, "the body is shorter than its length")
        if frame.size:
            if stream._window.round_started == 0.0:
                stream._window.round_started = self.owner.now()
            stream.handler.on_data(stream, frame.payload, frame.size)
        if end and stream.state != CLOSED:
            self._remote_end(stream, NULL)
        return 0

    cdef int _trailers_frame(self, Stream stream, Frame* frame) except -1:
        cdef Trailers trailers
        if stream.remote_ended():
            raise StreamError(STREAM_CLOSED, "trailers after the end")
        if stream.opened_here and not stream.head_done or stream.upgraded:
            raise StreamError(PROTOCOL_ERROR, "trailers out of place")
        if frame.size > MAX_HEAD_SIZE:
            raise StreamError(FRAME_SIZE_ERROR, "the trailers exceed 131072 bytes")
        if stream._received_promise > 0:
            raise StreamError(PROTOCOL_ERROR, "the body is shorter than its length")
        decode_trailers(frame.payload, frame.size, &trailers, self._fields)
        return self._remote_end(stream, &trailers)

    cdef int _window_frame(self, Stream stream, Frame* frame) except -1:
        cdef uint32_t count
        if frame.size != 4:
            raise FrameError("a WINDOW without its 4 bytes", FRAME_SIZE_ERROR)
        count = read_u32(frame.payload)
        if count == 0 or count > MAX_CREDIT:
            raise StreamError(PROTOCOL_ERROR, "credit of 0 or above 2147483647")
        stream.acknowledged = True
        stream.send_credit += count
        # But who has a small window grants small parts of it: no less than a quarter, so never less than one of what
        # the stream then has.
        if count < SMALL_GRANT and <int64_t>count * 4 < max(stream.send_credit, self._peer_window):
            self._charge(1)
        if stream.send_credit > MAX_CREDIT:
            raise StreamError(FLOW_CONTROL_ERROR, "credit above 2147483647")
        if stream.send_credit > stream.send_window:
            stream.send_window = stream.send_credit
        if stream.staged:
            self._enter_ring(stream)
        if stream._check_room():
            stream.handler.on_writable(stream)
        return 0

    cdef int _reset_frame(self, Stream stream, Frame* frame) except -1:
        cdef Reset reset
        cdef uint32_t code
        decode_reset(frame.payload, frame.size, &reset)
        code = reset.code if reset.code in KNOWN_CODES else INTERNAL
        # A stream's opener may give it up with CANCEL or TIMEOUT as often as it likes; the other side's resets are
        # free where they say how it or its service failed, since one that is broken fails every request. They come
        # no oftener than this side opens streams. Codes that are not known here yet count as INTERNAL.
        if code != CANCEL and code != TIMEOUT and (not stream.opened_here
                                                   or code < TIMEOUT and code != INTERNAL and code != REFUSED):
            self._charge(1)
        self._drop(stream, code, bytes_of(reset.message).decode() if reset.message.size else "")
        return 0

    # --- state ---

    cdef int _remote_end(self, Stream stream, const Trailers* trailers) except -1:
        cdef StreamHandler handler = stream.handler
        if stream.state == HALF_CLOSED_LOCAL or (stream.opened_here and not stream.upgraded):
            # A response's end before the request's: the rest of the request is of no use any more.
            self._forget(stream)
        else:
            stream.state = HALF_CLOSED_REMOTE
        handler.on_end(stream, trailers)
        return 0

    cdef int _local_end(self, Stream stream) except -1:
        cdef StreamHandler handler
        if stream.state == HALF_CLOSED_REMOTE:
            return self._forget(stream)
        if not stream.opened_here and not stream.upgraded:
            self._put_reset(stream.id, NO_ERROR, "")
            handler = stream.handler
            self._forget(stream)
            stream.handler = handler
            stream._reset_behind = True
            self._roomy.append(stream)
            return 0
        stream.state = HALF_CLOSED_LOCAL
        return 0

    cdef int _forget(self, Stream stream) except -1:
        if stream.state == CLOSED:
            return 0
        stream.state = CLOSED
        stream.handler = None       # which refers back to the stream
        if self._crossing < MAX_CROSSING_FRAMES:
            self._crossing += CROSSING_FRAMES
        stream._drop_staged()
        self._streams.discard(stream)
        if stream._budget_bytes:
            self.budget.give_back(self.share, stream._budget_bytes)
            stream._budget_bytes = 0
        if stream.opened_here:
            self.opened -= 1
            self.owner.on_capacity()
        else:
            self.accepted -= 1
        return 0

    def fail(self, Stream stream, int code, str message):
        """Resets a stream and tells its handler."""
        if stream.state != CLOSED:
            self._put_reset(stream.id, code, message)
            self._drop(stream, code, message)

    def _drop(self, Stream stream, int code, str message):
        """Ends a stream without a frame and tells its handler."""
        cdef StreamHandler handler = stream.handler
        if stream.state == CLOSED:
            return
        self._forget(stream)
        if handler is not None:
            try:
                handler.on_reset(stream, code, message)
            except Exception as error:
                self.owner.on_handler_error(stream, error)

    # --- ending ---

    def go_away(self, int code=0, str message="", int retry_after_ms=0):
        """Bars the peer from opening streams; those that run go on. Once is enough, more does nothing."""
        if self.leaving or self.closed:
            return
        self.leaving = True
        self._put_goaway(code, message, retry_after_ms)

    def _put_goaway(self, int code, str message, int retry_after_ms):
        cdef GoAway goaway
        cdef Buffer out = Buffer()
        cdef bytes text = message.encode()
        goaway.message = slice_of(text)
        goaway.last_stream = self._last_peer_id
        goaway.code = code
        goaway.retry_after_ms = retry_after_ms
        encode_goaway(out, &goaway)
        self._put_control(FRAME_GOAWAY, 0, 0, out.data, out.size)

    def tell_end(self, int code, str message):
        """The owner ends the session by itself: GOAWAY says why, also where another went before."""
        self.leaving = True
        self._put_goaway(code, message, 0)

    def close(self, int code=0, str message="", int close_code=1000):
        """Ends the session: GOAWAY for the peer, then `SessionOwner.on_close`."""
        cdef bint told = self.leaving
        if self.closed:
            return
        # Before the GOAWAY: it is a control frame too, and the limit on those ends the session by this very method.
        self.leaving = self.closed = True
        if code or not told:
            self._put_goaway(code, message, 0)
        self.owner.on_capacity()
        self.owner.on_close(code, message, close_code)

    def lost(self, str message="the session was lost"):
        """The WebSocket is gone: every stream ends, with SESSION_LOST unless nothing of it ever went out."""
        cdef Stream stream
        cdef bint unsent
        self.closed = True
        self.owner.on_capacity()
        while self._streams.count:
            for stream in self._streams.in_order():
                unsent = stream.opened_here and stream.id >= self._unsent_id
                self._drop(stream, REFUSED if unsent else SESSION_LOST, message)
        self._control.release()
        self._grants.clear()
        self._transport_waiters.clear()
        self._ring_head = self._ring_tail = None
        self.after_pull()       # who waits for the RESET behind its answer hears of it still

    cdef int let_go(self) except -1:
        """Its owner is gone, behind `lost`."""
        cdef FormerOwner former = FormerOwner.__new__(FormerOwner)
        former.fields = self.owner.log_fields
        self.owner = former
        return 0

    def notify(self, str content_type, bytes data):
        """Sends a one-way event.

        Raises StreamError: TOO_LARGE where it exceeds the peer's largest frame, REFUSED where the session is over or
        half of what may wait for the peer waits already. The rest is left to what the peer asks for, since beyond the
        whole of it the session ends.
        """
        cdef Buffer out = Buffer()
        cdef bytes kind = content_type.encode()
        cdef int64_t waiting = self._control.size
        encode_notify(out, slice_of(kind), slice_of(data))
        if out.size > (self._peer_frame_size or DEFAULT_FRAME_SIZE):
            raise StreamError(TOO_LARGE, f"an event of more than {self._peer_frame_size} bytes")
        if self.congested:      # otherwise it leaves in this turn
            waiting += FRAME_HEADER_SIZE + out.size
        if (self.closed or waiting > self._max_waiting_bytes // 2
                or self.congested and self._control_frames >= self._max_waiting_frames // 2):
            raise StreamError(REFUSED, "the session takes no more events")
        self._put_control(FRAME_NOTIFY, 0, 0, out.data, out.size)

    def charge_idle_frame(self):
        """A WebSocket frame that says nothing came (a ping, an unasked pong, an empty message): it costs as others."""
        try:
            self._charge(1)
        except ProtocolError as error:
            self.close(error.code, str(error), error.close_code)

    @property
    def stream_count(self) -> int:
        """Streams that are not closed, of either side."""
        return self._streams.count

    cdef int _charge(self, double tokens) except -1:
        cdef double now = self.owner.now()
        self._bucket += (now - self._bucket_at) * BUCKET_REFILL
        self._bucket_at = now
        if self._bucket > BUCKET_SIZE:
            self._bucket = BUCKET_SIZE
        self._bucket -= tokens
        if self._bucket < 0:
            raise ProtocolError("too many frames that say nothing", ENHANCE_YOUR_CALM, 1008)
        return 0
