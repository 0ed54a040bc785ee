"""httpx's clients over an agent in this process, without a socket, and through a remote proxy."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

import backstream.httpx
from backstream.httpx import RemoteTransport, Transport
from tests.rig import (
    ID,
    LIMIT,
    Leaks,
    Tunnel,
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

URL = "http://shop.example:8000"


def client(pair: Tunnel, **options) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=Transport(pair.proxy, ID), base_url=URL, **options)


def sync_client(pair: Tunnel, **options) -> httpx.Client:
    return httpx.Client(transport=Transport(pair.proxy, ID), base_url=URL, **options)


@http_only
async def describing_app(scope, receive, send) -> None:
    body = await read_body(receive)
    if body is None:
        return
    lines = [f"{scope['method']} {scope['raw_path'].decode()}?{scope['query_string'].decode()} {len(body)}"]
    lines += [f"{name.decode()}: {value.decode()}" for name, value in scope["headers"]]
    await answer(send, "\n".join(lines).encode(), 201, [(b"x-twice", b"1"), (b"x-twice", b"2")])


# --- asynchronous ---


async def test_a_request_without_a_socket_is_as_httpx_made_it() -> None:
    async with tunnel(describing_app) as pair:
        async with client(pair) as http:
            got = await http.post("/a%20b/%E2%82%AC", params={"q": "1 2"}, json={"a": 1}, headers={"X-Own": "here"})
            assert got.status_code == 201 and got.headers.get_list("x-twice") == ["1", "2"]
            first, *lines = got.text.split("\n")
            assert first == "POST /a%20b/%E2%82%AC?q=1%202 7" or first == "POST /a%20b/%E2%82%AC?q=1+2 7"
            assert {"host: shop.example:8000", "content-length: 7", "x-own: here"} < set(lines)
            assert not any(line.startswith("connection:") for line in lines)
            got = await http.get("/")
            assert got.text.startswith("GET /? 0\n") and "content-length" not in got.text
        assert pair.proxy.connection_count == 0


async def test_bodies_stream_in_both_directions_at_once() -> None:
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def body() -> AsyncIterator[bytes]:
        while (line := await lines.get()) is not None:
            yield line

    async with tunnel(echo_app) as pair, client(pair) as http, http.stream("POST", "/", content=body()) as response:
        pieces = response.aiter_raw()
        for number in range(3):
            lines.put_nowait(b"line %d" % number)
            assert await anext(pieces) == b"line %d" % number
        lines.put_nowait(None)
        assert [piece async for piece in pieces] == []


async def test_one_agent_may_be_named_instead_of_an_id() -> None:
    async with tunnel(ok_app, agents=2) as pair:
        one, other = pair.proxy.agents
        async with httpx.AsyncClient(transport=Transport(pair.proxy, one), base_url=URL) as http:
            for _ in range(4):
                assert (await http.get("/")).text == "ok"
        assert (one.served, other.served) == (4, 0)


async def test_trailers_are_with_the_response_behind_httpxs() -> None:
    @http_only
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"ok"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"42")]})

    async with tunnel(app) as pair, client(pair) as http:
        got = await http.get("/")
        assert got.text == "ok" and got.extensions["backstream"].trailers["x-sum"] == "42"


async def test_failures_are_httpxs_own() -> None:
    @http_only
    async def app(scope, receive, send) -> None:
        if scope["path"] == "/silent":
            while (await receive())["type"] != "http.disconnect":
                pass
        await begin(send)
        await more(send, b"begun")
        if scope["path"] == "/stall":
            while (await receive())["type"] != "http.disconnect":
                pass
        raise SystemError

    async with tunnel(app, proxy={"agent_wait": 0}) as pair:
        async with client(pair, timeout=0.2) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.get("/silent")
            with pytest.raises(httpx.ReadTimeout):
                await http.get("/stall")
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await http.get("/cut")
            with pytest.raises(httpx.LocalProtocolError):
                await http.get("/", headers={"x-backstream-request-timeout": "1s"})
        await pair.agents[0].close()
        async with client(pair) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get("/")


async def test_a_response_that_is_closed_early_leaves_nothing_behind() -> None:
    @http_only
    async def app(scope, receive, send) -> None:
        await begin(send)
        for _ in range(1000):
            await more(send, b"x" * 10_000)
        await end(send)

    async with tunnel(app) as pair:
        leaks = Leaks()
        async with client(pair) as http:
            async with http.stream("GET", "/") as response:
                async for _ in response.aiter_raw():
                    break
            await pair.settled()
        del response, http
        await leaks.none()


# --- synchronous, from another thread ---


async def test_a_synchronous_client_works_from_another_thread() -> None:
    def work() -> list[str]:
        with sync_client(pair) as http:
            return [http.get("/").text, http.post("/", content=b"x" * 1_000_000).text]

    async with tunnel(echo_app) as pair:
        first, second = await asyncio.to_thread(work)
        assert first == "" and len(second) == 1_000_000


async def test_a_synchronous_body_streams_while_the_response_is_read() -> None:
    seen = threading.Event()

    def body() -> Iterator[bytes]:
        yield b"first"
        assert seen.wait(LIMIT)  # set when the echo of the first piece has come
        yield b"second" * 100_000

    def work() -> bytes:
        with sync_client(pair) as http, http.stream("POST", "/", content=body()) as response:
            pieces = response.iter_raw()
            got = next(pieces)
            seen.set()
            return got + b"".join(pieces)

    async with tunnel(echo_app) as pair:
        assert await asyncio.to_thread(work) == b"first" + b"second" * 100_000


async def test_a_synchronous_client_that_stops_early_ends_the_stream_and_the_bodys_thread() -> None:
    def body() -> Iterator[bytes]:
        while True:
            yield b"x" * 10_000

    def work() -> None:
        with sync_client(pair) as http, http.stream("POST", "/", content=body()) as response:
            next(response.iter_raw())

    async with tunnel(echo_app) as pair:
        await asyncio.to_thread(work)
        await until(lambda: not [each for each in threading.enumerate() if each.name.startswith("backstream-body")])


async def test_failures_reach_a_synchronous_client() -> None:
    @http_only
    async def app(scope, receive, send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    def broken() -> Iterator[bytes]:
        yield b"begun"
        raise ZeroDivisionError

    def work() -> None:
        with sync_client(pair, timeout=0.2) as http:
            with pytest.raises(httpx.ReadTimeout):
                http.get("/")
            with pytest.raises(ZeroDivisionError):
                http.post("/", content=broken())

    async with tunnel(app) as pair:
        await asyncio.to_thread(work)
        with sync_client(pair) as http, pytest.raises(RuntimeError, match=r"use httpx\.AsyncClient"):
            http.get("/")


def test_a_thread_is_not_left_waiting_for_a_loop_that_has_ended() -> None:
    made: list[backstream.Proxy] = []

    async def main() -> None:
        async with backstream.Proxy(backstream.ProxySettings(listen="127.0.0.1:0")) as proxy:
            made.append(proxy)

    asyncio.run(main())
    with httpx.Client(transport=Transport(made[0], ID), base_url=URL) as http, pytest.raises(httpx.ConnectError):
        http.get("/")


# --- through a remote proxy ---


async def test_the_header_alone_is_added_for_a_remote_proxy() -> None:
    def work() -> str:
        with httpx.Client(transport=RemoteTransport(ID), base_url=pair.url) as http:
            return http.get("/x").text

    async with tunnel(describing_app) as pair:
        async with httpx.AsyncClient(transport=RemoteTransport(ID), base_url=pair.url) as http:
            got = (await http.post("/x", content=b"four")).text
            assert got.startswith("POST /x? 4\n") and f"x-backstream-client-id: {ID}" in got
        assert f"x-backstream-client-id: {ID}" in await asyncio.to_thread(work)
        await until(lambda: pair.proxy.connection_count == 0)


async def test_a_remote_transport_wraps_one_of_the_clients_kind() -> None:
    def work() -> None:
        with httpx.Client(transport=RemoteTransport(ID, inner), base_url=pair.url) as wrong:
            wrong.get("/")

    async with tunnel(ok_app) as pair:
        inner = httpx.AsyncHTTPTransport(retries=1)
        async with httpx.AsyncClient(transport=RemoteTransport(ID, inner), base_url=pair.url) as http:
            assert (await http.get("/")).text == "ok"
        with pytest.raises(RuntimeError, match="asynchronous"):
            await asyncio.to_thread(work)
