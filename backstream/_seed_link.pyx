"""The seed wire on a WebSocket: one message of the session is one of RFC 6455, text where it is JSON.

Rules that hold here:
- Messages leave in frames of at most PIECE bytes, so that a large one waits in the session and not in the transport;
  all that gathered in one turn leaves in few writes.
- Messages that come in fragments are put together up to the session's largest, and what that takes is booked; what
  can't be taken is passed over, and whoever waits for it is told.
"""

from libc.stdint cimport int64_t, uint8_t

from picows.picows cimport WSFrame, WSMsgType

from backstream._buffer cimport Buffer, append
from backstream._loop cimport monotonic
from backstream._seed_session cimport MAX_QUEUED, SeedSession
from backstream._websocket cimport Carrier, SessionLink
from backstream._websocket_frames cimport FIN, FrameWriter, mask_payload, put_header


cdef enum:
    PIECE = 65536
    BATCH = 131072                  # bytes written at once, and in one turn of the loop
    LEAST_FRAME = 1048576           # bytes of a frame that are taken even where the message is then passed over
    UNBOOKED = 65536                # bytes of a message that are not booked while it is put together
    LEAST_PROGRESS = 16384          # bytes of it that must come within the time for a message


cdef class SeedCarrier(Carrier):

    # --- sending ---

    cdef int send(self) except -1:
        cdef SessionLink link = self._link
        cdef SeedSession session = self._session
        cdef char* start = link.loop.message_buffer
        cdef char* at = start
        cdef FrameWriter writer = link._writer
        cdef Py_ssize_t size
        cdef int opcode = 0
        cdef bint last = False
        if link._transport.is_close_frame_sent:
            return 0        # nothing follows it (RFC 6455 §5.5.1), and the session's end drops what waits
        while at - start < BATCH and not session.congested:
            size = session.next_piece(PIECE, &opcode, &last)
            if size == 0:
                break
            link.bytes_sent += size
            at = put_header(at, <uint8_t>(opcode | (FIN if last else 0)), size, writer.masks)
            session.pull_piece(at, size)
            if writer.masks:
                mask_payload(at, size)
            at += size
        if link._guard is not None and link._guard._held and len(session._queue) <= MAX_QUEUED // 2:
            link._guard.hold(False)
        if at != start:
            writer.write(start, at - start)
        return 0

    # --- receiving ---

    cdef int frame(self, WSFrame frame) except -1:
        cdef SessionLink link = self._link
        if link._guard is not None and not link._guard._held and len(self._session._queue) > MAX_QUEUED:
            # Requests are answered no faster than the peer takes the answers.
            link._guard.hold(True)
        if (frame.msg_type == WSMsgType.CONTINUATION) != (link._fragments_at != 0):
            self._session.close(1, "WebSocket fragments out of order", 1002)
            return 0
        if link._fragments_at or not frame.fin:
            link.charge_fragment(frame)
            return 0 if self._session.closed else self._put_together(frame)
        if frame.payload_size == 0:
            self._session.charge_idle_frame()
        if frame.payload_size > self._session.max_message:
            return self._session.miss(frame.msg_type == WSMsgType.TEXT, frame.payload_ptr, frame.payload_size,
                                      f"a message of more than {self._session.max_message} bytes")
        return self._session.take(frame.msg_type == WSMsgType.TEXT, frame.payload_ptr, frame.payload_size)

    cdef int _put_together(self, WSFrame frame) except -1:
        cdef SessionLink link = self._link
        cdef Buffer fragments
        cdef Py_ssize_t total
        cdef int64_t more
        if link._fragments_at == 0:
            self._json = frame.msg_type == WSMsgType.TEXT
        if not self._missing:
            total = link._fragments.size + frame.payload_size
            more = max(total - self._booked, <int64_t>UNBOOKED) if total > UNBOOKED and total > self._booked else 0
            if total > self._session.max_message:
                self._miss(f"a message of more than {self._session.max_message} bytes")
            elif more and not self._session.budget.take(self._session.share, more):
                self._miss("the memory for bodies on the seed wire is taken")
            else:
                self._booked += more
                append(link._fragments, frame.payload_ptr, frame.payload_size)
        if frame.fin:
            link._fragments_at = 0
            if not self._missing:
                fragments = link._fragments
                self._session.take(self._json, fragments.data, fragments.size)
            return self._end_fragments()
        if link._fragments_at == 0:
            link._fragments_at = monotonic()
            self._progress = 0
            return link._set_deadline()
        self._progress += frame.payload_size
        if self._progress >= LEAST_PROGRESS:
            self._progress = 0
            link._fragments_at = monotonic()    # the next ones may take as long again
        return 0

    cdef int _miss(self, str why) except -1:
        cdef Buffer fragments = self._link._fragments
        self._session.miss(self._json, fragments.data, fragments.size, why)
        self._end_fragments()
        self._missing = True
        return 0

    cdef int _end_fragments(self) except -1:
        if self._link is not None:      # or who was told of the message has dropped the connection
            if self._link._fragments.capacity > UNBOOKED:
                self._link._fragments.release()
            self._link._fragments.size = 0
        self._missing = False
        if self._booked:
            self._session.budget.give_back(self._session.share, self._booked)
            self._booked = 0
        return 0

    # --- time ---

    cdef int paused(self) except -1:
        self._stuck_at = monotonic()
        self._unsent = self._link._transport.underlying_transport.get_write_buffer_size()
        return self._link._set_deadline()

    cdef double next_deadline(self, double at) noexcept:
        if self._session.congested and self._stuck_at:
            at = min(at, self._stuck_at + self._link._message_timeout)
        if self._session.next_expiry:
            at = min(at, self._session.next_expiry)
        return at

    cdef int deadline(self, double now) except -1:
        cdef Py_ssize_t unsent
        if self._session.next_expiry and now >= self._session.next_expiry:
            self._session.expire(now)
            if self._link is None:
                return 0
        if self._session.congested and now - self._stuck_at >= self._link._message_timeout:
            unsent = self._link._transport.underlying_transport.get_write_buffer_size()
            if unsent >= self._unsent:
                self._link.abort(f"the peer took nothing for {self._link._message_timeout:g} s")
                return 0
            self._unsent = unsent
            self._stuck_at = now
        return 0

    cdef int lost(self) except -1:
        self._link._fragments = Buffer()        # its bytes may be in use just now
        self._link = None
        self._end_fragments()
        return 0


cdef int speak_seed(SessionLink link, SeedSession session) except -1:
    """Makes `session` the link's, in place of one on the native wire if there is any."""
    cdef SeedCarrier carrier = SeedCarrier.__new__(SeedCarrier)
    carrier._link = link
    carrier._session = session
    carrier.max_frame_size = max(session.max_message, <Py_ssize_t>LEAST_FRAME)
    link.session = session
    link._carrier = carrier
    return 0
