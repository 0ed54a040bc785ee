"""Whom trusted proxies before this one name as the client: networks, and the chains that those proxies write.

A chain is read from its near end: as long as an address is a trusted one, what it said of the hop before it is
believed. The first that is not trusted is the client; what stands further away is its own claim, believed by nobody.
"""

import ipaddress

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy, memset

from backstream._grammar cimport equals_lower, is_token
from backstream._http._message cimport next_token
from backstream._slice cimport Slice, slice_of, trim

from backstream._http.errors import MessageError


cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char* text, void* address)
    const char* inet_ntop(int family, const void* address, char* text, unsigned int size)
    int AF_INET
    int AF_INET6

cdef const char* V4_PREFIX = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


cdef class Networks:

    def __cinit__(self, texts):
        cdef bytes packed
        cdef int bits
        cdef uint8_t* at
        cdef list networks = [ipaddress.ip_network(text) for text in texts]
        self._prefixes = at = <uint8_t*>PyMem_Malloc(17 * len(networks) + 1)
        if at == NULL:
            raise MemoryError()
        for network in networks:
            packed = network.network_address.packed
            bits = network.prefixlen
            if len(packed) == 4:
                packed = V4_PREFIX[:12] + packed
                bits += 96
            memcpy(at, <const uint8_t*>packed, 16)
            at[16] = <uint8_t>bits
            at += 17
        self._count = len(networks)

    def __init__(self, texts):
        """texts: networks like 10.0.0.0/8 or 2001:db8::/32; an address stands for itself. ValueError for others."""

    def __dealloc__(self):
        PyMem_Free(self._prefixes)

    def __contains__(self, str host):
        cdef bytes text = host.partition("%")[0].encode()
        cdef Slice s
        cdef Address address
        s.ptr = <const char*>text
        s.size = len(text)
        return read_address(s, &address) and self.hold(&address)

    cdef bint hold(self, const Address* address) noexcept:
        """Whether the address is in one of the networks."""
        cdef const uint8_t* at = self._prefixes
        cdef bint v4 = memcmp(address.ip, V4_PREFIX, 12) == 0
        cdef const uint8_t* end = at + 17 * self._count
        cdef int whole, rest
        while at < end:
            whole = at[16] >> 3
            rest = at[16] & 7
            # ::/0 is no network of IPv4 addresses, whatever form they have here.
            if not (v4 and at[16] < 96) and (
                    memcmp(at, address.ip, whole) == 0
                    and (rest == 0 or (at[whole] ^ address.ip[whole]) >> (8 - rest) == 0)):
                return True
            at += 17
        return False


# --- addresses ---

cdef bint read_address(Slice text, Address* address) noexcept:
    """ip, ip:port, [ip6] or [ip6]:port; false for anything else."""
    cdef char ip[46]
    cdef Slice port
    cdef const char* end = NULL
    port.size = 0
    port.ptr = NULL
    address.port = 0
    if text.size and text.ptr[0] == c'[':
        end = <const char*>memchr(text.ptr, c']', text.size)
        if end == NULL:
            return False
        port.ptr = end + 1
        port.size = text.ptr + text.size - end - 1
        text.ptr += 1
        text.size = end - text.ptr
        if port.size and port.ptr[0] != c':':
            return False
    else:
        end = <const char*>memchr(text.ptr, c':', text.size)
        if end != NULL and memchr(end + 1, c':', text.ptr + text.size - end - 1) == NULL:
            port.ptr = end
            port.size = text.ptr + text.size - end
            text.size = end - text.ptr
    if not 0 < text.size < 46 or not _read_port(port, address):
        return False
    memcpy(ip, text.ptr, text.size)
    ip[text.size] = 0
    if memchr(ip, c':', text.size) != NULL:
        return inet_pton(AF_INET6, ip, address.ip) == 1
    memcpy(address.ip, V4_PREFIX, 12)
    return inet_pton(AF_INET, ip, address.ip + 12) == 1


cdef bint _read_port(Slice text, Address* address) noexcept:
    """Nothing, or a colon and 1 to 5 digits."""
    cdef Py_ssize_t i
    if text.size == 0:
        return True
    if not 2 <= text.size <= 6:
        return False
    for i in range(1, text.size):
        if not c'0' <= text.ptr[i] <= c'9':
            return False
        address.port = address.port * 10 + text.ptr[i] - c'0'
    return address.port < 65536


cdef Py_ssize_t write_address(const Address* address, char* text) noexcept:
    """ip:port or [ip6]:port into `text`, of ADDRESS_TEXT bytes; returns how many they are."""
    cdef char ip[46]
    if memcmp(address.ip, V4_PREFIX, 12) == 0:
        inet_ntop(AF_INET, address.ip + 12, ip, sizeof(ip))
        return snprintf(text, ADDRESS_TEXT, "%s:%d", ip, address.port)
    inet_ntop(AF_INET6, address.ip, ip, sizeof(ip))
    return snprintf(text, ADDRESS_TEXT, "[%s]:%d", ip, address.port)


# --- chains ---

cdef inline Hop* _new_hop(Chain* chain) noexcept:
    cdef Hop* hop = &chain.hops[chain.count % MAX_HOPS]
    memset(hop, 0, sizeof(Hop))
    chain.count += 1
    return hop


cdef int read_x_forwarded_for(Slice value, Chain* chain) except -1:
    """Adds the addresses of one X-Forwarded-For line."""
    cdef Slice token
    while next_token(&value, &token):
        _new_hop(chain).node = token
    return 0


cdef int read_forwarded(Slice value, Chain* chain) except -1:
    """Adds the elements of one Forwarded line (RFC 7239 §4).

    Raises MessageError where it is malformed: what a client began, such as a string without its end, must not swallow
    what a trusted proxy wrote behind it.
    """
    cdef const char* at = value.ptr
    cdef const char* end = value.ptr + value.size
    cdef Hop* hop = NULL
    cdef Slice name, text
    while True:
        while at < end and (at[0] == c' ' or at[0] == c'\t'):
            at += 1
        if at == end:
            return 0
        if at[0] == c',':
            hop = NULL
            at += 1
            continue
        if at[0] == c';':
            at += 1
            continue
        name.ptr = at
        while at < end and at[0] != c'=' and at[0] != c',' and at[0] != c';':
            at += 1
        name.size = at - name.ptr
        if not is_token(name) or at == end or at[0] != c'=':
            raise MessageError(400, "malformed Forwarded")
        at += 1
        if at < end and at[0] == c'"':
            at += 1
            text.ptr = at
            while at < end and at[0] != c'"':
                at += 2 if at[0] == c'\\' else 1
            if at >= end:
                raise MessageError(400, "malformed Forwarded")
            text.size = at - text.ptr
            at += 1
            if at < end and at[0] != c',' and at[0] != c';' and at[0] != c' ' and at[0] != c'\t':
                raise MessageError(400, "malformed Forwarded")
        else:
            text.ptr = at
            while at < end and at[0] != c',' and at[0] != c';':
                at += 1
            text.size = at - text.ptr
            trim(&text)
            # Beyond the grammar, addresses without the quotes that they need are met often.
            if text.size == 0 or memchr(text.ptr, c'"', text.size) != NULL or memchr(text.ptr, c' ', text.size) != NULL:
                raise MessageError(400, "malformed Forwarded")
        if hop == NULL:
            hop = _new_hop(chain)
        if equals_lower(name, b"for", 3):
            _set_once(&hop.node, text)
        elif equals_lower(name, b"proto", 5):
            _set_once(&hop.proto, text)


cdef int _set_once(Slice* parameter, Slice text) except -1:
    """RFC 7239 §4: each parameter no more than once in an element. Two answers are none."""
    if parameter.ptr != NULL:
        raise MessageError(400, "malformed Forwarded")
    parameter[0] = text
    return 0


cdef const Hop* find_client(Networks trusted, const Chain* chain, Address* client) noexcept:
    """From the peer in `client`, which is trusted, to the client; returns the hop that names it, or NULL."""
    cdef Py_ssize_t i = chain.count
    cdef const Hop* found = NULL
    cdef Address address
    while i > 0 and chain.count - i < MAX_HOPS:
        i -= 1
        if not read_address(chain.hops[i % MAX_HOPS].node, &address):
            break
        client[0] = address
        found = &chain.hops[i % MAX_HOPS]
        if not trusted.hold(&address):
            break
    return found


def client_of(Networks trusted, str peer, lines, *, bint x_forwarded=False):
    """The client that a request's chain names, as ip:port; the peer itself where none does, or it is not trusted.

    peer: ip:port. lines: the Forwarded fields' values, with `x_forwarded` those of X-Forwarded-For.

    Raises MessageError for a malformed Forwarded.
    """
    cdef bytes text = peer.encode()
    cdef list kept = list(lines)
    cdef Address address
    cdef Chain chain
    cdef char written[ADDRESS_TEXT]
    cdef bytes line
    if not read_address(slice_of(text), &address):
        raise ValueError(f"{peer} is no address")
    chain.count = 0
    for line in kept:
        if x_forwarded:
            read_x_forwarded_for(slice_of(line), &chain)
        else:
            read_forwarded(slice_of(line), &chain)
    if trusted.hold(&address):
        find_client(trusted, &chain, &address)
    return written[:write_address(&address, written)].decode("ascii")
