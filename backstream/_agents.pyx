"""The proxy's agents: which session serves a client id.

A group keeps its sessions in a heap of at most `max_agents_per_id`, reordered when a stream opens or closes; picking
one is a look at its top. Ids that went away stay known for a day, so that 503 (away) can be told from 422 (unknown).
"""

import asyncio
import logging
import time
from collections import OrderedDict
from datetime import datetime, timezone

from libc.stdint cimport uint32_t

from backstream._codec cimport RequestHead
from backstream._flow cimport BudgetShare, WindowBudget
from backstream._loop cimport LoopState, monotonic
from backstream._seed_link cimport speak_seed
from backstream._seed_session cimport SeedSession
from backstream._session cimport Session
from backstream._slow_readers cimport SlowReader, SlowReaders
from backstream._stream cimport Stream, StreamHandler
from backstream._websocket cimport SessionLink

import os

from backstream._messages import Hello, Notify
from backstream._seed_codec import pack_event
from backstream._version import SOFTWARE
from backstream.errors import StreamError

logger = logging.getLogger("backstream.proxy")

cdef enum:
    REFUSED = 7
    NOT_CARRIED = 258
    SEEN_IDS = 65536
    ROOM_PART = 64                      # of a session's streams, one in so many may be cut off at once

cdef double SEEN_SECONDS = 86400.0
cdef double CLEARING_SECONDS = 2.0      # how long a service may be at work for a stream that was cut off
cdef double YOUNG_SECONDS = 10.0        # after its start a proxy can't know who is only about to come back


cdef class AgentLink(SessionLink):

    def __init__(self, AgentTable table, LoopState loop, bytes client_id, address, wire="native"):
        """wire: native, or the encoding that the seed wire begins with: proto or json."""
        settings = table.settings.session
        self.table = table
        self.client_id = client_id
        self.name = client_id.decode("ascii")
        self.address = address
        self._connected_at = time.time()
        self.heap_index = -1
        self.slow_readers = SlowReaders(table.settings.min_read_rate)
        hello = Hello(
            software=SOFTWARE, instance=os.urandom(16), generation=1, initial_window=settings.initial_window,
            max_frame_size=settings.max_frame_size, max_streams=0 if wire == "native" else settings.max_streams,
        )
        if wire == "native":
            self.begin(loop, Session(self, True, hello, table.budget, settings.max_window,
                                     settings.upgraded_max_window), settings)
            self.session.max_opened = settings.max_streams
        else:
            self.begin(loop, None, settings)
            speak_seed(self, SeedSession(self, True, hello, table.seed_budget, wire == "json",
                                         settings.seed_max_message, 0))
        table._links.add(self)

    def __repr__(self):
        return f"<AgentLink {self.name} {self.address}>"

    cdef int queue_hello(self) except -1:
        return self.loop.enqueue(self._member, self.client_id, self.table.awaits(self.client_id))

    cdef StreamHandler accept(self, Stream stream, const RequestHead* head, bint end):
        return None     # max_streams is 0: the session refuses before it comes here

    cdef int on_capacity(self) except -1:
        if self.group is not None and self.session.closed:
            # Before its streams end: what is tried again must not come back to it.
            self.table.leave(self)
        elif self.group is not None:
            self.group.moved(self)
            if self.waiting and not self.serving:
                self._serve_waiting()
            if self.group is not None and self.group.waiting:
                self.group.serve_waiting(self.table)
        elif self._retired() and self.session is not None and self.session.opened == 0 and not self.session.closed:
            # Replaced or leaving, and its last stream has ended.
            self.session.close(0, "", 1001)
        return 0

    cdef int on_hello(self, object hello) except -1:
        self.instance = hello.instance
        self.generation = hello.generation
        self.set_session_name(hello.instance, hello.generation)
        self.hello_came()
        self.table.register(self)
        return 0

    cdef int on_goaway(self, object goaway) except -1:
        logger.info("agent %s is leaving: %r", self.name, goaway.message[:200], extra=self.log_fields)
        self.table.withdraw(self, goaway.message[:200])
        return self.on_capacity()

    cdef int on_notify(self, str content_type, bytes data) except -1:
        if self.table.on_notify is not None:
            try:
                self.table.on_notify(self, Notify(content_type=content_type, data=data))
            except Exception:
                logger.exception("the handler of events failed", extra={"id": self.name})
        return 0

    cdef int on_handler_error(self, Stream stream, object error) except -1:
        logger.error("stream %d of agent %s failed", stream.id, self.name, exc_info=error,
                     extra=self.log_fields | {"stream": stream.id})
        return 0

    cdef int lost(self, str message) except -1:
        self.table.lost(self, message)
        return 0

    def _retired(self):
        return self.instance is not None and self.group is None

    def retire(self, str reason):
        """Takes no new streams; closes when the last one has ended."""
        self.table.withdraw(self, reason)
        self.session.go_away(0, reason)
        self.on_capacity()

    cdef bint only_congested(self) noexcept:
        """Whether it has room for streams and only its transport is full for the moment."""
        return (self.session.congested and not self.session.closed
                and self.session.opened < self.session._peer_max_streams)

    cdef bint takes_streams(self) noexcept:
        return self.group is not None and self.session.can_open()

    cdef bint is_full(self) noexcept:
        """Whether the number of its streams, and nothing else, keeps it from taking another."""
        cdef Session session = self.session
        return (self.group is not None and session.peer_hello is not None and not session.draining
                and not session.closed and not session.congested and session.opened >= session._peer_max_streams)

    cdef bint make_room(self, double now) except -1:
        """Cuts off clients that take next to nothing of what waits for them, those first that have waited longest.

        A few at once, so that requests that come together find room; false where there is none of that kind.
        """
        cdef uint32_t left = max(<uint32_t>1, self.session._peer_max_streams // ROOM_PART)
        cdef bint cut = False
        cdef SlowReader reader
        while left:
            reader = self.slow_readers.take(now)
            if reader is None:
                break
            if reader.cut_off(f"the client took less than {self.slow_readers.rate:g} bytes/s"):
                cut = True
                left -= 1
        if cut:
            self.cleared_at = now
        return cut

    cdef bint is_clearing(self) noexcept:
        """Whether what it refuses may be for streams that were cut off, which its service has not left yet."""
        return self.cleared_at > 0 and monotonic() - self.cleared_at < CLEARING_SECONDS

    cdef int _serve_waiting(self) except -1:
        """There is room again: lets those that wait for this session alone try, in order."""
        self.serving = True     # a stream that opens comes here again
        try:
            while self.waiting and self.takes_streams():
                exchange = next(iter(self.waiting))
                del self.waiting[exchange]
                self.table.waiting -= 1
                exchange.try_again()
        finally:
            self.serving = False
        return 0

    async def request(self, method, target, *, headers=(), content=None, timeout=None):
        """Sends a request down this session and returns its `Response` once the head has come.

        method: such as "GET". target: path and query, as they are to stand in the request ("/a%20b?c=d").
        headers: a mapping or (name, value) pairs, of str or bytes; Host is the request's authority. content: the body,
        as bytes or an asynchronous iterator of them, which is asked for more as the agent takes it. timeout: seconds
        for the response's head from the request's end, 0 for no limit, None for the proxy's `request_timeout`.

        Raises RequestFailed when no response comes, ValueError for a head that HTTP does not allow. Cancelled, it
        resets the stream.
        """
        return await self.table.sender(self, method, target, headers=headers, content=content, timeout=timeout)

    @property
    def id(self) -> str:
        """The client id that it holds."""
        return self.name

    @property
    def since(self):
        """When it connected, as a `datetime` in UTC."""
        return datetime.fromtimestamp(self._connected_at, timezone.utc)

    @property
    def draining(self) -> bool:
        """Whether it takes no new requests any more: it is leaving, or a newer session of its agent took over."""
        return self.group is None

    @property
    def wire(self) -> str:
        """What the session speaks: native, proto or json (of the seed wire)."""
        if self._carrier is None:
            return "native"
        return "json" if (<SeedSession>self.session).json else "proto"

    def notify(self, bytes data, str content_type=""):
        """Sends the agent a one-way event. Raises StreamError when it can't be sent."""
        self.session.notify(content_type, data)

    def notify_request(self, head, bytes body=b""):
        """Has the agent's service run a request that nobody waits for: a `RequestHead` and its whole body.

        Only agents of the seed wire do so; raises StreamError (NOT_CARRIED) for others.
        """
        if self._carrier is None:
            raise StreamError(NOT_CARRIED, "the native wire has no requests without an answer")
        self.session.notify("", pack_event(head, body, (<SeedSession>self.session).json))

    @property
    def stream_count(self) -> int:
        """Streams that run on this session."""
        return self.session.opened

    @property
    def served(self) -> int:
        """Requests that were sent down this session."""
        return self.session.served


cdef class AgentGroup:

    def __init__(self, bytes client_id):
        self.client_id = client_id
        self.heap = []
        self.waiting = {}

    def __len__(self):
        return len(self.heap)

    cdef AgentLink best(self, AgentLink other_than):
        """The agent for the next stream, or None when all are full; another than `other_than` where that is given."""
        cdef AgentLink link, second
        cdef int i
        if not self.heap:
            return None
        link = <AgentLink>self.heap[0]
        if link is other_than:
            link = None
            for i in range(1, min(3, <int>len(self.heap))):
                second = <AgentLink>self.heap[i]
                if link is None or self._before(second, link):
                    link = second
        if link is None or not link.session.can_open():
            return None
        self.turns += 1
        link.turn = self.turns
        return link

    cdef bint _before(self, AgentLink a, AgentLink b) noexcept:
        cdef bint a_open = a.session.can_open()
        if a_open != b.session.can_open():
            return a_open
        if a.session.opened != b.session.opened:
            return a.session.opened < b.session.opened
        return a.turn < b.turn

    cdef int add(self, AgentLink link) except -1:
        link.heap_index = len(self.heap)
        self.heap.append(link)
        return self._up(link.heap_index)

    cdef int remove(self, AgentLink link) except -1:
        cdef int index = link.heap_index
        cdef AgentLink last = <AgentLink>self.heap.pop()
        link.heap_index = -1
        if last is not link:
            self.heap[index] = last
            last.heap_index = index
            self.moved(last)
        return 0

    cdef int moved(self, AgentLink link) except -1:
        if len(self.heap) > 1:
            self._up(link.heap_index)
            self._down(link.heap_index)
        return 0

    cdef bint only_congested(self) noexcept:
        """Whether an agent has room for streams and only its transport is full for the moment."""
        cdef AgentLink link
        for link in self.heap:
            if link.only_congested():
                return True
        return False

    cdef bint has_room(self) noexcept:
        """Whether an agent takes streams, or will once its transport does: one that refused a request may be it."""
        cdef AgentLink link
        for link in self.heap:
            if link.takes_streams() or link.only_congested():
                return True
        return False

    cdef AgentLink make_room(self):
        """Cuts off slow readers of an agent's, where every agent has all its streams; returns the agent, or None."""
        cdef double now = monotonic(), since, oldest
        cdef AgentLink link, found
        while True:
            found = None
            oldest = now
            for link in self.heap:
                since = link.slow_readers.waiting_since()
                if 0 < since < oldest and link.is_full():
                    found = link
                    oldest = since
            if found is None:
                return None
            if found.make_room(now):
                return found if found.takes_streams() else None
            if found.slow_readers.waiting_since() == oldest:
                return None         # not even the first has waited for long enough

    cdef int serve_waiting(self, AgentTable table) except -1:
        """There may be room again: lets those that wait try, in order."""
        if self.serving:
            return 0        # a stream that opens comes here again
        self.serving = True
        try:
            while self.waiting and self.heap and (<AgentLink>self.heap[0]).session.can_open():
                exchange = next(iter(self.waiting))
                del self.waiting[exchange]
                table.waiting -= 1
                exchange.try_again()
        finally:
            self.serving = False
        return 0

    cdef int _up(self, int index) except -1:
        cdef AgentLink link = <AgentLink>self.heap[index]
        cdef AgentLink parent
        while index:
            parent = <AgentLink>self.heap[(index - 1) // 2]
            if not self._before(link, parent):
                break
            self.heap[index] = parent
            parent.heap_index = index
            index = (index - 1) // 2
        self.heap[index] = link
        link.heap_index = index
        return 0

    cdef int _down(self, int index) except -1:
        cdef AgentLink link = <AgentLink>self.heap[index]
        cdef AgentLink child
        cdef int size = <int>len(self.heap)
        cdef int at
        while 2 * index + 1 < size:
            at = 2 * index + 1
            if at + 1 < size and self._before(<AgentLink>self.heap[at + 1], <AgentLink>self.heap[at]):
                at += 1
            child = <AgentLink>self.heap[at]
            if not self._before(child, link):
                break
            self.heap[index] = child
            child.heap_index = index
            index = at
        self.heap[index] = link
        link.heap_index = index
        return 0


cdef class AgentTable:

    def __init__(self, settings, WindowBudget budget):
        self.settings = settings
        self.budget = budget
        self.seed_budget = WindowBudget(settings.session.seed_budget)
        self.replay_share = BudgetShare()
        self._groups = {}
        self._links = set()
        self._newest = {}
        self._awaited = {}
        self._seen = OrderedDict()
        self._emptied = asyncio.Event()
        self._started = monotonic()

    def __len__(self):
        return len(self._links)

    def __iter__(self):
        return iter(list(self._links))

    def by_id(self, client_id) -> list:
        """The agents that take streams for an id, the one with the fewest streams first."""
        cdef AgentGroup group
        if isinstance(client_id, str):
            client_id = client_id.encode("latin-1", "replace")
        group = self._groups.get(client_id)
        return [] if group is None else list(group.heap)

    def get(self, client_id):
        """Of the agents that take streams for an id, the one with the fewest; None where there is none."""
        found = self.by_id(client_id)
        return found[0] if found else None

    def refusal(self, bytes client_id):
        """Why another agent can't be taken now, or None."""
        if self.draining:
            return "the proxy is shutting down"
        if len(self._links) >= self.settings.max_agents:
            return f"the proxy has its {self.settings.max_agents} agents"
        if client_id in self._groups and len(self._groups[client_id]) >= self.settings.max_agents_per_id:
            return f"the id has its {self.settings.max_agents_per_id} agents"
        return None

    async def wait_empty(self):
        """Waits until no session is left."""
        while self._links:
            self._emptied.clear()
            await self._emptied.wait()

    cdef AgentLink pick(self, bytes client_id, AgentLink other_than):
        cdef object group = self._groups.get(client_id)
        return None if group is None else (<AgentGroup>group).best(other_than)

    cdef AgentLink make_room(self, bytes client_id, AgentLink only):
        """An agent for whose next stream slow readers were cut off, or None; only: the one that will do.

        While an agent has room, or will have it once its transport has, nobody is cut off.
        """
        cdef AgentGroup group
        if only is not None:
            return only if only.is_full() and only.make_room(monotonic()) and only.takes_streams() else None
        group = self._groups.get(client_id)
        return None if group is None or group.has_room() else group.make_room()

    cdef Wait wait(self, object exchange, bytes client_id, AgentLink only) except *:
        """Calls `exchange.try_again()` when there may be an agent for it, and says what it waits for.

        only: the one session that will do, None where each of the id's will.
        """
        cdef AgentGroup group = self._groups.get(client_id)
        if self.waiting >= self.settings.max_waiting:
            return WAIT_NONE
        if only is not None:
            if only.group is None or not only.only_congested():
                return WAIT_NONE
            if only.waiting is None:
                only.waiting = {}
            only.waiting[exchange] = None
            self.waiting += 1
            return WAIT_ROOM
        if group is not None:
            if not group.only_congested():
                return WAIT_NONE
            group.waiting[exchange] = None
            self.waiting += 1
            return WAIT_ROOM
        if self.settings.agent_wait <= 0 or not (self.is_young() or self.knows(client_id)):
            return WAIT_NONE
        self._awaited.setdefault(client_id, {})[exchange] = None
        self.waiting += 1
        return WAIT_AGENT

    cdef bint awaits(self, object client_id) except -1:
        """Whether requests wait for an agent of this id to come."""
        return client_id in self._awaited

    cdef int stop_waiting(self, object exchange, bytes client_id, AgentLink only, Wait reason) except -1:
        """The exchange does not wait any longer."""
        cdef AgentGroup group
        cdef dict line = None
        if reason == WAIT_PLACE:
            self.waiting -= 1       # it waits for a moment to pass, in no line
            return 0
        if only is not None:
            line = only.waiting
        elif reason == WAIT_ROOM:
            group = self._groups.get(client_id)
            line = None if group is None else group.waiting
        elif reason == WAIT_AGENT:
            line = self._awaited.get(client_id)
        if line is not None and exchange in line:
            del line[exchange]
            self.waiting -= 1
            if reason == WAIT_AGENT and not line:
                del self._awaited[client_id]
        return 0

    def _try_again(self, dict line):
        self.waiting -= len(line)
        for exchange in line:
            exchange.try_again()

    cdef int leave(self, AgentLink link) except -1:
        """The session takes no new streams from now on."""
        cdef AgentGroup group = link.group
        cdef dict line
        if group is None:
            return 0
        group.remove(link)
        link.group = None
        self._see(link.client_id)
        if link.waiting:
            line = link.waiting
            link.waiting = None
            self._try_again(line)
        if not group.heap:
            del self._groups[link.client_id]
            line = group.waiting
            group.waiting = {}
            self._try_again(line)
        return 0

    def withdraw(self, AgentLink link, str reason):
        """The session takes no new streams; those that run go on."""
        if link.group is not None:
            self.leave(link)
            self.tell("draining", link, reason)

    cdef int tell(self, str kind, AgentLink link, str reason) except -1:
        """Says what happened to an agent that was told of as connected."""
        if self.on_event is not None and link.announced:
            self.on_event(kind, link, reason)
        return 0

    cdef bint knows(self, bytes client_id):
        """Whether an agent holds the id or held it within the last day."""
        if client_id in self._groups:
            return True
        seen = self._seen.get(client_id)
        return seen is not None and monotonic() - seen < SEEN_SECONDS

    cdef bint is_young(self) noexcept:
        return monotonic() - self._started < YOUNG_SECONDS

    def register(self, AgentLink link):
        """An agent's HELLO came: it takes streams from now on, instead of an older session of the same agent."""
        cdef AgentGroup group = self._groups.get(link.client_id)
        cdef AgentLink other, replaced = None
        cdef dict line
        cdef tuple agent = (link.client_id, link.instance)
        other = self._newest.get(agent)
        if other is not None and link.generation <= other.generation:
            # Also where that one takes no new streams any more: its agent will come with one that is newer.
            link.session.close(REFUSED, "a session of this agent that is no older is connected", 1008)
            return
        if group is not None:
            if other is not None and other.group is group:
                replaced = other
            if replaced is None and len(group.heap) >= self.settings.max_agents_per_id:
                link.session.close(REFUSED, f"the id has its {self.settings.max_agents_per_id} agents", 1008)
                return
        if group is None:
            group = self._groups[link.client_id] = AgentGroup(link.client_id)
        self._see(link.client_id)
        self._newest[agent] = link
        link.group = group
        group.add(link)
        if replaced is not None:
            replaced.retire("a newer session of this agent took over")
        logger.info("agent %s connected from %s", link.name, _text(link.address), extra=link.log_fields)
        link.announced = True
        self.tell("connected", link, "")
        if self.draining:
            link.session.go_away(0, "the proxy is shutting down")
        line = self._awaited.pop(link.client_id, None)
        if line is not None:
            self._try_again(line)

    def lost(self, AgentLink link, str message):
        """A session is gone."""
        cdef tuple agent = (link.client_id, link.instance)
        self._links.discard(link)
        if self._newest.get(agent) is link:
            del self._newest[agent]
        if not self._links:
            self._emptied.set()
        self.leave(link)
        if link.instance is not None:
            logger.info("agent %s disconnected from %s: %s", link.name, _text(link.address), message,
                        extra=link.log_fields)
        self.tell("disconnected", link, message)

    def _see(self, bytes client_id):
        self._seen[client_id] = monotonic()
        self._seen.move_to_end(client_id)
        if len(self._seen) > SEEN_IDS:
            self._seen.popitem(last=False)

    def drain(self):
        """Tells every agent to open its streams elsewhere; those that run go on, and new ones may come."""
        cdef AgentLink link
        self.draining = True
        for link in list(self._links):
            link.session.go_away(0, "the proxy is shutting down")

    def close(self, int close_code=1001):
        """Ends every session."""
        cdef AgentLink link
        for link in list(self._links):
            link.session.close(0, "the proxy is shutting down", close_code)

    def abort(self):
        """Drops every session's connection."""
        cdef AgentLink link
        for link in list(self._links):
            link.abort("the proxy has stopped")


cdef str _text(address):
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a local socket"
