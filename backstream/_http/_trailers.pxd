from backstream._codec cimport Field
from backstream._slice cimport Slice


cdef bint may_be_trailer(Slice lower_name) except -1
cdef Py_ssize_t keep_trailers(Field* fields, Py_ssize_t count) except -1
