"""Sends of many sockets in one system call, where the system has one: `io_submit` of Linux.

It saves more than the calls. Whoever waits at the other end is woken by the first send and, on the CPU where the sender
runs, takes it over at the sender's next return from the kernel: with a call for each, a service beside its agent runs
for one request at a time, and both switch at each. After one call it finds them all.

Rules that hold here:
- Sockets do not block: what they don't take at once is not sent, and the result says so.
- `io_submit` can't be told MSG_NOSIGNAL. So it is used only while the process ignores SIGPIPE, as Python has it.
- What the system refuses (an old kernel, a sandbox, its limit of contexts) is not asked for again.
"""

cimport cython
from libc.errno cimport EINTR, EIO, ENOSYS, EPERM, errno
from libc.signal cimport SIG_IGN, sighandler_t


cdef extern from *:
    """
    #include <errno.h>
    #include <signal.h>
    #include <stdint.h>
    #include <string.h>
    #ifdef __linux__
    #include <sys/syscall.h>
    #include <unistd.h>

    static int setup_context(unsigned long *context, int most) {
        return (int)syscall(SYS_io_setup, most, context);
    }
    static void destroy_context(unsigned long context) {
        syscall(SYS_io_destroy, context);
    }
    static void prepare_send(struct iocb *send, int index, int fd, const char *data, size_t size) {
        memset(send, 0, sizeof(*send));
        send->aio_data = index;
        send->aio_lio_opcode = IOCB_CMD_PWRITE;
        send->aio_fildes = fd;
        send->aio_buf = (uint64_t)(uintptr_t)data;
        send->aio_nbytes = size;
    }
    static long submit_sends(unsigned long context, struct iocb *sends, long count) {
        struct iocb *each[64];
        for (long i = 0; i < count; i++)
            each[i] = &sends[i];
        return syscall(SYS_io_submit, context, count, each);
    }
    /* Takes the results of `count` sends, each of which ended within its submission. */
    static long take_results(unsigned long context, long count, ssize_t *results) {
        struct io_event events[64];
        long taken = syscall(SYS_io_getevents, context, count, count, events, NULL);
        for (long i = 0; i < taken; i++)
            results[events[i].data] = (ssize_t)events[i].res;
        return taken;
    }
    #else
    static int setup_context(unsigned long *context, int most) { errno = ENOSYS; return -1; }
    static void destroy_context(unsigned long context) {}
    static void prepare_send(struct iocb *send, int index, int fd, const char *data, size_t size) {}
    static long submit_sends(unsigned long context, struct iocb *sends, long count) { errno = ENOSYS; return -1; }
    static long take_results(unsigned long context, long count, ssize_t *results) { errno = ENOSYS; return -1; }
    #endif
    /* How the process takes SIGPIPE; nothing is changed. */
    static void (*pipe_handler(void))(int) {
        struct sigaction action;
        return sigaction(SIGPIPE, NULL, &action) ? SIG_DFL : action.sa_handler;
    }
    """
    int setup_context(unsigned long* context, int most) nogil
    void destroy_context(unsigned long context) nogil
    void prepare_send(iocb* send, int index, int fd, const char* data, size_t size) nogil
    long submit_sends(unsigned long context, iocb* sends, long count) nogil
    long take_results(unsigned long context, long count, Py_ssize_t* results) nogil
    sighandler_t pipe_handler() nogil


@cython.auto_pickle(False)
cdef class SendBatch:

    def __dealloc__(self):
        if self._context:
            destroy_context(self._context)

    cdef bint is_full(self) noexcept:
        return self.count == MOST_SENDS

    cdef int add(self, int fd, const char* data, Py_ssize_t size) noexcept:
        """Adds bytes, which stay where they are until `run` has returned."""
        prepare_send(&self._sends[self.count], self.count, fd, data, size)
        self.count += 1
        return 0

    cdef int clear(self) noexcept:
        """Forgets what was added."""
        self.count = 0
        return 0

    cdef bint run(self) noexcept:
        """Sends it all and empties the batch; False where nothing was sent, and plain calls are needed."""
        cdef int i, count = self.count
        cdef long submitted, left = 0
        self.count = 0
        if self._unusable or pipe_handler() != SIG_IGN:
            return False
        if self._context == 0 and setup_context(&self._context, MOST_SENDS):
            self._unusable = True
            return False
        for i in range(count):
            self.results[i] = -EIO      # nobody knows what was sent, should there be no result
        i = 0
        while i < count:
            submitted = submit_sends(self._context, &self._sends[i], count - i)
            if submitted > 0:
                i += <int>submitted
                left += submitted
            elif i == 0 and (errno == ENOSYS or errno == EPERM):
                self._unusable = True
                return False
            else:
                self.results[i] = -errno
                i += 1
        while left > 0:
            submitted = take_results(self._context, left, self.results)
            if submitted > 0:
                left -= submitted
            elif errno != EINTR:
                break
        return True


def send_together(sends):
    """What a batch makes of `sends`, pairs of a descriptor and bytes, at most 64: for each the bytes that were sent, or
    an errno below 0. None where nothing was sent since plain calls are needed. For tests."""
    cdef SendBatch batch = SendBatch()
    cdef bytes data
    cdef int fd
    sends = list(sends)
    if len(sends) > MOST_SENDS:
        raise ValueError("at most 64 sends")
    for fd, data in sends:
        batch.add(fd, data, len(data))
    return [batch.results[i] for i in range(len(sends))] if batch.run() else None
