"""Sessions on the seed wire: the input is a program for one end and a peer that may send anything.

No message makes a session raise. Handlers are called in the order that `StreamHandler` promises. What an end sends is
whole messages, each in frames of one beginning and one end. Counters are what they count, what bodies take is within
the budget, and once the session is lost all of it is zero.
"""

from __future__ import annotations

from backstream import _callbacks, _seed_codec
from backstream._flow import WindowBudget
from backstream._messages import Body, Hello, RequestHead, ResponseHead
from backstream._seed_session import SeedSession
from backstream.errors import StreamError
from fuzz.session import LIMITS, PATTERN, REQUESTS, RESPONSES, SIZES, Handler, KiB, Owner
from fuzz.steps import Steps

MAX_MESSAGE = 80 * KiB
TIMES = ["1ms", "1s", "0", "x", "9999999h"]
CODES = [0, 7, 8, 32, 37]


class End:
    """One end of a session, what it holds, and what its peer has seen of it."""

    def __init__(self, is_proxy: bool, json: bool, budget: int) -> None:
        self.owner = Owner()
        self.owner.end = self
        self.is_proxy = is_proxy
        self.handlers: list[Handler] = []
        self.budget = WindowBudget(budget)
        hello = Hello(instance=bytes(16), generation=1, max_streams=4)
        self.session = SeedSession(self.owner, is_proxy, hello, self.budget, json, MAX_MESSAGE, 1.0)
        self.message = bytearray()
        self.as_text = False
        self.ids: list[bytes] = []  # of the requests that it sent

    def open_handlers(self) -> list[Handler]:
        return [handler for handler in self.handlers if not _callbacks.is_closed(handler.stream)]

    def pull(self, limit: int, count: int) -> None:
        while count and (frame := _callbacks.pull_frame(self.session, limit)):
            opcode, last, payload = frame
            assert payload and len(payload) <= limit
            assert (opcode == 0) == bool(self.message), "a message begins where the one before has ended"
            if opcode:
                self.as_text = opcode == 1
            self.message += payload
            if last:
                self._sent(bytes(self.message))
                self.message.clear()
            count -= 1

    def _sent(self, message: bytes) -> None:
        assert len(message) <= MAX_MESSAGE
        message_id, kind, event = _seed_codec.unpack(message, self.as_text)
        if kind == 1:
            assert self.is_proxy and message_id not in self.ids
            self.ids.append(message_id)
            _seed_codec.unpack_request(event, self.as_text)
        elif kind == 2:
            assert not self.is_proxy
            _seed_codec.unpack_response(event, self.as_text)

    def check(self) -> None:
        running = self.open_handlers()
        assert self.session.stream_count == len(running)
        assert self.session.opened == sum(handler.opened_here for handler in running)
        assert self.session.accepted >= sum(not handler.opened_here for handler in running)
        assert 0 <= _callbacks.budget_used(self.session) == self.budget.used_bytes <= self.budget.total_bytes

    def lose(self) -> None:
        self.session.lost()
        assert self.session.stream_count == self.session.opened == self.session.accepted == self.session.queued == 0
        assert self.budget.used_bytes == 0 and _callbacks.pull_frame(self.session) is None
        assert not any(handler.stream.handler for handler in self.handlers)

    def act(self, steps: Steps) -> None:
        """One thing that an owner, a handler or a source may do."""
        act = steps.number(12)
        if act == 0 and self.is_proxy:
            handler = Handler(True)
            head = REQUESTS[steps.number(len(REQUESTS))]
            handler.stream = _callbacks.open_stream(
                self.session, head, handler, head.body == Body.NONE and not head.upgrade
            )
            if handler.stream is not None:
                self.handlers.append(handler)
            return
        if act == 1:
            self.owner.clock += (0.0, 0.01, 0.5, 2.0)[steps.number(4)]
            return _callbacks.expire(self.session, self.owner.clock)
        if act == 2:
            return _callbacks.set_congested(self.session, not self.session.congested)
        if act == 3:
            return self.session.go_away() if not steps.number(8) else None
        if act == 4:
            return self.session.notify("", PATTERN[: SIZES[steps.number(len(SIZES))]])
        if not self.handlers:
            return None
        handler = self.handlers[steps.number() % len(self.handlers)]
        stream = handler.stream
        if act == 5 or act == 6:
            _callbacks.write(stream, PATTERN[: min(SIZES[steps.number(len(SIZES))], _callbacks.room(stream))])
        elif act == 7:
            _callbacks.end(stream)
        elif act == 8:
            _callbacks.reset(stream, CODES[steps.number(len(CODES))], "é" * steps.number())
        elif act == 9 and not handler.opened_here:
            _callbacks.respond(stream, RESPONSES[steps.number(len(RESPONSES))], bool(steps.number(2)))
        else:
            handler.unconsumed -= (count := handler.unconsumed)
            _callbacks.consume(stream, count)
        return None


def one(data: bytes) -> None:
    if not data:
        return
    steps = Steps(data)
    mode = steps.number(8)
    end = End(bool(mode & 1), bool(mode & 2), (100 * KiB, 0)[mode >> 2])
    while steps.left and not end.session.closed:
        what = steps.number(10)
        if what < 4:
            as_json = bool(steps.number(2))
            _callbacks.take(end.session, _message(end, steps, as_json), as_json)
        elif what == 4:
            end.pull(LIMITS[steps.number(len(LIMITS))], steps.number(4))
        elif what == 5:
            _callbacks.end_turn(end.session)
        elif what == 6:
            end.owner.accepts = (True, False, StreamError(7, "on purpose"))[steps.number(3)]
        else:
            try:
                end.act(steps)
            except StreamError:
                pass  # what a source or a service did wrong, and the session kept from the wire
        end.check()
    end.lose()


def _message(end: End, steps: Steps, as_json: bool) -> bytes:
    """One of a peer's that knows the wire, which may be spoilt, or any bytes."""
    kind = steps.number(5)
    body = PATTERN[: SIZES[steps.number(len(SIZES))]]
    if kind == 4:
        return steps.take(steps.number())
    if kind == 3:
        message = _seed_codec.pack(b"e", 0, body, as_json)
    elif kind == 2 or not end.ids:
        fields: tuple[tuple[bytes, bytes], ...] = ((b"x-backstream-request-timeout", TIMES[steps.number(5)].encode()),)
        head = RequestHead(method=(b"GET", b"POST", b"HEAD")[steps.number(3)], target=b"/", fields=fields)
        message = _seed_codec.pack_request(b"%d" % steps.number(8), head, body, as_json)
        if steps.number(8) == 7:
            message = _seed_codec.pack(b"n", 0, _seed_codec.unpack(message, as_json)[2], as_json)
    else:
        answer = ResponseHead(status=(200, 204, 304, 404, 999)[steps.number(5)])
        message = _seed_codec.pack_response(end.ids[steps.number() % len(end.ids)], answer, body, as_json)
    if steps.number(8) == 7:
        at = steps.number() % len(message)
        message = message[:at] + steps.take(1) + message[at + 1 :]
    return message


def seeds() -> dict[str, bytes]:
    """Inputs to begin with: bytes that mean steps, so that any will do."""
    walk = bytes((i * i * 7 + i * 3 + 1) & 0xFF for i in range(300))
    return {f"mode-{mode}-{turn}": bytes([mode]) + walk[turn:] for mode in range(8) for turn in (0, 70)}
