from libc.stdint cimport uint8_t, uint32_t, uint64_t
from picows.picows cimport WSCloseCode, WSFrame, WSListener, WSTransport

from backstream._buffer cimport Buffer
from backstream._loop cimport LoopMember, LoopState
from backstream._session cimport Session
from backstream._stream cimport SessionOwner
from backstream._websocket_frames cimport FrameWriter


cdef class Carrier:
    """How a link carries a session whose messages are not those of the native wire."""
    cdef:
        Py_ssize_t max_frame_size       # bytes of a WebSocket frame that the peer may send
    cdef int send(self) except -1
    cdef int frame(self, WSFrame frame) except -1
    cdef int paused(self) except -1
    cdef double next_deadline(self, double at) noexcept
    cdef int deadline(self, double now) except -1
    cdef int lost(self) except -1


cdef class SessionLink(SessionOwner):
    """A session on a WebSocket: carries its messages, keeps it alive, and ends it."""
    cdef:
        object __weakref__
        # identity
        LoopState loop
        readonly Session session
        readonly object name            # for logs: the client id
        readonly str session_name       # for logs: the same on both sides, None until it is known
        # configuration
        double _ping_interval           # seconds
        double _ping_timeout
        double _hello_timeout
        double _hello_due               # until the peer's HELLO is here
        double _message_timeout
        # state
        WSTransport _transport
        FrameWriter _writer
        Carrier _carrier                # None on the native wire
        LinkMember _member
        LinkListener _listener
        ReadGuard _guard
        bint _closing                   # the close frame is sent, or about to be
        bint _broken                    # the peer broke a rule that picows watches over, and was told so
        bint _says_close                # a close frame that picows makes is one that it was asked for
        bint _lost
        bint _pauses_late               # the transport says that it is full when it is asked, and not before
        bint _slow                      # the transport was full since it was last empty
        int _close_code
        str _close_reason
        double _received_at             # seconds
        double _ping_at
        double _ping_sent_at
        uint64_t _ping_bytes            # of messages in both directions, before it
        int _first_pings                # that are still to come soon, for a first idea of the round trip
        double _fragments_at
        int _small_fragments            # of the message that comes in pieces
        # counters
        readonly uint64_t bytes_received    # of messages, without WebSocket's own
        readonly uint64_t bytes_sent
        # buffers
        Buffer _fragments               # of a message that came in pieces

    cdef int begin(self, LoopState loop, Session session, object settings) except -1
    cdef int set_session_name(self, bytes instance, generation) except -1
    cdef int queue_hello(self) except -1
    cdef int connected(self, WSTransport transport) except -1
    cdef int frame(self, WSFrame frame) except -1
    cdef int flush(self) except -1
    cdef int deadline(self) except -1
    cdef int lose(self, str message) except -1
    cdef int control(self, bytes frame) except -1
    cdef int end(self, int close_code, str reason) except -1
    cdef int greeted(self) except -1
    cdef int charge_fragment(self, WSFrame frame) except -1
    cdef int _send_close(self, WSCloseCode code, bytes reason) except -1
    cdef int hello_came(self) except -1
    cdef int _send_ping(self) except -1
    cdef int _set_deadline(self) except -1
    cdef int lost(self, str message) except -1
    cdef int let_go(self) except -1


cdef class _ProtocolBase:
    pass


cdef class FrameCutter:
    cdef:
        Py_ssize_t max_frame_size       # bytes
        uint8_t head[14]                # of the frame that is being cut, or a part of one that is still to come
        int head_size                   # bytes of that part
        bint first                      # no fragment was begun yet
        uint64_t left                   # bytes of the frame's payload
        uint64_t piece_left             # of them, those of the fragment

    cdef int take(self, ReadGuard guard, const char* data, Py_ssize_t size) except -1
    cdef Py_ssize_t _head_size(self, const uint8_t* head, Py_ssize_t known) noexcept
    cdef bint _begin(self, const uint8_t* head) noexcept
    cdef int _next_piece(self, ReadGuard guard) except -1


cdef class AnswerReader(FrameCutter):
    cdef Buffer answer


cdef class ReadGuard(_ProtocolBase):
    cdef:
        SessionLink _link
        FrameCutter _cutter             # what reads come to first; None where they go to picows as they are
        object _raw                     # the asyncio transport, while it is connected
        object _protocol                # picows'
        object _get_buffer
        object _buffer_updated
        object error                    # with which the connection was lost
        Py_ssize_t _offered             # bytes for the next read
        Py_ssize_t _turn_bytes          # of reads that may leave more behind, in this turn
        bint _decrypts                  # TLS hands on its own pieces: how full they are says nothing of the socket
        bint _paused                    # until the next turn
        bint _held                      # until `hold(False)`
        bint _spread                    # the first bytes wait for their turn in the loop's queue
        Py_ssize_t _first_bytes         # that wait

    cdef int hold(self, bint held) except -1
    cdef int pass_on(self, const char* data, Py_ssize_t size) except -1
    cdef int next_turn(self) except -1
    cdef int take_first(self) except -1
    cdef int feed(self, bytes data) except -1
    cdef int _judge(self) except -1
    cdef int _take(self, Py_ssize_t nbytes) except -1


cdef class LinkMember(LoopMember):
    cdef SessionLink link


cdef class LinkListener(WSListener):
    cdef SessionLink link
