"""Many streams whose readers have stopped: what both processes hold for them stays below what the settings promise."""

from __future__ import annotations

import asyncio
import time

from backstream.config import ProxySettings, SessionSettings
from backstream.proxy import memory_bound
from tests.rig import Process, Wire, chunked, request, until

STREAMS = 200
BUDGET = 4 * 1024 * 1024
PIECE = chunked(bytes(65536), end=False)
OTHERS = 50
EACH = 65536 + 32768
"""Bytes of a stream: its window, and the objects of its connection."""
SETTINGS = ProxySettings(
    max_connections=STREAMS + OTHERS, max_agents=1, session=SessionSettings(window_budget=BUDGET, max_streams=1000)
)


async def fill(wire: Wire) -> int:
    """Sends an upload until nothing of it was taken for a while; returns how much was."""
    taken, since = 0, time.monotonic()
    while time.monotonic() - since < 1.0:
        if count := wire.send_now(PIECE[taken % len(PIECE) :]):
            taken, since = taken + count, time.monotonic()
        await asyncio.sleep(0 if count else 0.02)
    return taken


async def at_rest(*processes: Process) -> None:
    """Waits until the memory of all has kept its size for half a second."""
    sizes, since = [each.memory() for each in processes], time.monotonic()

    def same() -> bool:
        nonlocal sizes, since
        now = [each.memory() for each in processes]
        if now != sizes:
            sizes, since = now, time.monotonic()
        return time.monotonic() - since > 0.5

    await until(same, "memory that grows no more", pause=0.05)


async def test_streams_whose_readers_stall_stay_within_the_bound_and_hold_nobody_up(commands) -> None:
    proxy = await commands.proxy(
        *("--max-connections", str(SETTINGS.max_connections), "--max-agents", "1", "--window-budget", str(BUDGET))
    )
    agent = await commands.agent("--window-budget", str(BUDGET))
    for _ in range(10):
        assert (await commands.get("/ok")).status == 200
    before = {each: each.memory() for each in (proxy, agent)}
    wires = []
    for number in range(STREAMS):
        wire = await commands.open(receive_buffer=16384)
        wires.append(wire)
        if number % 2:
            await wire.send(request("/endless"))
            assert (await wire.head()).status == 200
        else:
            await wire.send(request("/deaf", method="POST", lines=["Transfer-Encoding: chunked"]))
    taken = await asyncio.gather(*(fill(wire) for wire in wires[::2]))
    assert min(taken) > 65536, "an upload did not get as far as its window"
    await at_rest(proxy, agent)
    bound = memory_bound(SETTINGS)
    for process, size in before.items():
        grown = process.memory() - size
        # Less than half of the windows in use would mean that the streams do not stall where they should.
        assert STREAMS * 16384 < grown < bound, f"{grown / 2**20:.1f} MiB, {bound / 2**20:.1f} MiB are promised"
        assert grown < STREAMS * EACH + BUDGET + 2**20, f"{grown / 2**20:.1f} MiB are more than windows can hold"
    slowest = 0.0
    for _ in range(OTHERS):
        begun = time.monotonic()
        assert (await commands.get("/ok")).status == 200
        slowest = max(slowest, time.monotonic() - begun)
    assert slowest < 1.0
    for wire in wires:
        wire.close()
