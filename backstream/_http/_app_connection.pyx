"""The proxy's server side behind somebody else's server: requests come and responses go as ASGI's values.

Rules that hold here:
- What a request must be, where it goes and what it is answered with is `FrontEnd`'s to say. Its head is written as
  HTTP/1.1 and read by the same reader, so that no second one has to agree with it.
- One object serves one request, and ends in `_finish`.
- Credit is granted for what the ASGI server took.
"""

import asyncio

from libc.stdint cimport int64_t

from backstream._call cimport BodyQueue
from backstream._codec cimport BODY_NONE, BODY_SIZED, Field, RequestHead, ResponseHead, Trailers
from backstream._exchange cimport Exchange
from backstream._http._context cimport ServerContext
from backstream._http._front_end cimport FRAMED_CHUNKED, FRAMED_NONE, FRAMED_SIZED, FrontEnd
from backstream._http._message cimport HEAD
from backstream._http._trailers cimport keep_trailers
from backstream._loop cimport monotonic
from backstream._slice cimport bytes_of, equals, slice_of

from backstream._http.errors import MessageError
from backstream.errors import ResponseCut, StreamError


cdef enum:
    CANCEL = 8


cdef int wake(object waiter) except -1:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
    return 0


cdef class AppConnection(FrontEnd):

    def __init__(self, ServerContext context):
        FrontEnd.__init__(self, context)
        self.body = BodyQueue()

    def __repr__(self):
        return f"<AppConnection {self.client_address}>"

    # --- the request ---

    def begin(self, bytes head, address, bytes scheme, bytes root_path, bint offers_trailers):
        """Sends a request on its way, or answers it.

        head: as HTTP/1.1 would have it. address: the client's (host, port), or None. root_path: the path that the
        application is mounted at, escaped. offers_trailers: whether the ASGI server can send some.
        """
        cdef char* data
        cdef Py_ssize_t size = len(head)
        self._memory = bytearray(head)
        data = self._memory
        self._root_path = root_path
        self._offers_trailers = offers_trailers
        self.peer = self.context.forwarding.peer(address, scheme)
        self.client_address = self.peer.address
        if self.context._full():
            self._turn_away("the proxy has all the connections it takes")
            return
        if not self._enter():
            return
        self.context.connections.add(self)
        try:
            if self.reader.read(&data, &size) != HEAD:
                raise MessageError(400, "malformed message")
            self._request_head(&data, &size)
        except MessageError as error:
            self._refuse_head(error)

    cdef int _forward(self, RequestHead* head, bytes client_id, double timeout, bytes upgrade) except -1:
        cdef bytes prefix
        if self._root_path:
            prefix = self._root_path + (bytes_of(head.prefix) if head.prefix.size else b"")
            head.prefix = slice_of(prefix)
        return FrontEnd._forward(self, head, client_id, timeout, upgrade)

    @property
    def wants_body(self) -> bool:
        """Whether the request's body is still to come and anybody wants it."""
        return self.request_open and self.exchange is not None

    async def wait_continue(self):
        """Waits until a client that waits for 100 may be told to send its body."""
        while self.awaits_continue and not self.closed and self.headers is None:
            self._continue_waiter = asyncio.get_running_loop().create_future()
            try:
                await self._continue_waiter
            finally:
                self._continue_waiter = None

    async def wait_room(self):
        """Waits until bytes of the body can be taken and returns how many; 0 when no more are wanted."""
        cdef int64_t room
        cdef double since = 0
        while self.exchange is not None and not self.exchange.finished:
            room = self.exchange.room()
            if room > 0:
                if since:
                    self.unread_seconds += monotonic() - since
                return room
            since = since or monotonic()
            self._room_waiter = asyncio.get_running_loop().create_future()
            try:
                await self._room_waiter
            finally:
                self._room_waiter = None
        return 0

    def feed(self, bytes data):
        """Bytes of the request's body, no more than there is room for."""
        if self.exchange is None:
            return
        self.read_bytes += len(data)
        if 0 < self.context.max_body < self.read_bytes:
            self._fail(MessageError(413, f"the body is larger than {self.context.max_body} bytes"))
        elif self._too_slow(self.read_bytes, self.context.min_body_rate):
            self._fail(MessageError(408, f"the body comes slower than {self.context.min_body_rate:g} bytes/s"))
        else:
            try:
                self.exchange.body(data)
            except StreamError as error:
                self._fail(MessageError(400, str(error)))

    def end(self):
        """The request is complete."""
        try:
            self._request_end()
        except StreamError as error:
            self._fail(MessageError(400, str(error)))

    def leave(self):
        """The client has gone."""
        if not self.closed:
            self._gone("the client closed its connection")
            self.body.clear()
            self._finish(ResponseCut("the client closed its connection"))

    cdef int _fail(self, object error) except -1:
        """Gives a request up whose body is at fault."""
        cdef Exchange exchange = self.exchange      # until `_finish`: the access log names its session
        if self.head_sent:
            self._log(str(error))
            exchange.abandon(CANCEL, "the client's request is malformed")
            return self._finish(ResponseCut(str(error)))
        exchange.abandon(CANCEL, "the client's request is malformed")
        return self._refuse(error)

    # --- the response ---

    async def wait_head(self):
        """Waits until `response_status` and `headers` are there, or the request is over."""
        if self.headers is None and not self.closed:
            self._head_waiter = asyncio.get_running_loop().create_future()
            try:
                await self._head_waiter
            finally:
                self._head_waiter = None

    async def read(self):
        """The next bytes of the response's body, b"" at its end. Raises ResponseCut where it breaks off."""
        cdef bytes piece
        await self.body.wait()
        piece = self.body.take()
        if piece is None and self.body.error is not None:
            raise self.body.error
        return piece or b""

    def took(self, Py_ssize_t count):
        """The ASGI server took `count` bytes of `read`."""
        self._taken_bytes += count
        if self.line is not None and self._taken_bytes >= self.sent_bytes:
            self.line.leave(self)
        if self.exchange is not None:
            self.exchange.active_at = monotonic()       # a slow reader is no idle one
            self.exchange.taken(count)

    @property
    def all_read(self) -> bool:
        """Whether all of the response's body was read, and it is whole."""
        return self.body.finished and self.body.size == 0 and self.body.error is None

    cdef int _finish(self, object error) except -1:
        if self.closed:
            return 0
        self.closed = True
        self.exchange = None
        self.loop.clear_deadline(self)
        if self.line is not None:
            self.line.leave(self)
        self.context.forget(self)
        self._leave_client()
        self.reader.close()
        self.body.finish(error)
        wake(self._head_waiter)
        wake(self._room_waiter)
        return wake(self._continue_waiter)

    # --- Responder ---

    cdef int send_interim(self, const ResponseHead* head) except -1:
        if head.status == 100:
            self.awaits_continue = False
            wake(self._continue_waiter)
        return 0        # ASGI has no interim responses; 100 is sent when the body is asked for

    cdef int send_head(self, const ResponseHead* head, bint end) except -1:
        cdef Py_ssize_t i
        cdef const Field* field
        cdef bint has_id = False, may_trail
        cdef int status = head.status
        cdef list headers = []
        may_trail = self._offers_trailers and self.takes_trailers
        self.head_sent = True
        self.status = self.response_status = status
        for i in range(head.field_count):
            field = &head.fields[i]
            if equals(field.name, b"date", 4):
                continue        # the ASGI server writes its own
            if equals(field.name, b"trailer", 7) and not may_trail:
                continue
            if equals(field.name, b"x-request-id", 12):
                has_id = True
            headers.append((bytes_of(field.name), bytes_of(field.value)))
        headers.append((b"via", self.context.forwarding.via))
        if not has_id:
            headers.append(self._id_field())
        self.framing = FRAMED_NONE
        if self.is_head or status == 304:
            if head.body == BODY_SIZED:
                headers.append((b"content-length", b"%d" % head.length))
        elif status == 205:
            headers.append((b"content-length", b"0"))
        elif status != 204:
            if head.body == BODY_SIZED or head.body == BODY_NONE or end:
                self.framing = FRAMED_SIZED
                headers.append((b"content-length", b"%d" % head.length))
            else:
                self.framing = FRAMED_CHUNKED
                if may_trail:
                    self.trailers = ()
        self.headers = headers
        wake(self._continue_waiter)
        return wake(self._head_waiter)

    cdef int send_data(self, const char* data, Py_ssize_t size) except -1:
        if self.framing == FRAMED_NONE:
            return self.exchange.taken(size)
        self.sent_bytes += size
        self.body.put(data, size)
        if self.line is None:
            return self.exchange.held_up()
        self.untaken += size        # or what comes would hide what is taken
        return 0

    cdef int send_end(self, const Trailers* trailers) except -1:
        cdef Py_ssize_t i
        if trailers != NULL and self.trailers is not None:
            self.trailers = tuple([(bytes_of(trailers.fields[i].name), bytes_of(trailers.fields[i].value))
                                   for i in range(keep_trailers(trailers.fields, trailers.field_count))])
        return self._response_done()

    cdef int send_cut(self, str cause) except -1:
        self._log(cause)
        return self._finish(ResponseCut(cause))

    cdef int resume_request(self) except -1:
        return wake(self._room_waiter)

    # --- SlowReader ---

    cdef int64_t untaken_bytes(self) except -1:
        return self.sent_bytes - self._taken_bytes

    # --- FrontEnd ---

    cdef int _drop(self, bint reset) except -1:
        # Its connection is the ASGI server's, which learns of it once its client has taken what it has.
        self.body.clear()
        return self._finish(ResponseCut("the client took too little"))

    cdef int _answer(self, int status, list lines, bytes body) except -1:
        cdef list headers = []
        cdef str line
        if self.request_id.size == 0:
            self.context.forwarding.take_request_id(slice_of(b""), &self.request_id)
        for line in lines:
            name, _, value = line.partition(": ")
            if name != "upgrade":
                headers.append((name.encode("ascii"), value.encode("ascii", "replace")))
        headers.append((b"content-length", b"%d" % len(body)))
        headers.append(self._id_field())
        self.status = self.response_status = status
        self.headers = headers
        if body and not self.is_head:
            self.body.put(body, len(body))
            self.sent_bytes = len(body)
        return self._response_done()

    def _id_field(self):
        return b"x-request-id", self.request_id.text[:self.request_id.size]

    cdef int _response_done(self) except -1:
        self._log()
        return self._finish(None)

    def abort(self):
        self._gone("the proxy dropped the connection")
        self._finish(ResponseCut("the proxy has stopped"))

    cdef int on_deadline(self) except -1:
        if self.exchange is not None:
            self.exchange.deadline()
        return 0

    def drain(self):
        """Nothing to close: the connection is the ASGI server's."""
