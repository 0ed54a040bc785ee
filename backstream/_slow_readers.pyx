"""Clients that leave bytes of a response untaken: a line of them for each session, to find who may be cut off.

Rules that hold here:
- A client stands in line while bytes wait for it that its socket does not take, and no longer. What its service has
  not sent yet is no fault of its own.
- Nobody is measured until somebody needs a place: entering the line costs a look at the socket, leaving it none.
- What counts is what the client's side has acknowledged. A transport says that it may go on only once a third of the
  kernel's buffer has drained, which is minutes for a slow reader.
- TCP opens a small window in steps of some kilobytes, so that a reader above the rate seems to rest between two of
  them: what it took beyond the least is its credit, within a limit.
- What its kernel takes at first, whether it reads or not, is worth nothing: it is fresh for a while, and measured from
  then on. Each one that enters has others looked at whose while is over: those who gather one after another have been
  measured for long when somebody needs a place, but for the last; of those who came at once the measuring begins then.
"""

from libc.stdint cimport int64_t

from backstream._loop cimport LoopMember, monotonic


cdef double FRESH_SECONDS = 1.0         # of waiting bytes, until a kernel has taken what it takes by itself
cdef double READ_GRACE_SECONDS = 5.0    # of waiting bytes after that, before the rate counts
cdef double CREDIT_SECONDS = 60.0       # of the least rate: what one who took more may be ahead

cdef enum:
    LOOKED_AT = 2                       # fresh ones, when another enters


cdef class SlowReader(LoopMember):

    cdef int64_t untaken_bytes(self) except -1:
        """Bytes that were sent and that its side has not acknowledged."""
        return 0

    cdef bint cut_off(self, str why) except -1:
        """Ends its response and its connection; false where it holds no stream any more."""
        return False


cdef class ReaderLine:

    cdef int append(self, SlowReader reader, double now) except -1:
        reader.since = now
        reader.ahead = self.last
        if self.last is None:
            self.first = reader
        else:
            self.last.behind = reader
        self.last = reader
        return 0

    cdef int remove(self, SlowReader reader) except -1:
        if reader.ahead is None:
            self.first = reader.behind
        else:
            reader.ahead.behind = reader.behind
        if reader.behind is None:
            self.last = reader.ahead
        else:
            reader.behind.ahead = reader.ahead
        reader.ahead = reader.behind = None
        return 0

    cdef bint has_waited(self, double seconds, double now) noexcept:
        """Whether the first one has stood in line for so long."""
        return self.first is not None and now - self.first.since > seconds


cdef class SlowReaders:
    """rate: the bytes per second that a reader takes at least, 0 for no minimum."""

    def __init__(self, double rate):
        self.rate = rate
        self.fresh = ReaderLine()
        self.measured = ReaderLine()

    cdef int enter(self, SlowReader reader, bint anew) except -1:
        """Bytes wait for it from now on; anew: for the first time in this response."""
        cdef double now
        if self.rate <= 0 or reader.line is self:
            return 0
        if reader.line is not None:
            reader.line.leave(reader)
        now = monotonic()
        if anew:
            reader.credit = 0
            reader.settled = False
        reader.untaken = reader.untaken_bytes()
        reader.line = self
        (self.measured if reader.settled else self.fresh).append(reader, now)
        self._settle(now, LOOKED_AT)
        return 0

    cdef int leave(self, SlowReader reader) except -1:
        """Nothing waits for it any more."""
        cdef double now
        if reader.line is not self:
            return 0
        if reader.settled:
            self.measured.remove(reader)
            now = monotonic()
            if now - reader.since > READ_GRACE_SECONDS and self._too_slow(reader, now):
                reader.credit = 0
        else:
            self.fresh.remove(reader)
        reader.line = None
        return 0

    cdef double waiting_since(self) noexcept:
        """When the measuring of the first one began, or where nobody is measured it came; 0 where nobody is in line."""
        cdef SlowReader first = self.measured.first
        if first is None:
            first = self.fresh.first
        return 0 if first is None else first.since

    cdef SlowReader take(self, double now):
        """The first one below the rate, who leaves the line; None where there is none.

        Who took enough goes to the end of the line, so that each is looked at once in a grace.
        """
        cdef SlowReader reader
        self._settle(now, -1)
        while self.measured.has_waited(READ_GRACE_SECONDS, now):
            reader = self.measured.first
            self.measured.remove(reader)
            if self._too_slow(reader, now):
                reader.line = None
                return reader
            self.measured.append(reader, now)
        return None

    cdef int _settle(self, double now, Py_ssize_t most) except -1:
        """Begins to measure those who are fresh no more; most: of them, all if negative."""
        cdef SlowReader reader
        while most and self.fresh.has_waited(FRESH_SECONDS, now):
            most -= 1
            reader = self.fresh.first
            self.fresh.remove(reader)
            reader.settled = True
            reader.untaken = reader.untaken_bytes()
            self.measured.append(reader, now)
        return 0

    cdef bint _too_slow(self, SlowReader reader, double now) except -1:
        """Whether it took less than the rate since its measuring began; if not, that begins anew."""
        cdef int64_t untaken = reader.untaken_bytes()
        cdef double ahead = reader.credit - self.rate * (now - reader.since)
        if untaken < reader.untaken:
            ahead += reader.untaken - untaken
        if ahead < 0:
            return True
        reader.credit = <int64_t>min(ahead, self.rate * CREDIT_SECONDS)
        reader.untaken = untaken
        return False
