cdef extern from *:
    """
    #ifdef __linux__
    #include <linux/aio_abi.h>
    #else
    struct iocb { int unused; };
    #endif
    """
    struct iocb:
        pass

cdef enum:
    MOST_SENDS = 64


cdef class SendBatch:
    """What several sockets are to send with one system call."""
    cdef:
        unsigned long _context      # the kernel's, 0 until the first batch
        bint _unusable
        iocb _sends[MOST_SENDS]
        readonly int count
        Py_ssize_t results[MOST_SENDS]      # of `run`: bytes that were sent, or an errno below 0

    cdef bint is_full(self) noexcept
    cdef int add(self, int fd, const char* data, Py_ssize_t size) noexcept
    cdef int clear(self) noexcept
    cdef bint run(self) noexcept
