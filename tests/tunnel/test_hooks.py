"""What a program that embeds an agent hears of its connection."""

from __future__ import annotations

import asyncio

import pytest

import backstream
from tests.rig import ID, LIMIT, QUICK, Wire, echo_app, proxy_settings, request, tunnel, until


def agent_for(url, **options):
    settings = backstream.AgentSettings(
        proxy_url=url, client_id=ID, reconnect_min=0.02, reconnect_max=0.1, session=QUICK
    )
    return backstream.Agent(settings, echo_app, **options)


def url_of(proxy):
    return "ws://{}:{}/ws".format(*proxy.address)


async def test_the_hooks_are_called_whenever_the_agent_becomes_reachable_and_is_no_more() -> None:
    events = []

    async def connected(agent):
        await asyncio.sleep(0)
        events.append(("connected", agent.connected))

    def disconnected(agent, why):
        events.append(("disconnected", agent.connected, bool(why)))

    async with backstream.Proxy(proxy_settings()) as proxy:
        port = proxy.address[1]
        agent = agent_for(url_of(proxy), on_connect=connected, on_disconnect=disconnected)
        await agent.start()
        await until(lambda: events == [("connected", True)])
    await until(lambda: events[1:] == [("disconnected", False, True)])
    async with backstream.Proxy(proxy_settings(listen=f"127.0.0.1:{port}")):
        await until(lambda: events[2:] == [("connected", True)])
        await agent.close()
        assert events[3:] == [("disconnected", False, True)]


async def test_a_session_that_is_replaced_without_a_gap_is_not_told() -> None:
    events = []
    async with (
        backstream.Proxy(proxy_settings(reuse_port=True)) as first,
        backstream.Proxy(proxy_settings(listen=f"127.0.0.1:{first.address[1]}", reuse_port=True)) as second,
    ):
        agent = agent_for(
            url_of(first), on_connect=lambda _: events.append("on"), on_disconnect=lambda *_: events.append("off")
        )
        async with agent:
            await agent.wait_connected()
            await until(lambda: len(first.agents) + len(second.agents) == 1)
            old, new = (first, second) if len(first.agents) else (second, first)
            # The port is both proxies': one of the connections comes to the old one.
            wires = [await Wire.connect(old.address) for _ in range(10)]
            for wire in wires:
                await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
            await until(lambda: sum(link.stream_count for link in old.agents) > 0)
            draining = asyncio.create_task(old.drain())
            await until(lambda: len(new.agents) == 1)
            # Its answer comes by the new session, so that one is ready.
            async with await Wire.connect(new.address) as wire:
                await wire.send(request())
                assert (await wire.answer()).status == 200
            for wire in wires:
                wire.close()
            await draining
            await until(lambda: len(agent.sessions) == 1)
            assert events == ["on"] and agent.connected


async def test_a_hook_that_fails_is_logged_and_no_more(caplog) -> None:
    def failing(*_):
        raise LookupError("on purpose")

    async with tunnel(agents=0) as pair:
        agent = agent_for(url_of(pair.proxy), on_connect=failing, on_disconnect=failing)
        pair.agents.append(agent)
        await agent.start()
        await pair.connected()
        assert (await pair.get()).status == 200
    messages = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert messages == ["on_connect failed", "on_disconnect failed"]


async def test_a_hook_may_close_its_agent() -> None:
    async def close(agent):
        await agent.close()

    ended = asyncio.Event()
    async with tunnel(agents=0) as pair:
        agent = agent_for(url_of(pair.proxy), on_connect=close, on_disconnect=lambda *_: ended.set())
        async with asyncio.timeout(2):
            await agent.start()
            await agent.wait_closed()
            await ended.wait()


async def test_a_hook_that_hangs_does_not_hold_up_the_close_for_long(monkeypatch) -> None:
    monkeypatch.setattr("backstream.agent.CLOSE_SECONDS", 0.1)
    entered = asyncio.Event()

    async def hang(agent):
        entered.set()
        await asyncio.Event().wait()

    async with tunnel(agents=0) as pair:
        agent = agent_for(url_of(pair.proxy), on_connect=hang)
        await agent.start()
        await asyncio.wait_for(entered.wait(), LIMIT)
        async with asyncio.timeout(2):
            await agent.close()


async def test_waiting_for_a_connection_ends_with_the_agent() -> None:
    agent = agent_for("ws://127.0.0.1:1/ws")
    await agent.start()
    waiting = asyncio.create_task(agent.wait_connected())
    await asyncio.sleep(0)
    await agent.close()
    with pytest.raises(backstream.ConnectionFailed, match="closed before"):
        await asyncio.wait_for(waiting, 2)
    assert not agent.connected
