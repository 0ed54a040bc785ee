"""A front end of `Exchange` for coroutines: a request that the program itself makes, without a socket.

Rules that hold here:
- What comes of the body is held until it is asked for, and its credit is granted only then.
- One task at a time awaits the head, the body, and room for the request's body.
- It ends once, in `_over`; whoever waits hears of it there.
"""

import asyncio
from collections import deque

from libc.stdint cimport int64_t

from backstream._agents cimport AgentLink, AgentTable
from backstream._buffer cimport Buffer
from backstream._callbacks cimport pairs_of_trailers
from backstream._codec cimport FieldArray, RequestHead, ResponseHead, Trailers, decode_request, encode_request
from backstream._exchange cimport Exchange, Responder
from backstream._http._message cimport is_idempotent
from backstream._loop cimport loop_state, monotonic
from backstream._message_codec cimport fill_request, response_object

from backstream.errors import RequestFailed, ResponseCut


cdef enum:
    CANCEL = 8
    SMALL = 1024            # a piece below this is put together with its neighbours: an object is larger than it
    GATHERED = 16384        # bytes of those


cdef int wake(object waiter) except -1:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
    return 0


cdef class BodyQueue:

    def __init__(self):
        self._pieces = deque()

    cdef int put(self, const char* data, Py_ssize_t size) except -1:
        cdef object last
        self.size += size
        if size >= SMALL:
            self._pieces.append(data[:size])
        else:
            last = self._pieces[len(self._pieces) - 1] if self._pieces else None
            if type(last) is bytearray and len(last) < GATHERED:
                (<bytearray>last).extend(data[:size])
            else:
                self._pieces.append(bytearray(data[:size]))
        return wake(self._waiter)

    cdef int finish(self, object error) except -1:
        """No more will come. error: an exception for whoever reads on behind what came, None where that is all."""
        if not self.finished:
            self.finished = True
            self.error = error
        return wake(self._waiter)

    cdef int clear(self) except -1:
        self._pieces.clear()
        self.size = 0
        return 0

    cdef bytes take(self):
        """The next piece, None where there is none now."""
        cdef bytes piece
        if not self._pieces:
            return None
        piece = bytes(self._pieces.popleft())
        self.size -= len(piece)
        return piece

    async def wait(self):
        """Waits until there is a piece, or none will come any more."""
        if self._pieces or self.finished:
            return
        if self._waiter is not None:
            raise RuntimeError("another task reads this body")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


cdef class Call(Responder):

    def __init__(self):
        self.loop = loop_state()
        self.body = BodyQueue()
        self.trailers = ()

    def __repr__(self):
        return f"<Call {self.exchange}>"

    def start(self, AgentTable table, AgentLink only, bytes client_id, head, bint has_body, double head_timeout):
        """Sends a request. only: the one session that it may take, None for any of the id's.

        head: a `RequestHead`; has_body: `write` and `end` follow; head_timeout: seconds, 0 for none.

        Raises HeadError for a head that is malformed.
        """
        cdef RequestHead raw
        cdef FieldArray fields = FieldArray()
        cdef Exchange exchange = Exchange.__new__(Exchange)
        exchange.payload = Buffer()
        fill_request(head, &raw, fields)
        encode_request(exchange.payload, &raw)
        # The agent would refuse it, in other words.
        decode_request(exchange.payload.data, exchange.payload.size, &raw, fields)
        self.is_head = head.method == b"HEAD"
        exchange.responder = self
        exchange.table = table
        exchange.only = only
        exchange.client_id = client_id
        exchange.is_head = self.is_head
        exchange.is_idempotent = is_idempotent(raw.method)
        exchange.has_body = has_body
        exchange.length = <int64_t>head.length if head.body == 1 else -1
        exchange.head_timeout = head_timeout
        exchange.idle_timeout = table.settings.idle_timeout
        exchange.agent_wait = table.settings.agent_wait
        exchange.max_retries = table.settings.max_retries
        exchange.request_ended = not has_body
        self.exchange = exchange
        exchange.start()

    # --- the request's body ---

    def room(self) -> int:
        """How many bytes of the body can be taken now."""
        return 0 if self.exchange is None else self.exchange.room()

    async def wait_room(self):
        """Waits until bytes of the body can be taken and returns how many; 0 when no more are wanted."""
        cdef int64_t room
        while self.exchange is not None and not self.exchange.finished:
            room = self.exchange.room()
            if room > 0:
                return room
            self._room_waiter = asyncio.get_running_loop().create_future()
            try:
                await self._room_waiter
            finally:
                self._room_waiter = None
        return 0

    def write(self, bytes data):
        """Sends bytes of the body, no more than there is room for. Raises StreamError beyond a sized body."""
        if self.exchange is not None:
            self.exchange.body(data)

    def end(self):
        """The request is complete. Raises StreamError short of a sized body."""
        if self.exchange is not None:
            self.exchange.end(NULL)

    # --- the response ---

    async def wait_head(self):
        """Waits for the final head. Raises RequestFailed when none comes."""
        if self.head is None and not self.body.finished:
            self._head_waiter = asyncio.get_running_loop().create_future()
            try:
                await self._head_waiter
            finally:
                self._head_waiter = None
        if self.head is None:
            raise self.body.error
        return self.head

    async def read(self):
        """The next bytes of the body, b"" at its end. Raises ResponseCut where it breaks off."""
        cdef bytes piece
        await self.body.wait()
        piece = self.body.take()
        if piece is not None:
            if self.exchange is not None:
                self.exchange.active_at = monotonic()       # a slow reader is no idle one
                self.exchange.taken(len(piece))
            return piece
        if self.body.error is not None:
            raise self.body.error
        return b""

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.exchange is None

    def abandon(self, str message, error=None):
        """Gives the request up. error: what those hear who wait for its answer."""
        cdef Exchange exchange = self.exchange
        self.body.clear()
        if exchange is not None:
            self._over(error if error is not None else ResponseCut(message))
            exchange.abandon(CANCEL, message)

    cdef int _over(self, object error) except -1:
        self.exchange = None
        self.loop.clear_deadline(self)
        self.body.finish(error)
        wake(self._head_waiter)
        wake(self._room_waiter)
        if self.on_over is not None:
            on_over, self.on_over = self.on_over, None
            on_over()
        return 0

    # --- Responder ---

    cdef int send_head(self, const ResponseHead* head, bint end) except -1:
        self.head = response_object(head)
        return wake(self._head_waiter)

    cdef int send_data(self, const char* data, Py_ssize_t size) except -1:
        return self.body.put(data, size)

    cdef int send_end(self, const Trailers* trailers) except -1:
        self.trailers = pairs_of_trailers(trailers)
        return self._over(None)

    cdef int send_error(self, int status, str cause, str detail, str leg) except -1:
        return self._over(RequestFailed(detail, status=status, cause=cause, leg=leg))

    cdef int send_cut(self, str cause) except -1:
        return self._over(ResponseCut(cause))

    cdef int resume_request(self) except -1:
        return wake(self._room_waiter)

    # --- LoopMember ---

    cdef int on_deadline(self) except -1:
        if self.exchange is not None:
            self.exchange.deadline()
        return 0
