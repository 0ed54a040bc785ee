"""The agent's connection with an upstream: the first byte chooses the request, the second how the answer is cut.

Whatever an upstream sends, the proxy gets an answer that h11 reads in the same bytes, or is told that there is none;
what breaks off never looks whole. Read whole or in pieces it comes to the same. No byte of one answer is part of the
next. While the proxy takes nothing an upstream can send only so much, and in the end nothing is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import h11

from backstream import _callbacks
from backstream._flow import WindowBudget
from backstream._http._upstream import UpstreamService
from backstream._loop import loop_state
from backstream._messages import Body, Fields, GoAway, Hello, RequestHead, ResponseHead
from backstream._service import ServiceLink
from backstream._session import Session
from backstream._stream import Stream
from backstream.config import AgentSettings, Upstream
from fuzz.net import Loop, shared_loop
from fuzz.steps import Steps, pieces
from fuzz.words import in_words_of_h11

AHEAD = 65536 + 65536 + 131072 + 65536
"""Bytes that may be taken while the proxy takes none: a head, the window, what is staged, and one read."""
SETTINGS = AgentSettings(client_id="svc", upstream="http://127.0.0.1:80", max_response_head=65536)
REQUESTS = [
    RequestHead(method=b"GET", target=b"/"),
    RequestHead(method=b"HEAD", target=b"/"),
    RequestHead(method=b"POST", target=b"/", body=Body.SIZED, length=5),
    RequestHead(method=b"POST", target=b"/", body=Body.CHUNKED),
    RequestHead(method=b"GET", target=b"/", upgrade=b"websocket"),
]
LAST = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast"


class Answer(_callbacks.Handler):
    """What the proxy gets for one request."""

    def __init__(self, *, takes: bool) -> None:
        self.takes = takes
        self.stream: Any = None
        self.interim: list[ResponseHead] = []
        self.head: ResponseHead | None = None
        self.body = bytearray()
        self.trailers: Fields = ()
        self.ended = False
        self.code: int | None = None
        self.asked = False

    def head_received(self, stream: Stream, head: ResponseHead, interim: bool, end: bool) -> None:
        assert self.head is None and self.code is None
        if interim:
            self.interim.append(head)
        else:
            self.head = head

    def data_received(self, stream: Stream, data: bytes) -> None:
        assert self.head is not None and not self.ended and self.code is None
        self.body += data
        if self.takes:
            _callbacks.consume(stream, len(data))

    def end_received(self, stream: Stream, trailers: Fields) -> None:
        assert self.head is not None and not self.ended and self.code is None
        self.ended = True
        self.trailers = trailers

    def reset_received(self, stream: Stream, code: int, message: str) -> None:
        assert self.code is None
        self.code = code


class Owner(_callbacks.Owner):
    def session_closed(self, code: int, message: str, close_code: int) -> None:
        raise AssertionError(f"the agent broke the session: {message}")

    def goaway_received(self, goaway: GoAway) -> None:
        raise AssertionError("an agent that does not leave said so")


class Agent:
    """What a `ServiceLink` asks of its agent."""

    def session_ready(self, link: ServiceLink) -> None: ...
    def session_lost(self, link: ServiceLink, why: str) -> None: ...


@dataclass
class Plan:
    """What happens beside the upstream's bytes, from an input's first byte."""

    head: RequestHead
    ends: int
    """How the upstream's side ends: 0 not at all, 1 closed, 2 reset."""
    takes: bool
    """The proxy takes what comes."""
    early: bool
    """The upstream answers before it has the request's body."""

    @classmethod
    def of(cls, number: int) -> Plan:
        return cls(REQUESTS[number % 5], number // 5 % 3, number // 15 % 4 != 3, number // 60 % 2 == 1)


class Tunnel:
    """An agent's session with its upstream, and the proxy's end."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.service = UpstreamService(Upstream("127.0.0.1", 80, None), SETTINGS)
        loop.complete(self.service.start())
        self.budget = WindowBudget(1 << 20)
        agent = cast(Any, Agent())
        self.link = ServiceLink(agent, self.service, loop_state(), SETTINGS.session, self.budget, "svc", bytes(16), 1)
        hello = Hello(instance=bytes(16), generation=1, initial_window=65536, max_frame_size=65536)
        self.proxy = Session(Owner(), True, hello, WindowBudget(1 << 20), 65536, 65536)
        self.exchange()

    def exchange(self) -> None:
        """Lets messages travel and the loop turn until nothing moves."""
        for _ in range(1000):
            self.loop.settle()
            moved = False
            for sender, receiver in ((self.link.session, self.proxy), (self.proxy, self.link.session)):
                if message := _callbacks.pull(sender):
                    _callbacks.receive(receiver, message)
                    moved = True
            if not moved:
                return
        raise AssertionError("the tunnel finds no rest")

    def ask(self, head: RequestHead, *, takes: bool = True) -> Answer:
        answer = Answer(takes=takes)
        answer.stream = _callbacks.open_stream(self.proxy, head, answer, head.body == Body.NONE and not head.upgrade)
        self.exchange()
        return answer

    def finish_request(self, answer: Answer, head: RequestHead) -> None:
        """Sends the request's body; an upgrade that was not taken ends without one."""
        if not answer.asked:
            answer.asked = True
            if head.body:
                _callbacks.write(answer.stream, b"hello")
                _callbacks.end(answer.stream)
        if head.upgrade and answer.head is not None and answer.head.status != 101:
            _callbacks.end(answer.stream)
        self.exchange()

    def feed(self, data: bytes) -> int:
        """From the upstream's newest connection; how many bytes were taken."""
        transport, done = self.loop.transports[-1], 0
        while True:
            done += transport.feed(data[done:])
            self.exchange()
            if done == len(data) or not transport.reading or transport.closing:
                return done

    def finish(self) -> None:
        self.loop.complete(self.service.stop())
        self.exchange()
        assert self.proxy.stream_count == 0, "a stream is left at the proxy"
        assert self.link.session.stream_count == self.link.session.accepted == 0, "a stream is left"
        assert self.service.connections == 0 and all(each.lost for each in self.loop.transports)
        assert self.budget.used_bytes == 0
        self.link.abort("over")
        assert loop_state().deadlines == 0


def one(data: bytes) -> None:
    steps = Steps(data)
    plan, cut = Plan.of(steps.number()), steps.number()
    wire = steps.rest()
    whole = answered(plan, [wire])
    in_pieces = answered(plan, pieces(wire, cut))
    if plan.takes:
        assert in_pieces.code == whole.code and in_pieces.ended == whole.ended, (whole.__dict__, in_pieces.__dict__)
        assert (in_pieces.head, in_pieces.interim) == (whole.head, whole.interim)
        if whole.ended:
            assert in_pieces.body == whole.body and in_pieces.trailers == whole.trailers
            check_answer(plan, whole, wire)


def answered(plan: Plan, parts: list[bytes]) -> Answer:
    """What became of the answer in `parts`, before and after which others must get theirs."""
    with shared_loop() as loop:
        tunnel = Tunnel(loop)
        answer = tunnel.ask(plan.head, takes=plan.takes)
        if not plan.early:
            tunnel.finish_request(answer, plan.head)
        for part in parts:
            tunnel.feed(part)
        tunnel.finish_request(answer, plan.head)
        transport = loop.transports[-1]
        if not plan.takes:
            flood(tunnel, b"".join(parts))
        if plan.ends == 1:
            transport.end()
        elif plan.ends == 2:
            transport.lose(ConnectionResetError())
        tunnel.exchange()
        over = answer.ended or answer.code is not None
        if not over or not _callbacks.is_closed(answer.stream):
            _callbacks.reset(answer.stream, 8, "")
            tunnel.exchange()
        last = tunnel.ask(REQUESTS[0])
        tunnel.feed(LAST)
        assert last.ended and last.body == b"last" and last.head is not None and not last.interim, last.__dict__
        tunnel.finish()
        return answer


def flood(tunnel: Tunnel, wire: bytes) -> None:
    """While the proxy takes nothing, an upstream can send only so much."""
    taken = 0
    piece = (wire or b"x") * 100
    while taken <= AHEAD and (count := tunnel.feed(piece[:65536])):
        taken += count
    assert taken <= AHEAD, f"more than {AHEAD} bytes were taken"


def check_answer(plan: Plan, answer: Answer, wire: bytes) -> None:
    """What arrived whole is what h11 reads in these bytes."""
    assert answer.head is not None
    if answer.head.status == 101:
        return
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    connection.send(h11.Request(method=plan.head.method, target=b"/", headers=[("host", "a")]))
    connection.send(h11.EndOfMessage())
    head, interim, body, ended = None, [], bytearray(), False
    try:
        connection.receive_data(in_words_of_h11(wire))
        if plan.ends == 1:
            connection.receive_data(b"")
        while not ended:
            event = connection.next_event()
            if isinstance(event, h11.InformationalResponse):
                interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                ended = True
            else:
                break
    except h11.RemoteProtocolError as error:
        if head is not None and "Transfer-Encoding" in str(error):
            return  # as a trailer, which we drop
        if head is None and "no response line" in str(error):
            return  # behind an empty line, of which h11 takes none
        raise AssertionError(f"h11 does not read what became {answer.__dict__}: {error}") from None
    assert ended and head is not None, f"for h11 the answer is not whole: {answer.__dict__}"
    assert (head.status_code, bytes(body)) == (answer.head.status, bytes(answer.body)), (head, body)
    assert interim == [each.status for each in answer.interim]


def seeds() -> dict[str, bytes]:
    """Inputs to begin with."""
    wires = {
        "sized": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nA: b\r\n\r\nhello",
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n",
        "close": b"HTTP/1.0 200 OK\r\n\r\nhello",
        "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\nHTTP/1.1 204 \r\n\r\n",
        "not-modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        "switch": b"HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nraw",
        "two": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "keeps": b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\nContent-Length: 1\r\n\r\nx",
        "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello",
        "early": b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    }
    found = {name: bytes((0, 3)) + wire for name, wire in wires.items()}
    found |= {f"plan-{plan}": bytes((plan, 255)) + wires["chunked"] for plan in (1, 2, 3, 7, 10, 45, 62, 63)}
    found |= {f"closes-{plan}": bytes((plan, 9)) + wires["close"] for plan in (5, 10, 50)}
    found |= {f"switch-{plan}": bytes((plan, 9)) + wires["switch"] for plan in (4, 9, 14, 49, 64)}
    return found
