"""An agent's session whose WebSocket comes as ASGI messages.

Rules that hold here:
- The task that sends asks for one message at a time. While the ASGI server does not take one, the session counts as
  congested: no DATA is queued and no stream opened.
- Pings are the ASGI server's, and so is finding out that the agent is gone; what is left here is the HELLO's time, and
  that of a message that the agent does not take.
"""

import asyncio

from backstream._agents cimport AgentLink, AgentTable
from backstream._codec cimport MAX_MESSAGE_SIZE
from backstream._loop cimport LoopState

cdef enum:
    MESSAGE_SIZE = 131072           # bytes of DATA in a message: what the ASGI server buffers beyond its own limit


cdef class AppLink(AgentLink):

    def __init__(self, AgentTable table, LoopState loop, bytes client_id, address):
        AgentLink.__init__(self, table, loop, client_id, address)
        self._ended = loop.asyncio_loop.create_future()
        loop.set_deadline(self._member, self._hello_timeout)

    def __repr__(self):
        return f"<AppLink {self.name} {self.address}>"

    # --- from the tasks that carry its messages ---

    def message(self, object data):
        """A message came; data: bytes, or None for a text message."""
        if self._lost or self.session.closed:
            return
        if data is None:
            self.session.close(1, "a text message on the native wire", 1003)
        elif len(data) > MAX_MESSAGE_SIZE:
            self.session.close(1, "a message of more than 262144 bytes", 1009)
        else:
            self._receive(bytes(data))

    def _receive(self, bytes data):
        if len(data) == 0:
            self.session.charge_idle_frame()
        self.bytes_received += len(data)
        self.session.receive(data, len(data))

    def next_message(self):
        """The next message to send, None where there is none now."""
        cdef char* message = self.loop.message_buffer
        cdef Py_ssize_t size
        if self._lost or self.session.congested and not self.session.closed:
            return None
        if not self.session.has_output():
            self.session.after_pull()
            if not self.session.has_output():
                return None
        self.loop.pulling = True
        try:
            size = self.session.pull(message, MESSAGE_SIZE)
        finally:
            self.loop.pulling = False
        if size == 0:
            return None
        self.bytes_sent += size
        return message[:size]

    def set_pending(self, bint pending):
        """Whether the ASGI server holds a message back, since the agent does not read."""
        if self._lost:
            return
        self.session.set_congested(pending)
        if pending:
            self.loop.set_deadline(self._member, self._ping_timeout)
        elif self.session.peer_hello is not None:
            self.loop.clear_deadline(self._member)
        else:
            self.loop.set_deadline(self._member, self._hello_timeout)

    async def wait_output(self):
        """Waits until there may be something to send, or the session is over."""
        if self._lost or self.session.has_output() or self._closing:
            return
        self._output = self.loop.asyncio_loop.create_future()
        try:
            await self._output
        finally:
            self._output = None

    async def wait_ended(self):
        """Waits until the session is gone."""
        await asyncio.shield(self._ended)

    @property
    def close_event(self):
        """The ASGI event that closes the WebSocket once the session is over, None before."""
        if not self._closing:
            return None
        return {"type": "websocket.close", "code": self._close_code, "reason": self._close_reason[:120]}

    # --- SessionLink ---

    cdef int wake(self) except -1:
        if self._output is not None and not self._output.done():
            self._output.set_result(None)
        return 0

    cdef int flush_early(self) except -1:
        return self.wake()

    cdef int flush(self) except -1:
        return 0

    cdef int _set_deadline(self) except -1:
        # The HELLO came; while a message is held back, the deadline is that of the agent's taking it.
        return 0 if self.session.congested else self.loop.clear_deadline(self._member)

    cdef int deadline(self) except -1:
        if self._lost:
            return 0
        if self.session.congested:
            self.abort(f"it did not read for {self._ping_timeout:g} s")
        elif self.session.peer_hello is None:
            self.session.close(1, f"no HELLO within {self._hello_timeout:g} s", 1002)
        return 0

    cdef int lost(self, str message) except -1:
        AgentLink.lost(self, message)
        self.wake()
        if not self._ended.done():
            self._ended.set_result(None)
        return 0
