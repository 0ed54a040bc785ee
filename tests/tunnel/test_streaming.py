"""Bytes go on as they come, and no faster than they are taken."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest

import backstream
from tests.rig import (
    Upstream,
    answer,
    begin,
    chunked,
    echo_app,
    end,
    http_only,
    more,
    read_body,
    request,
    tunnel,
    until,
)

BLOCK = b"b" * 65536


# --- nothing is held back ---


async def test_each_event_arrives_before_the_next_is_made() -> None:
    arrived = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await begin(send, [(b"content-type", b"text/event-stream")])
        for i in range(100):
            await more(send, b"data: %d\n\n" % i)
            # Only the client's word that it has this event lets the next one be made.
            await arrived.wait()
            arrived.clear()
        await end(send)

    async with tunnel(app) as pair, httpx.AsyncClient(headers=pair.headers, timeout=10) as client:
        count = 0
        async with client.stream("GET", pair.url) as response:
            assert response.headers["content-type"] == "text/event-stream"
            async for line in response.aiter_lines():
                if line:
                    assert line == f"data: {count}"
                    count += 1
                    arrived.set()
        assert count == 100


async def test_the_head_leaves_before_there_is_a_body() -> None:
    go_on = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await begin(send, [(b"x-early", b"1")])
        await go_on.wait()
        await end(send, b"late")

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request())
        head = await wire.head()
        assert head.get("x-early") == b"1"
        go_on.set()
        await wire.body(head, to_close=False)
        assert head.body == b"late" and head.complete


async def test_an_upstreams_pieces_arrive_one_by_one() -> None:
    arrived = asyncio.Event()

    async def serve(wire, number):
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for i in range(50):
            await wire.send(chunked(b"%d" % i, end=False))
            await arrived.wait()
            arrived.clear()
        await wire.send(b"0\r\n\r\n")

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        await wire.send(request())
        await wire.head()
        for i in range(50):
            assert await wire.chunk() == b"%d" % i
            arrived.set()
        assert await wire.chunk() == b""


async def test_pieces_of_a_request_arrive_one_by_one() -> None:
    got: asyncio.Queue[bytes] = asyncio.Queue()

    @http_only
    async def app(scope, receive, send):
        while True:
            event = await receive()
            got.put_nowait(event["body"])
            if not event["more_body"]:
                break
        await answer(send)

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
        async with asyncio.timeout(10):
            for i in range(50):
                await wire.send(chunked(b"%d" % i, end=False))
                assert await got.get() == b"%d" % i
        await wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).status == 200


async def test_100_continue_comes_when_the_application_asks_for_the_body() -> None:
    ask = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await ask.wait()
        await answer(send, await read_body(receive))

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Expect: 100-continue", "Content-Length: 4"]))
        ask.set()
        assert (await wire.head()).status == 100
        await wire.send(b"body")
        assert (await wire.answer()).body == b"body"


# --- back-pressure ---


async def test_send_waits_while_the_client_does_not_read() -> None:
    sent = 0
    done = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        nonlocal sent
        await begin(send)
        for _ in range(1000):
            await more(send, BLOCK)
            sent += 1
        await end(send)
        done.set()

    async with tunnel(app) as pair, await pair.open(receive_buffer=8192) as wire:
        await wire.send(request())
        await wire.head()

        async def stalled() -> bool:
            before = sent
            await asyncio.sleep(0.2)
            return sent == before

        async with asyncio.timeout(10):
            while not await stalled():
                pass
        # What the windows and the kernel's buffers hold, and no more: far from the 62.5 MiB that there are.
        assert 0 < sent < 400 and not done.is_set()
        # Others are not held up.
        async with await pair.open() as other:
            await other.send(request(method="HEAD"))
            assert (await other.head()).status == 200
        size = 0
        while piece := await wire.chunk():
            size += len(piece)
        assert size == 1000 * len(BLOCK) and done.is_set()


@pytest.mark.parametrize("client_reads_first", [False, True])
async def test_send_waits_to_the_byte_with_small_windows(client_reads_first: bool) -> None:
    """Beyond the window and the sockets nothing is buffered: the kernel's buffers are all that there is."""
    settings = backstream.SessionSettings(initial_window=16384, max_window=16384)
    sent = 0

    @http_only
    async def app(scope, receive, send):
        nonlocal sent
        await begin(send, [(b"content-length", b"8388608")])
        for _ in range(1024):
            await more(send, b"c" * 8192)
            sent += 8192
        await end(send)

    async with (
        tunnel(app, proxy={"session": settings}, session=settings) as pair,
        await pair.open(receive_buffer=4096) as wire,
    ):
        await wire.send(request())
        head = await wire.head()
        if client_reads_first:
            await wire.exactly(1_000_000)
            read = 1_000_000
        else:
            read = 0
        stream_of_proxy = next(iter(pair.proxy.agents)).session
        await until(lambda: stream_of_proxy.stream_count == 1)
        before = -1
        async with asyncio.timeout(10):
            while sent != before:
                before = sent
                await asyncio.sleep(0.2)
        # The two sockets' buffers in the kernel can't be known exactly; the application's lead is bounded anyhow.
        assert sent - read - len(wire.buffer) < 6_000_000
        left = 8388608 - read
        while left:
            if not wire.buffer:
                await wire.fill()
            left -= len(wire.buffer)
            wire.buffer.clear()
        assert head.get("content-length") == b"8388608" and left == 0


async def test_an_upload_stops_while_the_application_does_not_receive() -> None:
    go_on = asyncio.Event()
    total = 0

    @http_only
    async def app(scope, receive, send):
        nonlocal total
        await receive()
        await go_on.wait()
        total = len(BLOCK)
        while (event := await receive())["more_body"]:
            total += len(event["body"])
        await answer(send)

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
        piece = chunked(BLOCK, end=False)
        taken = await wire.send_until_full(piece)
        assert taken < 16 * 1024 * 1024, "the upload was buffered somewhere"
        go_on.set()
        await wire.send(piece[taken % len(piece) :] if taken % len(piece) else b"")
        await wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).status == 200


async def test_an_upstream_that_does_not_read_stops_the_upload() -> None:
    go_on = asyncio.Event()

    async def serve(wire, number):
        head = await wire.head()
        await go_on.wait()
        await wire.body(head, to_close=False)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
        piece = chunked(BLOCK, end=False)
        taken = await wire.send_until_full(piece)
        assert taken < 32 * 1024 * 1024, "the upload was buffered somewhere"
        go_on.set()
        await wire.send(piece[taken % len(piece) :] if taken % len(piece) else b"")
        await wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).status == 200


async def test_a_stalled_download_does_not_hold_its_neighbours() -> None:
    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/endless":
            await begin(send)
            while True:
                await more(send, BLOCK)
        await answer(send, BLOCK)

    async with tunnel(app) as pair:
        stalled = [await pair.open(receive_buffer=8192) for _ in range(8)]
        for wire in stalled:
            await wire.send(request("/endless"))
            await wire.head()
        async with await pair.open() as wire:
            for _ in range(50):
                assert (await wire.get("/small")).body == BLOCK
        for wire in stalled:
            wire.close()


async def test_a_response_before_the_request_has_ended_stops_the_upload() -> None:
    @http_only
    async def app(scope, receive, send):
        await answer(send, b"enough", 413)

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Content-Length: 100000000"]) + BLOCK)
        got = await wire.answer()
        assert got.status == 413 and got.body == b"enough"
        assert await wire.rest() == (b"", "fin")
        await pair.settled()
        (link,) = pair.agents[0].sessions
        passed_on = link.bytes_received
        # Whatever is still sent is thrown away for a while, so that the answer is not lost to a reset.
        await wire.send(BLOCK * 10)
        wire.half_close()
        await until(lambda: pair.proxy.connection_count == 0, "the connection's end")
        assert wire.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        assert link.bytes_received == passed_on < 2 * len(BLOCK)


@pytest.mark.parametrize("windows", [{"max_window": 100}, {"window_budget": 0}], ids=["fixed", "without a budget"])
async def test_windows_that_are_small_and_stay_so_carry_bodies_all_the_same(windows: dict[str, int]) -> None:
    settings = backstream.SessionSettings(initial_window=100, **windows)
    body = bytes(range(250)) * 1200
    async with tunnel(echo_app, proxy={"session": settings}, session=settings) as pair:
        (link,) = pair.proxy.agents
        got = await pair.get(method="POST", body=body)
        assert got.body == body and list(pair.proxy.agents) == [link]
