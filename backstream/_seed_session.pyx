"""A session on the seed wire: a request is one message, its response another (docs/reference/protocol.md).

To those above it is a Session with Streams as any other; what the wire lacks is made up for here:
- Bodies are gathered whole, up to the largest message, and handed on in pieces as they are consumed. What a stream
  holds beyond DEFAULT_WINDOW bytes is booked in a budget that all seed sessions of the process share.
- There is no RESET: a stream that fails is answered with a status, and one that its opener gave up is forgotten, so
  that its answer, when it comes, is dropped and counted.
- There is no HELLO and no GOAWAY: the session is ready at once, and the leaving side answers 503.
- A message that can't be read costs itself and nothing else, unless they come in floods.
As in `_session`: no sockets, no clock of its own, no asyncio. A stream fails at the turn's end, never within a call of
its handler's.
"""

import logging
from collections import deque

from libc.string cimport memcpy

from backstream._buffer cimport add_piece
from backstream._codec cimport (
    BODY_NONE, BODY_SIZED, Field, FieldArray, RequestHead, ResponseHead, Trailers, decode_request,
)
from backstream._flow cimport BudgetShare, WindowBudget
from backstream._grammar cimport equals_lower
from backstream._seed_codec cimport finish_message, message_size, new_id, pack_message, start_request, start_response
from backstream._seed_reader cimport SEED_NOTIFY, SEED_REQUEST, SEED_RESPONSE, SeedReader, SeedType, id_at_start
from backstream._seed_text cimport is_utf8
from backstream._session cimport Session
from backstream._slice cimport Slice, bytes_of, equals, slice_of
from backstream._stream cimport CLOSED, HALF_CLOSED_LOCAL, HALF_CLOSED_REMOTE, SessionOwner, Stream, StreamHandler

from backstream.config import parse_duration
from backstream.errors import STATUS_OF_CODE, ConfigurationError, HeadError, StreamError

logger = logging.getLogger("backstream.seed")

cdef enum:
    PROTOCOL_ERROR = 1
    INTERNAL = 2
    REFUSED = 7
    TIMEOUT = 32
    UPSTREAM_PROTOCOL = 35
    APP_ERROR = 36
    TOO_LARGE = 37
    SESSION_LOST = 256
    BODY_TOO_LARGE = 257
    NOT_CARRIED = 258
    BUDGET_SPENT = 259

    DEFAULT_WINDOW = 65536          # bytes that a stream may hold without asking
    PIECE = 65536
    MAX_WHY = 200
    OPCODE_CONTINUATION = 0         # RFC 6455 §5.2
    OPCODE_TEXT = 1
    OPCODE_BINARY = 2
    MAX_STREAM_ID = 0x7fffffff
    MAX_INTERIM = 16


cdef class SeedStream(Stream):

    cdef int respond(self, const ResponseHead* head, bint end) except -1:
        """As `Stream.respond`; raises StreamError (TOO_LARGE) where the body that it announces can't fit."""
        cdef SeedSession session = <SeedSession>self.session
        cdef bint bodiless = self.answers_head or head.status == 204 or head.status == 304
        if self.state == CLOSED or self._doom:
            return 0
        if self.head_done:
            raise StreamError(INTERNAL, "a second final head")
        if head.status == 101:
            raise StreamError(INTERNAL, "101 to a request that offered no upgrade")
        if not self.is_notify:
            self._start = start_response(self.json, head)
            if message_size(self.json, self._start, 0 if bodiless or head.body != BODY_SIZED
                            else <Py_ssize_t>min(head.length, <uint64_t>session.max_message)) > session.max_message:
                session._complain("an answer that is too large", f"{head.length} bytes of body")
                raise StreamError(TOO_LARGE, f"the answer exceeds the {session.max_message} bytes of a message")
        self.head_done = True
        if head.body == BODY_SIZED and not bodiless:
            self.sent_promise = <int64_t>head.length
        if end:
            return session._send(self, SEED_RESPONSE)
        return 0

    cdef int respond_interim(self, const ResponseHead* head) except -1:
        """The wire has no interim heads, and 100 was sent by the proxy."""
        if self.interim_count == MAX_INTERIM:
            raise StreamError(INTERNAL, "more than 16 interim heads")
        self.interim_count += 1
        return 0

    cdef int write(self, bytes data) except -1:
        cdef Py_ssize_t size = len(data)
        if self.state == CLOSED or size == 0 or self._doom:
            return 0
        if self.local_ended():
            raise StreamError(INTERNAL, "body bytes after the end")
        if not self.opened_here and not self.head_done:
            raise StreamError(INTERNAL, "body bytes before the head")
        if self.sent_promise >= 0:
            if size > self.sent_promise:
                raise StreamError(INTERNAL, "more body than was promised")
            self.sent_promise -= size
        return (<SeedSession>self.session)._gather(self, data)

    cdef int end(self) except -1:
        if self.local_ended() or self._doom:
            return 0
        if not self.opened_here and not self.head_done:
            raise StreamError(INTERNAL, "an end before the head")
        if self.sent_promise > 0:
            raise StreamError(INTERNAL, "less body than was promised")
        return (<SeedSession>self.session)._send(self, SEED_REQUEST if self.opened_here else SEED_RESPONSE)

    cdef int end_with_trailers(self, const Trailers* trailers) except -1:
        """The wire has no trailers."""
        return self.end()

    cdef int reset(self, uint32_t code, str message) except -1:
        """Gives the stream up; one of the peer's is answered with the status that stands for the code."""
        cdef SeedSession session = <SeedSession>self.session
        if self.state == CLOSED:
            return 0
        if not self.opened_here:
            session._answer(self, STATUS_OF_CODE.get(code, 502), message)
        return session._forget(self)

    cdef int consume(self, int64_t count) except -1:
        cdef SeedSession session = <SeedSession>self.session
        self._unconsumed -= count
        if self._rest is not None and self._unconsumed <= PIECE // 2 and not self._feeds:
            self._feeds = True
            session._feeding.append(self)
            session.owner.wake()
        return 0

    cdef int64_t room(self) noexcept:
        """Bodies are gathered whatever the transport does: what they may take is bounded elsewhere."""
        return 0 if self.state == CLOSED or self._doom or self.local_ended() else PIECE

    cdef int _drop_staged(self) except -1:
        self._start = None
        self._body = None
        self._rest = None
        return 0

    cdef int _check_room(self) except -1:
        return 0


cdef class OutMessage:
    pass


cdef OutMessage _out(bint json, bytes head, list body, Py_ssize_t body_size):
    cdef OutMessage message = OutMessage.__new__(OutMessage)
    message.head = head
    message.body = body
    message.left = len(head) + body_size
    message._part = -1
    message.json = json
    return message


cdef class SeedSession(Session):
    """One end of a session on the seed wire.

    hello: what this end would say of itself on the native wire; its `max_streams` holds both ways here.
    json: whether to write JSON until the peer has spoken.
    max_message: bytes.
    request_timeout: seconds that a request of the peer's may take that names no time of its own, 0 for no limit.
    """

    def __init__(self, SessionOwner owner, bint is_proxy, hello, WindowBudget budget, bint json, max_message,
                 double request_timeout):
        self.owner = owner
        self.is_proxy = is_proxy
        self.local_hello = self.peer_hello = hello
        self.json = json
        self.max_message = max_message
        self.request_timeout = request_timeout
        self.budget = budget
        self.share = BudgetShare()
        self.max_opened = MAX_QUEUED
        self._peer_window = DEFAULT_WINDOW
        self._max_streams = min(<uint32_t>hello.max_streams, <uint32_t>MAX_QUEUED)
        self._peer_max_streams = self._max_streams
        self._by_message_id = {}
        self._bucket = 2000.0
        self._bucket_at = owner.now()
        self._fields = FieldArray()
        self._reader = SeedReader()
        self._queue = deque()
        self._complained = set()
        self._feeding = []
        self._doomed = []
        self._expecting = []

    @property
    def stream_count(self) -> int:
        return len(self._by_message_id)

    # --- opening ---

    cdef bint can_open(self) noexcept:
        return (not self.draining and not self.closed and not self.congested and self.opened < self._peer_max_streams
                and self._last_id < MAX_STREAM_ID and len(self._queue) < MAX_QUEUED)

    cdef Stream open(self, const char* payload, Py_ssize_t size, StreamHandler handler, bint end, bint is_head,
                     int64_t length, bint offers_upgrade):
        """As `Session.open`; raises StreamError too where the wire can't carry the request."""
        cdef SeedStream stream
        cdef RequestHead head
        cdef object start
        cdef Py_ssize_t i
        cdef bint expects = False
        decode_request(payload, size, &head, self._fields)
        if offers_upgrade and equals_lower(head.upgrade, b"websocket", 9):
            raise StreamError(NOT_CARRIED, "the agent speaks a wire that carries no WebSockets")
        start = start_request(self.json, &head)
        if message_size(self.json, start, 0) > self.max_message:
            raise StreamError(TOO_LARGE, "the request's head exceeds the agent's largest message")
        if length > self.max_message or message_size(self.json, start, max(length, 0)) > self.max_message:
            raise StreamError(BODY_TOO_LARGE, f"the agent's wire carries a whole request in a message of at most "
                                              f"{self.max_message} bytes")
        for i in range(head.field_count):
            if equals(head.fields[i].name, b"expect", 6):
                expects = True
        stream = self._new_stream(self.json)
        stream.message_id = new_id()
        stream.handler = handler
        stream.opened_here = True
        stream.answers_head = is_head
        stream.sent_promise = length
        stream._start = start
        if length > DEFAULT_WINDOW:
            # Whether there is room now. It is taken as the bytes come: a length alone must not keep others from it.
            if not self._book_out(stream, length):
                raise StreamError(BUDGET_SPENT, "the memory for bodies on the seed wire is taken")
            self.budget.give_back(self.share, length)
            stream._booked_out = 0
        self._by_message_id[stream.message_id] = stream
        self.opened += 1
        self.served += 1
        if end or offers_upgrade:
            # An offer that is dropped: the request has no body, and nothing but its end is to come.
            self._send(stream, SEED_REQUEST)
        elif expects:
            self._expecting.append(stream)
            self.owner.wake()
        self.owner.on_capacity()
        return stream

    cdef SeedStream _new_stream(self, bint json):
        cdef SeedStream stream = SeedStream.__new__(SeedStream)
        self._last_id += 1
        stream.id = self._last_id
        stream.session = self
        stream.json = json
        stream.sent_promise = stream._received_promise = -1
        return stream

    # --- receiving ---

    cdef int receive(self, const char* data, Py_ssize_t size) except -1:
        return self.take(False, data, size)

    cdef int take(self, bint json, const char* data, Py_ssize_t size) except -1:
        """Takes one whole message, in JSON or binary."""
        cdef SeedReader reader = self._reader
        cdef Slice text
        if self.closed:
            return 0
        try:
            reader.message(json, data, size)
        except HeadError as error:
            text.ptr = data
            text.size = size
            if json and not is_utf8(text):
                self.close(PROTOCOL_ERROR, "text that is not UTF-8", 1007)      # RFC 6455 §8.1
                return 0
            self._complain("a message that can't be read", str(error))
            self.charge_idle_frame()
            return 0
        self.json = json
        self._take(json)
        reader.forget()
        return 0

    cdef int _take(self, bint json) except -1:
        cdef SeedReader reader = self._reader
        if reader.type == SEED_RESPONSE:
            return self._response(json)
        if reader.type == SEED_REQUEST:
            return self._request(json, False)
        if self.is_proxy:
            return self.owner.on_notify("", bytes_of(reader.data) if reader.data.size else b"")
        self.owner.on_notify("", bytes_of(reader.data) if reader.data.size else b"")
        if self.closed:
            return 0        # who was told has ended the session
        return self._request(json, True)

    cdef int miss(self, bint json, const char* data, Py_ssize_t size, str why) except -1:
        """A message of which only this start was kept: whoever waits for it is told."""
        cdef Slice found = id_at_start(json, data, size)
        cdef object stream
        self._complain("a message that was not taken", why)
        if found.size:
            stream = self._by_message_id.get(bytes_of(found))
            if stream is not None and (<SeedStream>stream).opened_here:
                self.fail(stream, TOO_LARGE, f"the answer was not taken: {why}")
        return 0

    cdef int _response(self, bint json) except -1:
        cdef SeedReader reader = self._reader
        cdef SeedStream stream
        cdef ResponseHead head
        cdef object found = self._by_message_id.get(bytes_of(reader.id)) if reader.id.size else None
        cdef bint bodiless
        if found is None or not (<SeedStream>found).opened_here or (<SeedStream>found).head_done:
            self.late += 1
            return 0
        stream = <SeedStream>found
        stream.acknowledged = True
        try:
            reader.response(json)
            if reader.status == 0:
                raise StreamError(APP_ERROR, "the agent's service failed")
            if not 200 <= reader.status <= 999:
                raise StreamError(UPSTREAM_PROTOCOL, "the agent's answer has no valid status")
            bodiless = stream.answers_head or reader.status == 204 or reader.status == 304
            if not bodiless and not self._book_in(stream, reader.body.size):
                raise StreamError(TOO_LARGE, "the memory for bodies on the seed wire is taken")
            head.status = reader.status
            head.reason.ptr = head.upgrade.ptr = NULL
            head.reason.size = head.upgrade.size = 0
            head.fields = reader.fields.items
            head.field_count = reader.fields.count
            head.body = BODY_SIZED
            head.length = reader.body.size
            if bodiless:
                # What a GET would have had: the agent says so, or has sent it along.
                if reader.declared_length >= 0:
                    head.length = reader.declared_length
                elif reader.status == 304 or reader.body.size == 0:
                    head.body = BODY_NONE
                if reader.status == 204:
                    head.body = BODY_NONE
                    head.length = 0
                if head.body == BODY_NONE:
                    head.length = 0
            stream.head_done = True
            stream.handler.on_head(stream, &head, False, bodiless or reader.body.size == 0)
            if stream.state == CLOSED:
                return 0
            if bodiless:
                return self._remote_end(stream, NULL)
            return self._begin_body(stream, reader.body)
        except StreamError as error:
            self._complain("an answer that could not be passed on", str(error))
            self.fail(stream, error.code, str(error))
        except Exception as error:
            self.owner.on_handler_error(stream, error)
            self.fail(stream, INTERNAL, "internal error")
        return 0

    cdef int _request(self, bint json, bint is_notify) except -1:
        cdef SeedReader reader = self._reader
        cdef SeedStream stream
        cdef RequestHead head
        cdef bytes message_id = bytes_of(reader.id) if reader.id.size else b""
        cdef bint end
        if self.is_proxy:
            return self._complain("a request of an agent's", "a proxy serves none")
        if is_notify:
            message_id = new_id()       # nothing refers to the event's own
        elif message_id in self._by_message_id:
            return self._complain("a request whose id repeats", message_id.decode("utf-8", "replace"))
        stream = self._new_stream(json)
        stream.message_id = message_id
        stream.is_notify = is_notify
        try:
            if self.leaving:
                raise StreamError(REFUSED, "the agent is leaving")
            if self.accepted >= self._max_streams or len(self._queue) >= MAX_QUEUED:
                raise StreamError(REFUSED, "the agent has all the requests that it takes")
            reader.request(json)
            if not self._book_in(stream, reader.body.size):
                raise StreamError(REFUSED, "the memory for bodies on the seed wire is taken")
        except StreamError as error:
            if isinstance(error, HeadError):
                self._complain("an event that is no request" if is_notify else "a request that can't be read",
                               str(error))
            self._answer(stream, 400 if isinstance(error, HeadError) else STATUS_OF_CODE.get(error.code, 502),
                         str(error))
            stream.state = CLOSED
            return 0
        end = reader.body.size == 0
        head.method = reader.method
        head.target = reader.target
        head.authority = slice_of(b"localhost")
        head.scheme = slice_of(b"http")
        head.peer.ptr = head.upgrade.ptr = head.client_id.ptr = head.prefix.ptr = NULL
        head.peer.size = head.upgrade.size = head.client_id.size = head.prefix.size = 0
        head.fields = reader.fields.items
        head.field_count = reader.fields.count
        head.http_major = head.http_minor = 1
        head.length = reader.body.size
        # Go's Content-Length says no more of an empty body than whether the client gave one.
        head.body = BODY_NONE if end and reader.declared_length != 0 else BODY_SIZED
        head.time_budget_ms = 0
        stream.answers_head = equals(reader.method, b"HEAD", 4)
        self._set_expiry(stream, &head)
        stream._holds_place = True
        self.accepted += 1
        self.served += 1
        self._by_message_id[message_id] = stream
        if end:
            stream.state = HALF_CLOSED_REMOTE
        try:
            stream.handler = self.owner.accept(stream, &head, end)
            if stream.handler is None and stream.state != CLOSED:
                stream.reset(REFUSED, "refused")
            elif stream.state == CLOSED:
                if not stream._reset_behind:
                    stream.handler = None
            elif not end:
                return self._begin_body(stream, reader.body)
        except StreamError as error:
            self.fail(stream, error.code, str(error))
        except Exception as error:
            self.owner.on_handler_error(stream, error)
            self.fail(stream, INTERNAL, "internal error")
        return 0

    cdef int _set_expiry(self, SeedStream stream, RequestHead* head) except -1:
        """How long the service may take: nobody tells this side when the client has gone."""
        cdef double seconds = self.request_timeout
        if self._reader.timeout.size:
            try:
                seconds = parse_duration(bytes_of(self._reader.timeout).decode("utf-8", "replace"))
            except ConfigurationError:
                pass        # the proxy's to judge
        if seconds > 0:
            head.time_budget_ms = <uint64_t>max(1.0, seconds * 1000 + 0.999)
            stream.expires_at = self.owner.now() + seconds
            if self.next_expiry == 0 or stream.expires_at < self.next_expiry:
                self.next_expiry = stream.expires_at
                self.owner.on_time(stream.expires_at)
        return 0

    cdef int expire(self, double now) except -1:
        """Ends the peer's requests that have had their time."""
        cdef SeedStream stream
        cdef double following = 0
        for stream in list(self._by_message_id.values()):
            if stream.expires_at == 0:
                continue
            if stream.expires_at <= now:
                self.fail(stream, TIMEOUT, "the service took longer than the request may take")
            elif following == 0 or stream.expires_at < following:
                following = stream.expires_at
        self.next_expiry = following
        return 0

    cdef int _begin_body(self, SeedStream stream, Slice body) except -1:
        """Hands a body on: at once as far as it goes without booking, the rest as it is consumed."""
        cdef Py_ssize_t size = min(body.size, <Py_ssize_t>PIECE)
        if body.size > size:
            stream._rest = body.ptr[size:body.size]
        if size:
            stream._unconsumed += size
            stream.handler.on_data(stream, body.ptr, size)
        if stream.state != CLOSED and stream._rest is None:
            return self._remote_end(stream, NULL)
        return 0

    cdef int _feed(self, SeedStream stream) except -1:
        cdef Py_ssize_t size
        cdef bytes rest = stream._rest
        cdef Py_ssize_t at = stream._rest_at
        stream._feeds = False
        if stream.state == CLOSED or rest is None:
            return 0
        size = min(len(rest) - at, <Py_ssize_t>PIECE)
        stream._rest_at += size
        if stream._rest_at == len(rest):
            stream._rest = None
            self.budget.give_back(self.share, stream._booked_in)
            stream._booked_in = 0
        stream._unconsumed += size
        try:
            stream.handler.on_data(stream, <const char*>rest + at, size)
            if stream.state != CLOSED and stream._rest is None:
                self._remote_end(stream, NULL)
        except StreamError as error:
            self.fail(stream, error.code, str(error))
        except Exception as error:
            self.owner.on_handler_error(stream, error)
            self.fail(stream, INTERNAL, "internal error")
        return 0

    cdef int _complain(self, str kind, str detail) except -1:
        """Something was dropped: counted, and logged once of its kind."""
        self.dropped += 1
        if kind not in self._complained:
            self._complained.add(kind)
            name = str(getattr(self.owner, "name", ""))
            logger.warning("%s (further ones are only counted): %r", kind, detail[:MAX_WHY], extra={"id": name})
        return 0

    # --- state ---

    cdef int _local_end(self, Stream stream) except -1:
        cdef StreamHandler handler
        if stream.opened_here:
            stream.state = HALF_CLOSED_LOCAL
            return 0
        if stream.state == HALF_CLOSED_REMOTE:
            return self._forget(stream)
        # The rest of the request is of no use any more.
        handler = stream.handler
        self._forget(stream)
        stream.handler = handler
        stream._reset_behind = True
        self._roomy.append(stream)
        return self.owner.wake()

    cdef int _forget(self, Stream stream) except -1:
        cdef SeedStream own = <SeedStream>stream
        if stream.state == CLOSED:
            return 0
        stream.state = CLOSED
        stream.handler = None
        own._drop_staged()
        self._by_message_id.pop(own.message_id, None)
        if own._message is None:
            self._release(own)
        elif own.opened_here and not own._message.begun:
            # Nobody wants its answer: it does not go out at all.
            own._message.left = 0
            own._message.body = None
            self._release(own)
        if stream.opened_here:
            self.opened -= 1
            self.owner.on_capacity()
        return 0

    cdef int _release(self, SeedStream stream) except -1:
        """Gives back what the stream holds of what is shared."""
        if stream._message is not None:
            stream._message.stream = None
            stream._message = None
        self.budget.give_back(self.share, stream._booked_in + stream._booked_out)
        stream._booked_in = stream._booked_out = 0
        if stream._holds_place:
            stream._holds_place = False
            self.accepted -= 1
        return 0

    def fail(self, Stream stream, int code, str message):
        """Ends a stream and tells its handler, and the peer where it waits for an answer."""
        if stream.state != CLOSED:
            if not stream.opened_here:
                self._answer(<SeedStream>stream, STATUS_OF_CODE.get(code, 502), message)
            self._drop(stream, code, message)

    cdef bint _book_in(self, SeedStream stream, int64_t size) noexcept:
        """Takes what a body that came needs until it is handed on."""
        if size <= DEFAULT_WINDOW:
            return True
        if not self.budget.take(self.share, size):
            return False
        stream._booked_in = size
        return True

    cdef bint _book_out(self, SeedStream stream, int64_t size) noexcept:
        """Takes `size` bytes in all for the body that is gathered."""
        cdef int64_t more = size - stream._booked_out
        if more <= 0:
            return True
        if not self.budget.take(self.share, more):
            return False
        stream._booked_out += more
        return True

    cdef int _gather(self, SeedStream stream, bytes data) except -1:
        cdef int64_t size = stream._body_size + len(data)
        cdef int64_t most
        cdef bint fits
        if stream.is_notify and not stream.opened_here:
            return 0
        fits = message_size(stream.json, stream._start, size) <= self.max_message
        if not fits:
            return self._doom_stream(stream, BODY_TOO_LARGE if stream.opened_here else TOO_LARGE,
                                     f"the body does not fit into a message of at most {self.max_message} bytes")
        if size > DEFAULT_WINDOW and size > stream._booked_out:
            # In steps that grow, so that a long body asks seldom.
            most = size + stream.sent_promise if stream.sent_promise >= 0 else <int64_t>self.max_message
            if (not self._book_out(stream, min(size + size // 4, max(size, most)))
                    and not self._book_out(stream, size)):
                return self._doom_stream(stream, BUDGET_SPENT if stream.opened_here else TOO_LARGE,
                                         "the memory for bodies on the seed wire is taken")
        if stream._body is None:
            stream._body = [data]
        else:
            add_piece(stream._body, data)
        stream._body_size = size
        return 0

    cdef int _doom_stream(self, SeedStream stream, uint32_t code, str why) except -1:
        stream._doom = code
        stream._doom_why = why
        stream._body = None
        stream._body_size = 0
        self._complain("a body that is too large", why)
        self._doomed.append(stream)
        return self.owner.wake()

    # --- sending ---

    cdef int _send(self, SeedStream stream, SeedType kind) except -1:
        """The stream's message is complete."""
        cdef OutMessage message
        cdef bytes head
        if stream.is_notify:
            return self._local_end(stream)
        head = finish_message(stream.json, stream.message_id, kind, stream._start, stream._body, stream._body_size)
        message = _out(stream.json, head, None if stream.json else stream._body,
                       0 if stream.json else stream._body_size)
        message.stream = stream
        stream._message = message
        stream._start = None
        stream._body = None
        self._enqueue(message)
        return self._local_end(stream)

    cdef int _answer(self, SeedStream stream, int status, str why) except -1:
        """A stream that failed is answered all the same: the wire has nothing else to say it with."""
        cdef ResponseHead head
        cdef FieldArray fields
        cdef OutMessage message
        cdef bytes body
        if stream.is_notify or stream._message is not None or self.closed:
            return 0
        body = (why[:MAX_WHY] or "the agent's service failed").encode("utf-8", "replace") + b"\n"
        fields = FieldArray()
        _plain_head(&head, fields, status)
        start = start_response(stream.json, &head)
        text = finish_message(stream.json, stream.message_id, SEED_RESPONSE, start, [body], len(body))
        message = _out(stream.json, text, None if stream.json else [body], 0 if stream.json else len(body))
        message.stream = stream
        stream._message = message
        return self._enqueue(message)

    cdef int _enqueue(self, OutMessage message) except -1:
        self._queue.append(message)
        return self.owner.wake()

    def notify(self, str content_type, bytes data):
        """Sends a one-way event, without its type, for which the wire has no place.

        Raises StreamError: TOO_LARGE where it exceeds a message, REFUSED where 1,024 messages wait.
        """
        cdef OutMessage message = _out(self.json, pack_message(self.json, new_id(), SEED_NOTIFY, data), None, 0)
        if message.left > self.max_message:
            raise StreamError(TOO_LARGE, f"an event of more than {self.max_message} bytes")
        if self.closed or len(self._queue) >= MAX_QUEUED:
            raise StreamError(REFUSED, "the session takes no more messages")
        if message.left > DEFAULT_WINDOW:
            if not self.budget.take(self.share, message.left):
                raise StreamError(REFUSED, "the memory for bodies on the seed wire is taken")
            message.booked = message.left
        self._enqueue(message)

    cdef bint has_output(self) noexcept:
        return len(self._queue) > 0 and not self.closed

    cdef Py_ssize_t next_piece(self, Py_ssize_t limit, int* opcode, bint* last) except -1:
        """How many bytes the next WebSocket frame takes, 0 where nothing waits; `pull_piece` gives them."""
        cdef OutMessage message
        while self._queue:
            message = <OutMessage>self._queue[0]
            if message.left == 0:
                self._sent(message)     # given up before it began
                continue
            opcode[0] = OPCODE_CONTINUATION if message.begun else OPCODE_TEXT if message.json else OPCODE_BINARY
            last[0] = message.left <= limit
            return min(message.left, limit)
        return 0

    cdef int pull_piece(self, char* target, Py_ssize_t size) except -1:
        cdef OutMessage message = <OutMessage>self._queue[0]
        cdef bytes part
        cdef Py_ssize_t count
        message.begun = True
        message.left -= size
        while size:
            part = message.head if message._part < 0 else <bytes>message.body[message._part]
            count = min(len(part) - message._at, size)
            memcpy(target, <const char*>part + message._at, count)
            target += count
            size -= count
            message._at += count
            if message._at == len(part):
                message._at = 0
                message._part += 1
        if message.left == 0:
            self._sent(message)
        return 0

    cdef int _sent(self, OutMessage message) except -1:
        """The transport has all of the message at the queue's front."""
        cdef SeedStream stream = message.stream
        self._queue.popleft()
        message.stream = None
        if message.booked:
            self.budget.give_back(self.share, message.booked)
            message.booked = 0
        if stream is not None:
            stream._message = None
            if stream.state == CLOSED:
                self._release(stream)
            else:
                self.budget.give_back(self.share, stream._booked_out)
                stream._booked_out = 0
        return 0

    cdef int set_congested(self, bint congested) except -1:
        if self.congested != congested:
            self.congested = congested
            self.owner.on_capacity()
        return 0

    cdef int after_pull(self) except -1:
        cdef SeedStream stream
        cdef ResponseHead head
        cdef FieldArray fields
        cdef list found
        if self._expecting:
            found = self._expecting
            self._expecting = []
            fields = FieldArray()
            for stream in found:
                if stream.state != CLOSED and stream.handler is not None:
                    _plain_head(&head, fields, 100)
                    head.field_count = 0
                    stream.handler.on_head(stream, &head, True, False)
        if self._doomed:
            found = self._doomed
            self._doomed = []
            for stream in found:
                self.fail(stream, stream._doom, stream._doom_why)
        if self._feeding:
            found = self._feeding
            self._feeding = []
            for stream in found:
                self._feed(stream)
        return Session.after_pull(self)

    # --- ending ---

    def go_away(self, int code=0, str message="", int retry_after_ms=0):
        """Takes no new requests: they are answered 503. The peer is not told, there being no word for it."""
        self.leaving = True

    def close(self, int code=0, str message="", int close_code=1000):
        """Ends the session: `SessionOwner.on_close`."""
        if self.closed:
            return
        self.leaving = self.closed = True
        self.owner.on_capacity()
        self.owner.on_close(code, message, close_code)

    def lost(self, str message="the session was lost"):
        """The WebSocket is gone: every stream ends, with SESSION_LOST unless nothing of it ever went out."""
        cdef SeedStream stream
        cdef OutMessage waiting
        self.closed = True
        self.owner.on_capacity()
        while self._by_message_id:
            for stream in list(self._by_message_id.values()):
                unsent = stream.opened_here and (stream.state != HALF_CLOSED_LOCAL
                                                 or stream._message is not None and not stream._message.begun)
                self._drop(stream, REFUSED if unsent else SESSION_LOST, message)
        while self._queue:
            waiting = <OutMessage>self._queue[0]
            if waiting.stream is not None:
                waiting.stream.state = CLOSED
            self._sent(waiting)
        self._feeding.clear()
        self._doomed.clear()
        self._expecting.clear()
        Session.after_pull(self)

    @property
    def queued(self) -> int:
        """Messages that wait for the transport."""
        return len(self._queue)


cdef int _plain_head(ResponseHead* head, FieldArray fields, int status) except -1:
    """A head of our own, for a line of text."""
    cdef Field field
    fields.count = 0
    field.name = slice_of(b"content-type")
    field.value = slice_of(b"text/plain; charset=utf-8")
    field.kind = 0
    fields.add(field)
    head.status = status
    head.reason.ptr = head.upgrade.ptr = NULL
    head.reason.size = head.upgrade.size = 0
    head.fields = fields.items
    head.field_count = 1
    head.body = BODY_NONE
    head.length = 0
    return 0
