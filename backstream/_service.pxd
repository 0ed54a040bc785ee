from backstream._codec cimport RequestHead
from backstream._loop cimport LoopState
from backstream._stream cimport Stream, StreamHandler
from backstream._websocket cimport SessionLink


cdef class Service:
    """What an agent serves: gives each stream its handler."""
    cdef:
        LoopState loop
        readonly long long requests     # that were accepted
    cdef StreamHandler open(self, Stream stream, const RequestHead* head, bint end)


cdef class CallbackService(Service):
    cdef object factory


cdef class ServiceLink(SessionLink):
    """The agent's end of a session."""
    cdef:
        Service service
        object agent                    # called back on the events of the session's life
        object _settings                # SessionSettings
        object _seed                    # makes the session where the proxy does not speak the native wire, or None
        readonly double since           # monotonic seconds
        readonly str fault              # what is wrong with the proxy's answer to the handshake, "" where nothing is
        readonly object goaway          # the proxy's, once it came
        bint _drained_told
    cdef int check_drained(self) except -1
    cdef int _speak_seed(self) except -1
