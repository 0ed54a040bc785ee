"""Many idle agents in one process: ``python -m bench.swarm PORT COUNT``, until standard input closes.

Each is a WebSocket of its own with its own client id that says HELLO, answers pings and is never asked
for anything. Prints ``ready`` once all have the proxy's HELLO. Written against docs of the wire, without
the library, to be cheap.
"""

import asyncio
import base64
import os
import resource
import struct
import sys
from typing import cast

from bench.aio import RECEIVE_BUFFER, run, stdin_closed

_AT_ONCE = 200
"""Handshakes under way at a time."""
_BINARY, _CLOSE, _PING, _PONG = 0x2, 0x8, 0x9, 0xA
_RECEIVED = memoryview(RECEIVE_BUFFER)


def _frame(opcode: int, payload: bytes) -> bytes:
    """A client's WebSocket frame, payload under 126 bytes; a mask of zero leaves the payload as it is."""
    return bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload


def _hello() -> bytes:
    """A HELLO frame: version 1, software, a random instance, generation 1, default sizes, 100 streams."""
    software = b"bench-swarm"
    hello = b"\x08\x01" + b"\x12%c%b" % (len(software), software) + b"\x1a\x10" + os.urandom(16) + b"\x20\x01\x38\x64"
    return struct.pack(">I", len(hello) << 8 | 0x6) + bytes(5) + hello


class _Agent(asyncio.BufferedProtocol):
    def __init__(self, name: str) -> None:
        self._transport: asyncio.Transport
        self._name = name
        self._pending = b""
        self._open = False
        self.joined = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        key = base64.b64encode(os.urandom(16)).decode()
        self._transport.write(
            "GET /ws HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            f"sec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n"
            f"sec-websocket-protocol: backstream.v1\r\nx-backstream-client-id: {self._name}\r\n\r\n".encode()
        )

    def connection_lost(self, error: Exception | None) -> None:
        if not self.joined.done():
            self.joined.set_exception(ConnectionError(f"agent {self._name} lost: {self._pending[:200]!r}"))
        elif self._open:
            print(f"agent {self._name} was closed by the proxy", file=sys.stderr, flush=True)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        data = self._pending + _RECEIVED[:nbytes]
        if not self._open:
            head, separator, rest = data.partition(b"\r\n\r\n")
            if not separator or not head.startswith(b"HTTP/1.1 101 "):
                self._pending = data
                if separator:
                    self._transport.abort()
                return
            self._open = True
            self._transport.write(_frame(_BINARY, _hello()))
            data = rest
        while (end := self._receive(data)) > 0:
            data = data[end:]
        self._pending = data

    def _receive(self, data: bytes) -> int:
        """Take one WebSocket frame off the front; returns its length, 0 when it is not whole yet."""
        if len(data) < 2:
            return 0
        start, length = 2, data[1]
        if length == 126:
            start, length = 4, int.from_bytes(data[2:4])
        elif length == 127:
            start, length = 10, int.from_bytes(data[2:10])
        if len(data) < start + length:
            return 0
        payload = data[start : start + length]
        match data[0] & 0xF:
            case 0x2 if not self.joined.done():
                self.joined.set_result(None)
            case 0x9:
                self._transport.write(_frame(_PONG, payload))
            case 0x8:
                self._transport.write(_frame(_CLOSE, payload[:2]))
        return start + length


async def _join(port: int, name: str, gate: asyncio.Semaphore) -> None:
    async with gate:
        _, agent = await asyncio.get_running_loop().create_connection(lambda: _Agent(name), "127.0.0.1", port)
        await asyncio.wait_for(agent.joined, 30)


async def main(port: int, count: int) -> None:
    gate = asyncio.Semaphore(_AT_ONCE)
    async with asyncio.TaskGroup() as group:
        for index in range(count):
            group.create_task(_join(port, f"swarm-{index}", gate))
    print("ready", flush=True)
    await stdin_closed()
    print("done", flush=True)


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    run(main(int(sys.argv[1]), int(sys.argv[2])))
