"""A session: many streams over one WebSocket, under per-stream flow control (docs/reference/protocol.md).

Rules that hold here:
- No sockets, no asyncio, no clock: bytes of whole messages come in by `receive` and go out by `pull`; time and
  everything else comes from the `SessionOwner`.
- A stream's state changes in `_remote_end`, `_local_end` and `_forget` and nowhere else.
- What the peer does wrong to one stream fails that stream; what it does wrong to the session raises ProtocolError
  inside `receive`, which turns it into GOAWAY and a close.
- Reading never waits: credit alone bounds what a peer may send.
"""

import operator
from collections import deque

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from backstream._buffer cimport Buffer, reserve
from backstream._codec cimport (
    BODY_CHUNKED, BODY_NONE, BODY_SIZED, FLAG_ACK, FLAG_END_STREAM, FLAG_INTERIM, FRAME_DATA, FRAME_GOAWAY,
    FRAME_HEADER_SIZE, FRAME_HELLO, FRAME_NOTIFY, FRAME_PING, FRAME_REQUEST, FRAME_RESET, FRAME_RESPONSE,
    FRAME_TRAILERS, FRAME_WINDOW, MAX_HEAD_SIZE, MAX_MESSAGE_SIZE, FieldArray, Frame, GoAway, Notify, RequestHead,
    Reset, ResponseHead, Trailers, decode_goaway, decode_hello, decode_notify, decode_request, decode_reset,
    decode_response, decode_trailers, encode_goaway, encode_hello, encode_notify, encode_reset, encode_response,
    encode_trailers, read_frame, read_u32, write_frame_header, write_u32,
)
from backstream._flow cimport (
    CROWDED, FAST, SLOW, BudgetShare, Pace, WindowBudget, window_consume, window_double, window_end_round,
    window_grant, window_grant_due, window_halve, window_open, window_receive, window_round_full,
)
from backstream._message_codec cimport goaway_object
from backstream._slice cimport bytes_of, slice_of

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
    STAGE_SIZE = 131072             # bytes a source may stage ahead of the transport
    SMALLEST_SPLIT = 16384          # a quarter of the window, but not below this
    MAX_WAITING_BYTES = 262144      # of control frames, beside what the answers of all streams may take
    MAX_WAITING_FRAMES = 1000
    STREAM_WAITING_BYTES = 1024     # of a stream's answer: its head, and how it ends
    STREAM_WAITING_FRAMES = 2
    EARLY_FLUSH_SIZE = 131072
    GENEROUS_GROWTH = 196608        # bytes of windows' growth that a session gets more easily
    SMALLEST_WINDOW = 16384         # that a crowd leaves to a stream
    SMALL_GRANT = 128               # a WINDOW below this says next to nothing
    REAL_DATA = 1024                # DATA from here on pays for itself
    CROSSING_FRAMES = 8             # that an honest peer may send before it knows that a stream is over
    MAX_CROSSING_FRAMES = 8000
    FEWEST_SLOTS = 32               # of a table of streams, powers of two
    KEPT_SLOTS = 512                # of an empty one: a session at work has dozens of streams, then none, then dozens

cdef double BUCKET_SIZE = 2000.0
cdef double BUCKET_REFILL = 200.0   # per second

KNOWN_CODES = frozenset(int(code) for code in ErrorCode if code < ErrorCode.SESSION_LOST)


cdef class StreamHandler:
    """The joint between a stream and the one who uses it: a client's connection, an upstream's, an application.

    For a stream that this side opened: `on_head` any number of times with interim heads and then once with the final
    one; then `on_data` any number of times; then `on_end` once. For a stream that the peer opened the head was
    handed to `SessionOwner.accept`, so `on_data` and `on_end` come alone. `on_reset` may come instead of any of
    these and is the last call; nothing follows `on_end` but `on_writable` and at most one `on_reset`.

    Pointers are valid during the call only. A handler answers each byte of `on_data` with `stream.consume` once its
    own consumer took it, during the call or later. It may call anything of the stream's during a call, `reset`
    included, after which it hears no more. It sends with `stream.write` no more than `stream.room()` said; where
    that said 0, `on_writable` tells when to ask again.

    An exception raised by a handler resets its stream: StreamError with its code, any other with INTERNAL.
    """

    cdef int on_head(self, Stream stream, const ResponseHead* head, bint interim, bint end) except -1:
        """A response's head. `end`: no body follows, `on_end` comes next."""
        return 0

    cdef int on_data(self, Stream stream, const char* data, Py_ssize_t size) except -1:
        """`size` bytes of the body, at least one."""
        return 0

    cdef int on_end(self, Stream stream, const Trailers* trailers) except -1:
        """The peer's direction is complete; `trailers` is NULL where none came."""
        return 0

    cdef int on_reset(self, Stream stream, uint32_t code, str message) except -1:
        """The stream is over before its time. NO_ERROR: the answer is complete and the rest is not wanted."""
        return 0

    cdef int on_writable(self, Stream stream) except -1:
        """`stream.room()` is above 0 again."""
        return 0


cdef class SessionOwner:
    """Carries a session's bytes and owns its policy; a transport derives from it."""

    cdef double now(self) noexcept:
        """Monotonic seconds."""
        return 0.0

    cdef int wake(self) except -1:
        """The session has something to send: call `pull` in this turn."""
        return 0

    cdef int flush_early(self) except -1:
        """Much has gathered within one turn: pull and send now, without `after_pull`."""
        return 0

    cdef StreamHandler accept(self, Stream stream, const RequestHead* head, bint end):
        """The peer opened a stream. Returns its handler, or None to refuse it; raises StreamError to reset it."""
        return None

    cdef int on_hello(self, object hello) except -1:
        return 0

    cdef int on_goaway(self, object goaway) except -1:
        return 0

    cdef int on_notify(self, str content_type, bytes data) except -1:
        return 0

    cdef int on_capacity(self) except -1:
        """`opened` or `can_open()` changed."""
        return 0

    cdef int on_close(self, uint32_t code, str message, int close_code) except -1:
        """The session is over: send what `pull` gives, close the WebSocket with `close_code`, then call `lost`."""
        return 0

    cdef int on_handler_error(self, Stream stream, object error) except -1:
        """A handler raised something that is no StreamError: a defect to be logged."""
        return 0

    cdef int on_time(self, double at) except -1:
        """The session has something to do at `at`, in seconds of `now`."""
        return 0


cdef SessionOwner _NOBODY = SessionOwner()


@cython.freelist(64)     # the memory of streams that ended serves the next
cdef class Stream:
    """One request and its response."""

    def __repr__(self):
        return f"<Stream {self.id} {('open', 'half-closed (local)', 'half-closed (remote)', 'closed')[self.state]}>"

    cdef bint is_closed(self) noexcept:
        return self.state == CLOSED

    cdef bint local_ended(self) noexcept:
        return self.state == CLOSED or self.state == HALF_CLOSED_LOCAL or self._ending

    cdef bint remote_ended(self) noexcept:
        return self.state == CLOSED or self.state == HALF_CLOSED_REMOTE

    cdef int respond(self, const ResponseHead* head, bint end) except -1:
        """Sends the final head of the response to a stream that the peer opened.

        Raises StreamError (TOO_LARGE) when the head exceeds 128 KiB; the stream is then still unanswered.
        """
        cdef Session session = self.session
        cdef Py_ssize_t start
        if self.state == CLOSED:
            return 0
        if self.head_done:
            raise StreamError(INTERNAL, "a second final head")
        if head.status == 101 and not self.offers_upgrade:
            raise StreamError(INTERNAL, "101 to a request that offered no upgrade")
        start = session._control.size
        reserve(session._control, FRAME_HEADER_SIZE)
        session._control.size += FRAME_HEADER_SIZE
        encode_response(session._control, head)
        if session._control.size - start - FRAME_HEADER_SIZE > MAX_HEAD_SIZE:
            session._control.size = start
            raise StreamError(TOO_LARGE, "the response's head exceeds 131072 bytes")
        self.head_done = True
        if head.status == 101:
            self.upgraded = True
        elif head.body == BODY_SIZED and not self.answers_head and head.status != 304:
            self.sent_promise = <int64_t>head.length
        session._end_control(start, FRAME_RESPONSE, FLAG_END_STREAM if end else 0, self.id)
        if end:
            session._local_end(self)
        return 0

    cdef int respond_interim(self, const ResponseHead* head) except -1:
        """Sends an interim head (1xx but 101); other than 100 it is dropped where the transport is full.

        Raises StreamError after 16.
        """
        cdef Session session = self.session
        cdef Py_ssize_t start
        if self.state == CLOSED or self.head_done:
            return 0
        if self.interim_count == MAX_INTERIM:
            raise StreamError(INTERNAL, "more than 16 interim heads")
        self.interim_count += 1
        if session.congested and head.status != 100:
            return 0        # but a client may wait for 100 before it sends its body
        start = session._control.size
        reserve(session._control, FRAME_HEADER_SIZE)
        session._control.size += FRAME_HEADER_SIZE
        encode_response(session._control, head)
        if session._control.size - start - FRAME_HEADER_SIZE > MAX_HEAD_SIZE:
            session._control.size = start
            return 0
        return session._end_control(start, FRAME_RESPONSE, FLAG_INTERIM, self.id)

    cdef int write(self, bytes data) except -1:
        """Stages body bytes, which are referred to and not copied. Raises StreamError beyond a sized body."""
        cdef Py_ssize_t size = len(data)
        if self.state == CLOSED or size == 0:
            return 0
        if self.local_ended():
            raise StreamError(INTERNAL, "body bytes after the end")
        if self.sent_promise >= 0:
            if size > self.sent_promise:
                raise StreamError(INTERNAL, "more body than was promised")
            self.sent_promise -= size
        if self._chunk is None:
            self._chunk = data
            self._chunk_at = 0
        elif self._more is None:
            self._more = deque((data,))
        else:
            self._more.append(data)
        self.staged += size
        if self.send_credit > 0:
            self.session._enter_ring(self)
        return 0

    cdef int end(self) except -1:
        """Ends this side's direction behind what is staged. Raises StreamError short of a sized body."""
        if self.local_ended():
            return 0
        if self.sent_promise > 0:
            raise StreamError(INTERNAL, "less body than was promised")
        self._ending = True
        if self.staged == 0 or self.send_credit > 0:
            self.session._enter_ring(self)
        return 0

    cdef int end_with_trailers(self, const Trailers* trailers) except -1:
        """As `end`, with trailers. Raises StreamError (TOO_LARGE) when they exceed 128 KiB."""
        cdef Buffer out
        if self.local_ended():
            return 0
        if self.sent_promise > 0:
            raise StreamError(INTERNAL, "less body than was promised")
        out = Buffer()
        encode_trailers(out, trailers)
        if out.size > MAX_HEAD_SIZE:
            raise StreamError(TOO_LARGE, "the trailers exceed 131072 bytes")
        if self.staged == 0:
            # Nothing to wait for: they go before other streams' data, as heads do.
            self.session._put_control(FRAME_TRAILERS, 0, self.id, out.data, out.size)
            return self.session._local_end(self)
        self._trailers = out.data[:out.size]
        return self.end()

    cdef int reset(self, uint32_t code, str message) except -1:
        """Gives the stream up at once, whatever is staged. The handler hears no more of it."""
        if self.state == CLOSED:
            return 0
        self.session._put_reset(self.id, code, message)
        return self.session._forget(self)

    cdef int consume(self, int64_t count) except -1:
        """The consumer took `count` bytes of `on_data`: grants them again."""
        cdef Session session = self.session
        cdef Pace pace
        cdef bint due, alone
        if self.state == CLOSED:
            return 0
        due = window_consume(&self._window, count)
        if self.state == HALF_CLOSED_REMOTE:
            return 0
        if self._returned_bytes and self._window.ungranted >= 0:
            # What was granted before the window was halved has come and gone: only now nobody can use its memory.
            session.budget.give_back(session.share, self._returned_bytes)
            self._budget_bytes -= self._returned_bytes
            self._returned_bytes = 0
        if window_round_full(&self._window):
            alone = session._last_round == self.id or session._last_round == 0
            session._last_round = self.id
            pace = window_end_round(&self._window, session.owner.now(), session.round_trip,
                                    alone and session.share.used_bytes < GENEROUS_GROWTH)
            if pace == FAST or pace == SLOW and self._window.window * 2 <= session._initial_window:
                due = self._grow_window() or due
            elif pace == SLOW or pace == CROWDED:
                due = self._shrink_window(pace) or due
        if due and self._window.ungranted > 0:
            if self._pending_grant == 0:
                session._grants.append(self)
                session.owner.wake()
            self._pending_grant += <uint32_t>window_grant(&self._window)
        return 0

    cdef bint _grow_window(self) except -1:
        """Whether there is more to grant."""
        cdef Session session = self.session
        cdef int64_t limit = session._max_upgraded_window if self.upgraded else session._max_window
        cdef int64_t extra = self._window.window
        if extra * 2 > session._initial_window:
            if extra * 2 > limit or not session.budget.take(session.share, extra):
                return False
            self._budget_bytes += extra
        window_double(&self._window)
        return True

    cdef bint _shrink_window(self, Pace pace) except -1:
        """Whether a grant is due of the smaller window."""
        if self._budget_bytes:
            if self._returned_bytes:
                return False
            window_halve(&self._window)
            self._returned_bytes = self._window.window
        elif pace == CROWDED and self._window.window >= 2 * SMALLEST_WINDOW:
            window_halve(&self._window)
        return window_grant_due(&self._window)

    cdef int64_t room(self) noexcept:
        """How many bytes the source may hand to `write` now; after 0, `on_writable` will come."""
        cdef int64_t room
        if self.state == CLOSED:
            return 0
        if self.session.congested:
            self._wants_room = True
            if not self._waits_for_transport:
                self._waits_for_transport = True
                self.session._transport_waiters.append(self)
            return 0
        room = self.send_credit - self.staged
        if room > STAGE_SIZE - self.staged:
            room = STAGE_SIZE - self.staged
        if room <= 0:
            self._wants_room = True
            return 0
        return room

    cdef int _check_room(self) except -1:
        if self._wants_room and self.room() > 0:
            self._wants_room = False
            return 1
        return 0

    cdef int _drop_staged(self) except -1:
        self._chunk = None
        self._more = None
        self._trailers = None
        self.staged = 0
        self._ending = False
        return 0


cdef object _by_id = operator.attrgetter("id")


cdef class StreamTable:
    """A session's streams by their ids.

    Ids count up by two, so that chains behind `id / 2` modulo a power of two are as short as can be, and no number is
    made an object to look one up: 1,450 instructions less of a request in the proxy.
    """

    def __cinit__(self):
        self._slots = [None] * FEWEST_SLOTS

    cdef Stream get(self, uint32_t stream_id):
        cdef Stream stream = <Stream>self._slots[<Py_ssize_t>(stream_id >> 1) & len(self._slots) - 1]
        while stream is not None and stream.id != stream_id:
            stream = stream._slot_next
        return stream

    cdef int add(self, Stream stream) except -1:
        cdef Py_ssize_t slot
        if self.count == len(self._slots):
            self._resize(len(self._slots) * 2)
        slot = <Py_ssize_t>(stream.id >> 1) & len(self._slots) - 1
        stream._slot_next = <Stream>self._slots[slot]
        self._slots[slot] = stream
        self.count += 1
        return 0

    cdef int discard(self, Stream stream) except -1:
        cdef Py_ssize_t slot = <Py_ssize_t>(stream.id >> 1) & len(self._slots) - 1
        cdef Stream before = <Stream>self._slots[slot]
        if before is stream:
            self._slots[slot] = stream._slot_next
        else:
            while before is not None and before._slot_next is not stream:
                before = before._slot_next
            if before is None:
                return 0
            before._slot_next = stream._slot_next
        stream._slot_next = None
        self.count -= 1
        if self.count == 0 and len(self._slots) > KEPT_SLOTS:
            self._slots = [None] * FEWEST_SLOTS
        return 0

    cdef list in_order(self):
        """All streams, oldest first."""
        cdef list streams = self._all()
        streams.sort(key=_by_id)
        return streams

    cdef list _all(self):
        cdef list streams = []
        cdef Stream stream
        for stream in self._slots:
            while stream is not None:
                streams.append(stream)
                stream = stream._slot_next
        return streams

    cdef int _resize(self, Py_ssize_t size) except -1:
        cdef list streams = self._all()
        cdef Stream stream
        self._slots = [None] * size
        self.count = 0
        for stream in streams:
            self.add(stream)
        return 0


cdef class Session:
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
        self._control = Buffer()
        self._fields = FieldArray()
        self._grants = []
        self._transport_waiters = []
        self._roomy = []
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
        self._charge(1)
        if not frame.flags & FLAG_ACK:
            self._put_control(FRAME_PING, FLAG_ACK, 0, frame.payload, 8)
        return 0

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
        if count < SMALL_GRANT:
            self._charge(1)
        stream.acknowledged = True
        stream.send_credit += count
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
        # free where they say how the service failed, since a service that is down fails every request.
        if code != CANCEL and code != TIMEOUT and (not stream.opened_here or code < TIMEOUT and code != REFUSED):
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

    cdef int hold_place(self) except -1:
        """Keeps a place among the peer's streams for work that goes on after its stream was aborted."""
        self.accepted += 1
        return 0

    cdef int free_place(self) except -1:
        self.accepted -= 1
        return 0

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
        self.owner = _NOBODY
        return 0

    def notify(self, str content_type, bytes data):
        """Sends a one-way event. Raises StreamError (TOO_LARGE) when it exceeds the peer's largest frame."""
        cdef Buffer out = Buffer()
        cdef bytes kind = content_type.encode()
        encode_notify(out, slice_of(kind), slice_of(data))
        if out.size > (self._peer_frame_size or DEFAULT_FRAME_SIZE):
            raise StreamError(TOO_LARGE, f"an event of more than {self._peer_frame_size} bytes")
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

    # --- sending ---

    cdef int _put_control(self, uint8_t kind, uint8_t flags, uint32_t stream_id, const char* payload,
                          Py_ssize_t size) except -1:
        cdef Py_ssize_t start = self._control.size
        reserve(self._control, FRAME_HEADER_SIZE + size)
        memcpy(self._control.data + start + FRAME_HEADER_SIZE, payload, size)
        self._control.size += FRAME_HEADER_SIZE + size
        return self._end_control(start, kind, flags, stream_id)

    cdef int _put_reset(self, uint32_t stream_id, uint32_t code, str message) except -1:
        cdef Py_ssize_t start = self._control.size
        cdef bytes text = message.encode("utf-8", "replace")
        if len(text) > 200:
            # Not within a character: the peer would find the whole RESET malformed.
            text = text[:200].decode("utf-8", "ignore").encode()
        reserve(self._control, FRAME_HEADER_SIZE)
        self._control.size += FRAME_HEADER_SIZE
        encode_reset(self._control, code, slice_of(text))
        return self._end_control(start, FRAME_RESET, 0, stream_id)

    cdef int _end_control(self, Py_ssize_t start, uint8_t kind, uint8_t flags, uint32_t stream_id) except -1:
        write_frame_header(self._control.data + start, self._control.size - start - FRAME_HEADER_SIZE, kind, flags,
                           stream_id)
        if self.congested:
            self._control_frames += 1
            if not self.closed and (self._control_frames > self._max_waiting_frames
                                    or self._control.size > self._max_waiting_bytes):
                # The peer reads nothing; what waits for it is thrown away, or it would keep growing.
                self._control.release()
                self.close(ENHANCE_YOUR_CALM, "the peer does not read", 1008)
            return 0
        if start == 0:
            self.owner.wake()
        elif self._control.size > EARLY_FLUSH_SIZE:
            self.owner.flush_early()
        return 0

    cdef int _enter_ring(self, Stream stream) except -1:
        if stream._in_ring:
            return 0
        stream._in_ring = True
        stream._ring_next = None
        if self._ring_tail is None:
            self._ring_head = stream
        else:
            self._ring_tail._ring_next = stream
        self._ring_tail = stream
        return self.owner.wake()

    cdef Stream _leave_ring(self):
        cdef Stream stream = self._ring_head
        self._ring_head = stream._ring_next
        if self._ring_head is None:
            self._ring_tail = None
        stream._ring_next = None
        stream._in_ring = False
        return stream

    cdef bint has_output(self) noexcept:
        """Whether `pull` would give bytes if the transport had room."""
        if self.closed:
            return self._control.size > 0       # the GOAWAY, and what was said before it
        return self._control.size > 0 or len(self._grants) > 0 or self._ring_head is not None

    cdef int set_congested(self, bint congested) except -1:
        """The transport went above its high-water mark, or came back below."""
        cdef Stream stream
        cdef list waiters
        if self.congested == congested:
            return 0
        self.congested = congested
        self.owner.on_capacity()
        if congested:
            return 0
        self._control_frames = 0
        waiters = self._transport_waiters
        self._transport_waiters = []
        for stream in waiters:
            stream._waits_for_transport = False
            if stream._check_room():
                self._tell_writable(stream)
        return 0

    def _tell_writable(self, Stream stream):
        cdef StreamHandler handler = stream.handler
        if handler is None:         # it is only being accepted
            return
        try:
            handler.on_writable(stream)
        except StreamError as error:
            self.fail(stream, error.code, str(error))
        except Exception as error:
            self.owner.on_handler_error(stream, error)
            self.fail(stream, INTERNAL, "internal error")

    cdef Py_ssize_t pull(self, char* target, Py_ssize_t limit) except -1:
        """Writes the next message, whole frames of at most MAX_MESSAGE_SIZE bytes, and returns its size.

        First those of the session and the heads, then credit, then one DATA frame of each ready stream in turn
        until the message has `limit` bytes. Call `after_pull` when the turn's last message is out.
        """
        cdef Py_ssize_t size = self._pull_control(target)
        cdef Stream stream
        if self._control.size or self.closed:
            return size
        while self._grants and MAX_MESSAGE_SIZE - size >= FRAME_HEADER_SIZE + 4:
            stream = <Stream>self._grants.pop()
            if stream._pending_grant and stream.state != CLOSED:
                write_frame_header(target + size, 4, FRAME_WINDOW, 0, stream.id)
                write_u32(target + size + FRAME_HEADER_SIZE, stream._pending_grant)
                size += FRAME_HEADER_SIZE + 4
            stream._pending_grant = 0
        while self._ring_head is not None and size + FRAME_HEADER_SIZE < limit:
            stream = self._ring_head
            if stream._trailers is not None and size + FRAME_HEADER_SIZE + len(stream._trailers) > limit and size:
                break
            self._leave_ring()
            if stream.state != CLOSED and stream.state != HALF_CLOSED_LOCAL:
                size += self._pull_data(stream, target + size, limit - size)
        if self._control.size and self._control.size <= MAX_MESSAGE_SIZE - size:
            # RESET(NO_ERROR) behind the end of a response.
            size += self._pull_control(target + size)
        return size

    cdef Py_ssize_t _pull_control(self, char* target) except -1:
        """As many whole frames of the control buffer as one message holds."""
        cdef Py_ssize_t at = self._control.size, length
        cdef const uint8_t* p
        if at > MAX_MESSAGE_SIZE:
            at = 0
            while True:
                p = <const uint8_t*>self._control.data + at
                length = FRAME_HEADER_SIZE + (<Py_ssize_t>p[0] << 16 | <Py_ssize_t>p[1] << 8 | p[2])
                if at + length > MAX_MESSAGE_SIZE:
                    break
                if p[3] == FRAME_REQUEST:
                    self._unsent_id = read_u32(<const char*>p + 5) + 2
                at += length
        memcpy(target, self._control.data, at)
        self._control.drop_front(at)
        if self._control.size == 0:
            self._unsent_id = self._next_id
        if self._control.size == 0 and self._control.capacity > 65536:
            self._control.release()
        return at

    cdef Py_ssize_t _pull_data(self, Stream stream, char* target, Py_ssize_t room) except -1:
        """One DATA frame of a stream, and its end where that follows."""
        cdef Py_ssize_t size = stream.staged
        cdef Py_ssize_t limit = stream.send_window // 4
        cdef Py_ssize_t part, done = 0
        cdef char* at = target + FRAME_HEADER_SIZE
        cdef bint end
        if limit < SMALLEST_SPLIT:
            limit = SMALLEST_SPLIT
        if size > limit:
            size = limit
        if size > self._peer_frame_size:
            size = self._peer_frame_size
        if size > stream.send_credit:
            size = stream.send_credit
        if size > room - FRAME_HEADER_SIZE:
            size = room - FRAME_HEADER_SIZE
        while done < size:
            part = len(stream._chunk) - stream._chunk_at
            if part > size - done:
                part = size - done
                memcpy(at + done, <const char*>stream._chunk + stream._chunk_at, part)
                stream._chunk_at += part
            else:
                memcpy(at + done, <const char*>stream._chunk + stream._chunk_at, part)
                stream._chunk_at = 0
                stream._chunk = <bytes>stream._more.popleft() if stream._more else None
            done += part
        stream.staged -= size
        stream.send_credit -= size
        end = stream._ending and stream.staged == 0 and stream._trailers is None
        if size or end:
            write_frame_header(target, size, FRAME_DATA, FLAG_END_STREAM if end else 0, stream.id)
            size += FRAME_HEADER_SIZE
        if end:
            self._local_end(stream)
            return size
        if stream._ending and stream.staged == 0:
            if room - size < FRAME_HEADER_SIZE + len(stream._trailers) and size:
                self._enter_ring(stream)
                return size
            write_frame_header(target + size, len(stream._trailers), FRAME_TRAILERS, 0, stream.id)
            memcpy(target + size + FRAME_HEADER_SIZE, <const char*>stream._trailers, len(stream._trailers))
            size += FRAME_HEADER_SIZE + len(stream._trailers)
            self._local_end(stream)
            return size
        if stream.staged and stream.send_credit > 0:
            self._enter_ring(stream)
        if stream._wants_room:
            self._roomy.append(stream)
        return size

    cdef int after_pull(self) except -1:
        """Tells streams that the turn's messages made room."""
        cdef Stream stream
        cdef StreamHandler handler
        cdef list roomy
        if not self._roomy:
            return 0
        roomy = self._roomy
        self._roomy = []
        for stream in roomy:
            if stream._reset_behind:
                stream._reset_behind = False
                handler = stream.handler
                stream.handler = None
                if handler is not None:
                    try:
                        handler.on_reset(stream, NO_ERROR, "the answer is complete")
                    except Exception as error:
                        self.owner.on_handler_error(stream, error)
            elif stream._check_room():
                self._tell_writable(stream)
        return 0
