"""What a client's request must be, where it goes and what the proxy itself answers, whichever way it came.

Rules that hold here:
- A head is judged once, whole, and before anything of the request is sent on.
- What becomes of a request is an `Exchange`, or an answer of the proxy's own; it is logged once, when that is over.
- The bytes belong to who derives from it: `ServerConnection` for sockets, `AppConnection` for ASGI servers.
"""

from libc.stdint cimport int64_t, uint64_t

from backstream._buffer cimport Buffer
from backstream._codec cimport (
    BODY_NONE, BODY_SIZED, Field, FieldArray, RequestHead, Trailers, decode_request, encode_request,
)
from backstream._exchange cimport Exchange, Responder
from backstream._grammar cimport is_client_id
from backstream._http._context cimport ServerContext
from backstream._http._final_recipient cimport own_answer
from backstream._http._forwarding cimport Forwarding
from backstream._http._message cimport (
    FIELD_OTHER, FIELD_UPGRADE, READ_FINISHED, RequestReader, is_idempotent, next_token,
)
from backstream._http._request cimport Asked, take_fields, timeout_of
from backstream._http._routing cimport read_target
from backstream._http._trailers cimport keep_trailers
from backstream._loop cimport loop_state, monotonic
from backstream._message_codec cimport pairs_of
from backstream._slice cimport Slice, bytes_of, equals, slice_of

from backstream._http._error_pages import error_page
from backstream._http._final_recipient import options_answer
from backstream._http.errors import MessageError
from backstream._websocket import SUBPROTOCOL
from backstream.errors import StreamError


cdef enum:
    CANCEL = 8
    MAX_METHOD = 64         # bytes of what may be no method, in a log

cdef double RATE_GRACE_SECONDS = 5.0    # before a minimum rate counts

cdef dict WEBSOCKET = {b"websocket": b"websocket"}
cdef bytes AGENTS_PROTOCOL = SUBPROTOCOL.encode()


cdef bytes _shown(Slice text, Py_ssize_t size):
    """What a log shows of a text that nobody has judged: at most so many bytes of it, escaped; "-" for none."""
    if text.size > size:
        text.size = size
    return bytes_of(text).decode("latin-1").encode("unicode_escape") if text.size else b"-"


cdef class FrontEnd(Responder):

    def __init__(self, ServerContext context):
        self.context = context
        self.loop = loop_state()
        self.reader = RequestReader()
        self.reader.limits = context.limits

    # --- the client ---

    def _enter(self):
        """Counts the connection for its client's address; false where that has all that it may have.

        Behind a trusted peer are many clients: the limits per address are for that peer to set.
        """
        if self.peer.address is None or self.peer.trusted:
            return True
        self.client = self.context.clients.enter(self.peer.address[0])
        if self.client is None:
            self._turn_away(f"{self.peer.address[0]} has all the connections that one address may have")
        return self.client is not None

    def _turn_away(self, str why):
        """There is no place for the client: told at once, whatever it would ask for."""
        self._refuse(MessageError(503, why, "connection_limit_reached"))

    cdef int _leave_client(self) except -1:
        if self.client is not None:
            self.context.clients.leave(self.client)
            self.client = None
        return 0

    cdef int _gone(self, str why, str cut=None) except -1:
        """The client has gone, or is to go: nothing of its request is served any more. cut: as for `_log`."""
        cdef Exchange exchange = self.exchange
        if exchange is not None:
            if not exchange.finished:
                self.status = self.status or 499
                self._log(cut)
                if self.client is not None:
                    self.context.clients.aborted(self.client)
            self.exchange = None
            exchange.abandon(CANCEL, why)
        return 0

    cdef bint cut_off(self, str why) except -1:
        cdef Exchange exchange = self.exchange
        if self.closed or exchange is None or exchange.finished or exchange.stream is None:
            return False
        self.status = self.status or 499
        self._log(why)
        self.exchange = None
        exchange.abandon(CANCEL, why)
        self.closing = True
        # What waits in the kernel would stay there for minutes, for a client that does not want it.
        self._drop(True)
        return True

    # --- the request's head ---

    cdef bint _request_head(self, char** data, Py_ssize_t* size) except -1:
        """Judges a head and sends the request on its way; false when nothing more is to be parsed.

        Whatever becomes of the request sets the deadline anew.
        """
        cdef RequestReader reader = self.reader
        self.minor = reader.minor
        self.keep_alive = reader.keep_alive and not self.context.draining
        self.is_head = equals(reader.method, b"HEAD", 4)
        self.head_sent = False
        self.status = 0
        self.framing = FRAMED_NONE
        self.request_open = reader.state != READ_FINISHED
        self.takes_trailers = self.awaits_continue = False
        if self.context.access_log is not None:
            self.started_at = monotonic()
            self.sent_bytes = 0
            self.logged_method = bytes_of(reader.method)
            self.logged_target = bytes_of(reader.target)
        self.in_head = True
        try:
            self._serve()
        except MessageError as error:
            self._refuse(error)
        self.in_head = False
        return not (self.closing or self.closed)

    cdef int _serve(self) except -1:
        """What becomes of a request, by its head. Raises MessageError to refuse it."""
        cdef RequestReader reader = self.reader
        cdef ServerContext context = self.context
        cdef Forwarding forwarding = context.forwarding
        cdef RequestHead head
        cdef Asked asked
        cdef Field field
        cdef bytes client_id
        cdef object own = None
        cdef bytes upgrade = None
        cdef bint offers_websocket = False
        cdef double timeout
        if equals(reader.method, b"CONNECT", 7):
            self.keep_alive = False
            raise MessageError(405, "CONNECT is not served here", "http_request_denied")
        if self.peer.trusted:
            self.client_address = forwarding.read_trail(self.peer, reader.fields) or self.peer.address
        if reader.method.ptr[0] == c'O' or reader.method.ptr[0] == c'T':
            own = own_answer(reader, context.trace)
        if reader.upgrade and reader.minor == 1:      # RFC 9110 §7.8: in HTTP/1.0 Upgrade means nothing
            offers_websocket = context.serves_agents and self._offered(WEBSOCKET) is not None
            if not self.request_open:
                upgrade = self._offered(context.upgrades)
        take_fields(reader, &asked, forwarding.name, self.peer.trusted and forwarding.x_forwarded)
        forwarding.take_request_id(asked.request_id, &self.request_id)
        self.takes_trailers = asked.takes_trailers
        self.awaits_continue = asked.awaits_continue
        head.method = reader.method
        head.authority = asked.host
        head.http_minor = reader.minor
        read_target(reader, &head)
        if offers_websocket and equals(reader.method, b"GET", 3) and self._is_agent_path(head.target):
            return self._queue_handshake()
        if not context.serves_clients:
            raise MessageError(404, f"this port is for agents, at {context.agent_path.decode()}",
                               "destination_not_found")
        if reader.upgrade and self._is_agents():
            # It knocks at the wrong door, where it would wait for an agent of its own id.
            why = (f"agents connect at {context.agent_path.decode()}" if context.serves_agents
                   else "agents have a port of their own")
            raise MessageError(404, why, "destination_not_found")
        if own is not None:
            return self._answer(200, own[0], own[1])
        head.prefix.size = 0
        if asked.has_client_id and not (context.id_optional and asked.client_id.size == 0):
            if self.last_id is not None and equals(asked.client_id, <const char*>self.last_id, len(self.last_id)):
                client_id = self.last_id
            elif is_client_id(asked.client_id):
                client_id = bytes_of(asked.client_id)
            else:
                raise MessageError(400, "header x-backstream-client-id is not 1 to 128 visible ASCII characters")
        else:
            client_id = context.router.route(&head) if context.router is not None else None
            if client_id is None and head.target.ptr[0] == c'*':
                own = options_answer(context.trace)
                return self._answer(200, own[0], own[1])
            if client_id is None:
                if not context.id_optional:
                    raise MessageError(400, "header x-backstream-client-id is required")
                client_id = b""
        if not asked.has_client_id and client_id:
            # The service is told what the request was routed on.
            field.name = slice_of(b"x-backstream-client-id")
            field.value = slice_of(client_id)
            field.kind = FIELD_OTHER
            reader.fields.add(field)
        if self.client is not None and not context.clients.is_calm(self.client):
            self.keep_alive = False
            raise MessageError(429, "too many requests of this address were given up", "http_request_denied")
        if context.max_body and reader.body == BODY_SIZED and reader.length > context.max_body:
            raise MessageError(413, f"the body is larger than {context.max_body} bytes")
        timeout = timeout_of(&asked, context.request_timeout, context.max_request_timeout)
        head.upgrade.size = 0
        head.client_id = slice_of(client_id)
        head.http_major = 1
        head.body = reader.body
        head.length = <uint64_t>reader.length if reader.body == BODY_SIZED else 0
        if upgrade is not None:
            head.upgrade = slice_of(upgrade)
            head.body = BODY_NONE
        head.time_budget_ms = <uint64_t>(timeout * 1000 + 0.999)
        forwarding.add_fields(self.peer, &head, reader.fields, &self.request_id)
        return self._forward(&head, client_id, timeout, upgrade)

    cdef bytes _offered(self, dict protocols):
        """The first member of Upgrade that is a key of `protocols` (in lower case): its value there, or None."""
        cdef RequestReader reader = self.reader
        cdef Slice rest, token
        cdef Py_ssize_t i
        cdef object found
        for i in range(reader.fields.count):
            if reader.fields.items[i].kind == FIELD_UPGRADE:
                rest = reader.fields.items[i].value
                while next_token(&rest, &token):
                    found = protocols.get(bytes_of(token).lower())
                    if found is not None:
                        return found
        return None

    cdef bint _is_agents(self) except -1:
        """Whether the request offers the subprotocol that is agents' own."""
        cdef FieldArray fields = self.reader.fields
        cdef Slice rest, token
        cdef Py_ssize_t i
        for i in range(fields.count):
            if equals(fields.items[i].name, b"sec-websocket-protocol", 22):
                rest = fields.items[i].value
                while next_token(&rest, &token):
                    if equals(token, <const char*>AGENTS_PROTOCOL, len(AGENTS_PROTOCOL)):
                        return True
        return False

    cdef int _forward(self, RequestHead* head, bytes client_id, double timeout, bytes upgrade) except -1:
        cdef ServerContext context = self.context
        cdef Exchange exchange = Exchange.__new__(Exchange)
        exchange.responder = self
        exchange.table = context.table
        exchange.client_id = client_id
        exchange.payload = Buffer.__new__(Buffer)
        encode_request(exchange.payload, head)
        exchange.is_head = self.is_head
        exchange.is_idempotent = is_idempotent(head.method)
        exchange.has_body = self.request_open
        exchange.offers_upgrade = upgrade is not None
        exchange.upgrade = upgrade
        exchange.length = <int64_t>head.length if head.body == BODY_SIZED else -1
        exchange.head_timeout = timeout
        exchange.idle_timeout = context.idle_timeout
        exchange.agent_wait = context.agent_wait
        exchange.max_retries = context.max_retries
        exchange.request_ended = not self.request_open
        if self.request_open:
            self.read_since = monotonic()
            self.read_bytes = 0
            self.unread_seconds = 0
        self.exchange = exchange
        exchange.start()
        if exchange.link is not None:
            # The agent's own, which stays while it does, and whose hash is known.
            self.last_id = exchange.link.client_id
        return 0

    cdef bint _is_agent_path(self, Slice target) except -1:
        cdef bytes path = bytes_of(target)
        return path.partition(b"?")[0] == self.context.agent_path

    # --- its body ---

    cdef int _request_end(self) except -1:
        cdef Trailers trailers
        if not self.request_open:
            return 0
        self.request_open = False
        if self.exchange is None:
            return 0
        if self.reader.trailer_fields is not None:
            trailers.fields = self.reader.trailer_fields.items
            trailers.field_count = keep_trailers(trailers.fields, self.reader.trailer_fields.count)
            self.exchange.end(&trailers)
        else:
            self.exchange.end(NULL)
        return 0

    cdef bint _too_slow(self, int64_t count, double rate) except -1:
        """Whether `count` bytes in the time since `read_since` are less than `rate` a second, after a grace."""
        cdef double took
        if rate <= 0:
            return False
        took = monotonic() - self.read_since - self.unread_seconds
        return took > RATE_GRACE_SECONDS and count < took * rate

    # --- answers of the proxy's own ---

    cdef int send_error(self, int status, str cause, str detail, str leg) except -1:
        cdef str who = ""
        if self.closing:
            return 0
        if self.exchange is not None and self.exchange.client_id:
            who = f" (id {self.exchange.client_id.decode('ascii')})"
        lines, body = error_page(status, cause, detail + who, leg, accept=self._accept(), trace=self.context.trace)
        return self._answer(status, lines, body)

    cdef int _refuse(self, object error) except -1:
        """Answers a request that goes nowhere; error: the MessageError that says why."""
        if self.request_open or self.reader.state != READ_FINISHED:
            self.keep_alive = False
            self.request_open = True
        leg = "client" if error.cause in ("http_request_error", "http_request_denied") else "proxy"
        lines, body = error_page(error.status, error.cause, str(error), leg, accept=self._accept(),
                                 trace=self.context.trace)
        return self._answer(error.status, lines, body)

    cdef int _refuse_head(self, object error) except -1:
        """Refuses a request whose head did not come, or not as one: it is known as far as its start line was read."""
        self.reader.read_begun_line()
        # RFC 9110 §9.3.2: whatever is wrong with a HEAD, its answer has no content.
        self.is_head = equals(self.reader.method, b"HEAD", 4)
        self.client_address = self.peer.address     # what others say of it stands in fields that nobody has read
        if self.context.access_log is not None:
            self.started_at = self.read_since or monotonic()
            self.sent_bytes = 0
            self.logged_method = _shown(self.reader.method, MAX_METHOD)
            self.logged_target = _shown(self.reader.target, self.context.limits.target)
        return self._refuse(error)

    cdef list _accept(self):
        """The request's Accept lines, as far as they are still at hand."""
        cdef RequestHead head
        cdef FieldArray fields = self.reader.fields
        if self.exchange is not None:
            fields = FieldArray()
            try:
                decode_request(self.exchange.payload.data, self.exchange.payload.size, &head, fields)
            except StreamError:
                return []
        elif not self.in_head:
            return []
        return [value for name, value in pairs_of(fields.items, fields.count) if name == b"accept"]

    cdef int _log(self, str cut=None) except -1:
        """A line of the access log; cut: why the proxy broke the response off."""
        cdef Exchange exchange = self.exchange
        if self.context.access_log is not None and self.logged_method is not None:
            self.context.access_log(self, self.logged_method, self.logged_target,
                                    exchange.client_id if exchange is not None else b"", self.status,
                                    self.sent_bytes, monotonic() - self.started_at,
                                    self.request_id.text[:self.request_id.size],
                                    exchange.link if exchange is not None else None,
                                    exchange.stream_id if exchange is not None else 0, cut)
            self.logged_method = None
        return 0

    # --- for who carries the bytes ---

    cdef int _answer(self, int status, list lines, bytes body) except -1:
        """Sends an answer of the proxy's own; lines: its fields, beside those that all have."""
        raise NotImplementedError

    cdef int _queue_handshake(self) except -1:
        """The request is an agent's handshake."""
        raise NotImplementedError

    cdef int _drop(self, bint reset) except -1:
        """Ends the connection, whatever waits to be sent."""
        raise NotImplementedError

    def drain(self):
        """Closes with the next answer, or after a while where no request comes."""
        raise NotImplementedError

    def abort(self):
        """Drops the connection."""
        raise NotImplementedError
