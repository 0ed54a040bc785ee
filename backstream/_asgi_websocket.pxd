from libc.stdint cimport int64_t

from backstream._asgi cimport AsgiRequest, AsgiService
from backstream._codec cimport RequestHead
from backstream._loop cimport LoopMember
from backstream._stream cimport Stream, StreamHandler


cdef enum WebSocketState:
    HANDSHAKE = 0       # the application has neither accepted nor refused
    REFUSED = 1         # it answers as to an ordinary request
    CONNECTED = 2
    CLOSING = 3         # the close frame is sent, the client's is awaited
    DISCONNECTED = 4    # nothing that comes is read any more


cdef class AsgiWebService(AsgiService):
    cdef:
        double ping_interval            # seconds, 0 for no pings
        double ping_timeout             # seconds
        Py_ssize_t max_message          # bytes

    cdef StreamHandler open_websocket(self, Stream stream, const RequestHead* head)


cdef class AsgiWebSocket(AsgiRequest):
    """One WebSocket in the application."""
    cdef:
        bytes key                       # Sec-WebSocket-Key
        list subprotocols               # that the client offers
        WebSocketState state
        object protocol                 # websockets' Protocol, once accepted
        WebSocketClock clock
        # from the client
        object unparsed                 # a deque of small pieces of the stream
        int64_t held                    # bytes of the stream that are not granted again
        object messages                 # a deque of (event, bytes on the stream), whole and not received yet
        bytearray partial               # of a message that comes in fragments
        object decoder                  # checks its text, None where it is binary
        bint ended                      # the client has ended its direction
        list receivers                  # futures of `receive`s that wait
        bint connect_told
        int code                        # of websocket.disconnect
        str reason
        # to the client
        bytes pong                      # the answer to its last ping, while it does not read
        int64_t written                 # bytes
        # signs of life
        double active_at                # seconds
        bint pinged                     # and the answer is due
        double pinged_at                # seconds
        int64_t taken                   # a count that grows with what the client takes, as the clock saw it last

    cdef int _accept(self, dict message) except -1
    cdef int _refuse(self, int status, object headers, bytes body) except -1
    cdef int _advance(self) except -1
    cdef int _parse(self, object piece) except -1
    cdef bint _data_frame(self, int opcode, object data, bint last) except -1
    cdef int _queue(self, dict event, Py_ssize_t size) except -1
    cdef int _grant(self) except -1
    cdef int _flush_protocol(self) except -1
    cdef int _write_all(self, list pieces) except -1
    cdef int _close(self, int code, str reason) except -1
    cdef int _answer(self, int code, str reason) except -1
    cdef int _disconnect(self, int code, str reason) except -1
    cdef int _end_of_stream(self) except -1
    cdef int _stop_clock(self) except -1
    cdef bint _takes(self) noexcept
    cdef int on_clock(self) except -1


cdef class WebSocketClock(LoopMember):
    """The deadline of a WebSocket: its next ping, a pong that is due, or the end after a close."""
    cdef AsgiWebSocket websocket
