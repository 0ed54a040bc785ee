"""A proxy that says to an agent what a test tells it to, byte by byte, and keeps every frame that comes back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests import frames
from tests.frames import BINARY, Received
from tests.rig import LIMIT, Upstream, Wire
from tests.session.wire import Sent, frames_of, greeting

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class PlayedProxy:
    """One session of an agent's. keys: of each of its frames, in their order."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.keys: list[bytes] = []
        self.opcodes: list[int] = []

    async def switch(self, subprotocol: str = "backstream.v1") -> None:
        head = await self.wire.head()
        key = head.get("sec-websocket-key")
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()
        lines = [f"Sec-WebSocket-Protocol: {subprotocol}"] if subprotocol else []
        lines = ["Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}", *lines]
        await self.wire.send("\r\n".join(["HTTP/1.1 101 Switching Protocols", *lines, "", ""]).encode())

    async def frame(self) -> Received:
        """The agent's next WebSocket frame."""
        got, key = await frames.read_masked(self.wire)
        self.keys.append(key)
        self.opcodes.append(got.opcode)
        return got

    async def next(self, opcode: int) -> Received:
        """The next of a kind; those before it are passed over."""
        async with asyncio.timeout(LIMIT):
            while (got := await self.frame()).opcode != opcode:
                pass
        return got

    async def until(self, kind: int) -> Sent:
        """The session's next frame of a kind; what comes before it, or behind it in its message, is passed over."""
        while True:
            for sent in frames_of((await self.next(BINARY)).payload):
                if sent.type == kind:
                    return sent

    async def say(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        await self.wire.send(frames.frame(opcode, payload, masked=False, **options))

    async def tell(self, *parts: bytes) -> None:
        """Frames of the session, in one message."""
        await self.say(BINARY, b"".join(parts))

    async def greet(self, **members: Any) -> None:
        await self.tell(greeting(**{"max_streams": 0, **members}))


class PlayedProxies:
    """Where agents come to. url: for them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.came: asyncio.Queue[PlayedProxy] = asyncio.Queue()

    async def next(self, subprotocol: str = "backstream.v1") -> PlayedProxy:
        """The next agent's session, behind its handshake."""
        async with asyncio.timeout(LIMIT):
            peer = await self.came.get()
            await peer.switch(subprotocol)
        return peer


@asynccontextmanager
async def played_proxies(receive_buffer: int = 0) -> AsyncIterator[PlayedProxies]:
    over = asyncio.Event()

    async def serve(wire: Wire, number: int) -> None:
        made.came.put_nowait(PlayedProxy(wire))
        await over.wait()

    async with Upstream(serve, receive_buffer=receive_buffer) as server:
        made = PlayedProxies(server.url.replace("http", "ws") + "/ws")
        try:
            yield made
        finally:
            over.set()
