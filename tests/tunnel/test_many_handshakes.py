"""Agents that all come at once, as after a proxy's restart: their handshakes are spread over turns of the loop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

import backstream
from backstream._codec import encode_hello
from backstream._message_codec import pack_frame
from backstream._messages import Hello
from tests.frames import BINARY, frame
from tests.rig import ID, Ended, Tunnel, Wire, ok_app, request, tunnel, until

COUNT = 60
LONG = 0.002
"""Seconds: one that takes as long has its turn for itself, unless the loop is late by three times as long."""


def handshake(number: int, *, method: str = "GET") -> bytes:
    lines = ["upgrade: websocket", "connection: Upgrade", "sec-websocket-version: 13"]
    lines += ["sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==", "sec-websocket-protocol: backstream.v1"]
    return request("/ws", method=method, client_id=f"agent-{number}", lines=lines)


class Crowd:
    """COUNT agents whose handshakes come in one turn of the loop, to a proxy whose `authorize` takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.pair: Tunnel
        self.wires: list[Wire] = []
        self.turn = 0
        self.judged: list[int] = []
        """The turns in which they were."""
        self.ids: list[str] = []
        """Theirs, in the same order."""
        self.at_first: Callable[[], object] = lambda: None
        """Called while the first of them is judged, and all others wait."""
        self._seconds = seconds

    def authorize(self, handshake: backstream.Handshake) -> bool:
        if handshake.client_id == ID:
            return True
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end:
            pass
        self.judged.append(self.turn)
        self.ids.append(handshake.client_id)
        if len(self.judged) == 1:
            self.at_first()
        return True

    def come(self) -> None:
        self._next_turn()
        for number, wire in enumerate(self.wires):
            assert wire.send_now(handshake(number))

    def _next_turn(self) -> None:
        self.turn += 1
        if len(self.judged) < COUNT and not self.pair.proxy.agents.draining:
            asyncio.get_running_loop().call_soon(self._next_turn)

    async def statuses(self) -> Counter[int]:
        found: Counter[int] = Counter()
        for wire in self.wires:
            try:
                found[(await wire.head()).status] += 1
            except Ended:
                found[0] += 1
        return found


@asynccontextmanager
async def crowd(seconds: float = LONG, **proxy: Any) -> AsyncIterator[Crowd]:
    made = Crowd(seconds)
    async with AsyncExitStack() as stack:
        made.pair = await stack.enter_async_context(tunnel(ok_app, authorize=made.authorize, proxy=proxy, check=False))
        for _ in range(COUNT):
            made.wires.append(await stack.enter_async_context(await made.pair.open()))
        await until(lambda: made.pair.proxy.connection_count == COUNT, "all are accepted")
        yield made


async def test_handshakes_that_come_at_once_are_spread_over_turns_and_requests_are_served_between_them() -> None:
    async with crowd() as agents, await agents.pair.open() as client:
        agents.come()
        assert (await client.get()).status == 200
        assert len(agents.judged) < COUNT / 2
        assert await agents.statuses() == {101: COUNT}
        assert len(set(agents.judged)) > COUNT / 2


@pytest.mark.parametrize("first", ["the request", "the handshakes"])
async def test_an_agent_that_a_request_waits_for_has_its_turn_before_the_others(first: str) -> None:
    hello = pack_frame(6, 0, encode_hello(Hello(software="test", instance=bytes(16), generation=1, max_streams=1)))
    asked = f"agent-{COUNT - 1}"
    async with crowd() as agents, await agents.pair.open() as client:
        if first == "the request":
            await client.send(request("/asked", client_id=asked))
            await until(lambda: agents.pair.proxy.agents.waiting == 1)
            agents.come()
        else:
            agents.at_first = lambda: client.send_now(request("/asked", client_id=asked))
            agents.come()
        assert (await agents.wires[-1].head()).status == 101
        assert asked in agents.ids[: COUNT // 3]
        # Its HELLO goes before the others' handshakes, too: the request arrives while they wait.
        await agents.wires[-1].send(frame(BINARY, hello))
        await agents.wires[-1].until(b"/asked")
        assert len(agents.judged) < COUNT


async def test_one_that_takes_long_does_not_keep_the_next_waiting_twice_as_long() -> None:
    async with crowd() as agents:
        times: list[float] = []
        agents.at_first = lambda: (time.sleep(1.0), times.append(time.monotonic()))
        agents.come()
        await until(lambda: len(agents.judged) > 1, "the second has its turn")
        assert time.monotonic() - times[0] < 1.0
        assert await agents.statuses() == {101: COUNT}


@pytest.mark.parametrize("error", [NotImplementedError, OSError])
async def test_a_loop_that_watches_no_descriptors_takes_them_all_the_same(error, monkeypatch) -> None:
    def add_reader(*_: object) -> None:
        asked.append(error)
        raise error

    asked: list[type[Exception]] = []
    async with crowd() as agents:
        monkeypatch.setattr(asyncio.get_running_loop(), "add_reader", add_reader)
        agents.come()
        assert await agents.statuses() == {101: COUNT}
        assert asked


async def test_one_whose_judging_is_cancelled_does_not_keep_the_others_waiting() -> None:
    def cancelled() -> None:
        raise asyncio.CancelledError

    async with crowd() as agents:
        agents.at_first = cancelled
        agents.come()
        assert await agents.statuses() == {0: 1, 101: COUNT - 1}


async def test_handshakes_that_take_no_time_are_all_taken() -> None:
    async with crowd(0) as agents:
        agents.come()
        assert await agents.statuses() == {101: COUNT}


async def test_of_agents_that_come_at_once_as_many_are_taken_as_there_is_room_for() -> None:
    async with crowd(max_agents=11) as agents:
        agents.come()
        assert await agents.statuses() == {101: 10, 503: COUNT - 10}
        assert len(agents.pair.proxy.agents) == 11
        assert agents.pair.proxy.connection_count == COUNT - 10


async def test_what_an_agent_sends_ahead_of_its_answer_is_not_lost() -> None:
    hello = pack_frame(6, 0, encode_hello(Hello(software="test", instance=bytes(16), generation=1)))
    async with crowd() as agents:
        agents.at_first = lambda: agents.wires[-1].send_now(frame(BINARY, hello))
        agents.come()
        await agents.pair.connected(1, f"agent-{COUNT - 1}")


async def test_an_agent_that_goes_before_its_turn_leaves_nothing_behind() -> None:
    async with crowd() as agents:
        agents.at_first = lambda: [wire.reset() if number % 2 else wire.close() for number, wire in leaving]
        leaving = list(enumerate(agents.wires))[1:]
        agents.come()
        await until(lambda: agents.pair.proxy.connection_count == 0)
        assert len(agents.judged) < COUNT / 2
        await until(lambda: len(agents.pair.proxy.agents) == 2, "the tunnel's agent and the first are left")


async def test_a_proxy_that_closes_ends_the_handshakes_whose_turn_has_not_come() -> None:
    async with crowd() as agents:
        closing: list[asyncio.Task[None]] = []
        agents.at_first = lambda: closing.append(asyncio.get_running_loop().create_task(agents.pair.proxy.close()))
        agents.come()
        found = await agents.statuses()
        assert found[0] > COUNT / 2 and found[101] == len(agents.judged)
        await closing[0]
        assert agents.pair.proxy.connection_count == 0


async def test_a_proxy_that_drains_refuses_the_handshakes_whose_turn_has_not_come() -> None:
    async with crowd() as agents:
        draining: list[asyncio.Task[None]] = []
        agents.at_first = lambda: draining.append(asyncio.get_running_loop().create_task(agents.pair.proxy.drain()))
        agents.come()
        found = await agents.statuses()
        assert found[503] > COUNT / 2 and found[101] == len(agents.judged) and found[0] == 0
        await draining[0]


async def test_a_handshake_whose_turn_does_not_come_in_time_is_refused() -> None:
    async with crowd(0.05, header_timeout=1.0) as agents:
        agents.come()
        found = await agents.statuses()
        assert found[503] > 0 and found[101] == len(agents.judged) and found[0] == 0


async def test_a_handshake_with_a_body_is_refused_at_once() -> None:
    async with crowd() as agents:
        wire = agents.wires[0]
        await wire.send(handshake(0)[:-2] + b"content-length: 5\r\n\r\n")
        assert (await wire.answer()).status == 400
        assert not agents.judged
