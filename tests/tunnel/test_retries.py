"""What becomes of a request that its agent gives up: sent to another where nothing can have come of it, else failed."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable

import pytest

import backstream
from backstream import streams
from backstream.errors import ErrorCode
from tests.rig import LIMIT, Message, Tunnel, answer, begin, chunked, http_only, more, read_body, request, tunnel, until

KIBIBYTE = 1024


class Service:
    """An application that notes what came: method and the body's hash, as soon as the request has ended."""

    def __init__(self) -> None:
        self.came: list[tuple[str, str]] = []

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        body = await read_body(receive)
        if body is not None:
            self.came.append((scope["method"], hashlib.sha256(body).hexdigest()))
            await answer(send, b"served")


class Quitter:
    """A handler factory that gives every request up with a code, when `when(handler)` is true."""

    def __init__(self, code: int, when: str = "at once", *, consumes: bool = False) -> None:
        self.code = code
        self.when = when
        self.consumes = consumes
        self.came: list[bytes] = []

    def __call__(self, stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler | None:
        self.came.append(head.method)
        handler = QuittingHandler(self)
        if self.when == "at once" or (end and self.when == "at the end"):
            handler.quit(stream)
        elif self.when == "after the head":
            streams.respond(stream, backstream.ResponseHead(status=200, body=backstream.Body.CHUNKED))
            streams.write(stream, b"begun")
        return handler


class QuittingHandler(backstream.Handler):
    def __init__(self, quitter: Quitter) -> None:
        self.quitter = quitter

    def quit(self, stream: streams.Stream) -> None:
        streams.reset(stream, self.quitter.code, "in so many words")

    def data_received(self, stream: streams.Stream, data: bytes) -> None:
        if self.quitter.consumes:
            streams.consume(stream, len(data))

    def end_received(self, stream: streams.Stream, trailers: object) -> None:
        if self.quitter.when == "at the end":
            self.quit(stream)


async def handler_agent(pair: Tunnel, factory: Callable[..., backstream.Handler | None]) -> backstream.Agent:
    return await pair.agent(handler=factory)


# --- refused ---


@pytest.mark.parametrize("code", [ErrorCode.REFUSED, ErrorCode.DRAINING])
@pytest.mark.parametrize(("method", "body"), [("GET", None), ("POST", b""), ("POST", b"b" * 1000), ("DELETE", None)])
async def test_a_refused_request_goes_to_another_agent_whatever_its_method(code: int, method: str, body) -> None:
    quitter, service = Quitter(code), Service()
    async with tunnel(service) as pair:
        await handler_agent(pair, quitter)
        for _ in range(6):
            got = await pair.get(method=method, body=body)
            assert got.status == 200 and got.body == b"served"
    assert len(quitter.came) >= 2
    assert service.came == [(method, hashlib.sha256(body or b"").hexdigest())] * 6


async def test_a_refusing_handler_says_so_by_none() -> None:
    service = Service()
    refused = []
    async with tunnel(service) as pair:
        await handler_agent(pair, lambda stream, head, end: refused.append(head.method))
        for _ in range(4):
            assert (await pair.get()).status == 200
    assert refused and len(service.came) == 4


@pytest.mark.parametrize("framing", ["sized", "chunked"])
async def test_what_was_sent_of_a_body_goes_to_the_other_agent_too(framing: str) -> None:
    quitter, service = Quitter(ErrorCode.REFUSED, "at the end"), Service()
    pieces = [b"first" * 1000, b"second" * 2000, b"third" * 5000]  # 42 kB, within the window
    whole = b"".join(pieces)
    async with tunnel(service) as pair:
        await handler_agent(pair, quitter)
        while not quitter.came:
            came = len(service.came)
            async with await pair.open() as wire:
                if framing == "sized":
                    await wire.send(request(method="POST", lines=[f"Content-Length: {len(whole)}"]))
                else:
                    await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
                await until(lambda n=came: pair.counts()["accepted"] == 1 or len(service.came) > n)
                for piece in pieces:
                    await wire.send(piece if framing == "sized" else chunked(piece, end=False))
                if framing == "chunked":
                    await wire.send(b"0\r\n\r\n")
                got = await wire.answer()
                assert got.status == 200
    assert set(service.came) == {("POST", hashlib.sha256(whole).hexdigest())}


async def test_a_body_that_filled_the_window_goes_on_at_the_other_agent() -> None:
    service, refused = Service(), []
    window = 64 * KIBIBYTE

    class FullHandler(backstream.Handler):
        came = 0

        def data_received(self, stream: streams.Stream, data: bytes) -> None:
            self.came += len(data)
            if self.came == window:
                refused.append(stream)
                streams.reset(stream, ErrorCode.REFUSED, "full")

    async with tunnel(service) as pair:
        await handler_agent(pair, lambda stream, head, end: FullHandler())
        while not refused:
            got = await pair.get(method="POST", body=b"x" * 3 * window)
            assert got.status == 200
    assert set(service.came) == {("POST", hashlib.sha256(b"x" * 3 * window).hexdigest())}


async def test_of_a_body_larger_than_a_small_window_all_goes_to_the_other_agent() -> None:
    service, refused = Service(), []
    small = backstream.SessionSettings(initial_window=1000)
    body = bytes(range(250)) * 200

    class FullHandler(backstream.Handler):
        came = 0

        def data_received(self, stream: streams.Stream, data: bytes) -> None:
            self.came += len(data)
            if self.came == 1000:
                refused.append(stream)
                streams.reset(stream, ErrorCode.REFUSED, "full")

    async with tunnel(service) as pair:
        await pair.agent(handler=lambda stream, head, end: FullHandler(), session=small)
        while not refused:
            assert (await pair.get(method="POST", body=body)).status == 200
    assert set(service.came) == {("POST", hashlib.sha256(body).hexdigest())}


@pytest.mark.parametrize(("most", "asked"), [(0, 1), (1, 2), (5, 6)])
async def test_a_request_is_sent_again_as_often_as_the_setting_says(most: int, asked: int) -> None:
    quitters = [Quitter(ErrorCode.REFUSED) for _ in range(8)]
    async with tunnel(agents=0, proxy={"max_retries": most}) as pair:
        for quitter in quitters:
            await handler_agent(pair, quitter)
        assert (await pair.get()).status == 503
    assert sum(len(quitter.came) for quitter in quitters) == asked


async def test_without_retries_a_request_on_a_lost_session_fails() -> None:
    async with tunnel(agents=0, proxy={"max_retries": 0}) as pair:
        losing = Losing(pair)
        await losing.add("one")
        await losing.add("other")
        async with await pair.open() as wire:
            await wire.send(request())
            await losing.lose()
            assert (await wire.answer()).status == 502
    assert sum(losing.came.values()) == 1


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_once_credit_came_for_a_body_it_is_not_sent_again(method: str) -> None:
    quitter, service = Quitter(ErrorCode.REFUSED, "at the end", consumes=True), Service()
    sent = 0
    async with tunnel(service) as pair:
        await handler_agent(pair, quitter)
        while not quitter.came:
            sent += 1
            async with await pair.open() as wire:
                await wire.send(request(method=method, body=b"x" * 100 * KIBIBYTE))
                got = await wire.answer()
            assert got.status == (503 if quitter.came else 200)
        assert got.get("retry-after") and b"in so many words" in got.body
        assert pair.proxy.window_bytes == 0
    assert len(service.came) == sent - 1


async def test_when_all_refuse_a_few_are_asked_and_the_client_may_come_again() -> None:
    quitters = [Quitter(ErrorCode.REFUSED) for _ in range(6)]
    async with tunnel(agents=0) as pair:
        for quitter in quitters:
            await handler_agent(pair, quitter)
        got = await pair.get(method="POST", body=b"x")
        assert got.status == 503 and got.get("retry-after")
        assert b"error=connection_limit_reached; leg=agent" in got.get("proxy-status")
    assert sum(len(quitter.came) for quitter in quitters) == 4


# --- lost ---


class Losing:
    """Agents that leave a request unanswered until the test takes their session away."""

    def __init__(self, pair: Tunnel) -> None:
        self.pair = pair
        self.came: Counter[str] = Counter()
        self.entered: asyncio.Queue[str] = asyncio.Queue()

    async def add(self, name: str, *, begins: bool = False, reads: bool = False) -> None:
        @http_only
        async def app(scope, receive, send):
            self.came[name] += 1
            if reads:
                await receive()
            if begins:
                await begin(send)
                await more(send, b"begun")
            self.entered.put_nowait(name)
            while (await receive())["type"] != "http.disconnect":
                pass

        # One that is lost stays away.
        agent = await self.pair.agent(app, reconnect_min=LIMIT, reconnect_max=LIMIT)
        agent._back_off = lambda failures, refused: LIMIT

    async def lose(self) -> None:
        """Cuts the session that has a stream."""
        await asyncio.wait_for(self.entered.get(), LIMIT)
        (link,) = [link for link in self.pair.proxy.agents if link.stream_count]
        link.abort("the test cuts it")


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "DELETE", "PUT"])
async def test_an_idempotent_request_without_a_body_survives_the_loss_of_its_agent(method: str) -> None:
    service = Service()
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        losing = Losing(pair)
        await losing.add("lost")
        await wire.send(request(method=method))
        await asyncio.wait_for(until(lambda: losing.came), LIMIT)
        await pair.agent(service)
        await losing.lose()
        got = await wire.answer()
        assert got.status == 200 and got.body == b"served"
        assert losing.came == {"lost": 1} and [entry[0] for entry in service.came] == [method]


@pytest.mark.parametrize(
    ("method", "body"), [("POST", None), ("POST", b"body"), ("PATCH", b"body"), ("PUT", b"body"), ("DELETE", b"body")]
)
async def test_any_other_request_is_not_sent_again_when_its_agent_is_lost(method: str, body) -> None:
    service = Service()
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        losing = Losing(pair)
        await losing.add("lost")
        await wire.send(request(method=method, body=body))
        await asyncio.wait_for(until(lambda: losing.came), LIMIT)
        await pair.agent(service)
        await losing.lose()
        assert_lost(await wire.answer())
        assert service.came == []
        # The client's connection lives on.
        assert (await wire.get()).status == 200


def assert_lost(got: Message) -> None:
    assert got.status == 502
    assert b"error=connection_terminated; leg=session" in got.get("proxy-status")


async def test_a_request_is_sent_again_once_only() -> None:
    service = Service()
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        losing = Losing(pair)
        await losing.add("one")
        await losing.add("two")
        await wire.send(request())
        await losing.lose()
        await asyncio.wait_for(until(lambda: losing.came.total() == 2), LIMIT)
        await pair.agent(service)
        await losing.lose()
        assert_lost(await wire.answer())
        assert losing.came == {"one": 1, "two": 1} and service.came == []


async def test_a_response_that_has_begun_is_cut_when_its_agent_is_lost() -> None:
    service = Service()
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        losing = Losing(pair)
        await losing.add("lost", begins=True)
        await wire.send(request())
        await wire.until(b"begun")
        await pair.agent(service)
        await losing.lose()
        data, _ = await wire.rest()
        assert not data.endswith(b"0\r\n\r\n") and service.came == []


async def test_a_lost_request_for_which_no_agent_comes_is_told_to_come_again() -> None:
    async with tunnel(agents=0, proxy={"agent_wait": 0.2}) as pair, await pair.open() as wire:
        losing = Losing(pair)
        await losing.add("lost")
        await wire.send(request())
        await losing.lose()
        got = await wire.answer()
        assert got.status == 503 and got.get("retry-after") == b"1"
        assert (await wire.get()).status == 503


# --- what the client is told ---

CODES = [
    (ErrorCode.NO_ERROR, 502, "connection_terminated", "agent"),
    (ErrorCode.PROTOCOL_ERROR, 502, "http_protocol_error", "agent"),
    (ErrorCode.INTERNAL, 502, "proxy_internal_error", "agent"),
    (ErrorCode.FLOW_CONTROL_ERROR, 502, "http_protocol_error", "agent"),
    (ErrorCode.STREAM_CLOSED, 502, "http_protocol_error", "agent"),
    (ErrorCode.FRAME_SIZE_ERROR, 502, "http_protocol_error", "agent"),
    (ErrorCode.CANCEL, 502, "connection_terminated", "agent"),
    (ErrorCode.ENHANCE_YOUR_CALM, 502, "connection_terminated", "agent"),
    (ErrorCode.TIMEOUT, 504, "connection_read_timeout", "service"),
    (ErrorCode.UPSTREAM_UNREACHABLE, 502, "connection_refused", "service"),
    (ErrorCode.UPSTREAM_RESET, 502, "connection_terminated", "service"),
    (ErrorCode.UPSTREAM_PROTOCOL, 502, "http_protocol_error", "service"),
    (ErrorCode.APP_ERROR, 502, "connection_terminated", "service"),
    (ErrorCode.TOO_LARGE, 502, "http_response_header_section_size", "service"),
    (ErrorCode.UPSTREAM_CONNECT_TIMEOUT, 504, "connection_timeout", "service"),
    (ErrorCode.UPSTREAM_DNS, 502, "dns_error", "service"),
    (ErrorCode.UPSTREAM_UNROUTABLE, 502, "destination_ip_unroutable", "service"),
    (ErrorCode.UPSTREAM_TLS, 502, "tls_protocol_error", "service"),
    (ErrorCode.UPSTREAM_CERTIFICATE, 502, "tls_certificate_error", "service"),
    (99, 502, "proxy_internal_error", "agent"),
]


@pytest.mark.parametrize(("code", "status", "cause", "leg"), CODES)
async def test_each_code_before_the_head_has_its_status_cause_and_leg(code, status, cause, leg) -> None:
    quitter = Quitter(code)
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        await handler_agent(pair, quitter)
        got = await wire.get()
        assert got.status == status and got.body == b"in so many words (id svc)\n"
        expected = f'backstream; error={cause}; leg={leg}; details="in so many words (id svc)"'
        assert got.get("proxy-status").decode() == expected
        # One stream's failure is nobody else's, not even the connection's.
        assert (await wire.get()).status == status
        assert len(quitter.came) == 2 and len(pair.proxy.agents) == 1


@pytest.mark.parametrize("code", [code for code, *_ in CODES])
async def test_each_code_after_the_head_is_a_visible_cut(code: int) -> None:
    quitter = Quitter(code, "after the head")
    handlers = []

    def factory(stream, head, end):
        handlers.append((stream, quitter(stream, head, end)))
        return handlers[-1][1]

    async with tunnel(agents=0) as pair, await pair.open() as wire:
        await handler_agent(pair, factory)
        await wire.send(request())
        await wire.until(b"begun\r\n")
        stream, handler = handlers[0]
        handler.quit(stream)
        assert await wire.rest() == (b"", "fin")
