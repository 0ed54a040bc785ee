"""Sessions are freed when they end, also those that never began: not by a collection of cycles, which may come late."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import uvloop

import backstream
from backstream.asgi import ProxyApp
from tests.rig import Upstream, Wire, make_agent, ok_app, proxy_settings, tunnel, until
from tests.tunnel.test_proxy_app import agent_scope
from tests.tunnel.test_reconnect import NATIVE, accepts, says, silent

PARTS = ("AgentLink", "AppLink", "ServiceLink", "Session", "SeedSession", "ReadGuard", "LinkListener", "WSProtocol")
ROUNDS = 5


@pytest.fixture
def living() -> Iterator[Any]:
    """How many there are of each part of a session beyond those that were there before, with no collection."""

    def count() -> Counter[str]:
        names = Counter(type(each).__name__ for each in gc.get_objects())
        return Counter({name: names[name] for name in PARTS})

    gc.collect()
    gc.disable()
    logging.disable()  # pytest keeps records, and with them exceptions and where these were raised
    before = count()
    yield lambda: count() - before
    logging.disable(logging.NOTSET)
    gc.enable()


def beyond(other: Upstream, count: int) -> bool:
    return other.connections > count


def dialled(agent: backstream.Agent, generation: int) -> bool:
    return agent._generation > generation


def renewed(agent: backstream.Agent, generation: int) -> bool:
    return agent._generation > generation and len(agent.sessions) == 1


async def refuse(wire: Wire, number: int) -> None:
    wire.reset()


@pytest.mark.parametrize(
    "serve",
    [
        refuse,
        silent,
        says(b""),
        says(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nlate"),
        says(b"220 mail.example ESMTP\r\n\r\n"),
        accepts(b"", lines=NATIVE + NATIVE),
        accepts(b"", lines=""),
        accepts(b"", lines=NATIVE),
    ],
    ids=["reset", "silence", "end", "503", "junk", "two subprotocols", "seed", "native"],
)
async def test_a_dial_that_comes_to_nothing_leaves_nothing_to_the_collector(serve: Any, living: Any) -> None:
    async with Upstream(serve) as other:
        url = other.url.replace("http", "ws") + "/ws"
        async with make_agent(url, ok_app, connect_timeout=0.1 if serve is silent else 10):
            await until(lambda: other.connections > ROUNDS, "several dials")
    # Of the dial that the agent's end cancels, uvloop keeps what it had.
    await until(lambda: max(living().values(), default=0) <= 1, "nothing left of the others", seconds=5, pause=0.05)


async def test_a_dial_that_finds_nobody_or_no_way_leaves_nothing_to_the_collector(living: Any) -> None:
    for url, settings in (
        ("ws://127.0.0.1:1/ws", {}),
        ("ws://-a.invalid/ws", {}),
        ("ws://127.0.0.1:1/ws", {"via": "http://127.0.0.1:1"}),
    ):
        async with make_agent(url, ok_app, **settings) as agent:
            await until(partial(dialled, agent, ROUNDS), "several dials")
        del agent
        await until(lambda: not living(), "nothing left", seconds=5, pause=0.05)


async def test_an_agent_that_is_closed_while_it_dials_leaves_nothing_to_the_collector(living: Any) -> None:
    async with Upstream(silent) as other:
        for _ in range(ROUNDS):
            before = other.connections
            async with make_agent(other.url.replace("http", "ws") + "/ws", ok_app):
                await until(partial(beyond, other, before), "it dials")
    if isinstance(asyncio.get_running_loop(), uvloop.Loop):
        gc.collect()  # it may keep what a dial had that is cancelled within it
    await until(lambda: not living(), "nothing left", seconds=5, pause=0.05)


@pytest.mark.parametrize("wire", ["native", "seed"])
async def test_sessions_that_end_leave_nothing_to_the_collector(wire: str, living: Any) -> None:
    speaking = backstream.SessionSettings(wire=wire)
    async with tunnel(ok_app, proxy={"session": speaking}, session=speaking) as pair:
        for _ in range(ROUNDS):
            assert (await pair.get()).status == 200
            generation = pair.agents[0]._generation
            for link in pair.proxy.agents:
                link.abort("for the test")
            del link
            await until(partial(renewed, pair.agents[0], generation), "another session")
            await pair.connected()
    await until(lambda: not living(), "nothing left", seconds=5, pause=0.05)


async def test_sessions_of_an_asgi_server_that_end_leave_nothing_to_the_collector(living: Any) -> None:
    async def send(event: Any) -> None:
        await asyncio.sleep(0)

    async with ProxyApp(proxy_settings()) as proxy:
        for _ in range(ROUNDS):
            coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
            coming.put_nowait({"type": "websocket.connect"})
            coming.put_nowait({"type": "websocket.disconnect", "code": 1000})
            await proxy(agent_scope(), coming.get, send)
    await until(lambda: not living(), "nothing left", seconds=5, pause=0.05)
