from backstream._codec cimport Trailers
from backstream._loop cimport LoopMember
from backstream._stream cimport SessionOwner, StreamHandler


cdef tuple pairs_of_trailers(const Trailers* trailers)


cdef class Deadline(LoopMember):
    cdef object __weakref__


cdef class Handler(StreamHandler):
    cdef object __weakref__


cdef class Owner(SessionOwner):
    cdef object __weakref__
