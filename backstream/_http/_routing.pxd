from backstream._codec cimport RequestHead
from backstream._http._message cimport RequestReader


cdef class Router:
    """Which client id a request is for that names none in its fields."""
    cdef:
        dict hosts              # host -> id
        set domains             # what follows a host's first label, which is the id
        list paths              # (prefix that ends in "/", id, None where the next segment is it), longest first
        bytes default_id
        # of the request routed last, until the next one
        bytes target
        bytes prefix

    cdef bytes route(self, RequestHead* head)
    cdef bytes _by_host(self, RequestHead* head)
    cdef bytes _by_path(self, RequestHead* head)


cdef int read_target(RequestReader reader, RequestHead* head) except -1
