"""Sessions: the input is a program for one end and a peer that may send anything, or for two honest ends.

No message makes a session raise. Handlers are called in the order that `StreamHandler` promises. What an end sends is
whole frames that a peer may get, within the credit and sizes that the peer gave. Counters are what they count, credit
adds up, and once the session is lost all of it is zero. Between honest ends no session ends, bytes arrive whole and in
order, and what was cut never looks complete.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from backstream import _callbacks, _codec, _message_codec
from backstream._flow import WindowBudget
from backstream._messages import Body, GoAway, Hello, RequestHead, Reset, ResponseHead
from backstream._session import Session
from backstream._stream import Stream
from backstream.errors import StreamError
from fuzz.steps import Steps

DATA, REQUEST, RESPONSE, TRAILERS, WINDOW, RESET, HELLO, GOAWAY, NOTIFY, PING = range(10)
KiB = 1024
MESSAGE = 256 * KiB
HEAD = 128 * KiB
WINDOW_SIZE = 16 * KiB
STAGE = 128 * KiB
PATTERN = bytes(range(251)) * 600

REQUESTS = [
    RequestHead(method=b"GET", target=b"/"),
    RequestHead(method=b"POST", target=b"/", body=Body.CHUNKED),
    RequestHead(method=b"POST", target=b"/", body=Body.SIZED, length=40),
    RequestHead(method=b"POST", target=b"/", body=Body.SIZED, length=20000),
    RequestHead(method=b"HEAD", target=b"/"),
    RequestHead(method=b"GET", target=b"/", upgrade=b"websocket"),
    RequestHead(method=b"POST", target=b"/", body=Body.SIZED),
]
RESPONSES = [
    ResponseHead(status=200, body=Body.CHUNKED),
    ResponseHead(status=200, body=Body.SIZED, length=40),
    ResponseHead(status=200, body=Body.SIZED, length=20000),
    ResponseHead(status=204),
    ResponseHead(status=304, body=Body.SIZED, length=9),
    ResponseHead(status=101, upgrade=b"websocket"),
    ResponseHead(status=103),
    ResponseHead(status=200, body=Body.SIZED),
]
SIZES = [0, 1, 7, 40, 1000, 1024, 4096, 16 * KiB, 16 * KiB + 1, 64 * KiB, 64 * KiB + 1, 100_000]
CREDIT = [0, 1, 127, 128, 4096, 20000, 1 << 20, 0x7FFFFFFF, 0x80000000]
LIMITS = [MESSAGE, 32 * KiB, 16 * KiB, 64, 10]


class Handler(_callbacks.Handler):
    """Checks the order of what it is told; consumes when its end says so."""

    def __init__(self, opened_here: bool) -> None:
        self.opened_here = opened_here
        self.stream: Any = None
        self.head_came = not opened_here
        self.over = self.ended = self.was_reset = False
        self.unconsumed = 0
        self.events: list[object] = []
        self.received = bytearray()

    def head_received(self, stream: Stream, head: ResponseHead, interim: bool, end: bool) -> None:
        assert self.opened_here and not self.head_came and not self.over and not self.ended
        self.head_came = not interim
        self.events.append((head, interim, end))

    def data_received(self, stream: Stream, data: bytes) -> None:
        assert self.head_came and not self.over and not self.ended and data
        self.unconsumed += len(data)
        self.received += data
        self.events.append(len(data))

    def end_received(self, stream: Stream, trailers: Any) -> None:
        assert self.head_came and not self.over and not self.ended
        self.ended = True
        self.events.append(("end", trailers))

    def reset_received(self, stream: Stream, code: int, message: str) -> None:
        assert not self.over
        self.over = self.was_reset = True
        self.events.append(("reset", code))

    def writable(self, stream: Stream) -> None:
        assert not self.over


class Owner(_callbacks.Owner):
    def __init__(self) -> None:
        self.clock = 100.0
        self.end: Any = None
        self.closed: tuple[int, int] | None = None
        self.events: list[object] = []
        self.accepts: bool | StreamError = True

    def time(self) -> float:
        return self.clock

    def stream_accepted(self, stream: Stream, head: RequestHead, end: bool) -> Handler | None:
        if isinstance(self.accepts, StreamError):
            raise self.accepts
        if not self.accepts:
            return None
        handler = Handler(False)
        handler.stream = stream
        handler.events.append((head, end))
        self.end.handlers.append(handler)
        return handler

    def hello_received(self, hello: Hello) -> None:
        self.events.append(hello)

    def goaway_received(self, goaway: GoAway) -> None:
        self.events.append(goaway)

    def notify_received(self, content_type: str, data: bytes) -> None:
        self.events.append((content_type, data))

    def session_closed(self, code: int, message: str, close_code: int) -> None:
        assert self.closed is None, "a session ends once"
        self.closed = (code, close_code)

    def handler_failed(self, stream: Stream, error: Exception) -> None:
        raise error


class End:
    """One end of a session, what it holds, and what its peer may expect of it."""

    def __init__(self, is_proxy: bool) -> None:
        self.owner = Owner()
        self.owner.end = self
        self.handlers: list[Handler] = []
        self.budget = WindowBudget(100 * KiB)
        hello = Hello(
            instance=bytes(16), generation=1, initial_window=WINDOW_SIZE, max_frame_size=16 * KiB, max_streams=4
        )
        self.session = Session(self.owner, is_proxy, hello, self.budget, 64 * KiB, 32 * KiB)
        self.lost = False
        # As the peer sees it.
        self.credit: dict[int, int] = {}
        self.peer_window = 0
        self.peer_frame = 64 * KiB
        self.ended: set[int] = set()
        self.sent: list[tuple[int, int, int, bytes]] = []

    def open_handlers(self) -> list[Handler]:
        return [handler for handler in self.handlers if not _callbacks.is_closed(handler.stream)]

    def pick(self, number: int) -> Handler | None:
        return self.handlers[number % len(self.handlers)] if self.handlers else None

    def open(self, head: RequestHead) -> None:
        handler = Handler(True)
        end = head.body == Body.NONE and not head.upgrade
        handler.stream = _callbacks.open_stream(self.session, head, handler, end)
        if handler.stream is not None:
            self.handlers.append(handler)

    def pull(self, limit: int) -> bytes:
        message = _callbacks.pull(self.session, limit)
        assert len(message) <= MESSAGE
        for frame in _message_codec.unpack_frames(message):
            self._check_sent(*frame)
            self.sent.append(frame)
        return message

    def heard_hello(self, hello: Hello) -> None:
        self.peer_window = hello.initial_window or 64 * KiB
        self.peer_frame = hello.max_frame_size or 64 * KiB

    def heard_window(self, stream: int, count: int) -> None:
        self.credit[stream] = self.credit.get(stream, self.peer_window) + count

    def _check_sent(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        """A frame that a peer may get: well-formed, within its sizes and credit, nothing behind an end."""
        assert self.sent or kind == HELLO, "HELLO comes first"
        if kind >= HELLO:
            assert stream == 0 and kind <= PING
            if kind == GOAWAY:
                _message_codec.unpack_goaway(payload)
            return
        assert stream
        if kind in (DATA, RESPONSE, TRAILERS):
            assert stream not in self.ended, f"frame {kind} behind the end of {stream}"
            if kind == TRAILERS or flags & 1:
                self.ended.add(stream)
        if kind == DATA:
            left = self.credit.get(stream, self.peer_window) - len(payload)
            assert left >= 0, f"{-left} bytes beyond the credit of {stream}"
            self.credit[stream] = left
            assert len(payload) <= self.peer_frame
            assert payload or flags & 1, "DATA that says nothing"
        elif kind == REQUEST:
            _message_codec.unpack_request(payload)
            if flags & 1:
                self.ended.add(stream)
        elif kind == RESPONSE:
            _message_codec.unpack_response(payload)
        elif kind == TRAILERS:
            _message_codec.unpack_trailers(payload)
        elif kind == RESET:
            assert isinstance(_message_codec.unpack_reset(payload), Reset)
            self.ended.add(stream)
        else:
            assert 1 <= int.from_bytes(payload) <= 0x7FFFFFFF

    def check(self) -> None:
        """Counters, credit and budget add up."""
        running = self.open_handlers()
        assert self.session.stream_count == len(running)
        assert self.session.opened == sum(handler.opened_here for handler in running)
        assert self.session.accepted == sum(not handler.opened_here for handler in running)
        assert self.session.closed == (self.owner.closed is not None or self.lost)
        held = 0
        for handler in running:
            window, credit, queued, ungranted = _callbacks.window(handler.stream)
            assert credit >= 0 and queued == handler.unconsumed and credit + queued + ungranted == window
            assert 0 <= _callbacks.staged(handler.stream) <= STAGE
            held += _callbacks.budget_bytes(handler.stream)
        assert held == _callbacks.budget_used(self.session) == self.budget.used_bytes <= self.budget.total_bytes

    def lose(self) -> None:
        self.lost = True
        self.session.lost()
        self.check()
        assert self.session.stream_count == self.session.opened == self.session.accepted == 0
        assert self.budget.used_bytes == 0
        assert not _callbacks.has_output(self.session)
        assert not any(handler.stream.handler for handler in self.handlers if not handler.was_reset)

    def act(self, steps: Steps) -> None:
        """One thing that an owner, a handler or a source may do."""
        act = steps.number(14)
        if act == 0:
            return self.open(REQUESTS[steps.number(len(REQUESTS))])
        if act == 1:
            self.owner.clock += (0.0, 0.0001, 0.01, 1.0)[steps.number(4)]
            return None
        if act == 2:
            _callbacks.set_congested(self.session, not self.session.congested)
            return None
        if act == 3:
            self.session.go_away(0, "é" * steps.number(120), steps.number())
            return None
        if act == 4 and _callbacks.can_open(self.session):
            self.session.notify("text/plain", bytes(steps.number()))
            return None
        handler = self.pick(steps.number())
        if handler is None:
            return None
        stream = handler.stream
        if act == 5 or act == 6:
            size = SIZES[steps.number(len(SIZES))]
            at = len(handler.events)
            _callbacks.write(stream, PATTERN[: min(size, _callbacks.room(stream))])
            assert at <= len(handler.events)
        elif act == 7:
            _callbacks.end(stream)
        elif act == 8:
            _callbacks.end(stream, [(b"x-sum", b"1")])
        elif act == 9:
            _callbacks.reset(stream, steps.number(40), "é" * steps.number())
        elif act == 10 and not handler.opened_here:
            _callbacks.respond(stream, RESPONSES[steps.number(len(RESPONSES))], bool(steps.number(2)))
        else:
            count = min(SIZES[steps.number(len(SIZES))], handler.unconsumed)
            handler.unconsumed -= count
            _callbacks.consume(stream, count)
        return None


def one(data: bytes) -> None:
    if not data:
        return
    steps = Steps(data)
    mode = steps.number(4)
    if mode == 3:
        honest(steps)
        return
    program = steps.rest()
    apart = hostile(Steps(program), mode == 1, joined=False)
    together = hostile(Steps(program), mode == 1, joined=True)
    assert apart == together, "frames in one message are not what they are one by one"


def hostile(steps: Steps, is_proxy: bool, *, joined: bool) -> object:
    """One end and a peer that sends what it likes, each frame in a message of its own or several joined."""
    end = End(is_proxy)
    waiting: list[bytes] = []

    def deliver() -> None:
        if waiting:
            _callbacks.receive(end.session, b"".join(waiting))
            waiting.clear()
            end.check()

    def hear(kind: int, stream: int, payload: bytes, flags: int) -> None:
        # What the peer may count on from now on: only as long as the end still listens.
        waiting.append(_message_codec.pack_frame(kind, stream, payload, flags))
        if not joined:
            deliver()
        if kind == HELLO and not end.peer_window:
            try:
                end.heard_hello(_codec.decode_hello(payload))
            except StreamError:
                pass
        elif kind == WINDOW and len(payload) == 4:
            end.heard_window(stream, int.from_bytes(payload))

    if steps.number(8):
        greeting = Hello(instance=bytes(16), generation=1, initial_window=WINDOW_SIZE, max_streams=4)
        hear(HELLO, 0, _codec.encode_hello(greeting), 0)
    while steps.left:
        what = steps.number(10)
        if what < 5:
            hear(*_frame(steps, is_proxy))
            continue
        deliver()
        if what == 5:
            _callbacks.receive(end.session, steps.take(steps.number()))
        elif what == 6:
            end.pull(LIMITS[steps.number(len(LIMITS))])
        else:
            try:
                end.act(steps)
            except StreamError:
                pass  # what a source or a service did wrong
        end.check()
    deliver()
    for _ in range(100):
        if (end.session.congested and not end.session.closed) or not end.pull(MESSAGE):
            break
    end.check()
    end.lose()
    return [handler.events for handler in end.handlers], end.owner.events, end.owner.closed, end.sent


def _frame(steps: Steps, is_proxy: bool) -> tuple[int, int, bytes, int]:
    """A frame of the peer's: mostly one that makes sense."""
    kind = steps.number(12)
    flags = steps.number(4)
    stream = 0 if kind in (GOAWAY, NOTIFY, PING) else steps.number(12) if kind != HELLO else 0
    form = steps.number(8)
    if form == 0:
        return kind, steps.number(), steps.take(steps.number()), flags
    if kind == DATA:
        payload = PATTERN[: SIZES[steps.number(len(SIZES))]]
    elif kind == REQUEST:
        payload = _message_codec.pack_request(REQUESTS[steps.number(len(REQUESTS))])
        stream += (stream + (not is_proxy)) % 2  # of the peer's parity
    elif kind == RESPONSE:
        head = RESPONSES[steps.number(len(RESPONSES))]
        payload = _message_codec.pack_response(head)
        flags = flags & 1 | (2 if 100 < head.status < 200 and head.status != 101 else 0)
    elif kind == TRAILERS:
        payload = _message_codec.pack_trailers([(b"x-sum", b"1")])
    elif kind == WINDOW:
        payload = CREDIT[steps.number(len(CREDIT))].to_bytes(4)
    elif kind == RESET:
        payload = _message_codec.pack_reset(Reset(code=steps.number(40), message="é"))
    elif kind == HELLO:
        payload = _codec.encode_hello(Hello(instance=bytes(16), initial_window=steps.number() << 8, max_streams=2))
    elif kind == GOAWAY:
        payload = _message_codec.pack_goaway(GoAway(last_stream=steps.number(8)))
    elif kind == PING:
        payload = bytes(8)
    else:
        payload = steps.take(steps.number(40))
    return kind, stream, payload, flags


# --- two honest ends ---


class Direction:
    """What one side of a stream has sent, to be compared with what the other got."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.ended = False


def honest(steps: Steps) -> None:
    """Two ends that keep the rules, whatever they do and however slowly their messages travel."""
    ends = [End(True), End(False)]
    lines: list[deque[bytes]] = [deque(), deque()]
    directions: dict[tuple[int, int], Direction] = {}

    def move(side: int) -> None:
        if lines[side]:
            message = lines[side].popleft()
            for kind, _, stream, payload in _message_codec.unpack_frames(message):
                if kind == HELLO:
                    ends[1 - side].heard_hello(_codec.decode_hello(payload))
                elif kind == WINDOW:
                    ends[1 - side].heard_window(stream, int.from_bytes(payload))
            _callbacks.receive(ends[1 - side].session, message)

    def pull(side: int, limit: int) -> None:
        message = ends[side].pull(limit)
        if message:
            lines[side].append(message)

    def act(side: int) -> None:
        end = ends[side]
        handler = None
        before = len(end.handlers)
        what = steps.number(8)
        if what == 0:
            end.open(REQUESTS[steps.number(len(REQUESTS))])
        elif what == 1:
            _callbacks.set_congested(end.session, not end.session.congested)
        elif what == 2:
            end.owner.clock += (0.0, 0.0001, 0.01, 1.0)[steps.number(4)]
        elif (handler := end.pick(steps.number())) is not None:
            key = (side, handler.stream.id)
            direction = directions.setdefault(key, Direction())
            stream = handler.stream
            if _callbacks.is_closed(stream):
                return
            try:
                if what in (3, 4):
                    size = min(SIZES[steps.number(len(SIZES))], _callbacks.room(stream))
                    at = len(direction.written) % 251
                    _callbacks.write(stream, PATTERN[at : at + size])
                    direction.written += PATTERN[at : at + size]
                elif what == 5:
                    _callbacks.end(stream, [(b"x-sum", b"1")] * steps.number(2))
                    direction.ended = True
                elif what == 6 and steps.number(8) == 0:
                    _callbacks.reset(stream, 8, "")
                elif what == 6 and not handler.opened_here:
                    head, end_now = RESPONSES[steps.number(len(RESPONSES))], bool(steps.number(2))
                    if end_now and head.body == Body.SIZED and head.length and head.status != 304:
                        end_now = False
                    if head.status == 101:
                        end_now = False
                    _callbacks.respond(stream, head, end_now)
                    direction.ended = direction.ended or end_now
                else:
                    handler.unconsumed -= (count := min(SIZES[steps.number(len(SIZES))], handler.unconsumed))
                    _callbacks.consume(stream, count)
            except StreamError:
                pass  # what a source or a service did wrong, and the session kept from the wire
        assert len(end.handlers) - before in (0, 1)

    def check() -> None:
        for side, end in enumerate(ends):
            end.check()
            assert end.owner.closed is None, f"an honest peer ended the session: {end.owner.closed}"
            for handler in end.handlers:
                direction = directions.get((1 - side, handler.stream.id)) or Direction()
                assert direction.written.startswith(handler.received), "bytes that nobody sent"
                if handler.ended:
                    ended_with_head = any(isinstance(event, tuple) and event[-1] is True for event in handler.events)
                    assert direction.ended or ended_with_head, "an end that nobody made"
                    assert ended_with_head or direction.written == handler.received, "a cut body that looks whole"

    for side in (0, 1):
        pull(side, MESSAGE)
        move(side)
    while steps.left:
        what, side = steps.number(4), steps.number(2)
        if what == 0:
            pull(side, LIMITS[steps.number(len(LIMITS))])
        elif what == 1:
            move(side)
        else:
            act(side)
        check()
    for end in ends:
        _callbacks.set_congested(end.session, False)
        for handler in end.open_handlers():
            if steps.left == 0 and handler.opened_here:
                _callbacks.reset(handler.stream, 8, "")
    for _ in range(1000):
        if not any(lines) and not any(_callbacks.has_output(end.session) for end in ends):
            break
        for side in (0, 1):
            pull(side, MESSAGE)
            move(side)
        check()
    else:
        raise AssertionError("two ends that have nothing to do find no rest")
    for end in ends:
        assert end.session.stream_count == 0, "a stream is left"
        end.lose()


def seeds() -> dict[str, bytes]:
    """Inputs to begin with: bytes that mean steps, so that any will do."""
    walk = bytes((i * i * 7 + i * 3 + 1) & 0xFF for i in range(200))
    return {f"mode-{mode}-{turn}": bytes([mode]) + walk[turn:] for mode in range(4) for turn in (0, 50)}
