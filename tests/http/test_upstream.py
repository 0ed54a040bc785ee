"""The agent's connections to its upstream: which are used again, which never, and how many there are."""

from __future__ import annotations

import asyncio

import pytest

import backstream
from tests.rig import OK, Ended, Upstream, Wire, always, request, tunnel, until

POISON = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nPOISON"

USED_AGAIN = {
    "sized": OK,
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "not modified": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 50\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK,
    "HTTP/1.0 with keep-alive": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
}
NOT_USED_AGAIN = {
    "close": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
    "close in a list": b"HTTP/1.1 200 OK\r\nConnection: x, CLOSE\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "more than asked for": OK + POISON,
    "a byte more": OK + b"\n",
    "more behind no content": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
    "malformed": b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
}


@pytest.mark.parametrize("kind", USED_AGAIN)
async def test_a_connection_is_used_again_after(kind: str) -> None:
    async with Upstream(always(USED_AGAIN[kind])) as upstream, tunnel(upstream=upstream.url) as pair:
        for _ in range(5):
            assert (await pair.get()).status < 400
        assert upstream.connections == 1


@pytest.mark.parametrize("kind", NOT_USED_AGAIN)
async def test_a_connection_is_never_used_again_after(kind: str) -> None:
    async with Upstream(always(NOT_USED_AGAIN[kind])) as upstream, tunnel(upstream=upstream.url) as pair:
        for number in range(1, 4):
            got = await pair.get(method="POST", body=b"")
            assert b"POISON" not in got.body
            assert upstream.connections == number
            await until(lambda: not upstream.open, "the agent to have closed it")


async def test_a_connection_is_not_used_again_while_its_upstream_has_not_read_the_request() -> None:
    async def serve(wire: Wire, number: int) -> None:
        await wire.head()
        await wire.send(OK)
        with pytest.raises(Ended):
            while True:
                await wire.fill()

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair:
        for number in range(1, 3):
            async with await pair.open() as wire:
                await wire.send(request(method="POST", lines=["Content-Length: 5"]) + b"he")
                assert (await wire.answer()).body == b"ok"
                await until(lambda: not upstream.open, "the agent to have closed it")
            assert upstream.connections == number


async def test_who_waits_for_a_connection_does_not_get_one_that_is_spoilt() -> None:
    release = asyncio.Event()

    async def serve(wire: Wire, number: int) -> None:
        while True:
            message = await wire.request()
            if message.target == b"/first":
                await release.wait()
                await wire.send(OK + POISON)
            else:
                await wire.send(OK)

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url, upstream_connections=1) as pair:
        first = asyncio.create_task(pair.get("/first"))
        await until(lambda: upstream.connections, "the first request")
        second = asyncio.create_task(pair.get("/second", method="POST", body=b"x"))
        await until(lambda: pair.counts()["accepted"] == 2, "the second request to wait")
        release.set()
        assert (await first).body == b"ok"
        got = await second
        assert (got.status, got.body) == (200, b"ok")
        assert upstream.connections == 2


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("window", "read"), [(65536, 65280), (16384, 16384)])
async def test_who_waits_for_a_connection_does_not_get_what_lies_behind_an_answer_that_filled_a_read(
    window: int, read: int, method: str
) -> None:
    release = asyncio.Event()

    async def serve(wire: Wire, number: int) -> None:
        while True:
            if (await wire.request()).target == b"/first":
                await release.wait()
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %05d\r\n\r\n"
                size = read - len(head % 0)
                await wire.send(head % size + b"x" * size + POISON)
            else:
                await wire.send(OK)

    session = backstream.SessionSettings(initial_window=window, max_window=window)
    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url, upstream_connections=1, proxy={"session": session}) as pair,
    ):
        first = asyncio.create_task(pair.get("/first"))
        await until(lambda: upstream.connections, "the first request")
        second = asyncio.create_task(pair.get("/second", method=method))
        await until(lambda: pair.counts()["accepted"] == 2, "the second request to wait")
        release.set()
        assert (await first).complete
        assert (await second).body == b"ok"
        assert upstream.connections == 2


async def test_an_answer_that_fills_a_read_leaves_its_connection_to_who_waits() -> None:
    release = asyncio.Event()
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %05d\r\n\r\n"
    size = 65280 - len(head % 0)

    async def serve(wire: Wire, number: int) -> None:
        while True:
            await wire.request()
            await release.wait()
            await wire.send(head % size + b"x" * size)

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url, upstream_connections=1) as pair:
        asked = [asyncio.create_task(pair.get(method=method)) for method in ("GET", "POST", "GET")]
        await until(lambda: pair.counts()["accepted"] == 3, "all to be under way")
        release.set()
        assert [len((await got).body) for got in asked] == [size] * 3
        assert upstream.connections == 1


async def test_requests_beyond_the_pools_size_wait_their_turn() -> None:
    most = 0
    release = asyncio.Event()

    async def serve(wire: Wire, number: int) -> None:
        nonlocal most
        while True:
            message = await wire.request()
            most = max(most, upstream.open)
            await release.wait()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(message.target), message.target))

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url, upstream_connections=2) as pair:
        asked = [asyncio.create_task(pair.get(f"/{i}")) for i in range(8)]
        await until(lambda: pair.counts()["accepted"] == 8, "all to be under way")
        release.set()
        assert [(await got).body for got in asked] == [b"/%d" % i for i in range(8)]
        assert (most, upstream.connections) == (2, 2)


async def test_a_request_whose_client_left_while_it_waited_is_not_sent() -> None:
    release = asyncio.Event()
    targets: list[bytes] = []

    async def serve(wire: Wire, number: int) -> None:
        while True:
            targets.append((await wire.request()).target)
            await release.wait()
            await wire.send(OK)

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url, upstream_connections=1) as pair:
        first = asyncio.create_task(pair.get("/first"))
        await until(lambda: targets, "the first request")
        async with await pair.open() as wire:
            await wire.send(request("/left"))
            await until(lambda: pair.counts()["accepted"] == 2, "the second request to wait")
        await until(lambda: pair.counts()["accepted"] == 1, "the agent to know that its client left")
        release.set()
        assert (await first).status == 200
        assert (await pair.get("/last")).status == 200
    assert targets == [b"/first", b"/last"]


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with Upstream(always(OK)) as upstream, tunnel(upstream=upstream.url, upstream_idle_timeout=0.2) as pair:
        assert (await pair.get()).status == 200
        assert upstream.open == 1
        await until(lambda: not upstream.open, "the idle connection to be closed", seconds=3)
        assert (await pair.get()).status == 200


async def test_the_connection_used_last_is_used_first() -> None:
    used: list[int] = []
    hold = asyncio.Event()

    async def serve(wire: Wire, number: int) -> None:
        while True:
            if (await wire.request()).target == b"/hold":
                await hold.wait()
            used.append(number)
            await wire.send(OK)

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair:
        first = asyncio.create_task(pair.get("/hold"))
        await until(lambda: upstream.connections == 1, "the first connection")
        await pair.get()
        hold.set()
        await first
        for _ in range(3):
            await pair.get()
    assert used == [2, 1, 1, 1, 1]
