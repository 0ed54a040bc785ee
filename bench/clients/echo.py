"""Load on an echo of WebSocket messages: each connection sends its next message when the last has come back.

``python -m bench.clients.echo PORT CONNECTIONS SECONDS`` prints messages, seconds, p50 and p99 in µs as JSON. The
message is masked once for all, so that the client costs little.
"""

import asyncio
import json
import sys
import time
from contextlib import suppress
from typing import cast

from bench.aio import run
from bench.clients.closed_loop import summary
from bench.routes import CLIENT_ID, CLIENT_ID_HEADER, HOST

MESSAGE = b"0123456789abcdef" * 2
MASK = b"\x37\xfa\x21\x3d"
SENT = bytes((0x81, 0x80 | len(MESSAGE))) + MASK + bytes(byte ^ MASK[at % 4] for at, byte in enumerate(MESSAGE))
EXPECTED = bytes((0x81, len(MESSAGE))) + MESSAGE

_HANDSHAKE = (
    f"GET /echo HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    f"{CLIENT_ID_HEADER}: {CLIENT_ID}\r\n\r\n"
).encode()


class _Client(asyncio.Protocol):
    def __init__(self, latencies: list[float], ended: asyncio.Event) -> None:
        self._transport: asyncio.Transport
        self._latencies = latencies
        self._ended = ended
        self._received = b""
        self._begun = 0.0
        self.open = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(_HANDSHAKE)

    def data_received(self, data: bytes) -> None:
        received = self._received + data if self._received else data
        if not self._begun:
            self._received = received
            if received.endswith(b"\r\n\r\n"):
                if not received.startswith(b"HTTP/1.1 101 "):
                    self._transport.abort()
                    return
                self._received = b""
                self.open.set()
        elif received == EXPECTED:
            self._received = b""
            self._latencies.append(time.perf_counter() - self._begun)
            self.send()
        elif EXPECTED.startswith(received):
            self._received = received
        else:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended.set()

    def send(self) -> None:
        self._begun = time.perf_counter()
        self._transport.write(SENT)


async def load(port: int, connections: int, seconds: float) -> None:
    latencies: list[float] = []
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: _Client(latencies, ended), "127.0.0.1", port)
        clients.append(client)
        await asyncio.wait_for(client.open.wait(), 10)
    begin = time.perf_counter()
    for client in clients:
        client.send()
    with suppress(TimeoutError):
        await asyncio.wait_for(ended.wait(), seconds)
    elapsed = time.perf_counter() - begin
    print(json.dumps({"messages": len(latencies), **summary(latencies, elapsed), "errors": int(ended.is_set())}))


if __name__ == "__main__":
    run(load(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
