from backstream._exchange cimport Exchange, Responder


cdef class BodyQueue:
    """Bytes of a response between its stream and the one task that awaits them; the stream's window bounds them."""
    cdef:
        object _pieces                  # a deque of bytes and, while it still grows, bytearray
        readonly Py_ssize_t size        # bytes
        readonly bint finished          # no more will come
        readonly object error           # why the body is not whole, or None
        object _waiter                  # a future

    cdef int put(self, const char* data, Py_ssize_t size) except -1
    cdef int finish(self, object error) except -1
    cdef int clear(self) except -1
    cdef bytes take(self)


cdef class Call(Responder):
    """A request of the program that embeds the proxy, and its response."""
    cdef:
        object __weakref__
        # the request
        Exchange exchange               # None once it is over
        bint is_head
        # the response
        readonly object head            # a ResponseHead, None until it came
        readonly BodyQueue body
        readonly tuple trailers
        # who waits
        object _head_waiter             # futures
        object _room_waiter
        public object on_over           # called once, when the exchange is over

    cdef int _over(self, object error) except -1
