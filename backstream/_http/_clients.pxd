cdef class Client:
    """What the proxy knows of one client address."""
    cdef:
        readonly object host
        readonly int connections
        double aborts_left          # tokens of the bucket
        double counted_at           # seconds


cdef class ClientTable:
    cdef:
        readonly int max_connections    # of one address, 0 for no limit
        readonly double aborts_rate     # per second and address, 0 for no limit
        dict _present                   # host -> Client with connections
        object _recent                  # host -> Client without, whose aborts are not forgotten yet; oldest first

    cdef Client enter(self, object host)
    cdef int leave(self, Client client) except -1
    cdef int aborted(self, Client client) except -1
    cdef bint is_calm(self, Client client) noexcept
    cdef int _refill(self, Client client) except -1
