from libc.stdint cimport int64_t

from backstream._loop cimport LoopMember


cdef class SlowReader(LoopMember):
    """The client of a response, as far as its taking of bytes goes."""
    cdef:
        SlowReaders line                # of the session that it stands in, or None
        SlowReader ahead                # who came before it
        SlowReader behind
        double since                    # seconds: when it came into its place in line
        int64_t untaken                 # bytes that waited for it then
        int64_t credit                  # bytes that it took beyond the least before
        bint settled                    # it is measured: its receive buffer is full, and what it takes it has read

    cdef int64_t untaken_bytes(self) except -1
    cdef bint cut_off(self, str why) except -1


cdef class ReaderLine:
    """Slow readers in the order in which they came to it."""
    cdef:
        SlowReader first
        SlowReader last

    cdef int append(self, SlowReader reader, double now) except -1
    cdef int remove(self, SlowReader reader) except -1
    cdef bint has_waited(self, double seconds, double now) noexcept


cdef class SlowReaders:
    """Those of one session."""
    cdef:
        double rate                     # bytes per second, 0 for no minimum
        ReaderLine fresh
        ReaderLine measured

    cdef int enter(self, SlowReader reader, bint anew) except -1
    cdef int leave(self, SlowReader reader) except -1
    cdef double waiting_since(self) noexcept
    cdef SlowReader take(self, double now)
    cdef int _settle(self, double now, Py_ssize_t most) except -1
    cdef bint _too_slow(self, SlowReader reader, double now) except -1
