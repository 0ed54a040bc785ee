"""The arithmetic of credit and nothing else: receive windows, their growth, and the budget that bounds it.

A receiver grants again what its consumer took, a quarter of the window at a time, but no less than 8 KiB or, of a small
window, half of it. A consumer that takes a whole window within two round trips is held up by the window and not by
itself, so the window doubles (twice, if it is alone on a long path), as long as the budget that all sessions of the
process share has room. One that takes more than twice as long has more in flight than the path holds, so what was added
is halved again; where that is because many streams share a short path, even what a stream began with. A stream's part
of the budget goes back when it ends.
"""

from libc.stdint cimport int64_t


# Two round trips count as no shorter than this. What streams have in flight beyond what the path holds waits in the
# receiver's socket, in front of everybody else's small answers: so the floor is generous only for a stream that is
# alone, and only for a session's first bytes of growth.
cdef double GENEROUS_ROUND_SECONDS = 0.02
cdef double FAST_ROUND_SECONDS = 0.0001
# On a long path a lost packet holds back what came behind it for a round trip or two, and the rounds with it.
cdef double LONG_PATH_SECONDS = 0.005
cdef double LONG_PATH_FACTOR = 2.0
# A window that takes longer has a consumer, or a source, that is slow by itself: it fills no queue.
cdef double BULK_ROUND_SECONDS = 0.05

cdef enum:
    LEAST_GRANT = 8192      # bytes; less makes small frames of bulk


cdef class BudgetShare:
    pass


cdef class WindowBudget:
    """Bytes that windows may grow by beyond their initial size, over all sessions of the process.

    While several sessions hold some, none gets more than a quarter; one alone gets up to three quarters, so that
    a second one never finds nothing left.
    """

    def __init__(self, total_bytes: int):
        self.total_bytes = total_bytes

    cdef bint take(self, BudgetShare share, int64_t count) noexcept:
        cdef bint alone = self.used_bytes == share.used_bytes
        cdef int64_t cap = self.total_bytes - self.total_bytes // 4 if alone else self.total_bytes // 4
        if share.used_bytes + count > cap or self.used_bytes + count > self.total_bytes:
            return False
        share.used_bytes += count
        self.used_bytes += count
        return True

    cdef void give_back(self, BudgetShare share, int64_t count) noexcept:
        share.used_bytes -= count
        self.used_bytes -= count


cdef void window_open(ReceiveWindow* w, int64_t window) noexcept:
    w.window = w.credit = window
    w.queued = w.ungranted = w.round_bytes = 0
    w.round_started = 0.0


cdef bint window_receive(ReceiveWindow* w, int64_t count) noexcept:
    """Books `count` bytes that arrived; false when they are more than was granted."""
    if count > w.credit:
        return False
    w.credit -= count
    w.queued += count
    return True


cdef bint window_consume(ReceiveWindow* w, int64_t count) noexcept:
    """Books `count` bytes that the consumer took; true when a grant is due."""
    w.queued -= count
    w.ungranted += count
    w.round_bytes += count
    return window_grant_due(w)


cdef bint window_grant_due(ReceiveWindow* w) noexcept:
    return w.ungranted * 4 >= w.window and (w.ungranted >= LEAST_GRANT or w.ungranted * 2 >= w.window)


cdef bint window_round_full(ReceiveWindow* w) noexcept:
    """Whether a whole window was consumed since the round began, with nothing left queued."""
    return w.round_bytes >= w.window and w.queued == 0


cdef Pace window_end_round(ReceiveWindow* w, double now, double round_trip, bint may_grow, bint may_stay) noexcept:
    """Ends the round: FAST when it took no longer than two round trips, CROWDED or SLOW when longer than twice that.

    may_grow, may_stay: a round of GENEROUS_ROUND_SECONDS is no longer than two round trips, or than twice that.
    """
    cdef double limit = 2 * round_trip
    cdef double took = now - w.round_started
    if is_long_path(round_trip):
        limit *= LONG_PATH_FACTOR
    if limit < FAST_ROUND_SECONDS:
        limit = FAST_ROUND_SECONDS
    w.round_started = now
    w.round_bytes = 0
    if took <= limit or may_grow and took <= GENEROUS_ROUND_SECONDS:
        return FAST
    if took <= 2 * limit or may_stay and took <= 2 * GENEROUS_ROUND_SECONDS:
        return STEADY
    return CROWDED if took <= BULK_ROUND_SECONDS else SLOW


cdef bint is_long_path(double round_trip) noexcept:
    return round_trip >= LONG_PATH_SECONDS


cdef int64_t window_grant(ReceiveWindow* w) noexcept:
    """Takes what may be granted now."""
    cdef int64_t grant = w.ungranted
    if grant <= 0:
        return 0
    w.credit += grant
    w.ungranted = 0
    return grant


cdef void window_double(ReceiveWindow* w) noexcept:
    w.ungranted += w.window
    w.window *= 2


cdef void window_halve(ReceiveWindow* w) noexcept:
    """What is granted stays granted: the next bytes that are consumed make up for it."""
    cdef int64_t less = w.window - w.window // 2
    w.window -= less
    w.ungranted -= less
