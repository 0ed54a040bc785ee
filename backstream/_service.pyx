"""The agent's end of a session, and what serves its streams."""

import logging

from picows.picows cimport WSTransport

from backstream._codec cimport RequestHead
from backstream._flow cimport WindowBudget
from backstream._loop cimport LoopState, loop_state, monotonic
from backstream._message_codec cimport request_object
from backstream._seed_link cimport speak_seed
from backstream._seed_session cimport SeedSession
from backstream._session cimport Session
from backstream._stream cimport Stream, StreamHandler
from backstream._websocket cimport SessionLink

from backstream._http._handshake import answer_fault
from backstream._messages import Hello
from backstream._version import SOFTWARE
from backstream._websocket import SUBPROTOCOL

logger = logging.getLogger("backstream.agent")


cdef class Service:

    async def start(self):
        """Makes the service ready. Raises BackstreamError when it can't be."""
        self.loop = loop_state()

    async def stop(self):
        """Ends what is still running and lets go of everything."""

    cdef StreamHandler open(self, Stream stream, const RequestHead* head, bint end):
        """The handler of a new stream; raises StreamError to reset it."""
        return None


cdef class CallbackService(Service):
    """Calls `factory(stream, head, end)` for each stream: it returns a `Handler`, or None to refuse it."""

    def __init__(self, factory):
        self.factory = factory

    cdef StreamHandler open(self, Stream stream, const RequestHead* head, bint end):
        self.requests += 1
        return self.factory(stream, request_object(head), end)


cdef class ServiceLink(SessionLink):
    """agent: has `session_ready(link)`, `session_leaving(link)`, `session_drained(link)`, `session_lost(link, why)`.

    seed: None, or (WindowBudget, seconds that a request may take): the seed wire is spoken where the proxy takes no
    subprotocol.
    """

    def __init__(self, agent, Service service, LoopState loop, settings, WindowBudget budget, name, bytes instance,
                 generation, seed=None):
        hello = Hello(
            software=SOFTWARE, instance=instance, generation=generation,
            initial_window=settings.initial_window, max_frame_size=settings.max_frame_size,
            max_streams=settings.max_streams,
        )
        self.agent = agent
        self.service = service
        self._seed = seed
        self._settings = settings
        self.name = name
        self.fault = ""
        self.set_session_name(instance, generation)
        self.since = monotonic()
        self.begin(loop, Session(self, False, hello, budget, settings.max_window, settings.upgraded_max_window),
                   settings)

    def __repr__(self):
        return f"<ServiceLink {self.name}>"

    cdef int connected(self, WSTransport transport) except -1:
        cdef object headers = transport.response.headers
        cdef object offered = None if self._settings.wire == "seed" else SUBPROTOCOL
        self.fault = answer_fault(headers.items(), offered, needed=self._seed is None)
        if self.fault:
            # Before anything that the proxy sent behind its answer is taken.
            transport.disconnect()
            return self.lose(self.fault)
        if self._seed is not None and not headers.get("Sec-WebSocket-Protocol"):
            self._speak_seed()
        return SessionLink.connected(self, transport)

    cdef int _speak_seed(self) except -1:
        cdef WindowBudget budget
        cdef double request_timeout
        budget, request_timeout = self._seed
        return speak_seed(self, SeedSession(self, False, self.session.local_hello, budget,
                                            self._settings.seed_codec == "json", self._settings.seed_max_message,
                                            request_timeout))

    @property
    def wire(self) -> str:
        """What the session speaks: native, proto or json (of the seed wire)."""
        if self._carrier is None:
            return "native"
        return "json" if (<SeedSession>self.session).json else "proto"

    cdef StreamHandler accept(self, Stream stream, const RequestHead* head, bint end):
        return self.service.open(stream, head, end)

    cdef int on_hello(self, object hello) except -1:
        self.hello_came()
        self.agent.session_ready(self)
        return 0

    cdef int on_goaway(self, object goaway) except -1:
        self.goaway = goaway
        self.agent.session_leaving(self)
        return 0

    cdef int on_handler_error(self, Stream stream, object error) except -1:
        logger.error("stream %d failed", stream.id, exc_info=error,
                     extra=self.log_fields | {"stream": stream.id})
        return 0

    cdef int on_notify(self, str content_type, bytes data) except -1:
        self.agent.notified(self, content_type, data)
        return 0

    cdef int flush(self) except -1:
        SessionLink.flush(self)
        return self.check_drained()

    cdef int check_drained(self) except -1:
        if (self.session.leaving and self.session.stream_count == 0 and not self._drained_told and not self._lost
                and not self.session.has_output()):
            self._drained_told = True
            self.agent.session_drained(self)
        return 0

    cdef int lost(self, str message) except -1:
        self.agent.session_lost(self, message)
        return 0

    def leave(self, str reason):
        """Takes no new streams; `agent.session_drained` is called when the last one has ended."""
        self.session.go_away(0, reason)
        self.wake()
