"""The proxy's connection with a client: the first byte chooses what the agent does, the second how the rest is cut.

Whatever a client sends, it gets whole, well-formed answers in order, and what reaches the agent is what h11 reads in
the same bytes. Read whole or in pieces it comes to the same. What a client may send ahead is bounded, and when it is
gone nothing of it is left.
"""

from __future__ import annotations

import re
from typing import Any

import h11

from backstream import _callbacks
from backstream._agents import AgentLink, AgentTable
from backstream._flow import WindowBudget
from backstream._http._clients import ClientTable
from backstream._http._context import ServerContext
from backstream._http._server import ServerConnection
from backstream._loop import loop_state
from backstream._messages import Body, Fields, Hello, RequestHead, ResponseHead
from backstream._session import Session
from backstream._stream import Stream
from backstream.config import ProxySettings
from fuzz.net import Loop, Transport, shared_loop
from fuzz.steps import Steps, pieces
from fuzz.words import in_words_of_h11

AHEAD = 65536 + 65536 + 65540
"""Bytes that may be taken while nobody answers: a head, one read, and what is held ahead of its turn."""
SETTINGS = ProxySettings(agent_wait=0, max_aborts_per_address=0, via_name="fuzz")


class Request(_callbacks.Handler):
    """One request at the agent, and its answer."""

    def __init__(self, agent: Agent, stream: Stream, head: RequestHead, end: bool) -> None:
        self.agent = agent
        self.stream = stream
        self.head = head
        self.body = bytearray()
        self.trailers: Fields = ()
        self.ended = end
        self.lost = False
        agent.requests.append(self)
        if end or agent.plan.early:
            self._answer()

    def data_received(self, stream: Stream, data: bytes) -> None:
        self.body += data
        _callbacks.consume(stream, len(data))

    def end_received(self, stream: Stream, trailers: Fields) -> None:
        self.ended = True
        self.trailers = trailers
        if not self.agent.plan.early:
            self._answer()
        elif self.head.upgrade:
            _callbacks.end(stream)

    def reset_received(self, stream: Stream, code: int, message: str) -> None:
        self.lost = True

    def _answer(self) -> None:
        """Says in `x-method` what was asked, so that the answer can be read."""
        plan, stream = self.agent.plan, self.stream
        fields = ((b"x-method", self.head.method),)
        if plan.kind == "never":
            return
        if plan.early and any(name == b"expect" for name, _ in self.head.fields):
            _callbacks.respond(stream, ResponseHead(status=100))
        if plan.kind == "switch" and self.head.upgrade:
            _callbacks.respond(stream, ResponseHead(status=101, upgrade=self.head.upgrade, fields=fields))
            _callbacks.write(stream, b"raw")
            return
        if plan.kind == "empty":
            _callbacks.respond(stream, ResponseHead(status=204, fields=fields), True)
        elif plan.kind == "reset":
            _callbacks.respond(stream, ResponseHead(status=200, fields=fields, body=Body.SIZED, length=9))
            _callbacks.write(stream, b"cut")
            _callbacks.reset(stream, 36, "no")
        elif plan.kind == "chunked":
            _callbacks.respond(stream, ResponseHead(status=200, fields=fields, body=Body.CHUNKED))
            if self.head.method != b"HEAD":
                _callbacks.write(stream, b"an answer")
                _callbacks.end(stream, [(b"x-sum", b"1")])
            else:
                _callbacks.end(stream)
        else:
            body = b"" if self.head.method == b"HEAD" else b"an answer"
            _callbacks.respond(stream, ResponseHead(status=200, fields=fields, body=Body.SIZED, length=9))
            _callbacks.write(stream, body)
            _callbacks.end(stream)


class Plan:
    """What the agent does with each request, from an input's first byte."""

    def __init__(self, number: int) -> None:
        self.kind = ("sized", "chunked", "empty", "reset", "never", "switch")[number % 6]
        self.early = bool(number & 64)
        """Answers at once instead of at the request's end."""
        self.blocked = bool(number & 128)
        """The client reads nothing at first."""

    @property
    def repeats(self) -> bool:
        """Whether it is the same however the bytes come."""
        return not self.early and self.kind in ("sized", "chunked", "empty")


class Agent(_callbacks.Owner):
    """The other end of the session that the proxy's connections use."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.requests: list[Request] = []
        hello = Hello(instance=bytes(16), generation=1, initial_window=65536, max_frame_size=65536, max_streams=100)
        self.session = Session(self, False, hello, WindowBudget(1 << 20), 1 << 20, 1 << 20)

    def stream_accepted(self, stream: Stream, head: RequestHead, end: bool) -> Request:
        return Request(self, stream, head, end)

    def session_closed(self, code: int, message: str, close_code: int) -> None:
        raise AssertionError(f"the proxy broke the session: {message}")


class Tunnel:
    """A proxy's table with one agent, and one client's connection."""

    def __init__(self, loop: Loop, plan: Plan) -> None:
        self.loop = loop
        self.agent = Agent(plan)
        self.budget = WindowBudget(1 << 20)
        self.table = AgentTable(SETTINGS, self.budget)
        self.context = ServerContext(
            self.table,
            ClientTable(0, 0.0),
            SETTINGS,
            serves_clients=True,
            serves_agents=True,
            on_agent=lambda connection, client_id, fields: (403, "no agents here"),
            access_log=None,
            protocol=ServerConnection,
        )
        self.link = AgentLink(self.table, loop_state(), b"svc", None)
        self.exchange()
        self.transport = Transport(loop, self.context.connection(), blocked=plan.blocked)
        self.transport.protocol.connection_made(self.transport)

    def exchange(self) -> None:
        """Lets messages travel and the loop turn until nothing moves."""
        ours, theirs = self.link.session, self.agent.session
        for _ in range(1000):
            self.loop.settle()
            moved = False
            for sender, receiver in ((ours, theirs), (theirs, ours)):
                if message := _callbacks.pull(sender):
                    _callbacks.receive(receiver, message)
                    moved = True
            if not moved:
                return
        raise AssertionError("the tunnel finds no rest")

    def feed(self, data: bytes) -> int:
        done = 0
        while True:
            done += self.transport.feed(data[done:])
            self.exchange()
            if done == len(data) or not self.transport.reading or self.transport.closing:
                return done

    def finish(self, how: int) -> None:
        """The client goes, in one of three ways; nothing of it may be left."""
        if self.transport.blocked:
            self.transport.release()
            self.exchange()
        if how == 1:
            self.transport.end()
            self.exchange()
        self.transport.lose(ConnectionResetError() if how == 2 else None)
        self.exchange()
        self.transport.protocol = None
        assert self.context.connection_count == 0
        assert self.link.session.stream_count == self.link.session.opened == 0, "a stream is left"
        assert self.agent.session.stream_count == self.agent.session.accepted == 0, "a stream is left at the agent"
        assert self.table.waiting == 0 and self.budget.used_bytes == 0
        self.link.abort("the agent is gone")
        assert loop_state().deadlines == 0


def one(data: bytes) -> None:
    steps = Steps(data)
    plan, cut = Plan(steps.number()), steps.number()
    wire = steps.rest()
    whole = serve(plan, wire, [wire])
    in_pieces = serve(plan, wire, pieces(wire, cut))
    if plan.repeats:
        check_requests(whole[0], wire)
        if not plan.blocked:
            assert in_pieces == whole, f"in pieces it is {in_pieces}, whole {whole}"


def serve(plan: Plan, wire: bytes, parts: list[bytes]) -> tuple[list[tuple[Any, ...]], list[object], bool]:
    """The requests that reached the agent whole, the client's answers, how it ended."""
    with shared_loop() as loop:
        tunnel = Tunnel(loop, plan)
        for part in parts:
            tunnel.feed(part)
        if plan.kind == "never":
            flood(tunnel, wire)
        if tunnel.transport.blocked:
            tunnel.transport.release()
            tunnel.exchange()
            tunnel.feed(b"")
        answers: list[object] = []
        if plan.kind != "switch":
            cut_allowed = plan.kind in ("reset", "never") or plan.early
            answers = check_answers(bytes(tunnel.transport.sent), wire, cut_allowed=cut_allowed)
        state = tunnel.transport.closing or tunnel.transport.half_closed
        requests: list[tuple[Any, ...]] = [
            (
                each.head.method,
                each.head.target,
                each.head.authority,
                [(name, _MADE_ID.sub(b"", value)) for name, value in each.head.fields],
                bytes(each.body),
                each.trailers,
            )
            for each in tunnel.agent.requests
            if each.ended
        ]
        tunnel.finish(len(wire) % 3)
        return requests, answers, state


def flood(tunnel: Tunnel, wire: bytes) -> None:
    """While nobody answers, a client can send only so much ahead."""
    if not tunnel.agent.requests or not tunnel.agent.requests[-1].ended or tunnel.transport.closing:
        return
    taken = 0
    piece = wire * 100
    while taken <= AHEAD and (count := tunnel.feed(piece[:65536])):
        taken += count
    assert taken <= AHEAD, f"more than {AHEAD} bytes were taken ahead of their turn"


# --- what a client may get ---

_MADE_ID = re.compile(rb"[0-9a-f]{12}-[0-9a-f]{8}")
"""An x-request-id that the proxy made: another one each time."""
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9a-z]+): ([\t \x21-\x7e\x80-\xff]*)")


def check_answers(answers: bytes, wire: bytes, *, cut_allowed: bool) -> list[object]:
    """Whole answers, one behind the other: their statuses, and the bytes of those that the agent made."""
    found: list[object] = []
    at = 0
    while at < len(answers):
        begin, end = at, answers.find(b"\r\n\r\n", at)
        assert end >= 0, f"a cut head: {answers[at:]!r}"
        start, *lines = answers[at:end].split(b"\r\n")
        at = end + 4
        assert re.fullmatch(rb"HTTP/1\.1 [1-9][0-9][0-9] [\t \x21-\x7e]*", start), start
        status = int(start[9:12])
        fields: dict[bytes, bytes] = {}
        for line in lines:
            match = _FIELD.fullmatch(line)
            assert match and match[1] not in fields, line
            fields[match[1]] = match[2]
        if status < 200:
            continue
        if b"x-method" not in fields:
            assert b"proxy-status" in fields, "an answer that is nobody's"
        bodiless = fields.get(b"x-method") == b"HEAD" or status in (204, 304)
        length = fields.get(b"content-length")
        if b"proxy-status" in fields and b"HEAD " in wire and not answers[at:].startswith(b"\n"):
            # Whether it answered HEAD can only be told from what follows.
            bodiless = at == len(answers) or re.match(rb"HTTP/1\.1 [1-9]", answers[at:]) is not None
        if bodiless:
            assert b"transfer-encoding" not in fields or fields.get(b"x-method") == b"HEAD"
        elif length is not None:
            assert b"transfer-encoding" not in fields
            at += int(length)
            assert at <= len(answers) or cut_allowed, "a body shorter than its length"
        elif fields.get(b"transfer-encoding") == b"chunked":
            at = _behind_chunks(answers, at, cut_allowed=cut_allowed)
        else:
            assert fields.get(b"connection") == b"close"
            at = len(answers)
        if fields.get(b"connection") == b"close":
            assert at >= len(answers), f"bytes behind the last answer: {answers[at:]!r}"
        if b"proxy-status" in fields:
            # Of several faults the one that is seen first depends on the pieces.
            found.append("refused" if fields.get(b"connection") == b"close" else status)
        else:
            found.append(_MADE_ID.sub(b"", re.sub(rb"date: [^\r]*\r\n", b"", answers[begin:at])))
    return found


def _behind_chunks(answers: bytes, at: int, *, cut_allowed: bool) -> int:
    while at < len(answers):
        line = re.compile(rb"(0|[1-9a-f][0-9a-f]*)\r\n").match(answers, at)
        assert line, f"no chunk's size: {answers[at:]!r}"
        size, at = int(line[1], 16), line.end()
        if size == 0:
            end = answers.find(b"\r\n", at)
            while end > at:
                assert _FIELD.fullmatch(answers, at, end), f"no trailer: {answers[at:end]!r}"
                at = end + 2
                end = answers.find(b"\r\n", at)
            assert end == at, "trailers without their end"
            return at + 2
        at += size + 2
        assert at > len(answers) or answers[at - 2 : at] == b"\r\n", f"a chunk without its end: {answers[at:]!r}"
    assert cut_allowed, "a chunked body without its end"
    return at


def check_requests(requests: list[tuple[Any, ...]], wire: bytes) -> None:
    """Each request that the agent got is one that h11 reads in these bytes, in this order."""
    found, complete = _read_with_h11(wire)
    place = 0
    for method, target, _, _, body, _ in requests:
        for place in range(place, len(found)):  # noqa: B020  goes on where the last one was
            theirs = found[place]
            if theirs[0] == method and theirs[2] == body and (theirs[1] == target or theirs[1][:1] not in b"/*"):
                place += 1
                break
        else:
            assert not complete, f"{method!r} {target!r} with {body!r} is not among {found}"
            return


def _read_with_h11(wire: bytes) -> tuple[list[tuple[bytes, bytes, bytes]], bool]:
    """The requests, and whether h11 has judged all of the bytes: behind HTTP/1.0 it stops, we may go on."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    found = []
    try:
        connection.receive_data(in_words_of_h11(wire))
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                head, body = event, bytearray()
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                found.append((head.method, head.target, bytes(body)))
                if head.http_version < b"1.1":
                    return found, False
                refuse = head.method == b"CONNECT"
                connection.send(h11.Response(status_code=405 if refuse else 200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return found, True
                connection.start_next_cycle()
            else:
                return found, True
    except h11.RemoteProtocolError as error:
        # A Host that is missing, repeated or odd leaves no doubt about where the request ends: the next one is served.
        # Nor do empty lines before a request, of which h11 takes none (RFC 9112 §2.2).
        return found, "Host" not in str(error) and "no request line" not in str(error)


def seeds() -> dict[str, bytes]:
    """Inputs to begin with."""
    host = b"Host: a\r\nx-backstream-client-id: svc\r\n"
    get = b"GET /a?b HTTP/1.1\r\n" + host + b"\r\n"
    wires = {
        "get": get,
        "pipelined": get * 3,
        "sized": b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 5\r\n\r\nhello" + get,
        "chunked": b"POST / HTTP/1.1\r\n" + host + b"TE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"5;a=b\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n" + get,
        "head": b"HEAD / HTTP/1.1\r\n" + host + b"\r\n" + get,
        "old": b"GET / HTTP/1.0\r\n" + host + b"Connection: keep-alive\r\n\r\n" + get,
        "absolute": b"GET http://b:80/c HTTP/1.1\r\n" + host + b"\r\n",
        "expect": b"POST / HTTP/1.1\r\n" + host + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
        "upgrade": b"GET / HTTP/1.1\r\n" + host + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\nraw",
        "h2c": b"POST / HTTP/1.1\r\n"
        + host
        + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok"
        + get,
        "agent": b"GET /ws HTTP/1.1\r\n" + host + b"Connection: upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: backstream.v1\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        "unknown": b"GET / HTTP/1.1\r\nHost: a\r\nx-backstream-client-id: other\r\n\r\n" + get,
        "blanks": b"POST / HTTP/1.1\r\n"
        + host
        + b'Transfer-Encoding: chunked\r\n\r\n1 ; a = "b"\r\nx\r\n0 ;c\r\n\r\n'
        + get,
        "smuggled": b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    }
    found = {name: bytes((0, 3)) + wire for name, wire in wires.items()}
    kinds = (1, 2, 3, 4, 5, 64, 65, 67, 69, 128, 129)
    found |= {f"plan-{kind}": bytes((kind, 255)) + wires["chunked"] + get for kind in kinds}
    found |= {f"switch-{kind}": bytes((kind, 9)) + wires["upgrade"] for kind in (5, 69)}
    return found
