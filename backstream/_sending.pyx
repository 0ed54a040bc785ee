"""What a session sends, and in which order: control frames and heads, then credit, then data of each stream in turn.

Rules that hold here:
- Data leaves in small parts, one of each ready stream after another, so that none waits for all of another's.
- What waits for a peer that does not read is bounded; beyond that the session ends.
- A stream is told of room after the turn's last message, never while one is made.
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from backstream._buffer cimport reserve
from backstream._codec cimport (
    FLAG_END_STREAM, FRAME_DATA, FRAME_HEADER_SIZE, FRAME_REQUEST, FRAME_RESET, FRAME_TRAILERS, FRAME_WINDOW,
    MAX_MESSAGE_SIZE, encode_reset, read_u32, write_frame_header, write_u32,
)
from backstream._slice cimport slice_of
from backstream._stream cimport CLOSED, HALF_CLOSED_LOCAL, SessionBase, Stream, StreamHandler

from backstream.errors import StreamError


cdef enum:
    NO_ERROR = 0
    INTERNAL = 2
    ENHANCE_YOUR_CALM = 11

    SMALLEST_SPLIT = 16384          # a quarter of the window, but not below this
    EARLY_FLUSH_SIZE = 131072


cdef class SendingSession(SessionBase):

    def __cinit__(self):
        self._roomy = []

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
