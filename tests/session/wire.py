"""One end of a session under test, and a peer that says exactly what a test tells it to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from backstream import _callbacks, _codec, _message_codec
from backstream._flow import WindowBudget
from backstream._messages import Body, Fields, GoAway, Hello, RequestHead, Reset, ResponseHead
from backstream._session import Session
from backstream._stream import Stream

DATA, REQUEST, RESPONSE, TRAILERS, WINDOW, RESET, HELLO, GOAWAY, NOTIFY, PING = range(10)
END = ACK = 1
INTERIM = 2
KiB = 1024
MiB = 1024 * KiB
INSTANCE = b"0123456789abcdef"

GET = RequestHead(method=b"GET", target=b"/")
POST = RequestHead(method=b"POST", target=b"/", body=Body.CHUNKED)
HEAD = RequestHead(method=b"HEAD", target=b"/")
UPGRADE = RequestHead(method=b"GET", target=b"/", upgrade=b"websocket")
OK = ResponseHead(status=200, body=Body.CHUNKED)
EMPTY = ResponseHead(status=204)
SWITCH = ResponseHead(status=101, upgrade=b"websocket")
CONTINUE = ResponseHead(status=100)


def hello(**members: Any) -> Hello:
    defaults: dict[str, Any] = {
        "instance": INSTANCE,
        "generation": 1,
        "initial_window": 64 * KiB,
        "max_frame_size": 64 * KiB,
        "max_streams": 100,
    }
    return Hello(**{**defaults, **members})


def sized(length: int, status: int = 200) -> ResponseHead:
    return ResponseHead(status=status, body=Body.SIZED, length=length)


def post(length: int) -> RequestHead:
    return RequestHead(method=b"POST", target=b"/", body=Body.SIZED, length=length)


# --- frames of the peer's ----------------------------------------------------------------------------------


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return _message_codec.pack_frame(kind, stream, payload, flags)


def data(stream: int, payload: bytes = b"", end: bool = False) -> bytes:
    return frame(DATA, stream, payload, END if end else 0)


def request(stream: int, head: RequestHead = GET, end: bool = True) -> bytes:
    return frame(REQUEST, stream, _message_codec.pack_request(head), END if end else 0)


def response(stream: int, head: ResponseHead = OK, end: bool = False, flags: int | None = None) -> bytes:
    if flags is None:
        flags = (END if end else 0) | (INTERIM if 100 <= head.status < 200 and head.status != 101 else 0)
    return frame(RESPONSE, stream, _message_codec.pack_response(head), flags)


def trailers(stream: int, pairs: Fields = ((b"x-sum", b"1"),)) -> bytes:
    return frame(TRAILERS, stream, _message_codec.pack_trailers(pairs))


def window(stream: int, count: int) -> bytes:
    return frame(WINDOW, stream, count.to_bytes(4, "big"))


def reset(stream: int, code: int = 0, message: str = "") -> bytes:
    return frame(RESET, stream, _message_codec.pack_reset(Reset(code=code, message=message)))


def goaway(last_stream: int = 0, code: int = 0) -> bytes:
    return frame(GOAWAY, 0, _message_codec.pack_goaway(GoAway(last_stream=last_stream, code=code)))


def greeting(**members: Any) -> bytes:
    return frame(HELLO, 0, _codec.encode_hello(hello(**members)))


_UNPACK: dict[int, Callable[[bytes], Any]] = {
    REQUEST: _message_codec.unpack_request,
    RESPONSE: _message_codec.unpack_response,
    TRAILERS: _message_codec.unpack_trailers,
    WINDOW: lambda payload: int.from_bytes(payload, "big"),
    RESET: _message_codec.unpack_reset,
    HELLO: _codec.decode_hello,
    GOAWAY: _message_codec.unpack_goaway,
    NOTIFY: _message_codec.unpack_notify,
}


@dataclass(frozen=True)
class Sent:
    """A frame that the end under test sent."""

    type: int
    flags: int
    stream: int
    payload: bytes

    @property
    def value(self) -> Any:
        return _UNPACK[self.type](self.payload)

    @property
    def end(self) -> bool:
        return self.type == TRAILERS or (self.type in (DATA, REQUEST, RESPONSE) and bool(self.flags & END))


def frames_of(message: bytes) -> list[Sent]:
    return [Sent(*parts) for parts in _message_codec.unpack_frames(message)]


# --- the end under test ------------------------------------------------------------------------------------


class Handler(_callbacks.Handler):
    """Keeps what it hears. `eager`: body bytes are consumed as they come."""

    def __init__(self, eager: bool = True) -> None:
        self.eager = eager
        self.stream: Stream | None = None
        self.heads: list[ResponseHead] = []
        self.body = bytearray()
        self.unconsumed = 0
        self.trailers: Fields | None = None
        self.ended = False
        self.resets: list[int] = []
        self.messages: list[str] = []
        self.writable_calls = 0
        self.calls: list[str] = []

    def head_received(self, stream: Stream, head: ResponseHead, interim: bool, end: bool) -> None:
        self.calls.append("interim" if interim else "head")
        self.heads.append(head)

    def data_received(self, stream: Stream, data: bytes) -> None:
        self.calls.append("data")
        self.body += data
        if self.eager:
            _callbacks.consume(stream, len(data))
        else:
            self.unconsumed += len(data)

    def consume(self, count: int | None = None) -> None:
        assert self.stream is not None
        count = self.unconsumed if count is None else count
        self.unconsumed -= count
        _callbacks.consume(self.stream, count)

    def end_received(self, stream: Stream, trailers: Fields) -> None:
        self.calls.append("end")
        self.ended = True
        self.trailers = trailers

    def reset_received(self, stream: Stream, code: int, message: str) -> None:
        self.calls.append("reset")
        self.resets.append(code)
        self.messages.append(message)

    def writable(self, stream: Stream) -> None:
        self.calls.append("writable")
        self.writable_calls += 1


@dataclass
class Accepted:
    stream: Stream
    head: RequestHead
    end: bool
    handler: Handler


class Owner(_callbacks.Owner):
    def __init__(self) -> None:
        self.clock = 100.0
        self.eager = True
        self.accepted: list[Accepted] = []
        self.refuse: Exception | bool = False
        self.closed: tuple[int, str, int] | None = None
        self.goaways: list[GoAway] = []
        self.notifies: list[tuple[str, bytes]] = []
        self.hellos: list[Hello] = []
        self.errors: list[Exception] = []

    def time(self) -> float:
        return self.clock

    def stream_accepted(self, stream: Stream, head: RequestHead, end: bool) -> Handler | None:
        if isinstance(self.refuse, Exception):
            raise self.refuse
        if self.refuse:
            return None
        handler = Handler(self.eager)
        handler.stream = stream
        self.accepted.append(Accepted(stream, head, end, handler))
        return handler

    def hello_received(self, hello: Hello) -> None:
        self.hellos.append(hello)

    def goaway_received(self, goaway: GoAway) -> None:
        self.goaways.append(goaway)

    def notify_received(self, content_type: str, data: bytes) -> None:
        self.notifies.append((content_type, data))

    def session_closed(self, code: int, message: str, close_code: int) -> None:
        assert self.closed is None, "a session is closed once"
        self.closed = (code, message, close_code)

    def handler_failed(self, stream: Stream, error: Exception) -> None:
        self.errors.append(error)


@dataclass
class End:
    """A session and its owner; the test is the peer."""

    is_proxy: bool
    owner: Owner = field(default_factory=Owner)
    budget: WindowBudget = field(default_factory=lambda: WindowBudget(256 * MiB))
    settings: dict[str, Any] = field(default_factory=dict)
    max_window: int = 16 * MiB
    max_upgraded_window: int = MiB

    def __post_init__(self) -> None:
        self.session = Session(
            self.owner,
            self.is_proxy,
            hello(**self.settings),
            self.budget,
            self.max_window,
            self.max_upgraded_window,
        )

    def greeted(self, **members: Any) -> End:
        """After HELLO both ways; `members` are those of the peer's."""
        self.hear(greeting(**members))
        (sent,) = self.said()
        assert sent.type == HELLO
        return self

    def hear(self, *frames: bytes) -> None:
        """The peer's frames, in one message."""
        _callbacks.receive(self.session, b"".join(frames))

    def message(self, limit: int = 256 * KiB) -> list[Sent]:
        """The frames of the next message."""
        return frames_of(_callbacks.pull(self.session, limit))

    def said(self) -> list[Sent]:
        """All frames that wait to be sent."""
        frames: list[Sent] = []
        while message := self.message():
            frames += message
        return frames

    def open(self, head: RequestHead = GET, end: bool | None = None, eager: bool = True) -> Handler:
        """Opens a stream; GET and HEAD end at once."""
        handler = Handler(eager)
        if end is None:
            end = head.body == Body.NONE and not head.upgrade
        handler.stream = _callbacks.open_stream(self.session, head, handler, end)
        assert handler.stream is not None
        return handler

    def alive(self) -> bool:
        """Whether the session still serves: a new stream of the peer's or of its own goes through."""
        if self.owner.closed is not None:
            return False
        if self.is_proxy:
            handler = self.open()
            assert handler.stream is not None
            self.hear(response(handler.stream.id, EMPTY, end=True))
            return handler.ended
        return True

    @property
    def closed(self) -> tuple[int, int] | None:
        """(error code, close code) once the session is over."""
        return None if self.owner.closed is None else (self.owner.closed[0], self.owner.closed[2])


def proxy(peer: dict[str, Any] | None = None, **options: Any) -> End:
    """A proxy's end after HELLO, with an agent as its peer."""
    return End(True, **options).greeted(**(peer or {}))


def agent(peer: dict[str, Any] | None = None, **options: Any) -> End:
    """An agent's end after HELLO, with a proxy as its peer."""
    return End(False, **options).greeted(**(peer or {}))


def serve(end: End, stream: int = 1, head: RequestHead = GET, over: bool | None = None) -> Accepted:
    """The peer opens a stream and the end accepts it."""
    if over is None:
        over = head.body == Body.NONE and not head.upgrade
    end.hear(request(stream, head, over))
    accepted = end.owner.accepted[-1]
    assert accepted.stream.id == stream
    return accepted


def resets(frames: list[Sent], stream: int | None = None) -> list[int]:
    """The codes of the RESET frames among these."""
    return [f.value.code for f in frames if f.type == RESET and (stream is None or f.stream == stream)]
