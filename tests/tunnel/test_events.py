"""What a program is told of its proxy's agents."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

import backstream
from tests.rig import ID, LIMIT, Echo, echo_app, make_agent, ok_app, proxy_settings, tunnel, until


async def test_a_program_is_told_when_agents_come_drain_and_go() -> None:
    async with tunnel(agents=0, proxy={"agent_wait": 0}) as pair:
        events = pair.proxy.events()
        agent = await pair.agent(echo_app)
        async with asyncio.timeout(LIMIT), await pair.open() as wire:
            connected = await anext(events)
            assert connected.kind == "connected" and connected.agent is pair.proxy.agents.get(ID)
            assert connected.agent is not None and connected.at >= connected.agent.since
            echo = await Echo.begin(wire)
            closing = asyncio.create_task(agent.drain())
            draining = await anext(events)
            assert (draining.kind, draining.agent) == ("draining", connected.agent) and draining.agent.draining
            await echo.finish()
            gone = await anext(events)
            assert (gone.kind, gone.agent) == ("disconnected", connected.agent) and "1001" in gone.reason
            await closing


async def test_a_session_that_is_replaced_drains_and_one_that_is_lost_does_not() -> None:
    async with tunnel(ok_app) as pair:
        (first,) = pair.proxy.agents
        events = pair.proxy.events()
        first.abort("gone")
        async with asyncio.timeout(LIMIT):
            told = [await anext(events) for _ in range(2)]
        assert [(event.kind, event.agent is first) for event in told] == [("disconnected", True), ("connected", False)]
        assert told[0].reason == "gone"


async def test_an_agent_that_is_turned_away_is_no_event() -> None:
    async with tunnel(ok_app, proxy={"max_agents_per_id": 1}) as pair:
        events = pair.proxy.events()
        other = make_agent(pair.proxy, ok_app)
        await other.start()
        await pair.agent(ok_app, client_id="next")
        async with asyncio.timeout(LIMIT):
            event = await anext(events)
        assert event.kind == "connected" and event.agent is not None and event.agent.id == "next"
        await other.close()


async def test_a_slow_reader_is_told_how_much_it_missed_and_where() -> None:
    async with tunnel(agents=0) as pair:
        events = pair.proxy.events(limit=2)
        every = pair.proxy.events()
        for number in range(5):
            await pair.agent(ok_app, client_id=f"a{number}")
        told = [await anext(events) for _ in range(2)]
        assert [event.agent.id for event in told if event.agent] == ["a0", "a1"]
        await pair.agent(ok_app, client_id="a5")
        missed, event = [await anext(events) for _ in range(2)]
        assert (missed.kind, missed.missed, missed.agent) == ("missed", 3, None)
        assert event.agent is not None and event.agent.id == "a5"
        assert [(await anext(every)).kind for _ in range(6)] == ["connected"] * 6


async def test_what_a_reader_missed_last_is_told_without_a_further_event() -> None:
    async with tunnel(agents=0) as pair:
        events = pair.proxy.events(limit=1)
        for number in range(3):
            await pair.agent(ok_app, client_id=f"a{number}")
        assert [(await anext(events)).missed for _ in range(2)] == [0, 2]


async def test_events_end_with_the_proxy_and_with_close() -> None:
    async with backstream.Proxy(proxy_settings()) as proxy:
        left, closed = proxy.events(), proxy.events()
        reading = asyncio.create_task(anext(closed, None))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(closed)
        closed.close()
        assert await reading is None
    assert [event async for event in left] == []


async def test_a_reader_that_nobody_holds_costs_nothing() -> None:
    async with tunnel(ok_app) as pair:
        reference = weakref.ref(pair.proxy.events())
        gc.collect()
        assert reference() is None
        await pair.agent(ok_app)
        await until(lambda: len(pair.proxy.agents) == 2)
