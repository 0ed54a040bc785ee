"""Writing HTTP/1.1 to a socket, and exact account of which body bytes the peer's side took.

What gathers in a turn of the loop leaves in one system call at its end; a large piece of a body has a call of its own
as it comes, and takes what has gathered with it. What the socket does not take goes to the transport, which says when
all of it is gone. Until then nothing more is sent and the bytes count as not taken.
"""

import socket

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from backstream._buffer cimport Buffer, append, reserve
from backstream._codec cimport Field
from backstream._send_batch cimport SendBatch
from backstream._tls cimport TlsTransport


cdef extern from "<sys/socket.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t c_send "send" (int fd, const void* data, size_t size, int flags)
    ssize_t c_sendmsg "sendmsg" (int fd, const msghdr* message, int flags)
    int MSG_NOSIGNAL
    int MSG_DONTWAIT

cdef extern from *:
    """
    #include <sys/ioctl.h>
    #ifdef __linux__
    #include <linux/sockios.h>
    #endif
    /* Bytes that the kernel holds of what was sent: those that the peer has not acknowledged. */
    static int unacknowledged(int fd) {
        int count = 0;
    #ifdef SIOCOUTQ
        if (ioctl(fd, SIOCOUTQ, &count) < 0)
            count = 0;
    #endif
        return count;
    }
    """
    int unacknowledged(int fd) nogil

cdef enum:
    KEPT_BUFFER = 4096              # bytes that an idle connection keeps for its next message
    AT_ONCE = 16384                 # body bytes that are sent from where they lie
    CHUNK_ROOM = 20                 # for a chunk's size and its line ends


cdef Py_ssize_t _size_room(Py_ssize_t size) noexcept:
    """Bytes of a chunk's first line."""
    cdef Py_ssize_t room = 3
    while size > 15:
        size >>= 4
        room += 1
    return room


cdef Py_ssize_t _write_size(char* at, Py_ssize_t size) noexcept:
    """A chunk's first line; returns its bytes."""
    cdef Py_ssize_t room = _size_room(size), i
    for i in range(room - 3, -1, -1):
        at[i] = (<const char*>b"0123456789abcdef")[size & 15]
        size >>= 4
    at[room - 2] = c'\r'
    at[room - 1] = c'\n'
    return room


cdef class SocketWriter:

    def __init__(self):
        self.out = Buffer()
        self.fd = -1

    cdef int attach(self, object transport) except -1:
        """Takes the transport, with TCP keep-alive and no buffer that would count as room."""
        cdef object sock = transport.get_extra_info("socket")
        self.transport = transport
        transport.set_write_buffer_limits(0)
        if isinstance(transport, TlsTransport):
            self.tls = <TlsTransport>transport
        if sock is not None:
            self.fd = sock.fileno()
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return 0

    cdef int64_t send(self) except -2:
        """Sends what there is; returns how many bytes of the body left, -1 when the connection is broken."""
        cdef Py_ssize_t sent = 0
        if self.blocked or self.out.size == 0:
            return 0
        if self.tls is None and self.fd >= 0:
            sent = c_send(self.fd, self.out.data, self.out.size, MSG_NOSIGNAL | MSG_DONTWAIT)
            if sent < 0:
                sent = -errno
        return self.settle(sent)

    cdef bint join(self, SendBatch batch) noexcept:
        """Adds to the batch what `send` would send by one plain call, if that is what it would do."""
        if self.blocked or self.out.size == 0 or self.tls is not None or self.fd < 0:
            return False
        batch.add(self.fd, self.out.data, self.out.size)
        return True

    cdef int64_t settle(self, Py_ssize_t sent) except -2:
        """`sent` bytes have left, or it failed with the errno -`sent`: sees to the others; returns what `send` does."""
        if sent < 0:
            if sent != -EAGAIN and sent != -EINTR:
                return -1
            sent = 0
        return self._sent(sent)

    cdef bint sends_at_once(self, Py_ssize_t size) noexcept:
        """Whether `size` body bytes are worth a system call of their own: more than the copy into the buffer costs."""
        return size >= AT_ONCE and not self.blocked and self.tls is None and self.fd >= 0

    cdef int64_t send_body(self, const char* data, Py_ssize_t size, bint chunked) except -2:
        """Sends what there is and body bytes behind it from where they lie; returns what `send` does."""
        cdef iovec parts[3]
        cdef msghdr message
        cdef Py_ssize_t sent
        cdef char* at
        if chunked:
            at = reserve(self.out, CHUNK_ROOM)
            self.out.size += _write_size(at, size)
        parts[0].iov_base = self.out.data
        parts[0].iov_len = self.out.size
        parts[1].iov_base = <void*>data
        parts[1].iov_len = size
        parts[2].iov_base = <void*><const char*>b"\r\n"
        parts[2].iov_len = 2 if chunked else 0
        memset(&message, 0, sizeof(message))
        message.msg_iov = parts
        message.msg_iovlen = 3
        self.body += size
        sent = c_sendmsg(self.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                return -1
            sent = 0
        if <size_t>sent < parts[0].iov_len + parts[1].iov_len + parts[2].iov_len:
            append(self.out, data, size)
            append(self.out, <const char*>parts[2].iov_base, parts[2].iov_len)
            return self._sent(sent)
        return self._sent(self.out.size)

    cdef int64_t _sent(self, Py_ssize_t sent) except -2:
        """The socket has taken `sent` bytes of the buffer: the others go to the transport."""
        cdef int64_t taken = self.body
        cdef Py_ssize_t rest = self.out.size - sent
        if rest:
            # The last bytes of the buffer are the body's last ones.
            self.transport_body = taken if taken < rest else rest
            taken -= self.transport_body
            if self.tls is not None:
                self.tls.send(self.out.data, rest)
            else:
                self.transport.write(PyBytes_FromStringAndSize(self.out.data + sent, rest))
            if not self.blocked:
                taken += self.transport_body
                self.transport_body = 0
        self.out.size = self.chunk_end = 0
        self.body = 0
        if self.out.capacity > KEPT_BUFFER:
            self.out.release()
        return taken

    cdef int64_t resume(self) noexcept:
        """The transport has sent all; returns how many bytes of the body that were."""
        cdef int64_t taken = self.transport_body
        self.transport_body = 0
        self.blocked = False
        return taken

    cdef int forget_body(self) except -1:
        """The message is over: nobody asks for its credit any more."""
        self.body = self.transport_body = 0
        return 0

    cdef bint empty(self) noexcept:
        return self.out.size == 0 and not self.blocked

    cdef int64_t untaken(self) except -1:
        """Bytes on the wire that were sent and that the peer's side has not acknowledged."""
        cdef int64_t count = self.transport.get_write_buffer_size()
        return count + unacknowledged(self.fd) if self.fd >= 0 else count

    cdef int half_close(self) except -1:
        """Ends this side's direction of the socket."""
        try:
            self.transport.write_eof()
        except (OSError, RuntimeError, NotImplementedError):
            self.transport.close()
        return 0

    cdef int text(self, bytes value) except -1:
        return append(self.out, <const char*>value, len(value))

    cdef int number(self, uint64_t value) except -1:
        """A number in decimal digits."""
        cdef char digits[20]
        cdef int at = 20
        while True:
            at -= 1
            digits[at] = <char>(c'0' + value % 10)
            value //= 10
            if value == 0:
                break
        return append(self.out, digits + at, 20 - at)

    cdef int fields(self, const Field* fields, Py_ssize_t count) except -1:
        """Field lines, as they are."""
        cdef Py_ssize_t i, room = 0
        cdef char* at
        for i in range(count):
            room += fields[i].name.size + fields[i].value.size + 4
        at = reserve(self.out, room + 1)
        for i in range(count):
            memcpy(at, fields[i].name.ptr, fields[i].name.size)
            at += fields[i].name.size
            at[0] = c':'
            at[1] = c' '
            at += 2
            memcpy(at, fields[i].value.ptr, fields[i].value.size)
            at += fields[i].value.size
            at[0] = c'\r'
            at[1] = c'\n'
            at += 2
        self.out.size = at - self.out.data
        return 0

    cdef int data(self, const char* data, Py_ssize_t size) except -1:
        """Body bytes as they are."""
        append(self.out, data, size)
        self.body += size
        return 0

    cdef int chunk(self, const char* data, Py_ssize_t size) except -1:
        """Body bytes as one chunk (RFC 9112 §7.1)."""
        cdef char* at
        if self.blocked and self.chunk_end and self.chunk_end == self.out.size:
            return self._lengthen_chunk(data, size)
        at = reserve(self.out, size + CHUNK_ROOM)
        self.chunk_begin = self.out.size
        self.chunk_size = size
        at += _write_size(at, size)
        memcpy(at, data, size)
        at += size
        at[0] = c'\r'
        at[1] = c'\n'
        self.out.size = self.chunk_end = at + 2 - self.out.data
        self.body += size
        return 0

    cdef int _lengthen_chunk(self, const char* data, Py_ssize_t size) except -1:
        """Adds to the chunk that waits: framed one by one, bytes would take seven times what their credit counts."""
        cdef Py_ssize_t before = _size_room(self.chunk_size), after = _size_room(self.chunk_size + size)
        cdef char* begin
        reserve(self.out, size + after - before)
        begin = self.out.data + self.chunk_begin
        if after > before:
            memmove(begin + after, begin + before, self.chunk_size)
        memcpy(begin + after + self.chunk_size, data, size)
        self.chunk_size += size
        _write_size(begin, self.chunk_size)
        begin += after + self.chunk_size
        begin[0] = c'\r'
        begin[1] = c'\n'
        self.out.size = self.chunk_end = begin + 2 - self.out.data
        self.body += size
        return 0
