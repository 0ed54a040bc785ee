"""Requests that a program makes itself, through its own proxy's agents."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import pytest

import backstream
from backstream import streams
from backstream._callbacks import set_congested
from backstream.errors import ErrorCode
from tests.rig import (
    ID,
    LIMIT,
    Leaks,
    Recorder,
    Upstream,
    answer,
    begin,
    echo_app,
    end,
    http_only,
    more,
    ok_app,
    read_body,
    tunnel,
    until,
)

MEBIBYTE = 1024 * 1024


def failing(status: int, cause: str, leg: str):
    """Expects RequestFailed with these."""
    return pytest.raises(
        backstream.RequestFailed, check=lambda error: (error.status, error.cause, error.leg) == (status, cause, leg)
    )


async def pieces_of(size: int, piece: int = 10_000) -> AsyncIterator[bytes]:
    for at in range(0, size, piece):
        yield b"x" * min(piece, size - at)


@http_only
async def describing_app(scope, receive, send) -> None:
    body = await read_body(receive)
    if body is None:
        return
    headers = [(b"content-type", b"text/plain"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
    text = f"{scope['method']} {scope['raw_path'].decode()}?{scope['query_string'].decode()} {len(body)}"
    text += "".join(f"\n{name.decode()}: {value.decode()}" for name, value in scope["headers"])
    await answer(send, text.encode(), 201, headers)


async def test_a_request_and_its_response_are_whole() -> None:
    async with tunnel(describing_app) as pair:
        (agent,) = pair.proxy.agents
        headers = {"X-Mixed": "One", "Host": "shop.example"}
        response = await agent.request("PUT", "/a%20b?c=d", headers=headers, content=b"four")
        assert response.status == 201 and response.headers["Content-Type"] == "text/plain"
        assert response.headers.get_all("set-cookie") == ["a=1", "b=2"]
        first, *lines = (await response.aread()).decode().split("\n")
        assert first == "PUT /a%20b?c=d 4"
        assert {"host: shop.example", "x-mixed: One", "content-length: 4", "te: trailers"} < set(lines)
        assert await response.aread() == await response.aread()


@pytest.mark.parametrize("size", [0, 1, 1000, 100_000, 3_000_000])
async def test_bodies_given_whole_or_in_pieces_come_back_as_they_were(size: int) -> None:
    async with tunnel(echo_app) as pair:
        for content in (b"x" * size, pieces_of(size)):
            async with await pair.proxy.request(ID, "POST", "/", content=content) as response:
                got = [piece async for piece in response.aiter_bytes()]
            assert b"".join(got) == b"x" * size


async def test_a_request_body_with_its_length_is_sized_and_must_keep_to_it() -> None:
    async with tunnel(describing_app) as pair:
        (agent,) = pair.proxy.agents
        response = await agent.request("POST", "/", headers={"content-length": "25000"}, content=pieces_of(25_000))
        assert b"content-length: 25000" in await response.aread()
        for size in (24_999, 25_001):
            with pytest.raises(backstream.StreamError, match="body than was promised"):
                await agent.request("POST", "/", headers={"content-length": "25000"}, content=pieces_of(size))


async def test_trailers_come_behind_the_body() -> None:
    @http_only
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"ok"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"42")], "more_trailers": False})

    async with tunnel(app) as pair:
        response = await pair.proxy.request(ID, "GET", "/")
        assert await response.aread() == b"ok" and response.trailers["X-Sum"] == "42"


async def test_an_upstream_gets_its_own_host_unless_the_request_names_one() -> None:
    upstream = Recorder()
    async with Upstream(upstream) as served, tunnel(upstream=served.url) as pair:
        for headers in ((), [("host", "other.example")]):
            response = await pair.proxy.request(ID, "GET", "/", headers=headers)
            assert response.status == 200 and await response.aread() == b"ok"
        hosts = [message.get("host") for message in upstream.seen]
        assert hosts == [served.url.removeprefix("http://").encode(), b"other.example"]


async def test_a_head_that_http_does_not_allow_is_an_error_of_the_caller() -> None:
    async with tunnel(ok_app) as pair:
        (agent,) = pair.proxy.agents
        for method, target, headers in (
            ("GET ", "/", {}),
            ("GET", "no-path", {}),
            ("GET", "/a b", {}),
            ("GET", "/\u20ac", {}),
            ("GET", "/", {"a b": "c"}),
            ("GET", "/", {"a": "b\r\nc: d"}),
            ("GET", "/", {"a": "\u20ac"}),
            ("GET", "/", {"host": "a b"}),
            ("GET", "/", {"connection": "close"}),
            ("GET", "/", {"transfer-encoding": "chunked"}),
            ("GET", "/", {"x-backstream-request-timeout": "1s"}),
            ("GET", "/", {"content-length": "1"}),
            ("GET", "/", {"content-length": "-1"}),
        ):
            with pytest.raises(ValueError):
                await agent.request(method, target, headers=headers)
        with pytest.raises(ValueError):
            await pair.proxy.request("n\u00f6body", "GET", "/")
        assert agent.served == 0


async def test_an_agent_of_the_seed_wire_is_called_in_the_same_way() -> None:
    async with tunnel(describing_app, session=backstream.SessionSettings(wire="seed")) as pair:
        (agent,) = pair.proxy.agents
        sent, received = agent.bytes_sent, agent.bytes_received
        response = await agent.request("POST", "/a%20b?c=d", content=pieces_of(100_000))
        assert response.status == 201 and (await response.aread()).startswith(b"POST /a%20b?c=d 100000\n")
        assert agent.wire == "proto" and agent.bytes_sent - sent > 100_000 and agent.bytes_received > received


# --- back-pressure ---


async def test_a_body_is_asked_for_only_as_fast_as_the_agent_takes_it() -> None:
    asked = 0
    held: list[tuple[streams.Stream, int]] = []

    class Holding(backstream.Handler):
        def data_received(self, stream: streams.Stream, data: bytes) -> None:
            if held is not None:
                held.append((stream, len(data)))

        def end_received(self, stream: streams.Stream, trailers: object) -> None:
            streams.respond(stream, backstream.ResponseHead(status=200), True)

    async def body() -> AsyncIterator[bytes]:
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield b"x" * 10_000

    async with tunnel(handler=lambda stream, head, end: Holding()) as pair:
        asking = asyncio.create_task(pair.proxy.request(ID, "POST", "/", content=body()))
        await until(lambda: sum(size for _, size in held) == 65536, "the window is full")
        assert asked <= 8  # the window, and the piece that did not fit
        while not asking.done():
            for stream, size in held:
                streams.consume(stream, size)
            held.clear()
            await asyncio.sleep(0)
        assert asked == 100 and asking.result().status == 200


async def test_a_response_that_is_not_read_holds_its_sender_back() -> None:
    sent = 0

    @http_only
    async def app(scope, receive, send) -> None:
        nonlocal sent
        if scope["path"] == "/other":
            return await answer(send)
        await begin(send)
        for _ in range(100):
            await more(send, b"x" * 50_000)
            sent += 1
        await end(send)

    async with tunnel(app) as pair:
        response = await pair.proxy.request(ID, "GET", "/")
        await until(lambda: response._call.body.size >= 65536, "the window is full")
        for _ in range(20):  # whatever is on its way comes before these
            other = await pair.proxy.request(ID, "GET", "/other")
            assert await other.aread() == b"ok"
        assert response._call.body.size == 65536 and sent < 10
        assert len(await response.aread()) == 5_000_000 and sent == 100


async def test_pieces_of_a_byte_are_put_together() -> None:
    count = 20_000

    @http_only
    async def app(scope, receive, send) -> None:
        await begin(send)
        for _ in range(count):
            await more(send, b"x")
        await end(send)

    async with tunnel(app) as pair:
        response = await pair.proxy.request(ID, "GET", "/")
        await until(lambda: response._call.over, "all of it is here")
        got = [piece async for piece in response.aiter_bytes()]
        assert len(b"".join(got)) == count and len(got) < 10


async def test_both_directions_stream_at_once() -> None:
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        while (line := await lines.get()) is not None:
            yield line

    async with tunnel(echo_app) as pair, await pair.proxy.request(ID, "POST", "/", content=body()) as response:
        got = response.aiter_bytes()
        for number in range(5):
            lines.put_nowait(b"line %d" % number)
            assert await anext(got) == b"line %d" % number
        lines.put_nowait(None)
        assert [piece async for piece in got] == []


# --- ends ---


async def never(scope, receive, send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_a_response_that_does_not_begin_in_time_is_a_timeout() -> None:
    async with tunnel(never) as pair:
        (agent,) = pair.proxy.agents
        with failing(504, "connection_read_timeout", "service"):
            await agent.request("GET", "/", timeout=0.1)
        await until(lambda: agent.stream_count == 0)
    async with tunnel(never, proxy={"request_timeout": 0.1}) as pair:
        with failing(504, "connection_read_timeout", "service"):
            await pair.proxy.request(ID, "GET", "/")


async def test_a_request_that_is_cancelled_resets_its_stream() -> None:
    gone = asyncio.Event()

    @http_only
    async def app(scope, receive, send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with tunnel(app) as pair:
        leaks = Leaks()
        for content in (None, b"x" * 1_000_000, pieces_of(1_000_000)):
            gone.clear()
            asking = asyncio.create_task(pair.proxy.request(ID, "POST", "/", content=content))
            await until(lambda: pair.counts()["accepted"] == 1)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            async with asyncio.timeout(LIMIT):
                await gone.wait()
        del asking
        await leaks.none()


async def test_closing_a_response_resets_its_stream_and_ends_the_body() -> None:
    closed = asyncio.Event()
    gone = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"begun"
            await asyncio.Event().wait()
        finally:
            closed.set()

    @http_only
    async def app(scope, receive, send) -> None:
        await begin(send)
        await more(send, b"begun")
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with tunnel(app) as pair:
        async with await pair.proxy.request(ID, "POST", "/", content=body()) as response:
            assert await anext(response.aiter_bytes()) == b"begun"
        assert closed.is_set()
        async with asyncio.timeout(LIMIT):
            await gone.wait()
        with pytest.raises(backstream.ResponseCut, match="closed"):
            await response.aread()


async def test_an_answer_before_the_bodys_end_ends_the_body() -> None:
    closed = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"begun"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with tunnel(ok_app) as pair:
        response = await pair.proxy.request(ID, "POST", "/", content=body())
        assert await response.aread() == b"ok"
        async with asyncio.timeout(LIMIT):
            await closed.wait()


async def test_a_body_that_raises_gives_the_request_up_and_raises_there() -> None:
    gone = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"begun"
        raise ZeroDivisionError("in the body")

    @http_only
    async def app(scope, receive, send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with tunnel(app) as pair:
        with pytest.raises(ZeroDivisionError):
            await pair.proxy.request(ID, "POST", "/", content=body())
        async with asyncio.timeout(LIMIT):
            await gone.wait()
        with pytest.raises(TypeError):
            await pair.proxy.request(ID, "POST", "/", content=[b"not asynchronous"])  # type: ignore[arg-type]


async def test_a_response_that_breaks_off_never_looks_whole() -> None:
    seen = asyncio.Event()

    @http_only
    async def app(scope, receive, send) -> None:
        await begin(send)
        await more(send, b"begun")
        await seen.wait()
        raise SystemError

    async with tunnel(app) as pair:
        response = await pair.proxy.request(ID, "GET", "/")
        got = response.aiter_bytes()
        assert await anext(got) == b"begun"
        seen.set()
        with pytest.raises(backstream.ResponseCut):
            await anext(got)
        with pytest.raises(backstream.ResponseCut):
            await response.aread()


async def test_a_body_larger_than_was_asked_for_is_given_up() -> None:
    async with tunnel(echo_app) as pair:
        response = await pair.proxy.request(ID, "POST", "/", content=b"x" * MEBIBYTE)
        with pytest.raises(backstream.StreamError, check=lambda error: error.code == ErrorCode.TOO_LARGE):
            await response.aread(max_size=1000)


async def test_a_response_that_nobody_reads_does_not_hold_its_stream_for_ever() -> None:
    @http_only
    async def app(scope, receive, send) -> None:
        await begin(send)
        await more(send, b"x" * MEBIBYTE)
        await end(send)

    async with tunnel(app, proxy={"idle_timeout": 0.2}) as pair:
        (agent,) = pair.proxy.agents
        response = await pair.proxy.request(ID, "GET", "/")
        await until(lambda: agent.stream_count == 0)
        with pytest.raises(backstream.ResponseCut, match="nothing moved"):
            await response.aread()


async def test_a_slow_reader_is_no_idle_one() -> None:
    @http_only
    async def app(scope, receive, send) -> None:
        await begin(send)
        await more(send, b"x" * 65536)
        await end(send)

    async with tunnel(app, proxy={"idle_timeout": 0.3}) as pair:
        response = await pair.proxy.request(ID, "GET", "/")
        loop = asyncio.get_running_loop()
        started = loop.time()
        size = 0
        async for piece in response.aiter_bytes():
            size += len(piece)
            await asyncio.sleep(0.2)
        assert size == 65536 and loop.time() - started > 0.3


# --- which agent ---


async def test_an_agent_serves_its_own_requests_whatever_the_others_do() -> None:
    async with tunnel(ok_app, agents=3) as pair:
        one, *others = pair.proxy.agents
        for _ in range(6):
            assert (await one.request("GET", "/")).status == 200
        assert one.served == 6 and [other.served for other in others] == [0, 0]


async def test_without_an_agent_a_request_fails_as_a_clients_does() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 0}) as pair:
        with failing(503, "destination_unavailable", "session"):
            await pair.proxy.request("nobody", "GET", "/")
        (agent,) = pair.proxy.agents
        await pair.agents[0].close()
        await until(lambda: agent.draining)
        with failing(503, "destination_unavailable", "session"):
            await agent.request("GET", "/")
        with failing(503, "destination_unavailable", "session"):
            await pair.proxy.request(ID, "GET", "/")


async def test_a_request_waits_for_an_agent_that_is_away_for_the_moment() -> None:
    async with tunnel(echo_app) as pair:
        await pair.agents[0].close()
        asking = asyncio.create_task(pair.proxy.request(ID, "POST", "/", content=pieces_of(200_000)))
        await until(lambda: pair.proxy.agents.waiting == 1)
        await pair.agent(echo_app)
        response = await asking
        assert len(await response.aread()) == 200_000 and pair.proxy.agents.waiting == 0


async def test_requests_for_one_agent_wait_for_room_on_its_transport_in_order() -> None:
    order = []

    @http_only
    async def app(scope, receive, send) -> None:
        order.append(scope["path"])
        await answer(send)

    async with tunnel(app, agents=2) as pair:
        one, other = pair.proxy.agents
        set_congested(one.session, True)
        asking = [asyncio.create_task(one.request("GET", f"/{number}")) for number in range(3)]
        await until(lambda: pair.proxy.agents.waiting == 3)
        assert (await pair.proxy.request(ID, "GET", "/elsewhere")).status == 200  # the other agent has room
        asking[1].cancel()
        await until(lambda: pair.proxy.agents.waiting == 2)
        set_congested(one.session, False)
        assert [(await asking[number]).status for number in (0, 2)] == [200, 200]
        assert order == ["/elsewhere", "/0", "/2"] and other.served == 1
        assert pair.proxy.agents.waiting == 0


async def test_requests_for_an_agent_that_is_lost_while_they_wait_fail() -> None:
    async with tunnel(ok_app) as pair:
        (agent,) = pair.proxy.agents
        set_congested(agent.session, True)
        asking = asyncio.create_task(agent.request("GET", "/"))
        await until(lambda: pair.proxy.agents.waiting == 1)
        agent.abort("gone")
        with failing(503, "destination_unavailable", "session"):
            await asking
        assert pair.proxy.agents.waiting == 0


# --- the proxy's life ---


async def test_a_drain_waits_for_the_programs_requests_and_a_close_ends_them() -> None:
    async with tunnel(echo_app, check=False) as pair:
        lines: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def body() -> AsyncIterator[bytes]:
            while (line := await lines.get()) is not None:
                yield line

        response = await pair.proxy.request(ID, "POST", "/", content=body())
        draining = asyncio.create_task(pair.proxy.drain())
        await until(lambda: pair.proxy.agents.draining)
        lines.put_nowait(b"still served")
        lines.put_nowait(None)
        assert await response.aread() == b"still served"
        await draining
    async with tunnel(echo_app, check=False) as pair:
        response = await pair.proxy.request(ID, "POST", "/", content=pieces_of(MEBIBYTE))
        await pair.proxy.close()
        with pytest.raises(backstream.ResponseCut):
            await response.aread()
        with failing(503, "destination_unavailable", "session"):
            await pair.proxy.request(ID, "GET", "/")


async def test_a_request_belongs_on_the_proxys_own_loop() -> None:
    proxy = backstream.Proxy(backstream.ProxySettings(listen="127.0.0.1:0"))
    with pytest.raises(RuntimeError, match="event loop of a proxy that runs"):
        await proxy.request(ID, "GET", "/")
    async with tunnel(ok_app) as pair:
        with pytest.raises(RuntimeError, match="event loop of a proxy that runs"):
            await asyncio.to_thread(asyncio.run, pair.proxy.request(ID, "GET", "/"))


async def test_large_bodies_arrive_unharmed_in_both_directions() -> None:
    async with tunnel(echo_app) as pair:
        leaks = Leaks()
        digest, size = hashlib.sha256(), 0

        async def body() -> AsyncIterator[bytes]:
            for number in range(400):
                yield b"%d" % number * 20_000

        async with await pair.proxy.request(ID, "POST", "/", content=body()) as response:
            async for piece in response.aiter_bytes():
                digest.update(piece)
                size += len(piece)
        wanted = hashlib.sha256()
        async for piece in body():
            wanted.update(piece)
        assert digest.digest() == wanted.digest() and size > 20 * MEBIBYTE
        del response
        await leaks.none()
