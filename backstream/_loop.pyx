"""What all connections of one event loop share: the turn's end, deadlines, buffers, the date.

- Whoever has bytes to send says so by `schedule_flush` and is flushed once at the end of the turn: one system call for
  all that gathered, and where many sockets are to send, one for many of them.
- Work that many bring at once and nobody waits for by the microsecond is spread over turns, behind what is to be sent,
  with pauses between its pieces.
- Deadlines lie in a wheel of coarse slots, so that setting and clearing one costs next to nothing; they come up to
  TICK late, never early.
- Sockets that are not read are polled together for a peer that has gone.
- One read buffer serves all connections of the loop: what is read is used up before the callback returns.
"""

import asyncio
import logging
import time
from collections import deque
from email.utils import formatdate

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close, read

from backstream._codec cimport MAX_MESSAGE_SIZE
from backstream._send_batch cimport SendBatch


cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout_ms)
    int POLLERR
    int POLLHUP

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <poll.h>
    #ifndef POLLRDHUP
    #define POLLRDHUP 0
    #endif
    """
    int POLLRDHUP

cdef extern from *:
    """
    #ifdef __linux__
    #include <sys/timerfd.h>
    static int create_fine_timer(void) {
        return timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    }
    static int start_fine_timer(int fd, long nanoseconds) {
        struct itimerspec in = {{0, 0}, {0, nanoseconds}};
        return timerfd_settime(fd, 0, &in, NULL);
    }
    #else
    static int create_fine_timer(void) { return -1; }
    static int start_fine_timer(int fd, long nanoseconds) { return -1; }
    #endif
    """
    int create_fine_timer() nogil
    int start_fine_timer(int fd, long nanoseconds) nogil

cdef enum:
    SLOTS = 512
    LEAST_BATCH = 4             # sends that are worth a batch

cdef double TICK = 0.02             # seconds
cdef double QUEUE_SHARE = 1 / 3.    # of the loop's time that queued work may take
cdef double MAX_QUEUE_SECONDS = 0.005   # of one turn
cdef double MAX_QUEUE_PAUSE = 0.1       # seconds: for one that was held up the others do not wait still longer
cdef double QUEUE_PATIENCE = 5.0    # seconds without an empty queue, after which its pieces follow each other
cdef double UNREAD_POLL = 0.5       # seconds between two looks at the sockets that are not read

logger = logging.getLogger("backstream")


cdef double monotonic() noexcept:
    """Seconds of the clock that `time.monotonic` shows."""
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


cdef class LoopMember:

    def __cinit__(self):
        self._slot = -1

    cdef int flush(self) except -1:
        """Send what has gathered; called once at the end of the turn after `schedule_flush`."""
        return 0

    cdef bint join(self, SendBatch batch) noexcept:
        """Add to the batch what `flush` would send, if that is all it would call the system for.

        Where it returns True, `flushed` is called in place of `flush`.
        """
        return False

    cdef int flushed(self, Py_ssize_t sent) except -1:
        """Of what was added to the batch, so many bytes were sent; below 0 an errno."""
        return 0

    cdef int on_deadline(self) except -1:
        """The deadline set last has passed."""
        return 0

    cdef int on_turn(self) except -1:
        """Its turn in the queue has come; called at least once after `enqueue`."""
        return 0

    cdef int on_peer_gone(self, bint broken) except -1:
        """The peer of a socket under `watch_unread` has closed it; `broken`: by a reset, in both directions."""
        return 0


# Rings, not sets, for which a small request would hash and look for its member three times.
cdef LoopMember _new_slot():
    cdef LoopMember slot = LoopMember()
    slot._before = slot._after = slot
    return slot


cdef void _enter_slot(LoopMember slot, LoopMember member) noexcept:
    cdef LoopMember last = slot._before
    member._before = last
    member._after = slot
    last._after = member
    slot._before = member


cdef void _leave_slot(LoopMember member) noexcept:
    cdef LoopMember before = member._before, after = member._after
    if before is None or after is None:
        return      # the garbage collector is taking it all to pieces
    before._after = after
    after._before = before
    member._before = member._after = None


cdef class _FineTimer:
    """A timer of one shot, in microseconds where the system has one: the loop's own count in milliseconds."""

    cdef object _asyncio_loop
    cdef object _callback
    cdef int _fd

    def __init__(self, asyncio_loop, callback):
        self._asyncio_loop = asyncio_loop
        self._callback = callback
        self._fd = create_fine_timer()
        if self._fd < 0:
            return
        try:
            asyncio_loop.add_reader(self._fd, self._on_time)
        except (NotImplementedError, OSError):
            close(self._fd)
            self._fd = -1

    cdef int start(self, double seconds) except -1:
        """Calls back after `seconds`, less than one."""
        if self._fd < 0 or start_fine_timer(self._fd, max(1, <long>(seconds * 1e9))):
            self._asyncio_loop.call_later(seconds, self._callback)
        return 0

    def _on_time(self):
        cdef long long count
        if read(self._fd, &count, sizeof(count)) > 0:
            self._callback()

    cdef int discard(self) except -1:
        if self._fd >= 0:
            self._asyncio_loop.remove_reader(self._fd)
            close(self._fd)
            self._fd = -1
        return 0

    def __dealloc__(self):
        if self._fd >= 0:
            close(self._fd)


cdef class LoopState:

    def __init__(self, asyncio_loop):
        self.asyncio_loop = asyncio_loop
        self._dirty = []
        self._batch = SendBatch()
        self._run_flushes_bound = self._run_flushes
        self._queue = deque()
        self._urgent = deque()
        self._queued = {}
        self._run_queue_bound = self._run_queue
        self._slots = [_new_slot() for _ in range(SLOTS)]
        self._tick = <long long>(monotonic() / TICK)
        self._unread = {}
        self._read_memory = bytearray(READ_SIZE)
        self.read_buffer = self._read_memory
        self.read_view = memoryview(self._read_memory)
        self._message_memory = bytearray(MESSAGE_ROOM + MAX_MESSAGE_SIZE)
        self.message_buffer = <char*>self._message_memory + MESSAGE_ROOM

    # --- the turn's end ---

    cdef int schedule_flush(self, LoopMember member) except -1:
        if member._flush_scheduled:
            return 0
        member._flush_scheduled = True
        self._dirty.append(member)
        if not self._flushes_scheduled:
            self._flushes_scheduled = True
            self._flush_handle = self.asyncio_loop.call_soon(self._run_flushes_bound)
        return 0

    def _run_flushes(self):
        cdef LoopMember member
        cdef list dirty
        cdef list again = []
        self._turn += 1
        # Flushing one member may give others something to say, credit for what was taken: they follow at once. Who
        # was flushed already goes on in the next turn, so that bulk does not keep the loop from its sockets.
        while self._dirty:
            dirty = self._dirty
            self._dirty = []
            if len(dirty) >= LEAST_BATCH:
                dirty = self._send_together(dirty)
            for member in dirty:
                if member._flushed_in == self._turn:
                    again.append(member)
                    continue
                member._flushed_in = self._turn
                member._flush_scheduled = False
                try:
                    member.flush()
                except Exception:
                    logger.exception("flushing %r failed", member)
        self._flushes_scheduled = False
        self._dirty = again
        if again:
            self._flushes_scheduled = True
            self._flush_handle = self.asyncio_loop.call_soon(self._run_flushes_bound)

    cdef list _send_together(self, list members):
        """Sends what those have to say that can share a system call; returns the others."""
        cdef LoopMember member
        cdef list joined = [], others = []
        for member in members:
            if member._flushed_in == self._turn or not member.join(self._batch):
                others.append(member)
                continue
            joined.append(member)
            if self._batch.is_full():
                self._run_batch(joined, others)
                joined = []
        self._run_batch(joined, others)
        return others

    cdef int _run_batch(self, list joined, list others) except -1:
        cdef LoopMember member
        cdef int i = 0
        if len(joined) < LEAST_BATCH or not self._batch.run():
            self._batch.clear()
            others.extend(joined)
            return 0
        for member in joined:
            member._flushed_in = self._turn
            member._flush_scheduled = False
        # At once: whoever is asked to flush in between would send it again.
        for member in joined:
            try:
                member.flushed(self._batch.results[i])
            except Exception:
                logger.exception("flushing %r failed", member)
            i += 1
        return 0

    # --- work that is spread over turns ---

    cdef int enqueue(self, LoopMember member, object key, bint urgent) except -1:
        """Calls `member.on_turn` when those before it had theirs: an urgent one's are the urgent ones.

        key: by which `hurry` finds it, or None. Members take a part of the loop's time, one by one with pauses, so that
        others are hardly held up: at once where there are few, and within seconds where there are ten thousand.
        """
        if urgent:
            self._urgent.append(member)
        else:
            self._queue.append((member, key))
            if key is not None:
                self._queued[key] = member
        if not self._queue_scheduled:
            self._queue_scheduled = True
            self._queue_since = self._queue_due = monotonic()
            self.asyncio_loop.call_soon(self._run_queue_bound)
        return 0

    cdef int hurry(self, object key) except -1:
        """Somebody waits for what was enqueued under this key, if there is such a thing: it becomes urgent."""
        cdef object member = self._queued.pop(key, None)
        if member is not None:
            self._urgent.append(member)
        return 0

    cdef bint has_queue(self) noexcept:
        """Whether some wait for their turn."""
        return len(<object>self._queue) > 0 or len(<object>self._urgent) > 0

    cdef LoopMember _next_in_queue(self):
        cdef object key
        cdef LoopMember member
        if self._urgent:
            return <LoopMember>self._urgent.popleft()
        member, key = self._queue.popleft()
        if key is not None and self._queued.get(key) is member:
            del self._queued[key]
        return member

    def _run_queue(self):
        cdef LoopMember member
        cdef double begin, now, end
        if self._flushes_scheduled:
            self._flush_handle.cancel()
            self._run_flushes()
        begin = now = monotonic()
        # One, or as many as make up for turns that were longer than the pause, or a busy loop's queue would starve.
        end = now + min(QUEUE_SHARE * (now - self._queue_due), MAX_QUEUE_SECONDS)
        try:
            while self.has_queue():
                member = self._next_in_queue()
                try:
                    member.on_turn()
                except Exception:
                    logger.exception("%r failed in its turn", member)
                now = monotonic()
                if now >= end:
                    break
        finally:
            self._pause_queue(begin, now)

    cdef int _pause_queue(self, double begin, double now) except -1:
        cdef double pause = min((now - begin) * (1 / QUEUE_SHARE - 1), MAX_QUEUE_PAUSE)
        self._queue_scheduled = self.has_queue()
        if not self._queue_scheduled:
            if self._queue_timer is not None:
                (<_FineTimer>self._queue_timer).discard()
                self._queue_timer = None
        elif now - self._queue_since > QUEUE_PATIENCE:
            self._queue_due = now
            self.asyncio_loop.call_soon(self._run_queue_bound)
        else:
            if self._queue_timer is None:
                self._queue_timer = _FineTimer(self.asyncio_loop, self._run_queue_bound)
            self._queue_due = now + pause
            (<_FineTimer>self._queue_timer).start(pause)
        return 0

    # --- deadlines ---

    cdef int set_deadline(self, LoopMember member, double seconds) except -1:
        """Calls `member.on_deadline` after `seconds`, instead of the deadline that it had."""
        return self.set_deadline_at(member, monotonic() + seconds)

    cdef int set_deadline_at(self, LoopMember member, double at) except -1:
        """`set_deadline` at monotonic seconds, for who has asked the clock already."""
        member._deadline_at = at
        if member._slot >= 0 and at >= member._filed_at:
            return 0        # put off: it stays where it lies until that slot's turn, and is filed anew then
        self._file(member)
        if self._wake_handle is not None and self._wake_at <= at + TICK:
            return 0        # nearly always, and the clock need not be asked again
        return self._wake_by(at)

    cdef int _file(self, LoopMember member) except -1:
        """Puts the member into the slot of its deadline."""
        cdef long long tick = <long long>(member._deadline_at / TICK)
        # The slot behind the last that had its turn is the first that will, for what has passed already.
        cdef int slot = <int>((max(tick, self._tick) + 1) % SLOTS)
        member._filed_at = member._deadline_at
        if slot != member._slot:
            if member._slot >= 0:
                _leave_slot(member)
            else:
                self.deadlines += 1
            _enter_slot(<LoopMember>self._slots[slot], member)
            member._slot = slot
        return 0

    cdef list _due_in(self, int slot, double now):
        """The slot's members whose deadline has passed; those whose was put off are filed anew."""
        cdef list due = []
        cdef LoopMember ring = <LoopMember>self._slots[slot]
        cdef LoopMember member = ring._after, after
        while member is not ring:
            after = member._after
            if member._deadline_at <= now:
                due.append(member)
            elif member._deadline_at > member._filed_at:
                self._file(member)
            member = after
        return due

    cdef int clear_deadline(self, LoopMember member) except -1:
        if member._slot >= 0:
            _leave_slot(member)
            member._slot = -1
            self.deadlines -= 1
        return 0

    cdef int _wake_by(self, double at) except -1:
        cdef double latest = monotonic() + SLOTS * TICK
        if at > latest:
            at = latest
        if self._wake_handle is not None:
            if self._wake_at <= at + TICK:
                return 0
            self._wake_handle.cancel()
        self._wake_at = at
        self._wake_handle = self.asyncio_loop.call_later(max(0.0, at - monotonic()) + TICK, self._turn_wheel)
        return 0

    def _turn_wheel(self):
        cdef double now = monotonic()
        cdef long long tick = <long long>(now / TICK)
        cdef long long at
        cdef LoopMember member, slot
        self._wake_handle = None
        at = self._tick + 1
        if tick - at >= SLOTS:
            at = tick - SLOTS + 1
        self._tick = tick
        while at <= tick:
            for member in self._due_in(at % SLOTS, now):
                if member._slot != at % SLOTS:
                    continue    # one before it has cleared it, or set it anew
                if member._deadline_at > now:
                    self._file(member)
                    continue
                self.clear_deadline(member)
                try:
                    member.on_deadline()
                except Exception:
                    logger.exception("the deadline of %r failed", member)
            at += 1
        if self.deadlines:
            for at in range(tick + 1, tick + SLOTS):
                slot = <LoopMember>self._slots[at % SLOTS]
                if slot._after is not slot:
                    break
            self._wake_by(at * TICK)

    # --- sockets that are not read ---

    cdef int watch_unread(self, int fd, LoopMember member) except -1:
        """Looks twice a second whether the peer of `fd` is gone, while its socket is not read."""
        self._unread[fd] = member
        if self._poll_handle is None:
            self._poll_handle = self.asyncio_loop.call_later(UNREAD_POLL, self._poll_unread)
        return 0

    cdef int forget_unread(self, int fd) except -1:
        self._unread.pop(fd, None)
        return 0

    def _poll_unread(self):
        cdef Py_ssize_t i, count = len(self._unread)
        cdef pollfd* fds
        cdef LoopMember member
        cdef list gone = []
        self._poll_handle = None
        if count == 0:
            return
        fds = <pollfd*>PyMem_Malloc(count * sizeof(pollfd))
        if fds == NULL:
            raise MemoryError()
        try:
            i = 0
            for fd in self._unread:
                fds[i].fd = fd
                fds[i].events = <short>POLLRDHUP
                fds[i].revents = 0
                i += 1
            if poll(fds, count, 0) > 0:
                for i in range(count):
                    if fds[i].revents & (POLLRDHUP | POLLHUP | POLLERR):
                        gone.append((self._unread[fds[i].fd], fds[i].revents & POLLERR != 0))
        finally:
            PyMem_Free(fds)
        for member, broken in gone:
            try:
                member.on_peer_gone(broken)
            except Exception:
                logger.exception("%r failed when its peer was gone", member)
        if self._unread and self._poll_handle is None:
            self._poll_handle = self.asyncio_loop.call_later(UNREAD_POLL, self._poll_unread)

    # --- the date ---

    cdef bytes date_line(self):
        """The field line Date with the IMF-fixdate of now (RFC 9110 §5.6.7), made once a second."""
        cdef double now = monotonic()
        if now >= self._date_until:
            self._date_line = b"date: %b\r\n" % formatdate(usegmt=True).encode()
            self._date_until = now + (1.0 - time.time() % 1.0)
        return self._date_line


cpdef LoopState loop_state():
    """The state of the running event loop, made on first use."""
    loop = asyncio.get_running_loop()
    state = getattr(loop, "_backstream_state", None)
    if state is None:
        # On the loop itself, so that it goes when the loop goes.
        state = loop._backstream_state = LoopState(loop)
    return state
