"""Runs an ASGI 3 application: one task a request, and no more than that where nothing has to wait.

`receive` and `send` return an object that is done already whenever they can, and a coroutine where they must wait: for
bytes of the client's, or for its credit. Bytes that the application has not received are not granted again, and `send`
waits while the client does not read, so memory is bounded by the stream's window on both sides.
"""

import asyncio
import logging
from urllib.parse import unquote

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject_Call
from cpython.unicode cimport PyUnicode_FromObject
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memchr, memcmp

from backstream._codec cimport (
    BODY_CHUNKED, BODY_NONE, BODY_SIZED, Field, FieldArray, RequestHead, ResponseHead, Trailers,
)
from backstream._grammar cimport equals_lower, is_connection_field, is_field_value, is_lower_token, nominated_by
from backstream._http._message cimport content_length
from backstream._http._trailers cimport keep_trailers
from backstream._loop cimport LoopMember, loop_state, monotonic
from backstream._message_codec cimport fill_trailers
from backstream._service cimport Service
from backstream._slice cimport Slice, bytes_of, equals, slice_of, trim
from backstream._stream cimport Stream, StreamHandler

from backstream.errors import ConfigurationError, StreamError

logger = logging.getLogger("backstream.agent")

cdef object Task = asyncio.Task

cdef enum:
    TOO_LARGE = 37
    APP_ERROR = 36
    TIMEOUT = 32
    NO_ERROR = 0
    HOSTS = 512             # of clients that are remembered
    NAMES = 64              # of fields that are remembered
    LONGEST_NAME = 64       # of them, bytes
    SPARE_CLOCKS = 64
    DISCONNECT_TURNS = 5    # of the loop: from a task's http.disconnect through its waiter to the sender's cancellation
    MOST_DROPPED = 1048576  # bytes of a body that the response does not have, before the application is told to stop

cdef dict ASGI_VERSION = {"version": "3.0", "spec_version": "2.4"}
cdef double LIFESPAN_SECONDS = 60.0
cdef double HANG_UP_SECONDS = 1.0   # for an application to go by itself, once its time limit has passed
cdef double DROP_SECONDS = 5.0      # for an application to send a body that the response does not have


class ClientDisconnected(OSError):
    """`send` after the client has gone (ASGI 3, HTTP: send on a closed connection raises OSError)."""


cdef class Ready:
    """An awaitable that is done: it never suspends. What `receive` gave goes back if nobody comes to await it."""

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        cdef object value = self.value
        self.request = None
        if value is None:
            raise StopIteration
        raise StopIteration(value)

    def send(self, value):
        self.request = None
        raise StopIteration(self.value)

    def throw(self, kind, value=None, traceback=None):
        self.close()
        raise kind if value is None else value

    def close(self):
        if self.request is not None:
            # A task that was cancelled before its first step: `asyncio.wait_for(receive(), 0)`.
            self.request.returned = self.value
            self.request = None


cdef Ready DONE = Ready()


cdef class AsgiService(Service):

    def __init__(self, app, root_path="", lifespan="auto", double request_timeout=0.0):
        self.app = app
        self.lifespan_mode = lifespan
        self.request_timeout = request_timeout
        self.root_path = root_path.rstrip("/")
        self.root_path_bytes = self.root_path.encode()
        self.state = {}
        self.held_starts = []
        self.hosts = [None] * HOSTS
        self.names = [None] * NAMES
        self.fields = FieldArray()

    async def start(self):
        """Runs the application's start-up. Raises ConfigurationError when it says that it failed."""
        self.loop = loop_state()
        self.asyncio_loop = asyncio.get_running_loop()
        self.task_factory = self.asyncio_loop.get_task_factory()
        # The name is given, or one would be formatted for each.
        self.task_options = {"loop": self.asyncio_loop, "name": "backstream request"}
        if self.lifespan_mode != "off":
            self.lifespan = Lifespan(self.app, self.state, self.lifespan_mode == "on")
            await self.lifespan.startup()

    async def stop(self):
        """Cancels what still runs, then runs the application's shutdown."""
        cdef AsgiRequest request = self.newest
        cdef list tasks = []
        while request is not None:
            if request.task is not None:
                tasks.append(request.task)
            request = request.older
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        if self.lifespan is not None:
            await self.lifespan.shutdown()

    cdef StreamHandler open(self, Stream stream, const RequestHead* head, bint end):
        cdef AsgiRequest request = AsgiRequest.__new__(AsgiRequest)
        # An upgrade that is not taken: the request has no body, and ends with its answer.
        self.begin(request, stream, end or head.upgrade.size > 0)
        request.scope = self._scope(request, head)
        request.head_timeout = head.time_budget_ms / 1000.0 if head.time_budget_ms else self.request_timeout
        if request.body_ended:
            request._start_head_clock()
        self.run(request)
        return request

    cdef int begin(self, AsgiRequest request, Stream stream, bint end) except -1:
        self.requests += 1
        request.service = self
        request.stream = stream
        request.length = -1
        request.takes_body = not stream.answers_head
        request.body_ended = end
        return 0

    cdef int run(self, AsgiRequest request) except -1:
        """Starts the request's task."""
        cdef object task
        # Before the task: a factory of eager ones may have it ended already.
        request.older = self.newest
        if self.newest is not None:
            self.newest.newer = request
        self.newest = request
        if self.task_factory is None:
            # Not loop.create_task, nor a call with keywords, which makes a dict of them each time: 750 instructions.
            task = PyObject_Call(Task, (request.run(),), self.task_options)
        else:
            task = self.asyncio_loop.create_task(request.run())
        request.task = task
        return 0

    cdef int ended(self, AsgiRequest request) except -1:
        """The request's task is over."""
        if request.newer is not None:
            request.newer.older = request.older
        else:
            self.newest = request.older
        if request.older is not None:
            request.older.newer = request.newer
        request.newer = request.older = None
        return 0

    cdef HeadClock take_clock(self):
        cdef HeadClock clock = self.spare_clock
        if clock is None:
            clock = HeadClock.__new__(HeadClock)
            clock.loop = self.loop
            return clock
        self.spare_clock = clock.next
        self.spare_clocks -= 1
        clock.next = None
        return clock

    cdef int give_clock_back(self, HeadClock clock) except -1:
        if self.spare_clocks < SPARE_CLOCKS:
            clock.next = self.spare_clock
            self.spare_clock = clock
            self.spare_clocks += 1
        return 0

    cdef int start_soon(self, AsgiRequest request) except -1:
        if not self.held_starts:
            self.asyncio_loop.call_soon(self._send_held_starts)
        self.held_starts.append(request)
        return 0

    def _send_held_starts(self):
        cdef AsgiRequest request
        cdef list held = self.held_starts
        self.held_starts = []
        for request in held:
            request._start_without_body()

    cdef dict _scope(self, AsgiRequest request, const RequestHead* head):
        cdef Py_ssize_t i
        cdef Field* field
        cdef const char* mark = <const char*>memchr(head.target.ptr, c'?', head.target.size)
        cdef bytes raw_path
        cdef list headers = []
        cdef str path
        cdef dict extensions = {}
        cdef dict scope
        if not self._is_of_base(head):
            self._make_base(head)
        if mark == NULL:
            raw_path = bytes_of(head.target)
        else:
            raw_path = PyBytes_FromStringAndSize(head.target.ptr, mark - head.target.ptr)
        if self.base_root:
            raw_path = self.base_root + raw_path
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        if self.base_host is not None:
            headers.append(self.base_host)
        for i in range(head.field_count):
            field = &head.fields[i]
            headers.append((self._name(field.name), bytes_of(field.value)))
            if equals(field.name, b"expect", 6):
                request.wants_continue = True
            elif equals(field.name, b"te", 2):
                extensions["http.response.trailers"] = {}
        if head.time_budget_ms:
            extensions["backstream"] = {"time_left": head.time_budget_ms / 1000.0}
        if head.body == BODY_SIZED:
            headers.append((b"content-length", b"%d" % head.length))
        elif head.body == BODY_CHUNKED:
            headers.append((b"transfer-encoding", b"chunked"))
        scope = self.base.copy()
        if not equals(head.method, b"GET", 3):
            scope["method"] = method_of(head.method)
        scope["path"] = path
        scope["raw_path"] = raw_path
        if mark != NULL:
            scope["query_string"] = PyBytes_FromStringAndSize(mark + 1, head.target.ptr + head.target.size - mark - 1)
        scope["headers"] = headers
        scope["client"] = self._client(head.peer)
        scope["state"] = self.state.copy() if self.state else {}
        scope["extensions"] = extensions
        return scope

    cdef bint _is_of_base(self, const RequestHead* head) noexcept:
        return (self.base is not None and head.http_minor == self.base_minor and head.http_major == self.base_major
                and is_same(self.base_scheme, head.scheme) and is_same(self.base_prefix, head.prefix)
                and is_same(self.base_authority, head.authority))

    cdef int _make_base(self, const RequestHead* head) except -1:
        """Prepares what the scopes of requests to one origin share: a copy costs half of what a new dict does.

        What most requests have is there already.
        """
        cdef str root = self.root_path
        cdef bint plain = head.scheme.size == 4
        cdef object server = address_of(head.authority)
        if server is not None and server[1] is None:
            # ASGI's port is None for Unix sockets only; frameworks make URLs of it.
            server = (server[0], 80 if plain else 443)
        self.base = None
        self.base_major = head.http_major
        self.base_minor = head.http_minor
        self.base_scheme = bytes_of(head.scheme)
        self.base_prefix = bytes_of(head.prefix)
        self.base_authority = bytes_of(head.authority)
        self.base_root = self.root_path_bytes
        if head.prefix.size:
            root += unquote(self.base_prefix.decode("ascii")).rstrip("/")
            self.base_root += self.base_prefix.rstrip(b"/")
        self.base_host = (b"host", self.base_authority) if head.authority.size else None
        # From pairs: one that is made by a literal does not know that its keys are all str, and its copies are half as
        # large again, too large for Python's allocator.
        self.base = dict([
            ("type", "http"),
            ("asgi", ASGI_VERSION),
            ("http_version", ("1.1" if head.http_major == 1 and head.http_minor
                              else f"{head.http_major}.{head.http_minor}")),
            ("method", "GET"),
            ("scheme", "http" if plain else "https"),
            ("path", None),
            ("raw_path", None),
            ("query_string", b""),
            ("root_path", root),
            ("headers", None),
            ("client", None),
            ("server", server),
            ("state", None),
            ("extensions", None),
        ])
        return 0

    cdef bytes _name(self, Slice text):
        """The bytes of a field's name, kept since requests bring few, again and again: half the price of new ones."""
        cdef uint32_t place
        cdef object known
        if not 0 < text.size <= LONGEST_NAME:
            return bytes_of(text)
        place = (<uint32_t>text.size + <uint8_t>text.ptr[0] * 7 + <uint8_t>text.ptr[text.size - 1] * 31) % NAMES
        known = self.names[place]
        if known is None or not is_same(<bytes>known, text):
            known = bytes_of(text)
            self.names[place] = known
        return <bytes>known

    cdef object _client(self, Slice text):
        """(host, port) for "ip:port", the host remembered since a few come again and again; None for nothing."""
        cdef Py_ssize_t i, colon = text.size - 1
        cdef uint32_t place = 0
        cdef int port = 0
        cdef Slice host
        cdef object known
        if text.size == 0:
            return None
        while colon and text.ptr[colon] != c':':
            colon -= 1
        for i in range(colon + 1, text.size):
            port = port * 10 + text.ptr[i] - c'0'
        host.ptr = text.ptr
        host.size = colon
        # Each has one place: a dict would want bytes made and hashed, for 400 instructions more.
        for i in range(colon):
            place = place * 31 + <uint8_t>text.ptr[i]
        place %= HOSTS
        known = self.hosts[place]
        if known is None or not is_same(<bytes>(<tuple>known)[0], host):
            known = (bytes_of(host), bytes_of(host).decode("ascii").strip("[]"))
            self.hosts[place] = known
        return ((<tuple>known)[1], port)


cdef inline bint is_same(bytes value, Slice text) noexcept:
    return len(value) == text.size and (text.size == 0 or memcmp(<const char*>value, text.ptr, text.size) == 0)


cdef str method_of(Slice text):
    if equals(text, b"GET", 3):
        return "GET"
    if equals(text, b"POST", 4):
        return "POST"
    return bytes_of(text).decode("ascii")


cdef object address_of(Slice text):
    """(host, port) for "host:port", (host, None) for "host", None for nothing."""
    cdef str address = bytes_of(text).decode("ascii")
    if not address:
        return None
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit():
        return (host.strip("[]"), int(port))
    return (address.strip("[]"), None)


cdef bint _has_length(object headers) except -1:
    for pair in headers:
        name = pair[0]
        if isinstance(name, bytes) and equals_lower(slice_of(<bytes>name), b"content-length", 14):
            return True
    return False


cdef bytes _exact_bytes(object value):
    """The bytes of a `bytes` or of what derives from it. Raises TypeError for anything else."""
    if not isinstance(value, bytes):
        raise TypeError(f"a header's name and value are bytes, not {type(value).__name__}")
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))


cdef class AsgiRequest(StreamHandler):

    async def run(self):
        """Runs the application to its end, whatever that is."""
        try:
            await self.service.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:
            if not self.completed and not self.disconnected:
                self._cancelled()
        except BaseException:
            # SystemExit and its like too: it is this request that failed, and the agent serves others.
            if self.disconnected:
                logger.debug("the application failed after its client had gone", exc_info=True,
                             extra=self._log_fields())
            else:
                self._failed("the application failed", exc_info=True)
        else:
            # One whose response was complete with its head has heard http.disconnect: that it goes is no error.
            if not self.completed and not self.disconnected and not self.ended_at_head:
                self._returned()
        finally:
            if not self.completed and not self.disconnected:
                # Whatever went wrong above: no client waits for a response that does not come.
                self._cut("the application failed")
            self._free_place()
            self._stop_head_clock()
            self.completed = True
            self.start_headers = None
            self.scope = None
            self.service.ended(self)
            self.task = None
            self._wake_receiver()
            self._wake_sender()

    def _cancelled(self):
        self._cut("the application was cancelled")

    def _returned(self):
        self._failed("the application returned without a complete response", exc_info=False)

    def _log_fields(self):
        request_id = None
        try:
            for name, value in self.scope["headers"]:
                if name == b"x-request-id":
                    request_id = value.decode("latin-1")
        except Exception:
            pass        # the application has changed its scope
        return self.stream.session.owner.log_fields | {"stream": self.stream.id, "request": request_id}

    def _log_failure(self, str what, bint exc_info):
        cdef dict scope = self.scope or {}
        logger.error("%s: %s %s", what, scope.get("method", "WebSocket" if "path" in scope else "a request"),
                     scope.get("path", "whose scope has no path any more"), exc_info=exc_info, extra=self._log_fields())

    def _failed(self, str what, bint exc_info):
        # The client first: what it gets does not hang on a log.
        if not self.completed:      # or else it has, or gets, a whole response
            if not self.started:
                self.start_headers = None
                self._respond(500, [(b"content-type", b"text/plain; charset=utf-8")], b"Internal Server Error\n", False)
                self.stream.end()
                self.completed = True
            else:
                self._cut(what)
        self._log_failure(what, exc_info)

    cdef int _cut(self, str what) except -1:
        """The application says no more: a response that has begun breaks off, unless its head was all of it."""
        self.completed = True
        if self.started and not self.takes_body:
            return self.stream.end()
        return self.stream.reset(APP_ERROR, what)

    # --- for the application ---

    def receive(self):
        """ASGI's receive: `http.request` as long as there is body, then `http.disconnect`."""
        cdef Ready ready
        cdef object message = self._message()
        if message is None:
            return self._receive_later()
        ready = Ready.__new__(Ready)
        ready.value = message
        ready.request = self
        return ready

    async def _receive_later(self):
        while True:
            message = self._message()
            if message is not None:
                return message
            waiter = self.service.asyncio_loop.create_future()
            if self.receivers is None:
                self.receivers = []
            self.receivers.append(waiter)
            try:
                await waiter
            finally:
                _forget(self.receivers, waiter)

    cdef object _message(self):
        cdef bytes body
        cdef ResponseHead head
        cdef dict returned = self.returned
        if returned is not None:
            self.returned = None
            if not self.disconnected:
                return returned
        if self.pieces and not self.disconnected:
            if len(self.pieces) == 1:
                body = <bytes>self.pieces[0]
            else:
                body = b"".join(self.pieces)
            self.pieces = None
            self.body_delivered = self.body_ended
            # Granted when the application has it, so that what it does not ask for is not sent.
            self.waiting_bytes = 0
            self.stream.consume(len(body))
            return {"type": "http.request", "body": body, "more_body": not self.body_ended}
        if self.disconnected or self.completed:
            return {"type": "http.disconnect"}
        if self.body_ended:
            if not self.body_delivered:
                self.body_delivered = True
                return {"type": "http.request", "body": b"", "more_body": False}
            if self.ended_at_head:
                return {"type": "http.disconnect"}
        elif self.wants_continue:
            # RFC 9110 §10.1.1: the client waits for a word that its body is wanted.
            self.wants_continue = False
            head.status = 100
            head.reason.size = head.upgrade.size = head.field_count = head.body = head.length = 0
            self.stream.respond_interim(&head)
        return None

    def send(self, message):
        """ASGI's send. Raises ClientDisconnected when the client is gone, RuntimeError when the application errs."""
        # By its C type: methods of an object that may be anything cost a third of a response's instructions.
        cdef dict event = message if type(message) is dict else dict(message)
        cdef object said = event["type"]
        cdef str kind = <str>said if type(said) is str else <str>PyUnicode_FromObject(said)
        cdef bytes body
        cdef bint more
        cdef int status
        cdef object headers
        if self.disconnected:
            return self._send_to_nobody()
        if len(kind) == 18 and kind == "http.response.body":
            if self.start_headers is None and not self.started:
                raise RuntimeError("http.response.body before http.response.start")
            if self.completed or self.body_sent:
                raise RuntimeError("http.response.body after the response was complete")
            value = event.get("body", b"")
            # Not bytes(value), which makes 5 zeros of 5.
            body = value if type(value) is bytes else bytes(memoryview(value))
            more = event.get("more_body", False)
            if not self.started:
                self._send_head(body, more or self.trailers is not None)
            elif body and self.takes_body:
                self._write(body)
            if not more:
                if self.trailers is not None:
                    self.body_sent = True
                    return DONE
                self._complete()
            elif not self.takes_body:
                return self._drop(len(body))
            elif self.stream.room() <= 0 and body:
                return self._send_later()
            return DONE
        if kind == "http.response.start":
            if self.started or self.start_headers is not None:
                raise RuntimeError("a second http.response.start")
            status = event["status"]
            headers = event.get("headers", ())
            if event.get("trailers", False):
                self.trailers = []
            if type(headers) is not list and type(headers) is not tuple:
                # An iterator gives them once only.
                headers = tuple(headers)
            if _has_length(headers):
                self._respond(status, headers, b"", True)
                return DONE
            # Whether a body follows settles the framing; the head waits for it only as long as this turn lasts. A list
            # is the application's, which may change it meanwhile.
            self.start_headers = tuple(headers)
            self.start_status = status
            self.service.start_soon(self)
            return DONE
        if kind == "http.response.trailers":
            if not self.body_sent or self.completed:
                raise RuntimeError("http.response.trailers without having been announced, or before the body's end")
            self.trailers.extend(event.get("headers", ()))
            if not event.get("more_trailers", False):
                self._complete()
            return DONE
        raise RuntimeError(f"an ASGI message that is not known here: {kind}")

    def _start_without_body(self):
        if not self.started and self.start_headers is not None and not self.disconnected:
            try:
                self._send_head(b"", True)
            except Exception:
                self._failed("the application's response is malformed", exc_info=True)

    async def _send_later(self):
        while not self.disconnected and not self.completed and self.stream.room() <= 0:
            waiter = self.service.asyncio_loop.create_future()
            if self.senders is None:
                self.senders = []
            self.senders.append(waiter)
            try:
                await waiter
            finally:
                _forget(self.senders, waiter)
        if self.disconnected:
            await self._send_to_nobody()

    cdef object _drop(self, Py_ssize_t size):
        """Takes a piece of a body that the response does not have (HEAD, 204, 304): there is no credit to wait for.

        An application may send such a body to its end, since its work may go on behind that, but not for ever.
        """
        self.dropped += size
        if self.dropped <= MOST_DROPPED and monotonic() < self.drop_until:
            return _let_others_run()
        self._hold_place()
        self._cut("")
        self._gone()
        return self._send_to_nobody()

    async def _send_to_nobody(self):
        # An application that listens for http.disconnect beside its sending (Django) gives up in good order when that
        # comes first; an exception here would cut it short.
        for _ in range(DISCONNECT_TURNS):
            await asyncio.sleep(0)
        raise ClientDisconnected("the client has gone")

    cdef int _write(self, bytes body) except -1:
        if self.length >= 0:
            if len(body) > self.length:
                self._wrong_length("more")
            self.length -= len(body)
        return self.stream.write(body)

    def _wrong_length(self, str how):
        what = f"the response has {how} body than its Content-Length"
        self._failed(what, exc_info=False)
        self._gone()
        raise RuntimeError(what)

    cdef int _complete(self) except -1:
        if self.length > 0:
            self._wrong_length("less")
        if self.trailers and self.takes_body:
            self._end_with_trailers()
        self.completed = True
        self.stream.end()
        if self.ended_at_head:
            self._free_place()
        return self._wake_receiver()

    def _end_with_trailers(self):
        cdef FieldArray fields = self.service.fields
        cdef Trailers trailers
        cdef Field* field
        cdef Py_ssize_t i
        cdef list pairs = [(name.lower(), value.strip(b" \t")) for name, value in self.trailers]
        fill_trailers(pairs, &trailers, fields)
        for i in range(trailers.field_count):
            field = &trailers.fields[i]
            if not is_lower_token(field.name) or not is_field_value(field.value):
                raise RuntimeError(f"a trailer with characters that may not stand in it: {bytes_of(field.name)!r}")
        trailers.field_count = keep_trailers(trailers.fields, trailers.field_count)
        self.stream.end_with_trailers(&trailers)

    cdef int _send_head(self, bytes first, bint more) except -1:
        cdef tuple headers = self.start_headers
        self.start_headers = None
        return self._respond(self.start_status, headers, first, more)

    cdef int _respond(self, int status, object headers, bytes first, bint more) except -1:
        cdef FieldArray fields = self.service.fields
        cdef ResponseHead head
        cdef bint end
        cdef list _kept      # beside what the fields point into
        if not 200 <= status <= 999:
            raise RuntimeError(f"a final response with status {status}")
        head.status = status
        head.reason.size = head.upgrade.size = 0
        head.body = BODY_CHUNKED
        head.length = 0
        _kept = self._take_fields(fields, headers)
        if status == 204 or status == 304:
            self.takes_body = False
        if self.length >= 0:
            head.body = BODY_SIZED
            head.length = self.length
        elif not more:
            head.body = BODY_SIZED if self.takes_body else BODY_NONE
            head.length = len(first) if self.takes_body else 0
        if status == 204:
            head.body = BODY_NONE
            head.length = 0
        head.fields = fields.items
        head.field_count = fields.count
        if self.takes_body:
            end = not more and head.body == BODY_SIZED and head.length == 0
        else:
            # RFC 9112 §6.3 (1): it ends with its head, whatever the application still says; but not before the request
            # has, whose rest would be lost with the stream.
            end = not more or self.body_ended
            self.length = -1
        self.started = True
        self._stop_head_clock()
        try:
            self.stream.respond(&head, end)
        except StreamError as error:
            self.stream.reset(TOO_LARGE, str(error))
            self._failed(str(error), exc_info=False)
            self._gone()
            raise RuntimeError(str(error)) from None
        if self.takes_body:
            if first:
                self._write(first)
        elif more:
            self.drop_until = monotonic() + DROP_SECONDS
            if end:
                self._end_at_head()
        return 0

    cdef int _end_at_head(self) except -1:
        """The response is complete, which the application does not know yet."""
        self.ended_at_head = True
        self._hold_place()
        return self._wake_receiver()

    cdef int _hold_place(self) except -1:
        """The work goes on in the application: until it ends it counts against max_streams."""
        if not self.holds_place:
            self.holds_place = True
            self.stream.session.hold_place()
        return 0

    cdef int _free_place(self) except -1:
        if self.holds_place:
            self.holds_place = False
            self.stream.session.free_place()
        return 0

    cdef list _take_fields(self, FieldArray fields, object headers):
        """Fills `fields` with the application's headers, less those of the connection; sets `length`.

        headers: a list or tuple. Returns what the fields point into beside it. Raises RuntimeError where a header is
        malformed.
        """
        cdef Field field
        cdef int64_t length
        cdef object named, valued
        cdef bytes name, value
        cdef list lowered = None
        cdef list connections = None
        self.length = -1
        fields.count = 0
        for pair in headers:
            named, valued = pair
            if type(named) is bytes and type(valued) is bytes:
                name = <bytes>named
                value = <bytes>valued
            else:
                name = _exact_bytes(named)
                value = _exact_bytes(valued)
                if lowered is None:
                    lowered = []
                lowered.append((name, value))
            field.name = slice_of(name)
            if not is_lower_token(field.name):
                name = name.lower()
                if lowered is None:
                    lowered = []
                lowered.append(name)
                field.name = slice_of(name)
                if not is_lower_token(field.name):
                    self._malformed_header(name)
            if type(pair) is not tuple and type(pair) is not list:
                # A pair that makes its bytes anew each time does not keep them.
                if lowered is None:
                    lowered = []
                lowered.append((name, value))
            field.value = slice_of(value)
            trim(&field.value)
            field.kind = 0
            if not is_field_value(field.value):
                self._malformed_header(name)
            if is_connection_field(field.name) or equals(field.name, b"te", 2):
                if field.name.size == 14:     # content-length
                    length = content_length(field.value)
                    if self.length >= 0 and self.length != length:
                        raise RuntimeError("two Content-Lengths that differ")
                    self.length = length
                elif equals(field.name, b"connection", 10):
                    if connections is None:
                        connections = []
                    connections.append(bytes_of(field.value))
                continue
            fields.add(field)
        if connections is not None:
            self._drop_nominated(fields, nominated_by(b",".join(connections)))
        return lowered

    def _drop_nominated(self, FieldArray fields, names):
        cdef Py_ssize_t i, count = 0
        for i in range(fields.count):
            if bytes_of(fields.items[i].name) not in names:
                fields.items[count] = fields.items[i]
                count += 1
        fields.count = count

    def _malformed_header(self, bytes name):
        raise RuntimeError(f"a response header with characters that may not stand in it: {name!r}")

    # --- from the stream ---

    cdef int on_data(self, Stream stream, const char* data, Py_ssize_t size) except -1:
        if self.completed:
            stream.consume(size)
            return 0
        if self.pieces is None:
            self.pieces = []
        self.pieces.append(PyBytes_FromStringAndSize(data, size))
        self.waiting_bytes += size
        return self._wake_receiver()

    cdef int on_end(self, Stream stream, const Trailers* trailers) except -1:
        self.body_ended = True
        if self.started and not self.takes_body and not self.completed:
            self.stream.end()
            self._end_at_head()
        self._start_head_clock()
        return self._wake_receiver()

    cdef int on_reset(self, Stream stream, uint32_t code, str message) except -1:
        if code == NO_ERROR and self.completed:
            self.pieces = None
            return self._wake_receiver()
        if not self.completed and not self.disconnected:
            self._hold_place()
            self._gone()
            # Whether the agent's clock or the proxy's is first, the application is treated alike.
            return self._start_clock(HANG_UP_SECONDS) if code == TIMEOUT and not self.started else 0
        return self._gone()

    cdef int _start_head_clock(self) except -1:
        if self.head_timeout > 0 and not self.started and not self.disconnected:
            self._start_clock(self.head_timeout)
        return 0

    cdef int _start_clock(self, double seconds) except -1:
        cdef HeadClock clock = self.service.take_clock()
        clock.request = self
        self.head_clock = clock
        return clock.loop.set_deadline(clock, seconds)

    cdef int _stop_head_clock(self) except -1:
        cdef HeadClock clock = self.head_clock
        if clock is not None:
            clock.loop.clear_deadline(clock)
            clock.request = None
            self.head_clock = None
            self.service.give_clock_back(clock)
        return 0

    cdef int _timed_out(self) except -1:
        if self.disconnected:
            # It was told and goes on: nobody else would ever end it.
            self.task.cancel()
            self._log_failure(f"cancelled {HANG_UP_SECONDS:g} s after its time limit", exc_info=False)
            return 0
        self._hold_place()
        self.stream.reset(TIMEOUT, "no response within the time limit")
        self._gone()
        self._start_clock(HANG_UP_SECONDS)
        self._log_failure(f"no response within {self.head_timeout:g} s", exc_info=False)
        return 0

    cdef int _gone(self) except -1:
        self._stop_head_clock()
        self.disconnected = True
        self.pieces = None
        self._wake_receiver()
        return self._wake_sender()

    cdef int on_writable(self, Stream stream) except -1:
        return self._wake_sender()

    cdef int _wake_receiver(self) except -1:
        cdef list receivers = self.receivers
        if receivers is not None:
            self.receivers = None
            _wake(receivers)
        return 0

    cdef int _wake_sender(self) except -1:
        cdef list senders = self.senders
        if senders is not None:
            self.senders = None
            _wake(senders)
        return 0


async def _let_others_run():
    await asyncio.sleep(0)


cdef int _wake(list waiters) except -1:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    return 0


cdef int _forget(list waiters, object waiter) except -1:
    """One that was cancelled is not woken any more."""
    if waiters is not None and waiter in waiters:
        waiters.remove(waiter)
    return 0


cdef class HeadClock(LoopMember):

    cdef int on_deadline(self) except -1:
        cdef AsgiRequest request = self.request
        self.request = None
        request.head_clock = None
        return request._timed_out()


class Lifespan:
    """An application's start-up and shutdown (ASGI 3, lifespan); one that does not know it is served without."""

    def __init__(self, app, state, required):
        self._app = app
        self._required = required
        self._state = state
        self._events = asyncio.Queue()
        self._started = asyncio.Event()
        self._failure = None
        self._supported = False
        self._task = None

    async def startup(self):
        """Waits for `lifespan.startup.complete`. Raises ConfigurationError for `lifespan.startup.failed`."""
        self._task = asyncio.ensure_future(self._run())
        self._events.put_nowait({"type": "lifespan.startup"})
        try:
            # Not `wait_for`: where the event comes as it is cancelled, it takes no notice of that (Python 3.11).
            async with asyncio.timeout(LIFESPAN_SECONDS):
                await self._started.wait()
        except TimeoutError:
            self._task.cancel()
            raise ConfigurationError(f"the application's start-up took longer than {LIFESPAN_SECONDS:g} s") from None
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if self._failure is not None:
            raise ConfigurationError(f"the application failed to start: {self._failure}")

    async def shutdown(self):
        """Waits for the application's shutdown, for a while."""
        if self._task is None or self._task.done():
            return
        self._events.put_nowait({"type": "lifespan.shutdown"})
        done, _ = await asyncio.wait([self._task], timeout=LIFESPAN_SECONDS)
        if not done:
            logger.warning("the application's shutdown took longer than %g s and was cancelled", LIFESPAN_SECONDS)
            self._task.cancel()

    async def _run(self):
        try:
            await self._app({"type": "lifespan", "asgi": ASGI_VERSION, "state": self._state}, self._events.get,
                            self._send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if self._started.is_set():
                if self._failure is None:       # otherwise `startup` has told already what this says again
                    logger.exception("the application's shutdown failed")
            elif self._supported or self._required:
                self._failure = str(error) or type(error).__name__
            else:
                logger.debug("the application does not support lifespan", exc_info=True)
        finally:
            self._started.set()

    async def _send(self, message):
        kind = message["type"]
        self._supported = True
        if kind == "lifespan.startup.failed":
            self._failure = message.get("message") or "no reason given"
            self._started.set()
        elif kind == "lifespan.startup.complete":
            self._started.set()
        elif kind == "lifespan.shutdown.failed":
            logger.error("the application's shutdown failed: %s", message.get("message", ""))
