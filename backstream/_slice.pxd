"""Bytes in somebody else's memory: where they begin and how many they are."""

from libc.string cimport memcmp


# Valid as long as the owner of the memory says.
cdef struct Slice:
    const char* ptr
    Py_ssize_t size


cdef inline Slice slice_of(bytes value) noexcept:
    cdef Slice result
    result.ptr = <const char*>value
    result.size = len(value)
    return result


cdef inline bytes bytes_of(Slice s):
    return s.ptr[:s.size]


cdef inline bint equals(Slice s, const char* text, Py_ssize_t size) noexcept:
    return s.size == size and memcmp(s.ptr, text, size) == 0


cdef inline void trim(Slice* s) noexcept:
    """Drops optional whitespace at both ends (RFC 9110 §5.6.3)."""
    while s.size and (s.ptr[0] == c' ' or s.ptr[0] == c'\t'):
        s.ptr += 1
        s.size -= 1
    while s.size and (s.ptr[s.size - 1] == c' ' or s.ptr[s.size - 1] == c'\t'):
        s.size -= 1
