"""A new proxy takes over from an old one, and new agents from old ones: no request is lost.

Processes under steady load from several clients. Every request is counted: it has one whole answer with status 200.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator

import pytest

from tests.rig import Processes, Wire, request, until

CLIENTS = 6
REQUESTS = 4000
"""In all; the same was run by hand with 150,000."""


class Load:
    """Clients that send one request after the other, on connections that they keep as long as they may."""

    def __init__(self, port: int) -> None:
        self.address = ("127.0.0.1", port)
        self.answers = 0
        self.bad: list[str] = []
        self.stop = False
        self.tasks = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]

    async def _client(self, number: int) -> None:
        wire: Wire | None = None
        while not self.stop:
            # A body, so that nothing may be sent twice only because it is safe.
            body = f"{number} {self.answers}".encode()
            try:
                wire = wire or await Wire.connect(self.address)
                await wire.send(request("/echo", method="POST", body=body))
                got = await wire.answer()
            except Exception as error:
                self.bad.append(repr(error))
                wire = None
                continue
            self.answers += 1
            if (got.status, got.body) != (200, body):
                self.bad.append(f"{got.status} {got.body!r}")
            if not got.keeps_alive:
                wire.close()
                wire = None
        if wire is not None:
            wire.close()

    async def more(self, count: int) -> None:
        """Waits for further answers."""
        goal = self.answers + count
        await until(lambda: self.answers >= goal or self.bad, f"{count} answers", seconds=40)
        assert not self.bad, self.bad[:3]

    async def end(self) -> None:
        self.stop = True
        await asyncio.gather(*self.tasks)
        assert not self.bad, self.bad[:3]


APP = ("--app", "tests.rig:echo_app")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as sock:
        yield sock


async def test_a_proxy_that_takes_over_the_socket_loses_no_request(
    commands: Processes, listener: socket.socket
) -> None:
    port = commands.port = listener.getsockname()[1]
    old = commands.start("proxy", inherits=listener)
    await old.said("for agents")
    for _ in range(2):
        await commands.agent(*APP)
    await commands.served()
    load = Load(port)
    for _ in range(2):
        await load.more(REQUESTS // 4)
        new = commands.start("proxy", inherits=listener)
        await new.said("for agents")
        old.signal(signal.SIGTERM)
        assert await old.status() == 0
        await load.more(REQUESTS // 4)
        old = new
    await load.end()


async def test_a_proxy_that_shares_the_port_loses_no_request(commands: Processes) -> None:
    port = commands.port
    old = await commands.proxy("--reuse-port")
    for _ in range(2):
        await commands.agent(*APP)
    await commands.served()
    load = Load(port)
    await load.more(REQUESTS // 4)
    new = await commands.proxy("--reuse-port")
    old.signal(signal.SIGTERM)
    assert await old.status() == 0
    await load.more(REQUESTS // 4)
    await load.end()
    assert new.process.poll() is None


async def test_agents_that_are_replaced_one_by_one_lose_no_request(commands: Processes) -> None:
    await commands.proxy()
    agents = [await commands.agent(*APP) for _ in range(2)]
    await commands.served()
    load = Load(commands.port)
    await load.more(REQUESTS // 4)
    for old in agents:
        new = await commands.agent(*APP)
        await new.said("connected to")
        old.signal(signal.SIGTERM)
        assert await old.status() == 0
        await load.more(REQUESTS // 8)
    await load.end()


async def test_the_only_agent_restarts_and_no_request_is_lost(commands: Processes) -> None:
    await commands.proxy()
    old = await commands.agent(*APP)
    await commands.served()
    load = Load(commands.port)
    await load.more(REQUESTS // 8)
    old.signal(signal.SIGTERM)
    assert await old.status() == 0
    await commands.agent(*APP)
    await load.more(REQUESTS // 8)
    await load.end()
