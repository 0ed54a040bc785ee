from libc.stdint cimport uint32_t

from backstream._stream cimport Stream


cdef class StreamTable:
    cdef:
        Py_ssize_t count
        list _slots                     # each the first of a chain of streams, or None

    cdef Stream get(self, uint32_t stream_id)
    cdef int add(self, Stream stream) except -1
    cdef int discard(self, Stream stream) except -1
    cdef list in_order(self)
    cdef list _all(self)
    cdef int _resize(self, Py_ssize_t size) except -1
