"""The simplest tunnel that one writes with `websockets`: all connections in one WebSocket, whole messages of it.

``python -m bench.services.websockets_tunnel server PORT MEETING`` takes clients on PORT and the agent on MEETING, which
is ``python -m bench.services.websockets_tunnel agent BACKEND MEETING``. A message is the connection's number (four
bytes) and what came on it; one without anything says that it was closed. There is no credit: who does not read, stops
all.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from websockets.asyncio.client import connect
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

from bench.aio import run

_READ = 1 << 16
_OPTIONS: dict[str, Any] = {"compression": None, "max_size": None, "ping_interval": None}


class Tunnel:
    """One side of it; `dial` opens the connection of a number that is new, where this is the agent's side."""

    def __init__(
        self, link: Connection, dial: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]] | None
    ) -> None:
        self._link = link
        self._dial = dial
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._pumps: set[asyncio.Task[None]] = set()
        self._last = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._last += 1
        await self._pump(self._last, reader, writer)

    async def receive(self) -> None:
        """Until the link ends."""
        try:
            async for message in self._link:
                assert isinstance(message, bytes)
                await self._deliver(int.from_bytes(message[:4], "big"), message[4:])
        finally:
            for pump in self._pumps:
                pump.cancel()
            for writer in self._writers.values():
                writer.close()

    async def _deliver(self, number: int, data: bytes) -> None:
        writer = self._writers.get(number)
        if writer is None and data and self._dial is not None:
            reader, writer = await self._dial()
            pump = asyncio.create_task(self._pump(number, reader, writer))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)
            self._writers[number] = writer
        if writer is None:
            return
        if not data:
            self._writers.pop(number).close()
            return
        writer.write(data)
        try:
            await writer.drain()
        except ConnectionError:
            pass

    async def _pump(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers[number] = writer
        prefix = number.to_bytes(4, "big")
        try:
            while data := await reader.read(_READ):
                await self._link.send(prefix + data)
            await self._link.send(prefix)
        except (ConnectionError, ConnectionClosed):
            pass
        finally:
            if self._writers.pop(number, None) is not None:
                writer.close()


async def server(port: int, meeting: int) -> None:
    """Clients are taken once the agent is there."""

    async def agent(link: Connection) -> None:
        tunnel = Tunnel(link, None)
        listener = await asyncio.start_server(tunnel.accept, "127.0.0.1", port, backlog=4096)
        try:
            await tunnel.receive()
        finally:
            listener.close()

    async with serve(agent, "127.0.0.1", meeting, **_OPTIONS) as listening:
        await listening.serve_forever()


async def agent(backend: int, meeting: int) -> None:
    async with connect(f"ws://127.0.0.1:{meeting}/", **_OPTIONS) as link:
        await Tunnel(link, lambda: asyncio.open_connection("127.0.0.1", backend)).receive()


if __name__ == "__main__":
    role, port, meeting = sys.argv[1:]
    run((server if role == "server" else agent)(int(port), int(meeting)))
