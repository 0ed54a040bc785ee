"""What HTTP's parts may look like (RFC 9110 §5, RFC 9112 §3), as far as the wire asks for it.

Names, values and targets are judged in place; nothing here is copied or decoded, nor changed but for a token's case.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset


cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char* text, void* address)
    int AF_INET
    int AF_INET6

cdef enum:
    INET6_ADDRSTRLEN = 46


cdef enum CharClass:
    TOKEN = 1           # RFC 9110 §5.6.2 tchar
    LOWER_TOKEN = 2     # a tchar that is no capital
    VALUE = 4           # RFC 9110 §5.5: HTAB, SP, VCHAR, obs-text
    TARGET = 8          # visible ASCII but "#"
    REG_NAME = 16       # RFC 3986 §3.2.2 reg-name without "," (which would join two Hosts)
    DIGIT = 32
    HEX = 64
    VISIBLE = 128

cdef uint8_t CLASSES[256]

cdef void _fill_classes() noexcept:
    cdef int c
    memset(CLASSES, 0, sizeof(CLASSES))
    for c in range(256):
        if c == 9 or 0x20 <= c <= 0x7e or c >= 0x80:
            CLASSES[c] |= VALUE
        if 0x21 <= c <= 0x7e:
            CLASSES[c] |= VISIBLE
            if c != c'#':
                CLASSES[c] |= TARGET
        if c'0' <= c <= c'9':
            CLASSES[c] |= TOKEN | DIGIT | HEX | REG_NAME
        if c'a' <= c <= c'z' or c'A' <= c <= c'Z':
            CLASSES[c] |= TOKEN | REG_NAME
        if c'a' <= c <= c'f' or c'A' <= c <= c'F':
            CLASSES[c] |= HEX
    for c in b"!#$%&'*+-.^_`|~":
        CLASSES[c] |= TOKEN
    for c in b"-._~!$&'()*+;=%":
        CLASSES[c] |= REG_NAME
    for c in range(256):
        if CLASSES[c] & TOKEN and not c'A' <= c <= c'Z':
            CLASSES[c] |= LOWER_TOKEN

_fill_classes()


cdef inline bint _all(Slice s, uint8_t wanted) noexcept:
    cdef Py_ssize_t i
    for i in range(s.size):
        if not CLASSES[<uint8_t>s.ptr[i]] & wanted:
            return False
    return True


cdef bint is_token(Slice s) noexcept:
    return s.size > 0 and _all(s, TOKEN)


cdef bint is_lower_token(Slice s) noexcept:
    return s.size > 0 and _all(s, LOWER_TOKEN)


cdef bint make_lower_token(char* at, Py_ssize_t size) noexcept:
    """Whether these bytes are a token; its capitals become small ones in place."""
    cdef Py_ssize_t i
    cdef uint8_t c
    for i in range(size):
        c = CLASSES[<uint8_t>at[i]]
        if not c & LOWER_TOKEN:
            if not c & TOKEN:
                return False
            at[i] |= 0x20
    return size > 0


cdef inline bint _may_end_a_value(const char* at) noexcept:
    """Whether any of eight bytes is below 0x20 (a tab among them) or 0x7f."""
    cdef uint64_t word, deletes
    memcpy(&word, at, 8)
    deletes = word ^ 0x7f7f7f7f7f7f7f7fULL
    return ((word - 0x2020202020202020ULL & ~word | deletes - 0x0101010101010101ULL & ~deletes)
            & 0x8080808080808080ULL) != 0


cdef bint is_field_value(Slice s) noexcept:
    # Eight bytes at once, as a value is a head's longest part: a fifth of the instructions.
    cdef Py_ssize_t at = 0
    if s.size < 8:
        return _all(s, VALUE)
    while at <= s.size - 8:
        if _may_end_a_value(s.ptr + at):
            return _all(s, VALUE)
        at += 8
    return not _may_end_a_value(s.ptr + s.size - 8) or _all(s, VALUE)


cdef bint is_target(Slice s) noexcept:
    if s.size == 1 and s.ptr[0] == c'*':
        return True
    return s.size > 0 and s.ptr[0] == c'/' and _all(s, TARGET)


cdef bint is_client_id(Slice s) noexcept:
    return 0 < s.size <= 128 and _all(s, VISIBLE)


cdef bint is_authority(Slice s) noexcept:
    """host[:port]; the host a registered name, an IPv4 address or an IPv6 address in brackets."""
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t host
    if s.size == 0:
        return False
    if s.ptr[0] == c'[':
        i = 1
        while i < s.size and (CLASSES[<uint8_t>s.ptr[i]] & HEX or s.ptr[i] == c':' or s.ptr[i] == c'.'):
            i += 1
        if i < 3 or i == s.size or s.ptr[i] != c']':
            return False
        i += 1
    else:
        while i < s.size and CLASSES[<uint8_t>s.ptr[i]] & REG_NAME:
            if s.ptr[i] == c'%':
                if (i + 2 >= s.size or not CLASSES[<uint8_t>s.ptr[i + 1]] & HEX
                        or not CLASSES[<uint8_t>s.ptr[i + 2]] & HEX):
                    return False
                i += 2
            i += 1
        if i == 0:
            return False
    if i == s.size:
        return True
    if s.ptr[i] != c':':
        return False
    host = i
    i += 1
    while i < s.size:
        if not CLASSES[<uint8_t>s.ptr[i]] & DIGIT:
            return False
        i += 1
    return i - host <= 6


cdef bint is_peer(Slice s) noexcept:
    """ip:port, or nothing where the client has no such address (a Unix socket)."""
    cdef char ip[INET6_ADDRSTRLEN]
    cdef char address[16]
    cdef Py_ssize_t end = s.size, skip = 0
    cdef int port = 0, scale = 1
    if s.size == 0:
        return True
    while end and CLASSES[<uint8_t>s.ptr[end - 1]] & DIGIT and s.size - end < 5:
        end -= 1
        port += (s.ptr[end] - c'0') * scale
        scale *= 10
    if end == s.size or port > 65535 or end == 0 or s.ptr[end - 1] != c':':
        return False
    end -= 1
    if end > 1 and s.ptr[0] == c'[' and s.ptr[end - 1] == c']':
        skip = 1
        end -= 1
    if end - skip >= INET6_ADDRSTRLEN or memchr(s.ptr, 0, s.size) != NULL:
        return False
    memcpy(ip, s.ptr + skip, end - skip)
    ip[end - skip] = 0
    return inet_pton(AF_INET6 if skip else AF_INET, ip, address) == 1


cdef bint equals_lower(Slice s, const char* text, Py_ssize_t size) noexcept:
    """Whether `s` is `text` (in lower case) without regard to the case of its letters."""
    cdef Py_ssize_t i
    cdef uint8_t c
    if s.size != size:
        return False
    for i in range(size):
        c = <uint8_t>s.ptr[i]
        if c'A' <= c <= c'Z':
            c |= 0x20
        if c != <uint8_t>text[i]:
            return False
    return True


cdef bint is_switchable(Slice s) noexcept:
    """A protocol that a stream may become: a token, and none that is another HTTP or TLS on the same connection."""
    return is_token(s) and not (equals_lower(s, b"h2c", 3) or equals_lower(s, b"h2", 2)
                                or equals_lower(s, b"http", 4) or equals_lower(s, b"tls", 3))


cdef bint is_connection_field(Slice name) noexcept:
    """Fields that belong to one connection or to its framing (RFC 9110 §7.6.1, RFC 9112 §6): never on the wire."""
    if name.size == 4:
        return memcmp(name.ptr, b"host", 4) == 0
    if name.size == 7:
        return memcmp(name.ptr, b"upgrade", 7) == 0
    if name.size == 10:
        return memcmp(name.ptr, b"connection", 10) == 0 or memcmp(name.ptr, b"keep-alive", 10) == 0
    if name.size == 14:
        return memcmp(name.ptr, b"content-length", 14) == 0
    if name.size == 16:
        return memcmp(name.ptr, b"proxy-connection", 16) == 0
    if name.size == 17:
        return memcmp(name.ptr, b"transfer-encoding", 17) == 0
    return False


cdef frozenset OF_THE_WAY = frozenset((b"forwarded", b"max-forwards", b"via", b"x-real-ip", b"x-request-id"))


cdef frozenset nominated_by(bytes connection):
    """The fields, in lower case, that a Connection field makes those of its hop (RFC 9110 §7.6.1).

    None of those that say of a request's way, or that are this project's: a client has no say in these.
    """
    cdef list names = [name.strip(b" \t").lower() for name in connection.split(b",")]
    return frozenset([name for name in names
                      if name not in OF_THE_WAY and not name.startswith((b"x-backstream-", b"x-forwarded-"))])
