"""One request through the tunnel: which agent serves it, how long that may take, what is tried again, how it fails.

Knows streams and sessions, but nothing of HTTP/1.1's spelling: a front end reads the request, encodes its head, and
takes the response as a `Responder`. The front end's one deadline is the exchange's while the exchange runs.

A request is sent again only where nothing can have come of it: the agent said REFUSED or DRAINING (any method, while
all of the body that was sent is still at hand), or its session was lost without a word (only an idempotent method
without a body, once), and that at most `max_retries` times. Where the agent is away for the moment, its transport
full, or its service still at work for a slow reader that was cut off, the request waits for it.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from backstream._agents cimport WAIT_AGENT, WAIT_NONE, WAIT_PLACE, WAIT_ROOM, AgentLink
from backstream._buffer cimport Buffer, add_piece
from backstream._codec cimport FieldArray, RequestHead, ResponseHead, Trailers, decode_request, encode_request
from backstream._loop cimport monotonic
from backstream._slice cimport Slice, bytes_of
from backstream._slow_readers cimport SlowReader
from backstream._stream cimport Stream, StreamHandler

from backstream.errors import STATUS_OF_CODE, ErrorCode, StreamError


# How long a request waits for a transport that is full: a loaded one has room again within milliseconds.
cdef double CONGESTION_SECONDS = 2.0
# A service needs a turn or two of its loop to leave a stream that was cut off.
cdef double PLACE_SECONDS = 0.02
# What a request has waited less than is not worth writing its head anew.
cdef double BUDGET_STEP = 0.005

cdef enum:
    LEAST_REPLAY = 65536        # bytes of a body: one read, of which a small window takes only a part at first

    PROTOCOL_ERROR = 1
    REFUSED = 7
    CANCEL = 8
    TIMEOUT = 32
    DRAINING = 38
    SESSION_LOST = 256

# RFC 9209 §2.3 error types by code; what is not here ended within the answer.
_CAUSES = {
    ErrorCode.PROTOCOL_ERROR: "http_protocol_error",
    ErrorCode.INTERNAL: "proxy_internal_error",
    ErrorCode.FLOW_CONTROL_ERROR: "http_protocol_error",
    ErrorCode.STREAM_CLOSED: "http_protocol_error",
    ErrorCode.FRAME_SIZE_ERROR: "http_protocol_error",
    ErrorCode.REFUSED: "connection_limit_reached",
    ErrorCode.DRAINING: "destination_unavailable",
    ErrorCode.TIMEOUT: "connection_read_timeout",
    ErrorCode.UPSTREAM_UNREACHABLE: "connection_refused",
    ErrorCode.UPSTREAM_CONNECT_TIMEOUT: "connection_timeout",
    ErrorCode.UPSTREAM_DNS: "dns_error",
    ErrorCode.UPSTREAM_UNROUTABLE: "destination_ip_unroutable",
    ErrorCode.UPSTREAM_TLS: "tls_protocol_error",
    ErrorCode.UPSTREAM_CERTIFICATE: "tls_certificate_error",
    ErrorCode.UPSTREAM_PROTOCOL: "http_protocol_error",
    ErrorCode.TOO_LARGE: "http_response_header_section_size",
    ErrorCode.BODY_TOO_LARGE: "http_request_error",
    ErrorCode.NOT_CARRIED: "http_upgrade_failed",
    ErrorCode.BUDGET_SPENT: "connection_limit_reached",
}

# Whose fault it is: the agent's, or that of the service behind it.
_SERVICE_CODES = frozenset((
    ErrorCode.TIMEOUT, ErrorCode.UPSTREAM_UNREACHABLE, ErrorCode.UPSTREAM_RESET, ErrorCode.UPSTREAM_PROTOCOL,
    ErrorCode.APP_ERROR, ErrorCode.TOO_LARGE, ErrorCode.UPSTREAM_CONNECT_TIMEOUT, ErrorCode.UPSTREAM_DNS,
    ErrorCode.UPSTREAM_UNROUTABLE, ErrorCode.UPSTREAM_TLS, ErrorCode.UPSTREAM_CERTIFICATE,
))


cdef bint _is_same_token(Slice token, bytes other) except -1:
    return bytes_of(token).lower() == other.lower()


cdef class Responder(SlowReader):

    cdef int send_interim(self, const ResponseHead* head) except -1:
        """Passes an interim head on."""
        return 0

    cdef int send_head(self, const ResponseHead* head, bint end) except -1:
        """The final head. `end`: no body follows; `send_end` comes next."""
        return 0

    cdef int send_data(self, const char* data, Py_ssize_t size) except -1:
        """Body bytes, valid during the call; `exchange.taken` tells when the client took them."""
        return 0

    cdef int send_end(self, const Trailers* trailers) except -1:
        """The response is complete; the exchange is over."""
        return 0

    cdef int send_error(self, int status, str cause, str detail, str leg) except -1:
        """No response came; the exchange is over. cause: an RFC 9209 error type; leg: where it failed."""
        return 0

    cdef int send_cut(self, str cause) except -1:
        """The response breaks off within its body and must not look whole; the exchange is over."""
        return 0

    cdef int resume_request(self) except -1:
        """`exchange.room()` is above 0 again."""
        return 0


cdef class Exchange(StreamHandler):

    cdef int start(self) except -1:
        """Sends the request's head to an agent, or says why it can't. The request's members are set by the caller."""
        self.replayable = True
        self.active_at = monotonic()
        if self.request_ended:
            self.ended_at = self.active_at
        return self._open(None)

    cdef int _open(self, AgentLink other_than) except -1:
        cdef AgentLink link
        cdef bytes part
        if self.only is None:
            link = self.table.pick(self.client_id, other_than)
        else:
            link = self.only if self.only.takes_streams() else None
        if link is None:
            link = self.table.make_room(self.client_id, self.only)
        if link is None:
            self.waiting = self.table.wait(self, self.client_id, self.only)
            if self.waiting == WAIT_NONE:
                return self._no_agent()
            if self.waiting == WAIT_AGENT:
                # It may be at the door, behind thousands that nobody asks for.
                self.responder.loop.hurry(self.client_id)
            return self._await_agent()
        self.link = link
        try:
            self.stream = link.session.open(self.payload.data, self.payload.size, self,
                                            self.request_ended and not self.has_body and not self.offers_upgrade,
                                            self.is_head, self.length, self.offers_upgrade)
        except StreamError as error:
            # TOO_LARGE has no status of its own: here it is the request's head, and not a response's.
            if error.code in STATUS_OF_CODE:
                return self._fail(STATUS_OF_CODE[error.code], _CAUSES[error.code], str(error), "proxy")
            return self._fail(431, "http_request_error", str(error), "proxy")
        self.stream_id = self.stream.id
        if self.replay is not None:
            for part in self.replay:
                self.stream.write(part)
        if self.request_ended:
            if self.has_body:
                self.stream.end()
            return self._await_head()
        return self._set_deadline(self.idle_timeout)

    def try_again(self):
        """An agent's transport may have room again, or none is left to wait for."""
        self.waiting = WAIT_NONE
        if not self.finished:
            self._open_again(None)

    cdef int _open_again(self, AgentLink other_than) except -1:
        if self.ended_at:
            self._spend_budget()
        self._open(other_than)
        if not self.finished and self.stream is not None:
            # A new stream has room of its own, and nobody has asked for it yet.
            self.responder.resume_request()
        return 0

    cdef int _await_agent(self) except -1:
        """All waits of a request together last no longer than the first one may, nor than its own time limit."""
        cdef double now = monotonic()
        if self.patient_until == 0:
            self.patient_until = now + (self.agent_wait if self.waiting == WAIT_AGENT else CONGESTION_SECONDS)
            if self.ended_at and self.head_timeout > 0:
                self.patient_until = min(self.patient_until, self.ended_at + self.head_timeout)
        if self.waiting == WAIT_PLACE:
            return self._set_deadline(PLACE_SECONDS)
        return self._set_deadline(max(self.patient_until - now, 0.0))

    cdef int _await_head(self) except -1:
        """The request is complete: the time for the response's head runs."""
        if self.head_timeout > 0:
            return self.responder.loop.set_deadline_at(self.responder, self.ended_at + self.head_timeout)
        return self.responder.loop.clear_deadline(self.responder)

    cdef int _set_deadline(self, double seconds) except -1:
        return self.responder.loop.set_deadline(self.responder, seconds)

    # --- from the front end ---

    cdef int body(self, bytes data) except -1:
        """Bytes of the request's body."""
        cdef Py_ssize_t size
        if self.finished:
            return 0
        self.active_at = monotonic()
        if self.waiting != WAIT_NONE:
            # No more than one read: from here on the room is 0.
            if self.replay is None:
                self.replay = []
            self.replay.append(data)
            return 0
        if self.stream is None:
            return 0
        if self.replayable:
            size = len(data)
            if self.stream.acknowledged or self.upgraded:
                self._drop_replay()
            elif (self.replay_bytes + size > max(self.link.session._peer_window, <int64_t>LEAST_REPLAY)
                    or not self.table.budget.take(self.table.replay_share, size)):
                self._drop_replay()
            else:
                if self.replay is None:
                    self.replay = []
                add_piece(self.replay, data)
                self.replay_bytes += size
        self.stream.write(data)
        return 0

    cdef int end(self, const Trailers* trailers) except -1:
        """The request is complete."""
        if self.finished:
            return 0
        self.request_ended = True
        self.ended_at = monotonic()
        if self.stream is None:
            return 0
        if self.upgraded:
            self._half_ended(self.stream)
        if trailers != NULL and trailers.field_count:
            self._drop_replay()
            self.stream.end_with_trailers(trailers)
        else:
            self.stream.end()
        if not self.head_sent:
            self._await_head()
        return 0

    cdef int _half_ended(self, Stream stream) except -1:
        """One direction of an upgraded stream has ended: the other may go on, but no longer for ever without a byte."""
        if self.request_ended and stream.remote_ended():
            self.finished = True
            return 0
        return self._set_deadline(self.idle_timeout)

    cdef int64_t room(self) noexcept:
        """How many bytes of the body can be taken now."""
        return 0 if self.finished or self.stream is None else self.stream.room()

    cdef int taken(self, int64_t count) except -1:
        """The client took `count` bytes of the response."""
        if self.stream is not None:
            self.stream.consume(count)
        return 0

    cdef int held_up(self) except -1:
        """Bytes of the response wait for the client from now on, until it has taken them."""
        if self.stream is not None and not self.finished:
            self.link.slow_readers.enter(self.responder, not self.was_held_up)
            self.was_held_up = True
        return 0

    cdef int abandon(self, uint32_t code, str message) except -1:
        """The client is gone or no longer interested."""
        cdef Stream stream = self.stream
        if self.finished:
            return 0
        self.finished = True
        self._stop_waiting()
        self._drop_replay()
        if stream is not None:
            stream.reset(code, message)
        return 0

    cdef int deadline(self) except -1:
        """The front end's deadline passed while the exchange runs."""
        cdef double left
        cdef bint unread
        if self.waiting == WAIT_ROOM:
            return self._fail(503, "connection_limit_reached", "the agent does not read", "session")
        if self.waiting == WAIT_AGENT:
            return self._no_agent()
        if self.waiting == WAIT_PLACE:
            self.table.waiting -= 1
            self.waiting = WAIT_NONE
            return self._open_again(None) if monotonic() < self.patient_until else self._no_agent()
        if self.request_ended and not self.head_sent:
            self.stream.reset(TIMEOUT, "no response within the time limit")
            return self._fail(504, "connection_read_timeout", f"no response within {self.head_timeout:g} s", "service")
        left = self.active_at + self.idle_timeout - monotonic()
        if left > 0:
            return self._set_deadline(left)
        unread = not self.request_ended and self.stream.room() <= 0
        self.stream.reset(CANCEL, "idle")
        if self.head_sent:
            self.finished = True
            return self.responder.send_cut(f"nothing moved for {self.idle_timeout:g} s")
        if unread:
            return self._fail(504, "connection_write_timeout",
                              f"the service took no byte of the body within {self.idle_timeout:g} s", "service")
        return self._fail(408, "http_request_error", f"no byte of the body within {self.idle_timeout:g} s", "client")

    # --- from the stream ---

    cdef int on_head(self, Stream stream, const ResponseHead* head, bint interim, bint end) except -1:
        if self.finished:
            return 0
        if self.replay is not None:
            self._drop_replay()
        if interim:
            return self.responder.send_interim(head)
        if head.status == 101:
            if not self.offers_upgrade or not _is_same_token(head.upgrade, self.upgrade):
                raise StreamError(PROTOCOL_ERROR, "101 to a protocol that was not offered")
            # From here on the client's bytes are the protocol's, until it ends its direction.
            self.upgraded = True
            self.request_ended = False
        self.head_sent = True
        if self.upgraded:
            self.responder.loop.clear_deadline(self.responder)
        elif not end:
            self.active_at = monotonic()
            self.responder.loop.set_deadline_at(self.responder, self.active_at + self.idle_timeout)
        if self.offers_upgrade and not self.upgraded:
            # Nobody took the upgrade: the request has no body and ends here (the stream was left open for it).
            stream.end()
        return self.responder.send_head(head, end)

    cdef int on_data(self, Stream stream, const char* data, Py_ssize_t size) except -1:
        if self.finished:
            return 0
        self.active_at = monotonic()
        return self.responder.send_data(data, size)

    cdef int on_end(self, Stream stream, const Trailers* trailers) except -1:
        if self.finished:
            return 0
        if self.upgraded:
            self._half_ended(stream)
        else:
            self.finished = True
        return self.responder.send_end(trailers)

    cdef int on_writable(self, Stream stream) except -1:
        if self.finished:
            return 0
        return self.responder.resume_request()

    cdef int on_reset(self, Stream stream, uint32_t code, str message) except -1:
        cdef AgentLink link = self.link
        cdef str leg
        if self.finished or stream is not self.stream:
            return 0
        self.stream = None
        if self.head_sent:
            self.finished = True
            return self.responder.send_cut(message or "the agent gave the stream up")
        if (code == REFUSED and self.replayable and not stream.acknowledged and link.is_clearing()
                and self.table.waiting < self.table.settings.max_waiting
                and (self.only is not None or self.table.pick(self.client_id, link) is None)):
            self.table.waiting += 1
            self.waiting = WAIT_PLACE
            return self._await_agent()
        if code == REFUSED or code == DRAINING:
            self.refusals += 1
            if (self.replayable and not stream.acknowledged and self.only is None
                    and self.refusals + self.lost_once <= self.max_retries):
                return self._open_again(link)
        elif (code == SESSION_LOST and self.is_idempotent and not self.has_body and not self.lost_once
                and not self.offers_upgrade and self.only is None and self.refusals < self.max_retries):
            self.lost_once = True
            return self._open_again(link)
        leg = ("session" if code == SESSION_LOST else "proxy" if code > SESSION_LOST
               else "service" if code in _SERVICE_CODES else "agent")
        return self._fail(STATUS_OF_CODE.get(code, 502), _CAUSES.get(code, "connection_terminated"),
                          message or "the agent gave the request up", leg)

    cdef int _stop_waiting(self) except -1:
        if self.waiting != WAIT_NONE:
            self.table.stop_waiting(self, self.client_id, self.only, self.waiting)
            self.waiting = WAIT_NONE
        return 0

    cdef int _spend_budget(self) except -1:
        """Takes the time that the request has waited here off the head's `time_budget_ms`."""
        cdef RequestHead head
        cdef FieldArray fields
        cdef Buffer payload
        cdef double spent = monotonic() - self.ended_at
        if self.head_timeout <= 0 or spent < BUDGET_STEP:
            return 0
        fields = FieldArray()
        payload = Buffer()
        decode_request(self.payload.data, self.payload.size, &head, fields)
        head.time_budget_ms = <uint64_t>max(1.0, (self.head_timeout - spent) * 1000 + 0.999)
        encode_request(payload, &head)
        self.payload = payload
        return 0

    # --- failing ---

    cdef int _no_agent(self) except -1:
        if self.only is not None:
            if self.only.group is None:
                return self._fail(503, "destination_unavailable", "this agent takes no more requests", "session")
            return self._fail(503, "connection_limit_reached", "this agent is at its limit", "session")
        if self.table.by_id(self.client_id):
            if self.refusals:
                return self._fail(503, "connection_limit_reached", "every agent of this id refused it", "agent")
            return self._fail(503, "connection_limit_reached", "every agent of this id is at its limit", "session")
        if self.table.knows(self.client_id):
            return self._fail(503, "destination_unavailable", "the agent is away", "session")
        if self.table.is_young():
            return self._fail(503, "destination_unavailable", "no agent has this id yet, the proxy has just started",
                              "session")
        return self._fail(422, "destination_not_found", "no agent has this id", "proxy")

    cdef int _fail(self, int status, str cause, str detail, str leg) except -1:
        self.finished = True
        self._stop_waiting()
        self._drop_replay()
        return self.responder.send_error(status, cause, detail, leg)

    cdef int _drop_replay(self) except -1:
        self.replayable = False
        if self.replay is not None:
            self.table.budget.give_back(self.table.replay_share, self.replay_bytes)
            self.replay = None
            self.replay_bytes = 0
        return 0
