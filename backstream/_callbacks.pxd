from backstream._session cimport SessionOwner, StreamHandler


cdef class Handler(StreamHandler):
    cdef object __weakref__


cdef class Owner(SessionOwner):
    cdef object __weakref__
