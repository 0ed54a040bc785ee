"""Text of the seed wire: what Go's net/url and net/textproto make of targets and names, and which fields travel."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memset

from backstream._grammar cimport is_connection_field
from backstream._slice cimport Slice, bytes_of


# Bytes that Go's net/url leaves alone in a path, and those that may stand in a target of ours (less "%" and "?").
cdef bint GO_PLAIN[256]
cdef bint PATH_PLAIN[256]
cdef bint QUERY_PLAIN[256]
cdef uint8_t LOWER[256]
cdef int HEX_VALUE[256]
cdef const char* HEX_DIGITS = b"0123456789ABCDEF"

cdef void _fill_tables() noexcept:
    cdef int c
    memset(GO_PLAIN, 0, sizeof(GO_PLAIN))
    for c in range(256):
        LOWER[c] = c + 32 if c'A' <= c <= c'Z' else c
        HEX_VALUE[c] = (c - c'0' if c'0' <= c <= c'9' else c - c'A' + 10 if c'A' <= c <= c'F'
                        else c - c'a' + 10 if c'a' <= c <= c'f' else -1)
        GO_PLAIN[c] = c'0' <= c <= c'9' or c'A' <= c <= c'Z' or c'a' <= c <= c'z'
        QUERY_PLAIN[c] = 0x21 <= c <= 0x7e and c != c'#'
        PATH_PLAIN[c] = QUERY_PLAIN[c] and c != c'?' and c != c'%'
    for c in b"-_.~$&+,/:;=@":
        GO_PLAIN[c] = True
    for c in b"\"<>\\^`{|}":
        PATH_PLAIN[c] = False

_fill_tables()


cdef bint _is_ascii(Slice s) noexcept:
    cdef Py_ssize_t i = 0
    cdef uint64_t word
    while i + 8 <= s.size:
        memcpy(&word, s.ptr + i, 8)
        if word & <uint64_t>0x8080808080808080u:
            return False
        i += 8
    while i < s.size:
        if <uint8_t>s.ptr[i] & 0x80:
            return False
        i += 1
    return True


cdef bint is_utf8(Slice s) except -1:
    if _is_ascii(s):
        return True
    try:
        PyUnicode_DecodeUTF8(s.ptr, s.size, NULL)
    except UnicodeDecodeError:
        return False
    return True


cdef void trim(Slice* s) noexcept:
    while s.size and (s.ptr[0] == c' ' or s.ptr[0] == c'\t'):
        s.ptr += 1
        s.size -= 1
    while s.size and (s.ptr[s.size - 1] == c' ' or s.ptr[s.size - 1] == c'\t'):
        s.size -= 1


cdef void write_canonical(char* at, Slice name) noexcept:
    """A field's name as Go's net/textproto writes it: `X-Mixed`."""
    cdef Py_ssize_t i
    cdef bint upper = True
    cdef uint8_t c
    for i in range(name.size):
        c = LOWER[<uint8_t>name.ptr[i]]
        if upper and c'a' <= c <= c'z':
            c -= 32
        at[i] = <char>c
        upper = c == c'-'


cdef bint stays_here(Slice name) noexcept:
    """Fields that mean this hop or what the wire can't carry: trailers, 100-continue."""
    if name.size == 2:
        return memcmp(name.ptr, b"te", 2) == 0
    if name.size == 6:
        return memcmp(name.ptr, b"expect", 6) == 0
    if name.size == 7 and memcmp(name.ptr, b"trailer", 7) == 0:
        return True
    return is_connection_field(name)


cdef void write_lower(char* at, Slice name) noexcept:
    cdef Py_ssize_t i
    for i in range(name.size):
        at[i] = <char>LOWER[<uint8_t>name.ptr[i]]


cdef char* _escape(char* at, Slice text, const bint* plain) noexcept:
    cdef Py_ssize_t i
    cdef uint8_t c
    for i in range(text.size):
        c = <uint8_t>text.ptr[i]
        if plain[c] or (c == c'%' and i + 2 < text.size and HEX_VALUE[<uint8_t>text.ptr[i + 1]] >= 0
                        and HEX_VALUE[<uint8_t>text.ptr[i + 2]] >= 0):
            at[0] = <char>c
            at += 1
        else:
            at[0] = c'%'
            at[1] = HEX_DIGITS[c >> 4]
            at[2] = HEX_DIGITS[c & 15]
            at += 3
    return at


cdef char* escape_path(char* at, Slice text) noexcept:
    """Writes a path of a target: what may not stand in it is escaped, valid escapes are left alone."""
    return _escape(at, text, PATH_PLAIN)


cdef char* escape_query(char* at, Slice text) noexcept:
    """As `escape_path`, what follows the `?`."""
    return _escape(at, text, QUERY_PLAIN)


cdef bytes raw_path(Slice path):
    """The decoded path where Go's encoding would give `path` back, else None: it travels as it is.

    None too where what was decoded reads like an escape: its receiver, who leaves those alone, would serve another
    path than the one that was asked for (`/%252e` as `/%2e`).
    """
    cdef bytes decoded
    cdef char* at
    cdef Py_ssize_t i = 0
    cdef int high, low
    cdef uint8_t c
    cdef Slice text
    if memchr(path.ptr, c'%', path.size) == NULL:
        return None
    decoded = PyBytes_FromStringAndSize(NULL, path.size)
    text.ptr = at = PyBytes_AS_STRING(decoded)
    while i < path.size:
        c = <uint8_t>path.ptr[i]
        if c == c'%':
            if i + 2 >= path.size:
                return None
            high = HEX_VALUE[<uint8_t>path.ptr[i + 1]]
            low = HEX_VALUE[<uint8_t>path.ptr[i + 2]]
            if high < 0 or low < 0 or path.ptr[i + 1] >= c'a' or path.ptr[i + 2] >= c'a':
                return None
            c = <uint8_t>(high << 4 | low)
            if GO_PLAIN[c]:
                return None
            i += 2
        elif not GO_PLAIN[c]:
            return None
        at[0] = <char>c
        at += 1
        i += 1
    text.size = at - text.ptr
    for i in range(text.size - 2):
        if (text.ptr[i] == c'%' and HEX_VALUE[<uint8_t>text.ptr[i + 1]] >= 0
                and HEX_VALUE[<uint8_t>text.ptr[i + 2]] >= 0):
            return None
    return bytes_of(text) if is_utf8(text) else None
