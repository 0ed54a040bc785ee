from backstream._loop cimport LoopMember


cdef enum TlsState:
    TLS_HANDSHAKE = 0
    TLS_OPEN = 1
    TLS_CLOSING = 2         # everything has been written; the socket's transport sends what it still holds
    TLS_CLOSED = 3


cdef class _TransportBase(LoopMember):
    pass


cdef class TlsTransport(_TransportBase):
    """TLS on a TCP connection: a protocol towards its transport, and a transport towards the protocol above."""
    cdef:
        object __weakref__
        # configuration
        object _context                 # ssl.SSLContext
        object _hostname                # of the server that the client side expects; None on the server side
        object _make_protocol           # called without arguments once the handshake is done
        object _admit                   # called once: (self, the peer's address), or None
        object _on_handshake            # called once: (self, None or the exception)
        double _handshake_timeout       # seconds
        # the connection below
        object _raw
        int _fd
        # TLS
        readonly object ssl_object
        object _incoming
        object _outgoing
        object _ssl_read
        object _ssl_write
        object _take_outgoing
        # the protocol above
        object _protocol
        object _get_buffer
        object _buffer_updated
        # state
        TlsState _state
        bint _reading                   # the protocol above wants bytes
        bint _filled                    # the last read took all that it could: the socket may have more
        bint _delivering
        bint _scheduled                 # `_deliver_later` is on the loop's list
        bint _peer_ended                # the peer's close_notify came
        bint _eof_told                  # and the protocol above knows
        bint _raw_ended                 # the TCP connection's other direction has ended
        bint _write_ended               # our close_notify is sent
        bint _full                      # the transport below is above its high-water mark
        bytes _rest                     # plaintext that had to be taken out before our close_notify
        object _error                   # why the connection broke

    cdef bint may_have_more(self) noexcept
    cdef bint has_unread(self) except -1
    cdef int send(self, const char* data, Py_ssize_t size) except -1
    cdef int _handshake(self) except -1
    cdef int _deliver(self) except -1
    cdef Py_ssize_t _read_into(self, object view) except -2
    cdef bint _pending(self) except -1
    cdef int _flush_outgoing(self) except -1
    cdef int _end_writing(self) except -1
    cdef int _fail(self, object error) except -1
    cdef int _handshake_over(self, object error) except -1
