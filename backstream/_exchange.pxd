from libc.stdint cimport int64_t, uint32_t

from backstream._agents cimport AgentLink, AgentTable, Wait
from backstream._buffer cimport Buffer
from backstream._codec cimport ResponseHead, Trailers
from backstream._slow_readers cimport SlowReader
from backstream._stream cimport Stream, StreamHandler


cdef class Responder(SlowReader):
    """A front end that takes the response to one request at a time: HTTP/1.1's server connection is one."""
    cdef int send_interim(self, const ResponseHead* head) except -1
    cdef int send_head(self, const ResponseHead* head, bint end) except -1
    cdef int send_data(self, const char* data, Py_ssize_t size) except -1
    cdef int send_end(self, const Trailers* trailers) except -1
    cdef int send_error(self, int status, str cause, str detail, str leg) except -1
    cdef int send_cut(self, str cause) except -1
    cdef int resume_request(self) except -1


cdef class Exchange(StreamHandler):
    """One request on its way through the tunnel, and its response."""
    cdef:
        # the request
        Responder responder
        AgentTable table
        bytes client_id
        AgentLink only              # the one session that will do, or None
        Buffer payload              # the encoded REQUEST
        bint is_head
        bint is_idempotent
        bint has_body
        bint offers_upgrade
        bytes upgrade               # the protocol that the client offers to switch to, or None
        int64_t length              # of a sized body, -1 otherwise
        double head_timeout         # seconds, 0 for none
        double idle_timeout
        double agent_wait
        int max_retries
        # state
        Stream stream
        AgentLink link              # whose stream it is, or was
        uint32_t stream_id          # of the last stream, 0 before the first
        bint request_ended
        bint head_sent
        bint finished
        bint upgraded
        bint was_held_up            # by a client that did not take its response
        int refusals
        bint lost_once
        Wait waiting
        double ended_at             # when the request's end came, 0 before
        double patient_until        # the end of its waiting, once it began
        double active_at
        # what was sent of the body, as long as the agent may refuse it
        list replay
        int64_t replay_bytes
        bint replayable

    cdef int start(self) except -1
    cdef int body(self, bytes data) except -1
    cdef int end(self, const Trailers* trailers) except -1
    cdef int64_t room(self) noexcept
    cdef int taken(self, int64_t count) except -1
    cdef int held_up(self) except -1
    cdef int abandon(self, uint32_t code, str message) except -1
    cdef int deadline(self) except -1
    cdef int _open(self, AgentLink other_than) except -1
    cdef int _open_again(self, AgentLink other_than) except -1
    cdef int _await_agent(self) except -1
    cdef int _await_head(self) except -1
    cdef int _half_ended(self, Stream stream) except -1
    cdef int _set_deadline(self, double seconds) except -1
    cdef int _stop_waiting(self) except -1
    cdef int _spend_budget(self) except -1
    cdef int _no_agent(self) except -1
    cdef int _fail(self, int status, str cause, str detail, str leg) except -1
    cdef int _drop_replay(self) except -1
