from libc.stdint cimport int64_t


cdef enum Pace:
    STEADY = 0
    FAST = 1
    CROWDED = 2     # by others: much comes, and it waits
    SLOW = 3


cdef class WindowBudget:
    cdef:
        readonly int64_t total_bytes
        readonly int64_t used_bytes

    cdef bint take(self, BudgetShare share, int64_t count) noexcept
    cdef void give_back(self, BudgetShare share, int64_t count) noexcept


cdef class BudgetShare:
    """What one session holds of the process's budget."""
    cdef:
        readonly int64_t used_bytes


# The receiving end of one direction of a stream. At every moment
#     credit + queued + ungranted == window
# (ungranted is below 0 for a while after a window was halved)
# so a receiver never holds more than it granted.
cdef struct ReceiveWindow:
    int64_t window          # bytes
    int64_t credit          # granted and not yet received
    int64_t queued          # received and not yet consumed
    int64_t ungranted       # consumed and not yet granted again
    int64_t round_bytes     # consumed since round_started
    double round_started    # seconds


cdef void window_open(ReceiveWindow* w, int64_t window) noexcept
cdef bint window_receive(ReceiveWindow* w, int64_t count) noexcept
cdef bint window_consume(ReceiveWindow* w, int64_t count) noexcept
cdef bint window_grant_due(ReceiveWindow* w) noexcept
cdef bint window_round_full(ReceiveWindow* w) noexcept
cdef Pace window_end_round(ReceiveWindow* w, double now, double round_trip, bint may_grow, bint may_stay) noexcept
cdef bint is_long_path(double round_trip) noexcept
cdef int64_t window_grant(ReceiveWindow* w) noexcept
cdef void window_double(ReceiveWindow* w) noexcept
cdef void window_halve(ReceiveWindow* w) noexcept
