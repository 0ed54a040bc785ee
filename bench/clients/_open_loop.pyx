# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Requests at a fixed rate on kept connections: the loop of open_loop.py."""

from array import array

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, itimerspec, timespec
from posix.unistd cimport close

cdef extern from "sys/epoll.h" nogil:
    union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int EPOLLIN, EPOLLOUT, EPOLL_CTL_ADD, EPOLL_CTL_MOD
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event*)
    int epoll_wait(int, epoll_event*, int, int)

cdef extern from "sys/timerfd.h" nogil:
    int TFD_NONBLOCK, TFD_TIMER_ABSTIME
    int timerfd_create(int, int)
    int timerfd_settime(int, int, const itimerspec*, itimerspec*)

cdef extern from "arpa/inet.h" nogil:
    struct in_addr:
        uint32_t s_addr
    struct sockaddr:
        pass
    struct sockaddr_in:
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr
    int AF_INET, SOCK_STREAM, SOCK_NONBLOCK, SOL_SOCKET, SO_ERROR, IPPROTO_TCP, MSG_NOSIGNAL
    uint32_t INADDR_LOOPBACK
    ctypedef uint32_t socklen_t
    uint32_t htonl(uint32_t)
    unsigned short htons(unsigned short)
    int socket(int, int, int)
    int connect(int, const sockaddr*, socklen_t)
    int setsockopt(int, int, int, const void*, socklen_t)
    int getsockopt(int, int, int, void*, socklen_t*)
    Py_ssize_t send(int, const void*, size_t, int)
    Py_ssize_t recv(int, void*, size_t, int)

cdef extern from "netinet/tcp.h" nogil:
    int TCP_NODELAY

cdef enum:
    BUFFER = 2048           # bytes of an answer, at most
    EVENTS = 64
    RETRY = 5000000         # ns before a refused connection is tried again
    NOBODY = -1
    LOST = -1               # in place of a latency
    UNANSWERED = -2
    TIMER = 0xFFFFFFFF

# Of a connection: nothing there, connecting, at leave for a request, one under way.
cdef enum State:
    CLOSED
    CONNECTING
    FREE
    BUSY


cdef struct Connection:
    int fd
    State state
    int next                # in the queue of free ones
    int64_t request         # the one under way
    int64_t retry_at        # ns
    Py_ssize_t received
    char* buffer


cdef inline int64_t _now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <int64_t>time.tv_sec * 1000000000 + time.tv_nsec


cdef class OpenLoop:
    """`count` requests at `rate` per second to a port of 127.0.0.1, on `connections` kept connections.

    Request k is due k / rate seconds after the beginning, whatever became of those before it: it takes the connection
    that has been free for longest, or waits for one, and its latency counts from when it was due. message: the request.
    body: what each answer must end with; its status must be 200. grace_ns: how long to wait for answers after the last
    request was due.
    """
    cdef Connection* _connections
    cdef char* _buffers
    cdef int64_t* _latencies
    cdef int _size, _poll, _timer, _first_free, _last_free, _open
    cdef int64_t _count, _next, _answered, _ended, _begin, _grace, _timer_at
    cdef double _interval
    cdef bytes _message, _body
    cdef const char* _text
    cdef const char* _end
    cdef Py_ssize_t _text_size, _end_size
    cdef sockaddr_in _address
    cdef readonly int64_t begin_ns

    def __cinit__(self, int port, int connections, double rate, int64_t count, bytes message, bytes body,
                  int64_t grace_ns):
        cdef int i
        self._poll = self._timer = NOBODY
        self._size, self._count, self._grace = connections, count, grace_ns
        self._interval = 1e9 / rate
        self._message, self._body = message, body
        self._text, self._text_size = PyBytes_AS_STRING(message), len(message)
        self._end, self._end_size = PyBytes_AS_STRING(body), len(body)
        self._first_free = self._last_free = NOBODY
        self._connections = <Connection*>calloc(connections, sizeof(Connection))
        self._buffers = <char*>malloc(connections * BUFFER)
        self._latencies = <int64_t*>malloc(max(count, 1) * sizeof(int64_t))
        if self._connections == NULL or self._buffers == NULL or self._latencies == NULL:
            raise MemoryError
        for i in range(connections):
            self._connections[i].fd = NOBODY
            self._connections[i].buffer = self._buffers + i * BUFFER
        memset(&self._address, 0, sizeof(self._address))
        self._address.sin_family = AF_INET
        self._address.sin_port = htons(port)
        self._address.sin_addr.s_addr = htonl(INADDR_LOOPBACK)

    def __dealloc__(self):
        cdef int i
        if self._connections != NULL:
            for i in range(self._size):
                if self._connections[i].fd >= 0:
                    close(self._connections[i].fd)
        for i in (self._poll, self._timer):
            if i >= 0:
                close(i)
        free(self._connections)
        free(self._buffers)
        free(self._latencies)

    def run(self):
        """The latency of each request in ns: -1 where the answer was wrong or cut, -2 where none came in time.

        Begins when all connections are there. OSError when that takes longer than the grace.
        """
        cdef epoll_event event
        cdef int failed
        self._poll = epoll_create1(0)
        self._timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)
        if self._poll < 0 or self._timer < 0:
            raise OSError(errno, "no epoll, or no timer")
        event.events = EPOLLIN
        event.data.u64 = TIMER
        epoll_ctl(self._poll, EPOLL_CTL_ADD, self._timer, &event)
        with nogil:
            failed = self._run()
        if failed:
            raise OSError(failed, "the connections could not be made")
        latencies = array("q")
        latencies.frombytes(PyBytes_FromStringAndSize(<char*>self._latencies, self._count * sizeof(int64_t)))
        return latencies

    cdef int _run(self) noexcept nogil:
        cdef epoll_event events[EVENTS]
        cdef int64_t now = _now()
        cdef int64_t limit = now + self._grace
        cdef int64_t at
        cdef int i, found
        for i in range(self._count):
            self._latencies[i] = UNANSWERED
        for i in range(self._size):
            self._connect(&self._connections[i], now)
        while self._begin == 0 or self._ended < self._count:
            now = _now()
            if self._begin == 0 and self._open == self._size:
                self._begin = self.begin_ns = now
                limit = now + <int64_t>(self._interval * self._count) + self._grace
            if now > limit:
                return 110 if self._begin == 0 else 0
            self._send_due(now)
            at = limit
            if self._begin and self._next < self._count and self._first_free >= 0:
                at = min(at, self._due(self._next))
            if self._open < self._size:
                for i in range(self._size):
                    if self._connections[i].state != CLOSED:
                        continue
                    if self._connections[i].retry_at <= now:
                        self._connect(&self._connections[i], now)
                    else:
                        at = min(at, self._connections[i].retry_at)
            self._set_timer(at)
            found = epoll_wait(self._poll, events, EVENTS, -1)
            if found < 0 and errno != EINTR:
                return errno
            for i in range(found):
                if events[i].data.u64 == TIMER:
                    self._timer_at = 0
                else:
                    self._ready(<int>events[i].data.u64)
        return 0

    cdef inline int64_t _due(self, int64_t request) noexcept nogil:
        return self._begin + <int64_t>(self._interval * request)

    cdef void _set_timer(self, int64_t at) noexcept nogil:
        cdef itimerspec timer
        if at == self._timer_at:
            return
        self._timer_at = at
        memset(&timer, 0, sizeof(timer))
        timer.it_value.tv_sec = at // 1000000000
        timer.it_value.tv_nsec = at % 1000000000
        timerfd_settime(self._timer, TFD_TIMER_ABSTIME, &timer, NULL)

    cdef void _connect(self, Connection* connection, int64_t now) noexcept nogil:
        cdef epoll_event event
        cdef int one = 1
        connection.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)
        if connection.fd < 0:
            connection.retry_at = now + RETRY
            return
        setsockopt(connection.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        connection.state = CONNECTING
        if connect(connection.fd, <sockaddr*>&self._address, sizeof(self._address)) < 0 and errno != EINPROGRESS:
            self._close(connection)
            return
        event.events = EPOLLOUT
        event.data.u64 = connection - self._connections
        epoll_ctl(self._poll, EPOLL_CTL_ADD, connection.fd, &event)

    cdef void _close(self, Connection* connection) noexcept nogil:
        """Closes it, to be made again after a while; the request under way is lost."""
        cdef int i = connection - self._connections
        cdef int before = NOBODY
        cdef int at = self._first_free
        close(connection.fd)
        connection.fd = NOBODY
        connection.retry_at = _now() + RETRY
        if connection.state >= FREE:
            self._open -= 1
        if connection.state == BUSY:
            self._end_request(connection.request, LOST)
        elif connection.state == FREE:
            while at != i:
                before, at = at, self._connections[at].next
            if before == NOBODY:
                self._first_free = connection.next
            else:
                self._connections[before].next = connection.next
            if self._last_free == i:
                self._last_free = before
        connection.state = CLOSED

    cdef void _end_request(self, int64_t request, int64_t latency) noexcept nogil:
        self._latencies[request] = latency
        self._ended += 1

    cdef void _release(self, Connection* connection) noexcept nogil:
        """It may take a request, after those that are free already."""
        cdef int i = connection - self._connections
        connection.state = FREE
        connection.received = 0
        connection.next = NOBODY
        if self._first_free == NOBODY:
            self._first_free = i
        else:
            self._connections[self._last_free].next = i
        self._last_free = i

    cdef void _send_due(self, int64_t now) noexcept nogil:
        cdef Connection* connection
        while self._begin and self._next < self._count and self._first_free >= 0 and self._due(self._next) <= now:
            connection = &self._connections[self._first_free]
            self._first_free = connection.next
            connection.state = BUSY
            connection.request = self._next
            self._next += 1
            # So few bytes always fit: what is sent in part is as bad as what is refused.
            if send(connection.fd, self._text, self._text_size, MSG_NOSIGNAL) != self._text_size:
                self._close(connection)

    cdef void _ready(self, int i) noexcept nogil:
        cdef Connection* connection = &self._connections[i]
        cdef epoll_event event
        cdef int error = 0
        cdef socklen_t size = sizeof(error)
        cdef Py_ssize_t count
        if connection.state == CONNECTING:
            getsockopt(connection.fd, SOL_SOCKET, SO_ERROR, &error, &size)
            if error:
                self._close(connection)
                return
            event.events = EPOLLIN
            event.data.u64 = i
            epoll_ctl(self._poll, EPOLL_CTL_MOD, connection.fd, &event)
            self._open += 1
            self._release(connection)
            return
        if connection.state == CLOSED:
            return
        count = recv(connection.fd, connection.buffer + connection.received, BUFFER - connection.received, 0)
        if count < 0 and (errno == EAGAIN or errno == EINTR):
            return
        if count <= 0 or connection.state == FREE:
            self._close(connection)     # it ended, or said what nobody asked for
            return
        connection.received += count
        if connection.received < self._end_size or memcmp(
            connection.buffer + connection.received - self._end_size, self._end, self._end_size
        ):
            if connection.received == BUFFER or (
                connection.received >= 13 and memcmp(connection.buffer, b"HTTP/1.1 200 ", 13)
            ):
                self._close(connection)
            return
        if memcmp(connection.buffer, b"HTTP/1.1 200 ", 13):
            self._close(connection)
            return
        self._end_request(connection.request, _now() - self._due(connection.request))
        self._release(connection)
