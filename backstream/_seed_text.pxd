from libc.string cimport memcmp

from backstream._slice cimport Slice


cdef bint is_utf8(Slice s) except -1
cdef void trim(Slice* s) noexcept
cdef void write_canonical(char* at, Slice name) noexcept
cdef void write_lower(char* at, Slice name) noexcept
cdef bint stays_here(Slice name) noexcept
cdef char* escape_path(char* at, Slice text) noexcept
cdef char* escape_query(char* at, Slice text) noexcept
cdef bytes raw_path(Slice path)


cdef inline bint same(Slice a, Slice b) noexcept:
    return a.size == b.size and memcmp(a.ptr, b.ptr, a.size) == 0
