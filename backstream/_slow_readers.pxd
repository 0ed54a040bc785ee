from libc.stdint cimport int64_t

from backstream._loop cimport LoopMember


cdef class SlowReader(LoopMember):
    """The client of a response, as far as its taking of bytes goes."""
    cdef:
        SlowReaders line                # that it stands in, or None
        SlowReader ahead                # who came before it
        SlowReader behind
        double since                    # seconds: when its measuring began
        int64_t untaken                 # bytes that waited for it then
        int64_t credit                  # bytes that it took beyond the least before
        bint settled                    # its receive buffer is full: what it takes from now on, it has read

    cdef int64_t untaken_bytes(self) except -1
    cdef bint cut_off(self, str why) except -1


cdef class SlowReaders:
    """Those of one session in a line, in the order in which their measuring began."""
    cdef:
        double rate                     # bytes per second, 0 for no minimum
        SlowReader first
        SlowReader last

    cdef int enter(self, SlowReader reader, bint anew) except -1
    cdef int leave(self, SlowReader reader) except -1
    cdef double waiting_since(self) noexcept
    cdef SlowReader take(self, double now)
    cdef bint _too_slow(self, SlowReader reader, double now) except -1
    cdef int _append(self, SlowReader reader, double now) except -1
    cdef int _unlink(self, SlowReader reader) except -1
