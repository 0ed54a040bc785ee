"""Clients that leave bytes of a response untaken: a line of them for each session, to find who may be cut off.

Rules that hold here:
- A client stands in line while bytes wait for it that its socket does not take, and no longer. What its service has
  not sent yet is no fault of its own.
- Nobody is measured until somebody needs a place: entering the line costs a look at the socket, leaving it none.
- What counts is what the client's side has acknowledged. A transport says that it may go on only once a third of the
  kernel's buffer has drained, which is minutes for a slow reader.
- TCP opens a small window in steps of some kilobytes, so that a reader above the rate seems to rest between two of
  them: what it took beyond the least is its credit, within a limit. But what its kernel took at first, whether it reads
  or not, is worth nothing beyond the time in which that came.
"""

from libc.stdint cimport int64_t

from backstream._loop cimport LoopMember, monotonic


cdef double READ_GRACE_SECONDS = 5.0    # of waiting bytes, before the rate counts
cdef double CREDIT_SECONDS = 60.0       # of the least rate: what one who took more may be ahead


cdef class SlowReader(LoopMember):

    cdef int64_t untaken_bytes(self) except -1:
        """Bytes that were sent and that its side has not acknowledged."""
        return 0

    cdef bint cut_off(self, str why) except -1:
        """Ends its response and its connection; false where it holds no stream any more."""
        return False


cdef class SlowReaders:
    """rate: the bytes per second that a reader takes at least, 0 for no minimum."""

    def __init__(self, double rate):
        self.rate = rate

    cdef int enter(self, SlowReader reader, bint anew) except -1:
        """Bytes wait for it from now on; anew: for the first time in this response."""
        if self.rate <= 0 or reader.line is self:
            return 0
        if reader.line is not None:
            reader.line.leave(reader)
        if anew:
            reader.credit = 0
            reader.settled = False
        reader.untaken = reader.untaken_bytes()
        return self._append(reader, monotonic())

    cdef int leave(self, SlowReader reader) except -1:
        """Nothing waits for it any more."""
        cdef double now
        if reader.line is not self:
            return 0
        now = monotonic()
        if now - reader.since > READ_GRACE_SECONDS and self._too_slow(reader, now):
            reader.credit = 0
        return self._unlink(reader)

    cdef double waiting_since(self) noexcept:
        """When the measuring of the first one began, in seconds; 0 where the line is empty."""
        return 0 if self.first is None else self.first.since

    cdef SlowReader take(self, double now):
        """The first one below the rate, who leaves the line; None where there is none.

        Who took enough goes to the end of the line, so that each is looked at once in a grace.
        """
        cdef SlowReader reader
        while self.first is not None and now - self.first.since > READ_GRACE_SECONDS:
            reader = self.first
            self._unlink(reader)
            if self._too_slow(reader, now):
                return reader
            self._append(reader, now)
        return None

    cdef bint _too_slow(self, SlowReader reader, double now) except -1:
        """Whether it took less than the rate since its measuring began; if not, that begins anew."""
        cdef int64_t untaken = reader.untaken_bytes()
        cdef double ahead = reader.credit - self.rate * (now - reader.since)
        if untaken < reader.untaken:
            ahead += reader.untaken - untaken
        if ahead < 0:
            return True
        reader.credit = <int64_t>min(ahead, self.rate * CREDIT_SECONDS) if reader.settled else 0
        reader.settled = True
        reader.untaken = untaken
        return False

    cdef int _append(self, SlowReader reader, double now) except -1:
        reader.since = now
        reader.line = self
        reader.ahead = self.last
        if self.last is None:
            self.first = reader
        else:
            self.last.behind = reader
        self.last = reader
        return 0

    cdef int _unlink(self, SlowReader reader) except -1:
        if reader.ahead is None:
            self.first = reader.behind
        else:
            reader.ahead.behind = reader.behind
        if reader.behind is None:
            self.last = reader.ahead
        else:
            reader.behind.ahead = reader.ahead
        reader.line = None
        reader.ahead = reader.behind = None
        return 0
