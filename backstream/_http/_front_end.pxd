from libc.stdint cimport int64_t

from backstream._codec cimport RequestHead
from backstream._exchange cimport Exchange, Responder
from backstream._http._clients cimport Client
from backstream._http._context cimport ServerContext
from backstream._http._forwarding cimport Peer, RequestId
from backstream._http._message cimport RequestReader
from backstream._slice cimport Slice


cdef enum ResponseFraming:
    FRAMED_NONE = 0         # no body
    FRAMED_SIZED = 1
    FRAMED_CHUNKED = 2
    FRAMED_CLOSE = 3        # ends with the connection (HTTP/1.0)
    FRAMED_RAW = 4          # upgraded


cdef class FrontEnd(Responder):
    """One client's requests, one at a time, and their responses."""
    cdef:
        object __weakref__
        # identity
        ServerContext context
        Client client                   # None on a Unix socket
        Peer peer
        # state of the connection
        bint closing                    # closes once everything is sent
        bint closed
        # state of the request
        RequestReader reader
        Exchange exchange
        bint request_open               # its body is still being read
        double read_since               # seconds: when the head, or the body, that is being read began
        double unread_seconds           # of them, those in which this side did not read
        int64_t read_bytes              # of the body
        bint in_head                    # its head is being judged: the reader's fields are valid
        bint awaits_continue            # the client sends its body when it is told to, and was not yet
        bytes last_id                   # of the request before: the next one's, as a rule
        readonly object client_address  # (host, port) of who asked, as far as that can be told
        RequestId request_id
        # state of the response
        bint keep_alive
        bint is_head
        bint takes_trailers             # the client said TE: trailers
        int minor
        bint head_sent
        ResponseFraming framing
        int status
        # for the access log
        double started_at
        bytes logged_method
        bytes logged_target
        int64_t sent_bytes

    cdef bint _request_head(self, char** data, Py_ssize_t* size) except -1
    cdef int _serve(self) except -1
    cdef int _forward(self, RequestHead* head, bytes client_id, double timeout, bytes upgrade) except -1
    cdef bytes _offered(self, dict protocols)
    cdef bint _is_agents(self) except -1
    cdef int _request_end(self) except -1
    cdef int _leave_client(self) except -1
    cdef bint _too_slow(self, int64_t count, double rate) except -1
    cdef int _refuse(self, object error) except -1
    cdef int _refuse_head(self, object error) except -1
    cdef int _queue_handshake(self) except -1
    cdef bint _is_agent_path(self, Slice target) except -1
    cdef int _drop(self, bint reset) except -1
    cdef int _answer(self, int status, list lines, bytes body) except -1
    cdef int _log(self, str cut=*) except -1
    cdef int _gone(self, str why, str cut=*) except -1
    cdef list _accept(self)
