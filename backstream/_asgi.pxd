from libc.stdint cimport int64_t, uint32_t

from backstream._codec cimport FieldArray, RequestHead
from backstream._loop cimport LoopMember
from backstream._service cimport Service
from backstream._slice cimport Slice
from backstream._stream cimport Stream, StreamHandler


cdef class AsgiService(Service):
    cdef:
        object app
        str root_path
        bytes root_path_bytes
        dict state                      # what the application's lifespan put there
        object asyncio_loop
        object task_factory
        dict task_options               # a Task's arguments beside its coroutine
        AsgiRequest newest              # of those whose task has not ended; the others are behind it
        HeadClock spare_clock           # for the next request; the others are behind it
        int spare_clocks
        list hosts                      # of clients: (as bytes, as str), each at a place of its own, or None
        list names                      # of fields, each at a place of its own, or None
        # the scope that the next request's is a copy of, and what it was made for
        dict base
        uint32_t base_major
        uint32_t base_minor
        bytes base_scheme
        bytes base_prefix
        bytes base_authority
        bytes base_root                 # goes before the raw path
        tuple base_host                 # the header, or None
        FieldArray fields
        str lifespan_mode               # auto, on, off
        object lifespan
        double request_timeout          # seconds, 0 for no limit
        list held_starts                # requests whose head waits for the turn's end

    cdef int begin(self, AsgiRequest request, Stream stream, bint end) except -1
    cdef int run(self, AsgiRequest request) except -1
    cdef int ended(self, AsgiRequest request) except -1
    cdef HeadClock take_clock(self)
    cdef int give_clock_back(self, HeadClock clock) except -1
    cdef int start_soon(self, AsgiRequest request) except -1
    cdef dict _scope(self, AsgiRequest request, const RequestHead* head)
    cdef bint _is_of_base(self, const RequestHead* head) noexcept
    cdef int _make_base(self, const RequestHead* head) except -1
    cdef bytes _name(self, Slice text)
    cdef object _client(self, Slice text)


cdef class AsgiRequest(StreamHandler):
    """One request in the application."""
    cdef:
        AsgiService service
        Stream stream
        dict scope
        object task
        AsgiRequest newer               # its neighbours among those that run
        AsgiRequest older
        # the request
        list pieces                     # of the body, not yet received by the application
        int64_t waiting_bytes           # in them
        bint body_ended
        bint body_delivered             # with more_body False
        bint wants_continue
        readonly bint disconnected
        bint holds_place                # among the session's streams, though its own is gone
        dict returned                   # a message that the application asked for and did not take
        list receivers                  # futures of each `receive` that waits, or None
        # the time limit of the response's head
        double head_timeout             # seconds from the request's end, 0 for none
        HeadClock head_clock            # while it runs
        # the response
        int start_status
        tuple start_headers             # held until it is known whether a body follows; None before and after
        bint started
        list trailers                   # (name, value) so far, where the application announced some
        bint body_sent                  # only trailers may still come
        bint completed
        bint takes_body                 # not for HEAD, 204, 304
        bint ended_at_head              # and the application went on
        int64_t dropped                 # bytes of a body that it has sent all the same
        double drop_until               # monotonic seconds
        int64_t length                  # bytes left of what was promised, -1 for none
        list senders                    # futures of each `send` that waits, or None

    cdef int _start_head_clock(self) except -1
    cdef int _start_clock(self, double seconds) except -1
    cdef int _stop_head_clock(self) except -1
    cdef int _timed_out(self) except -1
    cdef object _message(self)
    cdef int _wake_receiver(self) except -1
    cdef int _wake_sender(self) except -1
    cdef int _gone(self) except -1
    cdef int _write(self, bytes body) except -1
    cdef object _drop(self, Py_ssize_t size)
    cdef int _complete(self) except -1
    cdef int _cut(self, str what) except -1
    cdef int _end_at_head(self) except -1
    cdef int _hold_place(self) except -1
    cdef int _free_place(self) except -1
    cdef int _send_head(self, bytes first, bint more) except -1
    cdef int _respond(self, int status, object headers, bytes first, bint more) except -1
    cdef list _take_fields(self, FieldArray fields, object headers)


cdef class HeadClock(LoopMember):
    """The deadline of a response's head."""
    cdef:
        AsgiRequest request
        HeadClock next                  # where it is spare


cdef class Ready:
    cdef:
        object value
        AsgiRequest request             # whose message `value` is, until somebody has it


cdef Ready DONE
