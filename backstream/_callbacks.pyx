"""Streams, sessions and deadlines for Python code: the same interfaces as below, with Python values.

Slower than a `cdef` handler by the objects that it builds; for programs that want no ASGI, and for tests.
"""

from libc.stdint cimport uint32_t

from backstream._buffer cimport Buffer
from backstream._codec cimport MAX_MESSAGE_SIZE, FieldArray, RequestHead, ResponseHead, Trailers, encode_request
from backstream._loop cimport LoopMember, loop_state
from backstream._message_codec cimport (
    fill_request, fill_response, fill_trailers, pairs_of, request_object, response_object,
)
from backstream._seed_session cimport SeedSession
from backstream._session cimport Session
from backstream._stream cimport SessionOwner, Stream, StreamHandler

cdef bytearray _message = bytearray(MAX_MESSAGE_SIZE)


cdef class Deadline(LoopMember):
    """One deadline at a time on the running loop; `passed` is called when it has come."""

    def __init__(self):
        self.loop = loop_state()

    def set(self, double seconds):
        """From now, instead of the one that it had."""
        self.loop.set_deadline(self, seconds)

    def clear(self):
        self.loop.clear_deadline(self)

    def passed(self):
        """For subclasses."""

    cdef int on_deadline(self) except -1:
        self.passed()
        return 0


cdef class Handler(StreamHandler):
    """Derive from it and override what is of interest; `StreamHandler` says what may be called when."""

    def head_received(self, stream, head, interim, end):
        """A `ResponseHead` came; `interim` ones are followed by more; `end`: no body follows."""

    def data_received(self, stream, data):
        """Body bytes came. Call `consume(stream, len(data))` when they are used up, now or later."""
        consume(stream, len(data))

    def end_received(self, stream, trailers):
        """The peer's direction is complete; `trailers` are (name, value) pairs of bytes."""

    def reset_received(self, stream, code, message):
        """The stream ended before its time."""

    def writable(self, stream):
        """`room(stream)` is above 0 again."""

    cdef int on_head(self, Stream stream, const ResponseHead* head, bint interim, bint end) except -1:
        self.head_received(stream, response_object(head), interim, end)
        return 0

    cdef int on_data(self, Stream stream, const char* data, Py_ssize_t size) except -1:
        self.data_received(stream, data[:size])
        return 0

    cdef int on_end(self, Stream stream, const Trailers* trailers) except -1:
        self.end_received(stream, pairs_of_trailers(trailers))
        return 0

    cdef int on_reset(self, Stream stream, uint32_t code, str message) except -1:
        self.reset_received(stream, code, message)
        return 0

    cdef int on_writable(self, Stream stream) except -1:
        self.writable(stream)
        return 0


cdef tuple pairs_of_trailers(const Trailers* trailers):
    return () if trailers == NULL else pairs_of(trailers.fields, trailers.field_count)


cdef class Owner(SessionOwner):
    """A session's owner in Python, for tests: its clock stands still unless `time` is overridden."""

    def time(self):
        return 0.0

    def woken(self):
        """The session has output."""

    def stream_accepted(self, stream, head, end):
        """Returns a `Handler` for a stream that the peer opened, or None to refuse it."""
        return None

    def hello_received(self, hello):
        """The peer's HELLO."""

    def goaway_received(self, goaway):
        """The peer's GOAWAY."""

    def notify_received(self, content_type, data):
        """A one-way event."""

    def session_closed(self, code, message, close_code):
        """The session is over."""

    def handler_failed(self, stream, error):
        raise error

    cdef double now(self) noexcept:
        return self.time()

    cdef int wake(self) except -1:
        self.woken()
        return 0

    cdef StreamHandler accept(self, Stream stream, const RequestHead* head, bint end):
        return self.stream_accepted(stream, request_object(head), end)

    cdef int on_hello(self, object hello) except -1:
        self.hello_received(hello)
        return 0

    cdef int on_goaway(self, object goaway) except -1:
        self.goaway_received(goaway)
        return 0

    cdef int on_notify(self, str content_type, bytes data) except -1:
        self.notify_received(content_type, data)
        return 0

    cdef int on_close(self, uint32_t code, str message, int close_code) except -1:
        self.session_closed(code, message, close_code)
        return 0

    cdef int on_handler_error(self, Stream stream, object error) except -1:
        self.handler_failed(stream, error)
        return 0


def open_stream(Session session, head, Handler handler, bint end=False):
    """Opens a stream with a `RequestHead`, or returns None when the session takes none now."""
    cdef RequestHead raw
    cdef FieldArray fields = FieldArray()
    cdef Buffer out = Buffer()
    if not session.can_open():
        return None
    fill_request(head, &raw, fields)
    encode_request(out, &raw)
    return session.open(out.data, out.size, handler, end, head.method == b"HEAD",
                        head.length if head.body == 1 else -1, len(head.upgrade) > 0)


def respond(Stream stream, head, bint end=False):
    """Sends a `ResponseHead`, interim for 1xx but 101. Raises StreamError when it is too large or a second one."""
    cdef ResponseHead raw
    cdef FieldArray fields = FieldArray()
    fill_response(head, &raw, fields)
    if 100 <= raw.status < 200 and raw.status != 101:
        stream.respond_interim(&raw)
    else:
        stream.respond(&raw, end)


def write(Stream stream, bytes data):
    """Sends body bytes, at most `room(stream)` where the caller can help it."""
    stream.write(data)


def end(Stream stream, trailers=()):
    """Ends this side's direction, with (name, value) pairs of bytes as trailers if there are any."""
    cdef Trailers raw
    cdef FieldArray fields
    if trailers:
        fields = FieldArray()
        fill_trailers(trailers, &raw, fields)
        stream.end_with_trailers(&raw)
    else:
        stream.end()


def reset(Stream stream, int code, str message=""):
    """Gives the stream up."""
    stream.reset(code, message)


def consume(Stream stream, count):
    """The consumer took `count` bytes: grants them again."""
    stream.consume(count)


def room(Stream stream) -> int:
    """How many bytes may be written now; after 0 `Handler.writable` will come."""
    return stream.room()


def is_closed(Stream stream) -> bool:
    """Whether both directions have ended, or the stream was reset."""
    return stream.is_closed()


def staged(Stream stream) -> int:
    """Bytes that were written and have not left yet."""
    return stream.staged


def window(Stream stream) -> tuple:
    """The receive window as (window, credit, queued, ungranted) in bytes."""
    return (stream._window.window, stream._window.credit, stream._window.queued, stream._window.ungranted)


def budget_bytes(Stream stream) -> int:
    """Bytes of the process's window budget that the stream holds."""
    return stream._budget_bytes


def receive(Session session, bytes message):
    """Hands one whole message to a session."""
    session.receive(message, len(message))


def pull(Session session, Py_ssize_t limit=MAX_MESSAGE_SIZE) -> bytes:
    """The next message of a session, empty when it has nothing to say."""
    cdef bytes message
    cdef char* target = _message
    if not session.has_output():
        return b""
    message = target[:session.pull(target, limit)]
    session.after_pull()
    return message


def take(SeedSession session, bytes message, bint json=False):
    """Hands one whole message to a session on the seed wire, in JSON or binary."""
    session.take(json, message, len(message))


def pull_frame(SeedSession session, Py_ssize_t limit=65536):
    """The next WebSocket frame of a session on the seed wire, None when it has nothing to say.

    (opcode, whether it is the last of its message, its payload of at most `limit` bytes).
    """
    cdef int opcode = 0
    cdef bint last = False
    cdef char* target = _message
    cdef Py_ssize_t size
    if not session.has_output():
        return None
    size = session.next_piece(min(limit, <Py_ssize_t>MAX_MESSAGE_SIZE), &opcode, &last)
    if size == 0:
        return None
    session.pull_piece(target, size)
    return (opcode, bool(last), target[:size])


def end_turn(Session session):
    """The turn's last message is out: streams hear what waited for that."""
    session.after_pull()


def expire(SeedSession session, double now):
    """Ends the peer's requests on the seed wire that have had their time."""
    session.expire(now)


def has_output(Session session) -> bool:
    """Whether `pull` would give bytes if the transport had room."""
    return session.has_output()


def set_congested(Session session, bint congested):
    """The transport is above its high-water mark, or no more."""
    session.set_congested(congested)


def can_open(Session session) -> bool:
    """Whether a stream can be opened now."""
    return session.can_open()


def skip_ids(Session session, int next_id):
    """Goes on with stream `next_id`, for tests of what happens when the ids are used up."""
    session._next_id = next_id


def budget_used(Session session) -> int:
    """Bytes of the process's window budget that the session holds."""
    return session.share.used_bytes
