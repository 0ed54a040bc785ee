from libc.string cimport memcpy


cdef class Buffer:
    """Bytes in C memory that grow at the end and are taken from the front."""
    cdef:
        char* data
        Py_ssize_t size         # bytes in use, from data[0]
        Py_ssize_t capacity

    cdef int _grow(self, Py_ssize_t needed) except -1
    cdef void release(self) noexcept
    cdef void drop_front(self, Py_ssize_t count) noexcept


# Room for `count` more bytes; the caller writes them and adds to `size`.
cdef inline char* reserve(Buffer buffer, Py_ssize_t count) except NULL:
    if buffer.size + count > buffer.capacity or buffer.data == NULL:
        buffer._grow(buffer.size + count)
    return buffer.data + buffer.size


cdef inline int append(Buffer buffer, const char* source, Py_ssize_t count) except -1:
    cdef char* room = reserve(buffer, count)
    memcpy(room, source, count)
    buffer.size += count
    return 0


cdef enum:
    SMALL_PIECE = 1024


cdef inline int add_piece(list pieces, bytes data) except -1:
    """Adds to bytes that are kept as they came. Small ones are joined: each by itself costs many times its size."""
    cdef bytes last
    cdef Py_ssize_t at = len(pieces) - 1
    if at >= 0 and len(data) < SMALL_PIECE:
        last = <bytes>pieces[at]
        if len(last) + len(data) <= SMALL_PIECE:
            pieces[at] = last + data
            return 0
    pieces.append(data)
    return 0
