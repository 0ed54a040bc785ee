from backstream._send_batch cimport SendBatch


cdef enum:
    # Bytes read from a socket at once: as many as fit, with a few small frames, into one message of a session.
    READ_SIZE = 65280
    MESSAGE_ROOM = 64           # before a message, for the WebSocket header


cdef class LoopMember:
    """Something that lives on an event loop: it may have bytes to flush at the turn's end, and one deadline."""
    cdef:
        LoopState loop
        bint _flush_scheduled
        long long _flushed_in   # the turn of the last flush
        int _slot               # of the timer wheel, -1 while no deadline is set
        LoopMember _before      # in the slot's ring, None while no deadline is set
        LoopMember _after
        double _deadline_at     # monotonic seconds
        double _filed_at        # what `_deadline_at` was when the member came into its slot

    cdef int flush(self) except -1
    cdef bint join(self, SendBatch batch) noexcept
    cdef int flushed(self, Py_ssize_t sent) except -1
    cdef int on_deadline(self) except -1
    cdef int on_turn(self) except -1
    cdef int on_peer_gone(self, bint broken) except -1


cdef class LoopState:
    cdef:
        object __weakref__
        readonly object asyncio_loop
        # flushing
        list _dirty
        object _run_flushes_bound
        object _flush_handle
        bint _flushes_scheduled
        long long _turn
        SendBatch _batch
        # work that is spread over turns
        object _queue           # a deque of (LoopMember, key)
        object _urgent          # a deque of LoopMember
        dict _queued            # key -> the last LoopMember that came with it, while it is not urgent
        object _run_queue_bound
        bint _queue_scheduled
        double _queue_since     # seconds, when the first came
        double _queue_due       # seconds, when its next turn is
        object _queue_timer     # a _FineTimer while there are many
        # deadlines
        list _slots             # of LoopMember: the ring of those in the slot begins and ends with it
        readonly Py_ssize_t deadlines
        long long _tick
        double _wake_at
        object _wake_handle
        # sockets that are not read
        dict _unread            # file descriptor -> LoopMember
        object _poll_handle
        # shared buffers
        bytearray _read_memory
        char* read_buffer       # READ_SIZE bytes, valid until the callback that filled it returns
        object read_view        # a memoryview of it
        bint pulling            # a message is being made in message_buffer
        bytearray _message_memory
        char* message_buffer    # MAX_MESSAGE_SIZE bytes, MESSAGE_ROOM before it
        # the date
        double _date_until
        bytes _date_line

    cdef int schedule_flush(self, LoopMember member) except -1
    cdef list _send_together(self, list members)
    cdef int _run_batch(self, list joined, list others) except -1
    cdef int enqueue(self, LoopMember member, object key, bint urgent) except -1
    cdef int hurry(self, object key) except -1
    cdef LoopMember _next_in_queue(self)
    cdef bint has_queue(self) noexcept
    cdef int _pause_queue(self, double begin, double now) except -1
    cdef int set_deadline(self, LoopMember member, double seconds) except -1
    cdef int set_deadline_at(self, LoopMember member, double at) except -1
    cdef int clear_deadline(self, LoopMember member) except -1
    cdef int watch_unread(self, int fd, LoopMember member) except -1
    cdef int forget_unread(self, int fd) except -1
    cdef bytes date_line(self)
    cdef int _file(self, LoopMember member) except -1
    cdef list _due_in(self, int slot, double now)
    cdef int _wake_by(self, double at) except -1


cdef double monotonic() noexcept
cpdef LoopState loop_state()
