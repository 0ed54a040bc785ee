"""Clients that ask for much and take next to nothing of it, until they hold every stream of an id's agents.

Their places go to others, and to nobody while there is room. The grace is no setting, so these tests last: 5 s, and one
before them in which the kernel of a client takes what it does by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backstream import SessionSettings
from tests.faults.test_slow_clients import Crowd, little_room, sip
from tests.rig import (
    LIMIT,
    Ended,
    Message,
    Process,
    Processes,
    Tunnel,
    Upstream,
    Wire,
    begin,
    http_only,
    more,
    ok_app,
    request,
    tunnel,
    until,
)
from tests.tunnel.test_proxy_app import Served, served

GRACE = 6.0
BLOCK = bytes(65536)


@pytest.fixture
def crowd(commands: Processes) -> Iterator[Crowd]:
    made = Crowd(commands)
    yield made
    made.close()


@http_only
async def endless_app(scope: Any, receive: Any, send: Any) -> None:
    """Sends as long as its client takes it, but at /ok."""
    if scope["path"] == "/ok":
        return await ok_app(scope, receive, send)
    await begin(send)
    with contextlib.suppress(OSError):
        while True:
            await more(send, BLOCK)


async def proxy_with_little_room(commands: Processes, *arguments: str) -> Process:
    """A proxy whose clients' sockets hold a few kilobytes each, so that slow ones are held up soon."""
    with little_room(commands.port) as listener:
        proxy = commands.start("proxy", "--request-timeout", "15s", *arguments, inherits=listener)
    await proxy.said("for agents")
    return proxy


@asynccontextmanager
async def reading(wires: list[Wire]) -> AsyncIterator[None]:
    """Each takes 16 bytes every 150 ms meanwhile: less than half of what is asked of it."""

    async def read() -> None:
        while True:
            for wire in wires:
                with contextlib.suppress(ConnectionError):
                    sip(wire)
            await asyncio.sleep(0.15)

    task = asyncio.create_task(read())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def is_reset(wire: Wire) -> bool:
    """Whether the connection was reset; what came before is of no interest."""
    _, how = await wire.rest()
    return how == "reset"


def access_lines(proxy: Process) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in proxy.output().splitlines() if line.startswith("{")]
    return [line for line in lines if line["logger"] == "backstream.access"]


async def test_slow_readers_that_hold_every_stream_make_room_for_others(commands, crowd, journal) -> None:
    proxy = await proxy_with_little_room(commands, "--access-log", "--log-format", "json")
    await commands.agent("--max-streams", "8")
    readers = await crowd.open(8, lambda number: request(f"/endless/{number}"), receive_buffer=4096)
    for wire in readers:
        assert (await wire.head()).status == 200
    began = time.monotonic()
    statuses = []
    async with reading(readers):
        assert (await commands.get("/ok/early")).status == 503
        while (got := await commands.get("/ok")).status != 200:
            statuses.append(got.status)
            assert time.monotonic() - began < GRACE + LIMIT
            await asyncio.sleep(0.05)
        assert time.monotonic() - began > GRACE - 1
        assert set(statuses) <= {503}
        # From now on there is room for each, and for several at a time.
        for _ in range(20):
            assert (await commands.get("/ok")).status == 200
        many = await asyncio.gather(*(commands.get("/slow") for _ in range(4)))
        assert [got.status for got in many] == [200] * 4
    cut = [line for line in access_lines(proxy) if "cut" in line]
    assert 1 <= len(cut) <= 8
    for line in cut:
        number = int(line["message"].split(" ")[2].removeprefix("/endless/"))
        assert line["cut"] == "the client took less than 240 bytes/s"
        assert line["status"] == 200
        assert await is_reset(readers[number])
        await journal.has("gone", f"/endless/{number}")
    # Those who were not needed are still there.
    assert sum(line["message"].split(" ")[2] == "/ok" and line["status"] == 200 for line in access_lines(proxy)) == 21
    assert "Traceback" not in proxy.output()


async def test_without_a_least_rate_nobody_is_cut_off(commands, crowd) -> None:
    await proxy_with_little_room(commands, "--min-read-rate", "0")
    await commands.agent("--max-streams", "2")
    readers = await crowd.open(2, lambda number: request("/endless"), receive_buffer=4096)
    for wire in readers:
        assert (await wire.head()).status == 200
    until_time = time.monotonic() + GRACE + 1
    while time.monotonic() < until_time:
        assert (await commands.get("/ok")).status == 503
        await asyncio.sleep(0.2)
    for wire in readers:
        await wire.exactly(2**20)


async def test_who_reads_above_the_least_rate_keeps_its_stream_and_who_reads_nothing_loses_it(commands, crowd) -> None:
    await proxy_with_little_room(commands)
    await commands.agent("--max-streams", "2")
    reader, staller = await crowd.open(2, lambda number: request("/endless"), receive_buffer=4096)
    assert (await reader.head()).status == (await staller.head()).status == 200
    taken = 0

    async def read() -> None:
        nonlocal taken
        while True:
            # So much that on a busy machine too its small receive buffer, which opens by halves, does within a grace.
            await reader.exactly(100)
            taken += 100
            await asyncio.sleep(0.03)

    task = asyncio.create_task(read())
    began = time.monotonic()
    try:
        (holder,) = await crowd.open(1, lambda number: b"")
        while True:
            await holder.send(request("/begun"))
            if (await holder.head()).status == 200:
                break
            await holder.until(b"(id svc)\n")
            assert time.monotonic() - began < GRACE + LIMIT
            await asyncio.sleep(0.1)
        # That was the staller's place. There is no other.
        assert await is_reset(staller)
        while time.monotonic() - began < 2 * GRACE + 3:
            assert (await commands.get("/ok")).status == 503
            await asyncio.sleep(0.1)
        assert not task.done()
        assert taken > 240 * (time.monotonic() - began), "the machine was too slow for this test"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await reader.exactly(2**20)


async def test_while_there_is_room_who_has_stopped_reading_is_left_alone(commands, crowd) -> None:
    await proxy_with_little_room(commands)
    await commands.agent("--max-streams", "3")
    stopped = await crowd.open(2, lambda number: request("/endless"), receive_buffer=4096)
    for wire in stopped:
        assert (await wire.head()).status == 200
    began = time.monotonic()
    while time.monotonic() - began < GRACE + 2:
        assert (await commands.get("/ok")).status == 200
        await asyncio.sleep(0.05)
    for wire in stopped:
        await wire.exactly(2**20)


async def test_a_stream_whose_service_has_nothing_to_send_is_never_cut_off(commands, crowd) -> None:
    await proxy_with_little_room(commands)
    await commands.agent("--max-streams", "2")
    # One has taken all there was, the other takes it late, and then there is no more.
    prompt, late = await crowd.open(2, lambda number: request("/begun"), receive_buffer=4096)
    assert (await prompt.head()).status == 200
    assert await prompt.chunk() == b"begun"
    began = time.monotonic()
    while time.monotonic() - began < GRACE + 2:
        assert (await commands.get("/ok")).status == 503
        await asyncio.sleep(0.1)
    assert (await late.head()).status == 200
    assert await late.chunk() == b"begun"
    for wire in (prompt, late):
        with pytest.raises(TimeoutError):
            await wire.fill(0.1)


async def test_upgraded_streams_are_held_to_it_too() -> None:
    async def endless(wire: Wire, number: int) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: raw\r\n\r\n")
        while True:
            await wire.send(BLOCK, seconds=60)

    offer = request(lines=["Connection: Upgrade", "Upgrade: raw"])
    async with (
        Upstream(endless) as upstream,
        tunnel(
            upstream=upstream.url,
            proxy={"upgrade": ("raw",)},
            session=SessionSettings(max_streams=1),
            check=False,
        ) as pair,
        await pair.open(receive_buffer=4096) as first,
    ):
        await first.send(offer)
        assert (await first.head()).status == 101
        deadline = time.monotonic() + GRACE + LIMIT
        while True:
            async with await pair.open(receive_buffer=4096) as second:
                await second.send(offer)
                if (got := await second.head()).status == 101:
                    break
                assert got.status == 503 and time.monotonic() < deadline
                await asyncio.sleep(0.1)
        assert await is_reset(first)
        await until(lambda: upstream.open == 0, "the upstream to be left")


async def stalled_until_cut(pair: Tunnel | Served, wire: Wire) -> Message:
    """The first answer that is no 503 to somebody else, while a client holds the only stream and does not read."""
    await wire.send(request("/endless"))
    assert (await wire.head()).status == 200
    began = time.monotonic()
    got: Message
    while (got := await pair.get("/ok")).status == 503 and b"at its limit" in got.body:
        assert time.monotonic() - began < GRACE + LIMIT
        await asyncio.sleep(0.05)
    return got


async def test_who_takes_the_place_waits_until_the_service_has_left_it() -> None:
    places: list[str] = []

    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/ok":
            places.append("ok")
            return await ok_app(scope, receive, send)
        await begin(send)
        try:
            while True:
                await more(send, BLOCK)
        except OSError:
            await asyncio.sleep(0.3)
            places.append("left")

    async with (
        tunnel(app, session=SessionSettings(max_streams=1)) as pair,
        await pair.open(receive_buffer=4096) as wire,
    ):
        assert (await stalled_until_cut(pair, wire)).status == 200
        assert places == ["left", "ok"]
        with pytest.raises(Ended):
            while True:
                await wire.fill()


async def test_one_agents_readers_keep_their_streams_while_another_agent_has_room_and_refuses() -> None:
    refused = []
    async with (
        tunnel(endless_app, session=SessionSettings(max_streams=1)) as pair,
        await pair.open(receive_buffer=4096) as wire,
    ):
        await wire.send(request("/endless"))
        assert (await wire.head()).status == 200
        await pair.agent(handler=lambda stream, head, end: refused.append(head.target))
        began = time.monotonic()
        while time.monotonic() - began < GRACE + 3:
            assert (await pair.get("/ok")).status == 503
            await asyncio.sleep(0.05)
        assert refused
        await wire.exactly(2**20)


async def test_behind_an_asgi_server_who_reads_all_the_time_keeps_its_stream_however_much_waits_for_it() -> None:
    async with (
        served(endless_app, session=SessionSettings(max_streams=1)) as pair,
        await Wire.connect(("127.0.0.1", pair.port), receive_buffer=4096) as wire,
    ):
        await wire.send(request("/endless"))
        assert (await wire.head()).status == 200
        began = time.monotonic()
        while time.monotonic() - began < GRACE + 3:
            await wire.exactly(65536)
            assert (await pair.get("/ok")).status == 503
            await asyncio.sleep(0.05)


async def test_behind_an_asgi_server_slow_readers_make_room_too() -> None:
    gone = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/ok":
            return await ok_app(scope, receive, send)
        await begin(send)
        with contextlib.suppress(OSError):
            while True:
                await more(send, BLOCK)
        gone.set()

    async with (
        served(app, session=SessionSettings(max_streams=1)) as pair,
        await Wire.connect(("127.0.0.1", pair.port), receive_buffer=4096) as wire,
    ):
        assert (await stalled_until_cut(pair, wire)).status == 200
        async with asyncio.timeout(LIMIT):
            await gone.wait()
        await pair.settled()
