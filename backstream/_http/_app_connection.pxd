from libc.stdint cimport int64_t

from backstream._call cimport BodyQueue
from backstream._http._front_end cimport FrontEnd


cdef class AppConnection(FrontEnd):
    """One request that came through an ASGI server."""
    cdef:
        # the request
        bytearray _memory               # its head, written anew
        bytes _root_path
        bint _offers_trailers           # the ASGI server can send them
        # the response
        readonly int response_status
        readonly list headers           # None until it begins
        readonly BodyQueue body
        readonly tuple trailers         # None unless the response may have some
        int64_t _taken_bytes            # of the body, by the ASGI server
        # who waits: futures
        object _head_waiter
        object _room_waiter
        object _continue_waiter

    cdef int _finish(self, object error) except -1
    cdef int _fail(self, object error) except -1
    cdef int _response_done(self) except -1
