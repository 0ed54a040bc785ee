"""A client that goes away: the service learns of it, at once while the socket is read, else within a second."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from pathlib import Path

import pytest

import backstream
from backstream import _callbacks
from backstream._stream import Stream
from tests.rig import (
    LIMIT,
    Echo,
    Ended,
    Upstream,
    Wire,
    answer,
    begin,
    chunked,
    echo_app,
    http_only,
    more,
    ok_app,
    request,
    tunnel,
    until,
)

BLOCK = b"b" * 65536
AT_ONCE = 0.1
"""Seconds; sockets that are not read are looked at every half second, so that this is no luck in the median."""
WITHIN_A_SECOND = 1.0


def leave(wire: Wire, how: str) -> None:
    if how == "reset":
        wire.reset()
    else:
        wire.close()


class Watching:
    """An application that reads nothing but its first event, and notes when http.disconnect comes."""

    def __init__(self, *, reads: bool = True) -> None:
        self.reads = reads
        self.entered = asyncio.Event()
        self.gone: asyncio.Queue[float] = asyncio.Queue()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        if scope["path"] == "/begun":
            await begin(send)
            await more(send, b"begun")
        self.entered.set()
        if self.reads:
            while (await receive())["type"] != "http.disconnect":
                pass
        else:
            try:
                while True:
                    await more(send, BLOCK)
            except OSError:
                pass
            assert (await receive())["type"] == "http.disconnect"
        self.gone.put_nowait(time.monotonic())

    async def after(self, left_at: float) -> float:
        async with asyncio.timeout(LIMIT):
            return await self.gone.get() - left_at


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
@pytest.mark.parametrize("when", ["waiting for the head", "within the response", "within the request"])
async def test_a_client_that_leaves_is_missed_at_once(how: str, when: str) -> None:
    app = Watching()
    async with tunnel(app) as pair:
        delays = []
        for _ in range(5):
            app.entered.clear()
            async with await pair.open() as wire:
                if when == "within the request":
                    await wire.send(request("/", method="POST", lines=["Content-Length: 10"]) + b"half")
                elif when == "within the response":
                    await wire.send(request("/begun"))
                    await wire.until(b"begun")
                else:
                    await wire.send(request("/"))
                await asyncio.wait_for(app.entered.wait(), LIMIT)
                left_at = time.monotonic()
                if how == "half-close":
                    # A FIN before the answer counts as gone (RFC 9112 §9.6 lets a server do so).
                    wire.half_close()
                else:
                    leave(wire, how)
                delays.append(await app.after(left_at))
        assert statistics.median(delays) < AT_ONCE, delays


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_while_it_does_not_read_ends_the_services_sending(how: str) -> None:
    app = Watching(reads=False)
    async with tunnel(app) as pair:
        delays = []
        for _ in range(3):
            async with await pair.open(receive_buffer=8192) as wire:
                await wire.send(request("/begun"))
                await wire.until(b"begun")
                await stalled()
                left_at = time.monotonic()
                leave(wire, how)
                delays.append(await app.after(left_at))
                await until(lambda: pair.counts()["opened"] == 0)
        assert statistics.median(delays) < AT_ONCE, delays


async def stalled() -> None:
    """Waits until the one client takes no more: what came for it has used up all credit, and stays where it is."""
    (stream,) = (
        each
        for each in gc.get_objects()
        if type(each) is Stream and each.opened_here and not _callbacks.is_closed(each)
    )
    still, before = 0, None
    async with asyncio.timeout(LIMIT):
        while still < 20:
            now = _, credit, _, _ = _callbacks.window(stream)
            still = still + 1 if credit == 0 and now == before else 0
            before = now
            await asyncio.sleep(0.01)


def unread(address: tuple[str, int]) -> int:
    """Bytes that lie in the kernel for the server's side of a listener's connections."""
    port = f":{address[1]:04X}"
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    # RFC 9293 states as the kernel numbers them: 01 is ESTABLISHED, 08 is CLOSE-WAIT.
    return sum(int(row[4].split(":")[1], 16) for row in rows if row[1].endswith(port) and row[3] in ("01", "08"))


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_leaves_while_it_is_not_read_is_missed_within_a_second(how: str) -> None:
    entered = asyncio.Event()
    gone = asyncio.Event()
    go_on = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        entered.set()
        await go_on.wait()
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
        await asyncio.wait_for(entered.wait(), LIMIT)
        # More than the window, so that reading stops, and less than the kernel takes, so that the end follows it there.
        await wire.send(chunked(BLOCK, BLOCK[: len(BLOCK) // 2], end=False))
        await until(lambda: unread(pair.address) > 0, "bytes that the proxy does not read")
        left_at = time.monotonic()
        leave(wire, how)
        await until(lambda: pair.proxy.connection_count == 0)
        assert time.monotonic() - left_at < WITHIN_A_SECOND
        go_on.set()
        await asyncio.wait_for(gone.wait(), LIMIT)


async def test_a_client_that_leaves_behind_a_heap_of_pipelined_requests_is_missed_within_a_second() -> None:
    app = Watching()
    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request("/begun"))
        await wire.until(b"begun")
        await wire.send(request("/" + "p" * 1000) * 90)
        await until(lambda: unread(pair.address) > 0, "bytes that the proxy does not read")
        left_at = time.monotonic()
        wire.close()
        assert await app.after(left_at) < WITHIN_A_SECOND
        # None of those requests went anywhere.
        assert pair.agents[0].requests == 1


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_requests_held_behind_the_one_that_its_client_gave_up_go_nowhere(how: str) -> None:
    app = Watching()
    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request("/begun"))
        await wire.until(b"begun")
        await wire.send(request("/") * 3 + b"GET /unfinished")
        # They are read by then: this request's answer comes after them.
        async with await pair.open() as other:
            await other.send(request(client_id="nobody"))
            assert (await other.answer()).status == 503
        if how == "half-close":
            wire.half_close()
        else:
            leave(wire, how)
        await asyncio.wait_for(app.gone.get(), LIMIT)
        await until(lambda: pair.proxy.connection_count == 0)
        assert pair.agents[0].requests == 1


async def test_sending_to_a_client_that_left_raises_an_oserror() -> None:
    raised = asyncio.Queue()

    @http_only
    async def app(scope, receive, send):
        await begin(send)
        await more(send, b"begun")
        while (await receive())["type"] != "http.disconnect":
            pass
        for _ in range(2):
            try:
                await more(send, b"to nobody")
            except BaseException as error:
                raised.put_nowait(error)
        # And it is told again, as often as it asks.
        raised.put_nowait((await receive())["type"])

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request())
        await wire.until(b"begun")
        wire.close()
        async with asyncio.timeout(LIMIT):
            assert isinstance(await raised.get(), OSError) and isinstance(await raised.get(), OSError)
            assert await raised.get() == "http.disconnect"


async def test_an_application_that_lets_the_error_through_leaves_no_traceback(caplog) -> None:
    left = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        try:
            await begin(send)
            while True:
                await more(send, BLOCK)
        finally:
            left.set()

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request())
        await wire.head()
        wire.close()
        await asyncio.wait_for(left.wait(), LIMIT)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "WARNING")]


async def test_what_an_aborted_request_still_does_counts_against_the_agents_streams() -> None:
    go_on = asyncio.Event()
    entered = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/slow":
            entered.set()
            await go_on.wait()
        else:
            await answer(send)

    async with tunnel(app, session=backstream.SessionSettings(max_streams=1)) as pair:
        async with await pair.open() as wire:
            await wire.send(request("/slow"))
            await asyncio.wait_for(entered.wait(), LIMIT)
        (link,) = pair.proxy.agents
        await until(lambda: link.stream_count == 0)
        # For the proxy there is room; the agent knows better, and refuses.
        got = await pair.get()
        assert got.status == 503 and got.get("retry-after")
        go_on.set()
        await until(lambda: pair.counts()["accepted"] == 0)
        assert (await pair.get()).status == 200


# --- an upstream ---


async def until_ended(wire: Wire) -> str:
    """Reads what comes until the connection ends, and says how it did."""
    try:
        while True:
            wire.buffer.clear()
            await wire.fill()
    except Ended as end:
        return end.how


@pytest.mark.parametrize("when", ["within the upload", "before the head", "within the download", "stalled download"])
async def test_the_upstream_sees_its_connection_closed_when_the_client_leaves(when: str) -> None:
    entered = asyncio.Event()
    gone: asyncio.Queue[float] = asyncio.Queue()

    async def serve(wire, number):
        await wire.head()
        if when == "within the upload":
            assert await wire.chunk() == b"half"
        elif when == "within the download":
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbegun")
        elif when == "stalled download":
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nbegun")
            await wire.send_until_full(BLOCK)
        entered.set()
        await until_ended(wire)
        gone.put_nowait(time.monotonic())

    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url) as pair,
        await pair.open(receive_buffer=8192) as neighbour,
    ):
        delays = []
        for _ in range(3 if when != "stalled download" else 1):
            entered.clear()
            async with await pair.open(receive_buffer=8192) as wire:
                if when == "within the upload":
                    lines = ["Transfer-Encoding: chunked"]
                    await wire.send(request(method="POST", lines=lines) + chunked(b"half", end=False))
                else:
                    await wire.send(request())
                if "download" in when:
                    await wire.until(b"begun")
                await asyncio.wait_for(entered.wait(), LIMIT)
                left_at = time.monotonic()
                wire.close()
                async with asyncio.timeout(LIMIT):
                    delays.append(await gone.get() - left_at)
        assert statistics.median(delays) < AT_ONCE, delays
        assert upstream.connections == len(delays)
        await neighbour.send(request())
        await until(lambda: upstream.connections == len(delays) + 1)


async def test_a_client_that_leaves_does_not_disturb_its_neighbours() -> None:
    async with tunnel(echo_app) as pair, await pair.open() as wire:
        echo = await Echo.begin(wire)
        for how in ("close", "reset") * 10:
            async with await pair.open() as other:
                await Echo.begin(other)
                leave(other, how)
            await echo.goes_on()
        await echo.finish()


async def test_a_client_that_leaves_right_after_its_request_leaves_nothing_behind() -> None:
    async with tunnel(ok_app) as pair:
        for how in ("close", "reset") * 20:
            async with await pair.open() as wire:
                await wire.send(request() * 3)
                leave(wire, how)
        await until(lambda: pair.proxy.connection_count == 0)
        await pair.settled()
        assert (await pair.get()).status == 200
