"""Reading and writing protobuf's wire format in place, without Python objects.

Readers return false where the bytes can't be read, and never look behind `Cursor.end`. Writers write at `at`, where
the caller made room, and return what is behind it.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from backstream._slice cimport Slice


cdef enum WireType:
    VARINT = 0
    FIXED64 = 1
    BYTES = 2
    FIXED32 = 5


cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end


cdef inline Cursor cursor_of(Slice s) noexcept nogil:
    cdef Cursor c
    c.at = <const uint8_t*>s.ptr
    c.end = c.at + s.size
    return c


cdef inline bint read_varint(Cursor* c, uint64_t* value) noexcept nogil:
    cdef uint64_t result = 0
    cdef int shift = 0
    cdef uint8_t byte
    while c.at < c.end:
        byte = c.at[0]
        c.at += 1
        if shift == 63 and byte > 1:
            return False
        result |= <uint64_t>(byte & 0x7f) << shift
        if byte < 0x80:
            value[0] = result
            return True
        shift += 7
    return False


cdef inline bint read_bytes(Cursor* c, Slice* value) noexcept nogil:
    cdef uint64_t length = 0
    if not read_varint(c, &length) or length > <uint64_t>(c.end - c.at):
        return False
    value.ptr = <const char*>c.at
    value.size = <Py_ssize_t>length
    c.at += length
    return True


cdef inline bint read_tag(Cursor* c, uint32_t* number, int* wire_type) noexcept nogil:
    cdef uint64_t tag = 0
    cdef const uint8_t* start = c.at
    if not read_varint(c, &tag) or tag > 0xffffffffu or tag >> 3 == 0 or c.at - start > 5:
        return False
    number[0] = <uint32_t>(tag >> 3)
    wire_type[0] = <int>(tag & 7)
    return True


cdef inline bint skip_member(Cursor* c, int wire_type) noexcept nogil:
    """Passes over a member that is not known."""
    cdef uint64_t ignored = 0
    cdef Slice passed
    cdef Py_ssize_t fixed
    if wire_type == VARINT:
        return read_varint(c, &ignored)
    if wire_type == BYTES:
        return read_bytes(c, &passed)
    if wire_type != FIXED64 and wire_type != FIXED32:
        return False
    fixed = 8 if wire_type == FIXED64 else 4
    if c.end - c.at < fixed:
        return False
    c.at += fixed
    return True


cdef inline int varint_size(uint64_t value) noexcept nogil:
    cdef int size = 1
    while value >= 0x80:
        value >>= 7
        size += 1
    return size


cdef inline char* put_varint(char* at, uint64_t value) noexcept nogil:
    while value >= 0x80:
        at[0] = <char>(value | 0x80)
        at += 1
        value >>= 7
    at[0] = <char>value
    return at + 1


# A member of bytes with a number below 16: its tag and length, then the bytes, which the caller may write himself.
cdef inline Py_ssize_t member_size(Py_ssize_t size) noexcept nogil:
    return 1 + varint_size(size) + size


cdef inline char* put_length(char* at, int number, Py_ssize_t size) noexcept nogil:
    at[0] = <char>(number << 3 | BYTES)
    return put_varint(at + 1, size)


cdef inline char* put_member(char* at, int number, Slice s) noexcept nogil:
    at = put_length(at, number, s.size)
    memcpy(at, s.ptr, s.size)
    return at + s.size
