"""A load generator for where wrk is missing: closed loop, like ``wrk -t1``, but with a Python process's
ceiling.

``python -m bench.clients.closed_loop PORT CONNECTIONS SECONDS [CA]`` (with a CA over TLS) prints the same JSON as
wrk's script in load.py.
"""

import asyncio
import json
import ssl
import sys
import time
from contextlib import suppress
from typing import cast

from bench.aio import run
from bench.clients.percentiles import percentiles
from bench.clients.raw import request
from bench.routes import SMALL


class _Client(asyncio.Protocol):
    """Sends the next request when an answer is whole; the length of the first answer is that of all."""

    message = request("GET", "/small")

    def __init__(self, latencies: list[float], ended: asyncio.Event) -> None:
        self._transport: asyncio.Transport
        self._latencies = latencies
        self._ended = ended
        self._received = bytearray()
        self._begun = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(SMALL):
            return
        if not self._received.startswith(b"HTTP/1.1 200 "):
            self._transport.abort()
            return
        self._latencies.append(time.perf_counter() - self._begun)
        self._received.clear()
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended.set()

    def _send(self) -> None:
        self._begun = time.perf_counter()
        self._transport.write(self.message)


def summary(latencies: list[float], seconds: float) -> dict[str, float]:
    """What a client prints of its run: its length in seconds, the percentiles of latencies in microseconds."""
    return {"seconds": seconds, **percentiles(latencies)}


async def load(port: int, connections: int, seconds: float, ca: str = "") -> None:
    latencies: list[float] = []
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    context = ssl.create_default_context(cafile=ca) if ca else None
    begin = time.perf_counter()
    for _ in range(connections):
        await loop.create_connection(lambda: _Client(latencies, ended), "127.0.0.1", port, ssl=context)
    with suppress(TimeoutError):
        await asyncio.wait_for(ended.wait(), seconds)
    elapsed = time.perf_counter() - begin
    print(json.dumps({"requests": len(latencies), **summary(latencies, elapsed), "errors": int(ended.is_set())}))


if __name__ == "__main__":
    run(load(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:]))
