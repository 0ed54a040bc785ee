"""What one client may take up: connections, aborts, the size of a body, and the time in which it comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import pytest

from tests.rig import Tunnel, Wire, answer, begin, http_only, more, ok_app, read_body, request, tunnel, until


async def test_beyond_the_connections_of_one_address_503_and_those_within_go_on() -> None:
    async with tunnel(ok_app, proxy={"max_connections_per_address": 2}) as pair:
        wires = [await pair.open() for _ in range(2)]
        for wire in wires:
            assert (await wire.get()).status == 200
        async with await pair.open() as third:
            got = await third.answer()
            assert got.status == 503 and got.get("retry-after") and b"one address" in got.body
            assert (await third.rest())[0] == b""
        assert (await wires[0].get()).status == 200
        wires[0].close()
        await until(lambda: pair.proxy.connection_count == 1, "the connection is gone")
        assert (await pair.get()).status == 200
        wires[1].close()


async def test_agents_do_not_count_as_connections_of_their_address() -> None:
    async with tunnel(ok_app, agents=3, proxy={"max_connections_per_address": 1}) as pair:
        assert (await pair.get()).status == 200


async def give_up(pair: Tunnel, started: asyncio.Queue[None]) -> None:
    async with await pair.open() as wire:
        await wire.send(request())
        await started.get()


async def test_an_address_that_keeps_giving_up_gets_429_until_it_has_calmed_down() -> None:
    started: asyncio.Queue[None] = asyncio.Queue()

    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/ok":
            return await ok_app(scope, receive, send)
        started.put_nowait(None)
        while (await receive())["type"] != "http.disconnect":
            pass

    async with tunnel(app, proxy={"max_aborts_per_address": 1}) as pair:
        for _ in range(10):
            await give_up(pair, started)
        await pair.settled()
        got = await pair.get("/ok")
        assert got.status == 429 and got.get("retry-after") == b"1"
        deadline = time.monotonic() + 5
        while (await pair.get("/ok")).status == 429:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_a_sized_body_above_the_limit_is_413_and_never_reaches_the_service() -> None:
    asked = []

    @http_only
    async def app(scope, receive, send):
        asked.append(scope["path"])
        await ok_app(scope, receive, send)

    async with tunnel(app, proxy={"max_body_size": 1000}) as pair:
        got = await pair.get(method="POST", body=bytes(1001))
        assert got.status == 413 and b"1000 bytes" in got.body
        assert asked == []
        assert (await pair.get(method="POST", body=bytes(1000))).status == 200


async def test_a_chunked_body_is_cut_with_413_where_it_passes_the_limit() -> None:
    received = []
    gone = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            received.append(message["body"])
        gone.set()

    async with tunnel(app, proxy={"max_body_size": 1000}) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
        await wire.send(b"3e8\r\n" + bytes(1000) + b"\r\n")
        await until(lambda: sum(map(len, received)) == 1000, "what is within the limit arrives")
        await wire.send(b"1\r\nx\r\n")
        assert (await wire.answer()).status == 413
        async with asyncio.timeout(5):
            await gone.wait()
        assert sum(map(len, received)) == 1000


async def trickle(wire: Wire, piece: bytes) -> float:
    """Sends a piece every 100 ms until the proxy has had enough; returns the seconds that it took."""
    began = time.monotonic()
    reading = asyncio.create_task(wire.answer())
    while not reading.done() and time.monotonic() < began + 9:
        try:
            await wire.send(piece)
        except OSError:
            break
        await asyncio.wait([reading], timeout=0.1)
    assert (await reading).status == 408
    return time.monotonic() - began


async def test_a_head_or_body_that_trickles_is_408_after_5_seconds_and_a_faster_one_is_not() -> None:
    limits = {"header_timeout": 30.0, "min_head_rate": 240, "min_body_rate": 500}

    async def fast(pair: Tunnel) -> None:
        async with await pair.open() as wire:
            await wire.send(request(method="POST", lines=["Content-Length: 6400"]))
            for _ in range(64):
                await wire.send(bytes(100))
                await asyncio.sleep(0.1)
            assert (await wire.answer()).body == b"6400"

    async def paused(pair: Tunnel) -> None:
        """The proxy does not read while the service does not: that is not the client's fault."""
        body = bytes(1_000_000)
        async with await pair.open() as wire:
            reading = asyncio.create_task(wire.answer())
            await wire.send(request("/late", method="POST", body=body), seconds=20)
            assert (await reading).body == b"1000000"

    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/late":
            await asyncio.sleep(6)
        body = await read_body(receive)
        if body is not None:
            await answer(send, b"%d" % len(body))

    async with tunnel(app, proxy=limits, check=False) as pair:
        async with await pair.open() as head, await pair.open() as body:
            await head.send(b"GET / HTTP/1.1\r\n")
            await body.send(request(method="POST", lines=["Content-Length: 100000"]))
            took = await asyncio.gather(trickle(head, b"a: b\r\n"), trickle(body, b"x"), fast(pair), paused(pair))
        assert all(4.9 < seconds < 7 for seconds in took[:2])


async def test_a_body_that_trickles_cuts_an_answer_until_close_visibly(caplog: pytest.LogCaptureFixture) -> None:
    @http_only
    async def app(scope, receive, send):
        await begin(send)
        while (await receive())["type"] != "http.disconnect":
            await more(send, b"x")

    caplog.set_level(logging.INFO, "backstream.access")
    limits = {"min_body_rate": 500, "access_log": True}
    async with tunnel(app, proxy=limits, check=False) as pair, await pair.open() as wire:
        reading = asyncio.create_task(wire.rest())
        await wire.send(request(method="POST", version="1.0", lines=["Content-Length: 100000"]))
        began = time.monotonic()
        while not reading.done() and time.monotonic() < began + 9:
            with contextlib.suppress(ConnectionError):
                wire.send_now(b"x")
            await asyncio.wait([reading], timeout=0.1)
        data, how = await reading
        assert data.startswith(b"HTTP/1.1 200 ") and how == "reset"
        (record,) = (record for record in caplog.records if record.name == "backstream.access")
        assert record.cut == "the body comes slower than 500 bytes/s"


async def test_a_connection_may_be_idle_before_its_first_byte_without_counting_as_slow() -> None:
    async with tunnel(ok_app, proxy={"min_head_rate": 10_000}) as pair, await pair.open() as wire:
        await asyncio.sleep(5.2)
        await wire.send(request()[:20])
        # It is read by then: this request's answer comes after it.
        assert (await pair.get()).status == 200
        await wire.send(request()[20:])
        assert (await wire.answer()).status == 200
