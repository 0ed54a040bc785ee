from libc.stdint cimport int64_t, uint32_t

from backstream._stream cimport SessionBase, Stream


cdef class SendingSession(SessionBase):
    """The half of a session that sends; `Session` adds what it receives, and ends it (`fail`, `close`)."""
    cdef:
        readonly bint closed
        Py_ssize_t _peer_frame_size
        uint32_t _next_id
        uint32_t _unsent_id             # REQUESTs from this id on have not been pulled
        uint32_t _control_frames        # that wait, counted while congested
        int64_t _max_waiting_frames     # of them, while congested
        int64_t _max_waiting_bytes
        Stream _ring_head               # streams with something to send, in turn
        Stream _ring_tail
        list _roomy                     # streams to tell of room after a pull

    cdef bint has_output(self) noexcept
    cdef Py_ssize_t pull(self, char* target, Py_ssize_t limit) except -1
    cdef int after_pull(self) except -1
    cdef int set_congested(self, bint congested) except -1
    cdef Py_ssize_t _pull_control(self, char* target) except -1
    cdef Py_ssize_t _pull_data(self, Stream stream, char* target, Py_ssize_t room) except -1
    cdef Stream _leave_ring(self)
