"""A growable byte buffer in C memory, for writers that gather what they have to say in one turn.

An empty buffer holds no memory: idle connections cost nothing.
"""

cimport cython
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from libc.string cimport memmove


# Each request has one, and a turn of the loop serves dozens of them.
@cython.freelist(64)
cdef class Buffer:

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef int _grow(self, Py_ssize_t needed) except -1:
        cdef Py_ssize_t capacity = self.capacity * 2 if self.capacity else 512
        cdef char* data
        if capacity < needed:
            capacity = needed
        data = <char*>PyMem_Realloc(self.data, capacity)
        if data == NULL:
            raise MemoryError()
        self.data = data
        self.capacity = capacity
        return 0

    cdef void release(self) noexcept:
        PyMem_Free(self.data)
        self.data = NULL
        self.size = self.capacity = 0

    cdef void drop_front(self, Py_ssize_t count) noexcept:
        if count < self.size:
            memmove(self.data, self.data + count, self.size - count)
            self.size -= count
        else:
            self.size = 0
