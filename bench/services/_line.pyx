# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Packets between two TUN devices, each held until its time has come: the loop of line.py."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport read, write

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int ppoll(pollfd*, unsigned long, const timespec*, void*)

cdef enum:
    SLOT = 1536             # bytes of a packet, at most: the MTU is 1500
    AT_ONCE = 64            # packets read or written before the other direction has its turn
    SHORTEST_SLEEP = 100000     # ns: packets that come due within it are written together


cdef struct Packet:
    int64_t due             # ns
    int64_t size            # bytes


# One direction: a ring of packets in the order in which they come due.
cdef struct Way:
    int source
    int target
    Packet* packets
    char* data
    int64_t slots
    int64_t head            # counts up; its slot is the remainder
    int64_t tail
    int64_t free_at         # ns: when the last byte of what waits has been sent
    uint64_t random         # what the next number is made from
    int64_t carried
    int64_t lost            # at random
    int64_t overflowed      # found the queue full


cdef inline int64_t _now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec


cdef inline uint64_t _random(uint64_t* state) noexcept nogil:
    """xorshift64*."""
    cdef uint64_t x = state[0]
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    state[0] = x
    return x * <uint64_t>2685821657736338717


cdef class Line:
    """Two directions between two file descriptors, which must not block.

    delay_ns: of each direction. loss: the chance of each packet to vanish, from 0 to 1. rate: bytes a second of each
    direction. queue: bytes that may wait for their turn at that rate; a packet that finds more is dropped. seed: of
    what is random, above 0.
    """
    cdef Way ways[2]
    cdef int64_t delay, queue
    cdef double rate
    cdef uint64_t limit

    def __cinit__(self, int one, int other, int64_t delay_ns, double loss, double rate, int64_t queue, uint64_t seed):
        cdef int i
        # Twice what can be under way in full packets, since acknowledgements are smaller.
        cdef int64_t slots = 4096 + 2 * <int64_t>((rate * delay_ns / 1e9 + queue) / 1500)
        self.delay, self.queue, self.rate = delay_ns, queue, rate
        self.limit = <uint64_t>(loss * 18446744073709549568.0)
        for i in range(2):
            self.ways[i].source, self.ways[i].target = (one, other) if i == 0 else (other, one)
            self.ways[i].slots = slots
            self.ways[i].random = seed + i
            self.ways[i].packets = <Packet*>calloc(slots, sizeof(Packet))
            self.ways[i].data = <char*>malloc(slots * SLOT)
            if self.ways[i].packets == NULL or self.ways[i].data == NULL:
                raise MemoryError

    def __dealloc__(self):
        cdef int i
        for i in range(2):
            free(self.ways[i].packets)
            free(self.ways[i].data)

    def run(self, int stop) -> dict[str, int]:
        """Carries packets until `stop` is readable; returns how many were carried, lost and dropped."""
        cdef int failed
        with nogil:
            failed = self._run(stop)
        if failed:
            raise OSError(failed, "the line failed")
        return {
            "carried": self.ways[0].carried + self.ways[1].carried,
            "lost": self.ways[0].lost + self.ways[1].lost,
            "overflowed": self.ways[0].overflowed + self.ways[1].overflowed,
        }

    cdef int _run(self, int stop) noexcept nogil:
        cdef pollfd fds[3]
        cdef timespec wait
        cdef int64_t now, next_due, pause
        cdef int i, error
        cdef bint busy
        for i in range(2):
            fds[i].fd = self.ways[i].source
            fds[i].events = POLLIN
        fds[2].fd = stop
        fds[2].events = POLLIN
        while True:
            now = _now()
            busy = False
            next_due = now + 1000000000
            for i in range(2):
                error = self._take(&self.ways[i], now)
                if error < 0:
                    return -error
                busy = busy or error == AT_ONCE
                if self._give(&self.ways[i], now) == AT_ONCE:
                    busy = True
                if self.ways[i].head != self.ways[i].tail:
                    next_due = min(next_due, self.ways[i].packets[self.ways[i].head % self.ways[i].slots].due)
            pause = 0 if busy else max(next_due - _now(), SHORTEST_SLEEP)
            wait.tv_sec = pause // 1000000000
            wait.tv_nsec = pause % 1000000000
            if ppoll(fds, 3, &wait, NULL) < 0:
                if errno != EINTR:
                    return errno
                continue
            if fds[2].revents:
                return 0

    cdef int _take(self, Way* way, int64_t now) noexcept nogil:
        """Reads what is there; returns how many, or an errno below 0."""
        cdef int64_t slot, begin
        cdef Py_ssize_t size
        cdef int count
        for count in range(AT_ONCE):
            slot = way.tail % way.slots
            size = read(way.source, way.data + slot * SLOT, SLOT)
            if size < 0:
                return count if errno == EAGAIN or errno == EINTR else -errno
            if self.limit and _random(&way.random) < self.limit:
                way.lost += 1
                continue
            begin = max(now, way.free_at)
            if (begin - now) * self.rate > self.queue * 1e9 or way.tail - way.head == way.slots - 1:
                way.overflowed += 1
                continue
            way.free_at = begin + <int64_t>(size * 1e9 / self.rate)
            way.packets[slot].due = way.free_at + self.delay
            way.packets[slot].size = size
            way.tail += 1
        return AT_ONCE

    cdef int _give(self, Way* way, int64_t now) noexcept nogil:
        """Writes what is due; returns how many."""
        cdef int64_t slot
        cdef int count
        for count in range(AT_ONCE):
            slot = way.head % way.slots
            if way.head == way.tail or way.packets[slot].due > now:
                return count
            # A device that is down or has no memory loses it, as networks do.
            if write(way.target, way.data + slot * SLOT, way.packets[slot].size) < 0:
                way.overflowed += 1
            else:
                way.carried += 1
            way.head += 1
        return AT_ONCE
