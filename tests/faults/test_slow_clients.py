"""Clients that are slow on purpose, or in a hurry: they cost bounded memory and hold nobody up.

The kinds are those of slowhttptest: heads, bodies and reads that trickle, and requests for thousands of ranges.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

import backstream
from backstream import streams
from tests.faults.test_memory_bound import at_rest
from tests.rig import Message, Process, Processes, Wire, make_agent, request, until

HEADS = 2000
IDLE = 2000
EACH = 8 * 1024
"""Bytes that such a client may cost the proxy: half of what is promised for idle ones."""
HEAD = request("/ok", lines=["X: " + "x" * 500])[:-3]
SLOW = 200


class Neighbour:
    """A client who wants an answer all the while, and counts how long each took."""

    def __init__(self, commands: Processes) -> None:
        self.commands = commands
        self.answers: list[Message] = []
        self.slowest = 0.0

    async def ask(self) -> None:
        began = time.monotonic()
        self.answers.append(await self.commands.get("/ok"))
        self.slowest = max(self.slowest, time.monotonic() - began)

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        async def ask() -> None:
            while True:
                await self.ask()
                await asyncio.sleep(0.01)

        task = asyncio.create_task(ask())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert len(self.answers) > 20
        assert {got.status for got in self.answers} == {200}
        assert self.slowest < 1.0


class Crowd:
    """Many connections to the proxy; closed at the end."""

    def __init__(self, commands: Processes) -> None:
        self.commands = commands
        self.wires: list[Wire] = []

    async def open(self, count: int, data: Callable[[int], bytes], **options: int) -> list[Wire]:
        """So many more, each of which has sent something."""
        wires = []
        for number in range(count):
            wires.append(await self.commands.open(**options))
            self.wires.append(wires[-1])
            await wires[-1].send(data(number))
        return wires

    def close(self) -> None:
        for wire in self.wires:
            wire.close()


@pytest.fixture
def crowd(commands: Processes) -> Iterator[Crowd]:
    made = Crowd(commands)
    yield made
    made.close()


def reached(proxy: Process, connections: int) -> Callable[[], bool]:
    """Whether the proxy has opened so many sockets."""
    return lambda: proxy.files() >= connections


async def test_thousands_of_half_sent_heads_and_idle_clients_cost_little_and_hold_nobody_up(commands, crowd) -> None:
    proxy = await commands.proxy("--header-timeout", "1m")
    await commands.agent()
    for _ in range(10):
        assert (await commands.get("/ok")).status == 200
    before, files = proxy.memory(), proxy.files()
    neighbour = Neighbour(commands)
    async with neighbour.asking():
        idle = await crowd.open(IDLE, lambda number: request("/ok"))
        for wire in idle:
            assert (await wire.answer()).keeps_alive
        half = await crowd.open(HEADS, lambda number: HEAD)
        await until(reached(proxy, files + IDLE + HEADS), "the proxy to have them all")
        grown = proxy.memory() - before
        assert grown < (IDLE + HEADS) * EACH + HEADS * 2 * len(HEAD), f"{grown / 2**20:.1f} MiB"
        # They are all still there.
        for wire in half[::50]:
            await wire.send(b"\n\r\n")
            assert (await wire.answer()).status == 200
        for wire in idle[::50]:
            assert (await wire.get("/ok")).status == 200
        crowd.close()
        await until(lambda: proxy.files() <= files + 1, "every socket of theirs to be closed")
    assert "Traceback" not in proxy.output()


def sip(wire: Wire) -> None:
    """Reads a little, where there is something."""
    with contextlib.suppress(BlockingIOError):
        wire.sock.recv(16)


async def trickle(wires: list[Wire], step: Callable[[Wire], object]) -> None:
    """A step of each, ten times in a second and a half."""
    for _ in range(10):
        for wire in wires:
            step(wire)
        await asyncio.sleep(0.15)


async def test_heads_bodies_and_reads_that_trickle_hold_nobody_up(commands, crowd, journal) -> None:
    proxy = await commands.proxy()
    agent = await commands.agent()
    upload = request("/upload/slow", method="POST", lines=["Content-Length: 8192"])
    heads = await crowd.open(SLOW, lambda number: HEAD)
    bodies = await crowd.open(SLOW, lambda number: upload)
    readers = await crowd.open(SLOW, lambda number: request("/endless/slow"), receive_buffer=4096)
    await journal.has("came", "/upload/slow", SLOW)
    await journal.has("came", "/endless/slow", SLOW)
    sizes = proxy.memory(), agent.memory()
    neighbour = Neighbour(commands)
    async with neighbour.asking():
        await asyncio.gather(
            trickle(heads, lambda wire: wire.send_now(b"a")),
            trickle(bodies, lambda wire: wire.send_now(b"a")),
            trickle(readers, sip),
        )
    # They are still there, and what they hold is what a stream's windows hold.
    for process, size in zip((proxy, agent), sizes, strict=True):
        assert process.memory() - size < SLOW * 160 * 1024
    for wire in bodies:
        await wire.send(bytes(8192 - 10))
    for wire in bodies:
        assert (await wire.answer()).status == 200
    crowd.close()
    await journal.has("gone", "/endless/slow", SLOW)
    assert "Traceback" not in proxy.output() + agent.output()


async def test_slow_readers_of_one_address_leave_streams_to_others_where_it_has_a_limit(commands, crowd) -> None:
    streams, limit = ("--max-streams", "20"), ("--max-connections-per-address", "15")
    await commands.proxy(*limit)
    await commands.agent(*streams)
    wires = await crowd.open(30, lambda number: request("/endless"))
    statuses = [(await wire.head()).status for wire in wires]
    assert statuses == [200] * 15 + [503] * 15
    async with await Wire.connect(("127.0.0.1", commands.port), source="127.0.0.2") as other:
        assert (await other.get("/ok")).status == 200


async def test_requests_for_thousands_of_ranges_are_one_request_each_or_431(commands, crowd, journal) -> None:
    proxy = await commands.proxy()
    await commands.agent()

    def flood(number: int, count: int = 4000) -> bytes:
        ranges = ",".join(f"{at}-" for at in range(count))
        return request(f"/ok/range-{number}", method="HEAD", lines=[f"Range: bytes=0-,{ranges}"])

    before = proxy.memory()
    neighbour = Neighbour(commands)
    async with neighbour.asking():
        wires = await crowd.open(SLOW, flood)
        for wire in wires:
            assert (await wire.answer("HEAD")).status == 200
            await wire.send(flood(0, 20000))  # more than a head may have
        for wire in wires:
            assert (await wire.answer("HEAD")).status == 431
        while len(neighbour.answers) <= 20:
            await asyncio.sleep(0.01)
    assert sum("/range-" in path for _, _, path, _ in journal.entries()) == SLOW
    assert proxy.memory() - before < 16 * 2**20


async def test_pipelined_requests_that_are_refused_as_fast_as_they_come_cost_little_and_hold_nobody_up(commands, crowd):
    proxy = await commands.proxy()
    await commands.agent()
    await commands.served()
    before = proxy.memory()
    (flooder,) = await crowd.open(1, lambda number: request(client_id="a b"))

    async def send() -> None:
        while True:
            await flooder.send(b"GET / HTTP/1.1\r\n\r\n" * 4000)

    async def read() -> None:
        while True:
            await flooder.fill()
            flooder.buffer.clear()

    neighbour = Neighbour(commands)
    tasks = [asyncio.create_task(send()), asyncio.create_task(read())]
    async with neighbour.asking():
        await until(lambda: len(neighbour.answers) > 40)
        assert proxy.memory() - before < 4 * 2**20
    for task in tasks:
        assert not task.done()
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def little_room(port: int) -> Iterator[socket.socket]:
    """A listening socket; what is accepted from it has little room in the kernel for what it sends."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        listener.bind(("127.0.0.1", port))
        listener.listen(100)
        yield listener


async def test_interim_answers_to_clients_that_do_not_read_cost_no_more_than_a_head_each(commands, crowd) -> None:
    clients, size = 8, 120_000
    with little_room(commands.port) as listener:
        proxy = commands.start("proxy", "--request-timeout", "15s", inherits=listener)
        await proxy.said("for agents")
    head = backstream.ResponseHead(status=103, fields=((b"a", b"x" * size),))
    done = []

    async def serve(stream: streams.Stream) -> None:
        for _ in range(16):
            streams.respond(stream, head)
            await asyncio.sleep(0.01)
        streams.respond(stream, backstream.ResponseHead(status=200), True)
        done.append(stream)

    tasks = []

    def handle(stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler:
        tasks.append(asyncio.create_task(serve(stream)))
        return backstream.Handler()

    async with make_agent(f"ws://127.0.0.1:{commands.port}/ws", handler=handle) as agent:
        await agent.wait_connected()
        before = proxy.memory()
        for count in range(clients):
            await crowd.open(1, lambda number: request(), receive_buffer=4096)
            await until(lambda count=count: len(done) > count)
        assert proxy.memory() - before < clients * 2 * size + 2**20
        for wire in crowd.wires:
            got = await wire.answer()
            assert got.status == 200 and 1 <= len(got.interim) < 16
    await asyncio.gather(*tasks)


async def test_a_body_that_comes_byte_by_byte_costs_its_bytes_while_nobody_reads_it(commands, crowd) -> None:
    clients, window = 8, 65536
    with little_room(commands.port) as listener:
        proxy = commands.start("proxy", "--request-timeout", "15s", "--max-window", str(window), inherits=listener)
        await proxy.said("for agents")
    taken: list[streams.Stream] = []

    def handle(stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler:
        streams.respond(stream, backstream.ResponseHead(status=200, body=backstream.Body.CHUNKED))
        taken.append(stream)
        return backstream.Handler()

    async with make_agent(f"ws://127.0.0.1:{commands.port}/ws", handler=handle) as agent:
        await agent.wait_connected()
        wires = await crowd.open(clients, lambda number: request(), receive_buffer=4096)
        await until(lambda: len(taken) == clients)
        for stream in taken:
            streams.write(stream, bytes(20_000))
        await at_rest(proxy)
        before = proxy.memory()
        sent = 20_000
        while sent < window:
            sent += 1
            for stream in taken:
                streams.write(stream, b"%d" % (sent % 10))
            await asyncio.sleep(0)
        await at_rest(proxy)
        assert proxy.memory() - before < clients * window + 2**20
        for stream in taken:
            streams.end(stream)
        wanted = bytes(20_000) + b"".join(b"%d" % (number % 10) for number in range(20_001, window + 1))
        for wire in wires:
            got = await wire.answer()
            assert got.complete and got.body == wanted
