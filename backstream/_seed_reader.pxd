from libc.stdint cimport int64_t, uint32_t

from backstream._buffer cimport Buffer
from backstream._codec cimport FieldArray
from backstream._slice cimport Slice


cdef enum:
    MAX_ID_SIZE = 128

cdef enum SeedType:
    SEED_NOTIFY = 0
    SEED_REQUEST = 1
    SEED_RESPONSE = 2


cdef class SeedReader:
    """Reads messages and their events, one at a time: what was read last is valid until the next call."""
    cdef:
        # the message
        Slice id
        uint32_t type
        Slice data
        # its event, after `request` or `response`
        Slice method
        Slice target                # path and query, as the native wire has them
        FieldArray fields           # names in lower case, without those of the connection
        int64_t declared_length     # Content-Length, -1 where there is none that is valid
        Slice timeout               # x-backstream-request-timeout, empty where there is none
        uint32_t status
        Slice body
        # what the slices point into beside the message
        Buffer _text
        Py_ssize_t _entries         # of the map of fields, those without a value among them
        list _kept

    cdef int forget(self) except -1
    cdef int message(self, bint json, const char* data, Py_ssize_t size) except -1
    cdef int request(self, bint json) except -1
    cdef int response(self, bint json) except -1
    cdef int _begin_event(self) except -1
    cdef int _json_message(self, const char* data, Py_ssize_t size) except -1
    cdef int _json_fields(self, dict event) except -1
    cdef Slice _json_text(self, dict event, str name) except *
    cdef int _json_body(self, dict event) except -1
    cdef int _entry(self, Slice entry) except -1
    cdef int _values(self, Slice key, Slice listed) except -1
    cdef void _drop_before(self, Py_ssize_t first, Slice key) noexcept
    cdef int _add(self, Slice name, Slice value) except -1
    cdef Py_ssize_t _names_size(self) except -1
    cdef int _finish_fields(self) except -1
    cdef int _drop_nominated(self, frozenset names) except -1
    cdef int _make_target(self, Slice path, Slice query) except -1


cdef Slice id_at_start(bint json, const char* data, Py_ssize_t size) noexcept
