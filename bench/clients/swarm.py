"""Many idle agents in one process: ``python -m bench.clients.swarm PORT COUNT``, until standard input closes.

Each is a WebSocket of its own with its own client id that says HELLO, answers pings and is never asked
for anything. Prints ``ready`` once all have the proxy's HELLO. With ``returning`` behind COUNT they dial
again when they were lost and a line came on standard input, with the pauses of the library's agent, and
``back`` is printed whenever all are there once more. With ``clients`` they are idle clients instead: each
asks for /small once and stays. Written against docs of the wire, without the library, to be cheap.
"""

import asyncio
import base64
import gc
import os
import random
import struct
import sys
from collections.abc import Callable
from typing import cast

from bench.aio import RECEIVE_BUFFER, allow_open_files, run, stdin_closed
from bench.clients.raw import request
from bench.routes import SMALL

_AT_ONCE = 200
"""Handshakes under way at a time."""
_BINARY, _CLOSE, _PING, _PONG = 0x2, 0x8, 0x9, 0xA
_RECEIVED = memoryview(RECEIVE_BUFFER)
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 3.0
"""Seconds before dialling again, as the library's agent has them by default."""


def _give_way() -> None:
    """The swarm stands for thousands of other machines: here it runs where nobody else wants to."""
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    else:
        os.setpriority(os.PRIO_PROCESS, 0, 19)


def _frame(opcode: int, payload: bytes) -> bytes:
    """A client's WebSocket frame, payload under 126 bytes; a mask of zero leaves the payload as it is."""
    return bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload


def _hello() -> bytes:
    """A HELLO frame: version 1, software, a random instance, generation 1, default sizes, 100 streams."""
    software = b"bench-swarm"
    hello = b"\x08\x01" + b"\x12%c%b" % (len(software), software) + b"\x1a\x10" + os.urandom(16) + b"\x20\x01\x38\x64"
    return struct.pack(">I", len(hello) << 8 | 0x6) + bytes(5) + hello


class _Agent(asyncio.BufferedProtocol):
    def __init__(self, name: str, lost: Callable[[], object] | None = None) -> None:
        self._transport: asyncio.Transport
        self._name = name
        self._lost = lost
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
        elif self._lost is not None:
            self._lost()
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


class _Client(asyncio.BufferedProtocol):
    """A client that has had one answer and keeps its connection."""

    def __init__(self) -> None:
        self._received = b""
        self.joined = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(request("GET", "/small"))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.joined.done():
            self.joined.set_exception(ConnectionError(f"a client was lost: {self._received[:200]!r}"))
        else:
            print("an idle client was closed", file=sys.stderr, flush=True)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        self._received += _RECEIVED[:nbytes]
        if self._received.endswith(SMALL) and not self.joined.done():
            self.joined.set_result(None)


class _Swarm:
    """All of them, and how many are there."""

    def __init__(self, port: int, count: int, kind: str) -> None:
        self._port = port
        self._count = count
        self._kind = kind
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._present = 0
        self._returning: set[asyncio.Task[None]] = set()
        self.may_return = asyncio.Event()

    async def gather(self) -> None:
        async with asyncio.TaskGroup() as group:
            for index in range(self._count):
                group.create_task(self._first(index))

    async def _first(self, index: int) -> None:
        async with self._gate:
            await self._join(index)

    async def _join(self, index: int) -> None:
        def member() -> _Agent | _Client:
            if self._kind == "clients":
                return _Client()
            return _Agent(f"swarm-{index}", (lambda: self._lost(index)) if self._kind == "returning" else None)

        _, protocol = await asyncio.get_running_loop().create_connection(member, "127.0.0.1", self._port)
        await asyncio.wait_for(protocol.joined, 30)
        self._present += 1

    def _lost(self, index: int) -> None:
        self._present -= 1
        task = asyncio.get_running_loop().create_task(self._return(index))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)

    async def _return(self, index: int) -> None:
        await self.may_return.wait()
        failures = 0
        while True:
            failures += 1
            await asyncio.sleep(random.uniform(0, min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**failures)))
            try:
                await self._join(index)
                break
            except (OSError, TimeoutError):
                pass
        if self._present == self._count:
            print("back", flush=True)


async def main(port: int, count: int, kind: str) -> None:
    swarm = _Swarm(port, count, kind)
    await swarm.gather()
    print("ready", flush=True)
    await stdin_closed(swarm.may_return.set)
    print("done", flush=True)


if __name__ == "__main__":
    allow_open_files()
    _give_way()
    # A collection among so many objects would hold all of them up, and let them loose in one burst.
    gc.disable()
    run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "agents"))
