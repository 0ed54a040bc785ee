from libc.stdint cimport uint64_t

from backstream._flow cimport BudgetShare, WindowBudget
from backstream._slow_readers cimport SlowReaders
from backstream._websocket cimport SessionLink


cdef enum Wait:
    WAIT_NONE = 0           # nothing to wait for
    WAIT_ROOM = 1           # an agent's transport is full for the moment
    WAIT_AGENT = 2          # the agent is away for the moment
    WAIT_PLACE = 3          # the agent is still at work for a stream that was cut off to make room


cdef class AgentLink(SessionLink):
    """An agent that is connected: the proxy's end of its session.

    client_id: the id that it holds, as bytes. address: (host, port) that it came from. instance: 16 random bytes that
    tell agents of one id apart; None until its HELLO came. generation: the number of this session among the agent's.
    bytes_received, bytes_sent: of the session's messages.
    """
    cdef:
        # identity
        readonly bytes client_id
        readonly object address         # (host, port) of the agent, or None
        double _connected_at            # Unix time, seconds
        readonly bytes instance         # of the agent's HELLO
        readonly uint64_t generation
        # place in the table
        AgentTable table
        AgentGroup group                # while it takes new streams
        int heap_index
        uint64_t turn
        dict waiting                    # exchanges, in order, that wait for room on this session and no other
        bint serving                    # `_serve_waiting` runs
        bint announced                  # it was told of as connected
        # clients of its streams
        SlowReaders slow_readers
        double cleared_at               # when some were cut off last

    cdef bint only_congested(self) noexcept
    cdef bint takes_streams(self) noexcept
    cdef bint is_full(self) noexcept
    cdef bint make_room(self, double now) except -1
    cdef bint is_clearing(self) noexcept
    cdef int _serve_waiting(self) except -1


cdef class AgentGroup:
    """The agents that hold one id, in a heap: the one with the fewest streams first, ties in turn."""
    cdef:
        readonly bytes client_id
        list heap
        uint64_t turns
        bint serving                    # `serve_waiting` runs
        dict waiting                    # exchanges, in order, while every session's transport is full

    cdef AgentLink best(self, AgentLink other_than)
    cdef int add(self, AgentLink link) except -1
    cdef int remove(self, AgentLink link) except -1
    cdef int moved(self, AgentLink link) except -1
    cdef bint _before(self, AgentLink a, AgentLink b) noexcept
    cdef bint only_congested(self) noexcept
    cdef bint has_room(self) noexcept
    cdef AgentLink make_room(self)
    cdef int serve_waiting(self, AgentTable table) except -1
    cdef int _up(self, int index) except -1
    cdef int _down(self, int index) except -1


cdef class AgentTable:
    """The agents by client id: `len` counts the sessions, iterating gives each as an `AgentLink`."""
    cdef:
        readonly object settings        # ProxySettings
        readonly WindowBudget budget
        readonly WindowBudget seed_budget   # bytes of bodies that are gathered for the seed wire
        BudgetShare replay_share        # bytes of request bodies that are kept to be sent again
        dict _groups
        set _links                      # every session, registered or not, until it is lost
        dict _newest                    # (id, instance) -> of an agent's sessions that are not lost the newest
        dict _awaited                   # id -> exchanges, in order, that wait for an agent to come
        readonly Py_ssize_t waiting     # exchanges that wait, for an agent or for room
        object _seen                    # id -> when it was last known, oldest first
        double _started
        readonly bint draining
        public object on_notify         # called with an AgentLink and its Notify, or None
        public object on_event          # called with a kind, an AgentLink and a reason, or None
        public object sender            # what sends the requests of the program that embeds the proxy
        object _emptied                 # an asyncio.Event

    cdef AgentLink pick(self, bytes client_id, AgentLink other_than)
    cdef AgentLink make_room(self, bytes client_id, AgentLink only)
    cdef Wait wait(self, object exchange, bytes client_id, AgentLink only) except *
    cdef bint awaits(self, object client_id) except -1
    cdef int stop_waiting(self, object exchange, bytes client_id, AgentLink only, Wait reason) except -1
    cdef int leave(self, AgentLink link) except -1
    cdef int tell(self, str kind, AgentLink link, str reason) except -1
    cdef bint knows(self, bytes client_id)
    cdef bint is_young(self) noexcept
