from libc.stdint cimport int64_t

from picows.picows cimport WSFrame

from backstream._seed_session cimport SeedSession
from backstream._websocket cimport Carrier, SessionLink


cdef class SeedCarrier(Carrier):
    """What is different on a link whose session speaks the seed wire."""
    cdef:
        SessionLink _link               # cleared when the link is lost
        SeedSession _session
        bint _json                      # the message that is being put together is one of text
        bint _missing                   # what comes of it is dropped
        int64_t _booked                 # bytes of the budget, for it
        Py_ssize_t _progress            # bytes of it since its time began anew
        double _stuck_at                # seconds: when the transport, which is full, last took something
        Py_ssize_t _unsent              # bytes that it had then

    cdef int _put_together(self, WSFrame frame) except -1
    cdef int _miss(self, str why) except -1
    cdef int _end_fragments(self) except -1


cdef int speak_seed(SessionLink link, SeedSession session) except -1
