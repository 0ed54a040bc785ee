from libc.stdint cimport uint8_t

from backstream._slice cimport Slice


cdef enum:
    MAX_HOPS = 32           # of a chain, the nearest ones; what is further away is no news of a trusted proxy
    ADDRESS_TEXT = 64       # bytes that `write_address` needs at most

# An IP address in IPv6's form (IPv4 as ::ffff:a.b.c.d) and a port, 0 where none is known.
cdef struct Address:
    uint8_t ip[16]
    int port

# One element of a chain: whom a proxy was asked by, and over which scheme.
cdef struct Hop:
    Slice node
    Slice proto

cdef struct Chain:
    Hop hops[MAX_HOPS]      # in a ring: hop i of `count` is at i % MAX_HOPS
    Py_ssize_t count


cdef class Networks:
    """IP networks, as CIDR texts name them."""
    cdef:
        uint8_t* _prefixes      # 17 bytes each: an address and the number of its bits that count
        Py_ssize_t _count

    cdef bint hold(self, const Address* address) noexcept


cdef bint read_address(Slice text, Address* address) noexcept
cdef Py_ssize_t write_address(const Address* address, char* text) noexcept
cdef int read_forwarded(Slice value, Chain* chain) except -1
cdef int read_x_forwarded_for(Slice value, Chain* chain) except -1
cdef const Hop* find_client(Networks trusted, const Chain* chain, Address* client) noexcept
