"""A stream: one request and its response, and what it says to those on either side of it.

Rules that hold here:
- Above it is a `StreamHandler`, below it a `SessionBase`, and beneath that a `SessionOwner`, which carries the bytes.
- A stream's state changes in its session (`_remote_end`, `_local_end` and `_forget`) and nowhere else.
- What its user does wrong raises StreamError; nothing is sent of it.
"""

from collections import deque

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t

from backstream._buffer cimport Buffer, reserve
from backstream._codec cimport (
    BODY_SIZED, FLAG_END_STREAM, FLAG_INTERIM, FRAME_HEADER_SIZE, FRAME_RESPONSE, FRAME_TRAILERS, MAX_HEAD_SIZE,
    encode_response, encode_trailers,
)
from backstream._flow cimport (
    CROWDED, FAST, SLOW, is_long_path, window_consume, window_double, window_end_round, window_grant,
    window_grant_due, window_halve, window_round_full,
)

from backstream.errors import StreamError


cdef enum:
    INTERNAL = 2
    TOO_LARGE = 37

    MAX_INTERIM = 16
    STAGE_SIZE = 131072             # bytes a source may stage ahead of the transport
    GENEROUS_GROWTH = 458752        # bytes of windows' growth that a session gets more easily
    SMALLEST_WINDOW = 16384         # that a crowd leaves to a stream


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

    @property
    def log_fields(self) -> dict:
        """What log records about the session carry."""
        return {}

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

    cdef bint on_ping_answer(self, const char* payload) except -1:
        """The answer to a PING came, 8 bytes; false where nobody waited for it."""
        return False

    cdef int on_time(self, double at) except -1:
        """The session has something to do at `at`, in seconds of `now`."""
        return 0


cdef class SessionBase:

    def __cinit__(self):
        # Here, since not every session fills them: what looks into one that is None brings down the process.
        self._control = Buffer()
        self._grants = []
        self._transport_waiters = []

    cdef int hold_place(self) except -1:
        """Keeps a place among the peer's streams for work that goes on after its stream was aborted."""
        self.accepted += 1
        return 0

    cdef int free_place(self) except -1:
        self.accepted -= 1
        return 0

    cdef int _put_control(self, uint8_t kind, uint8_t flags, uint32_t stream_id, const char* payload,
                          Py_ssize_t size) except -1:
        """Sends a frame ahead of all data."""
        raise NotImplementedError

    cdef int _put_reset(self, uint32_t stream_id, uint32_t code, str message) except -1:
        raise NotImplementedError

    cdef int _end_control(self, Py_ssize_t start, uint8_t kind, uint8_t flags, uint32_t stream_id) except -1:
        """Completes a frame whose payload was written to `_control`, behind room for its header at `start`."""
        raise NotImplementedError

    cdef int _enter_ring(self, Stream stream) except -1:
        """The stream has something to send and credit for it."""
        raise NotImplementedError

    cdef int _local_end(self, Stream stream) except -1:
        """This side's direction is complete."""
        raise NotImplementedError

    cdef int _forget(self, Stream stream) except -1:
        """The stream is over."""
        raise NotImplementedError


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
        cdef SessionBase session = self.session
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
        cdef SessionBase session = self.session
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
        cdef SessionBase session = self.session
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
                                    alone and session.share.used_bytes < GENEROUS_GROWTH,
                                    alone and session.share.used_bytes <= GENEROUS_GROWTH)
            if pace == FAST or pace == SLOW and self._window.window * 2 <= session._initial_window:
                self._grow_window()
                if alone and is_long_path(session.round_trip):
                    self._grow_window()     # its rounds are long: it takes fewer of them
            elif pace == SLOW or pace == CROWDED:
                self._shrink_window(pace)
            # Judged anew: of a window that was halved a few bytes may be left, and small grants are a flood.
            due = window_grant_due(&self._window)
        if due and self._window.ungranted > 0:
            if self._pending_grant == 0:
                session._grants.append(self)
                session.owner.wake()
            self._pending_grant += <uint32_t>window_grant(&self._window)
        return 0

    cdef int _grow_window(self) except -1:
        cdef SessionBase session = self.session
        cdef int64_t limit = session._max_upgraded_window if self.upgraded else session._max_window
        cdef int64_t extra = self._window.window
        if extra * 2 > session._initial_window:
            if extra * 2 > limit or not session.budget.take(session.share, extra):
                return 0
            self._budget_bytes += extra
        window_double(&self._window)
        return 0

    cdef int _shrink_window(self, Pace pace) except -1:
        if self._budget_bytes:
            if self._returned_bytes:
                return 0
            window_halve(&self._window)
            self._returned_bytes = self._window.window
        elif pace == CROWDED and self._window.window >= 2 * SMALLEST_WINDOW:
            window_halve(&self._window)
        return 0

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
