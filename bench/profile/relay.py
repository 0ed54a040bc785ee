"""Stands between an agent and its proxy and counts what passes: ``python -m bench.profile.relay PORT``, the proxy's.

Prints the port to dial, then for each line on standard input one line of JSON with what has passed since the line
before: ``{"to agent": {"messages": …, "bytes": …, "DATA": …, …}, "to proxy": …}``, until it is closed. Bytes are those
of messages, WebSocket's own not counted.

WebSocket frames are parsed by the library websockets, without a transport of its own.
"""

import asyncio
import json
import struct
import sys
from collections import Counter

from websockets.frames import DATA_OPCODES, Frame
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol, Side

from bench.aio import run

TO_AGENT, TO_PROXY = "to agent", "to proxy"
FRAMES = ("DATA", "REQUEST", "RESPONSE", "TRAILERS", "WINDOW", "RESET", "HELLO", "GOAWAY", "NOTIFY", "PING")
"""By the number of their type (docs/reference/protocol.md)."""
_HEADER = struct.Struct("!BHBBI")
_READ = 1 << 18


class Counting:
    """What passes in one direction."""

    def __init__(self, direction: str) -> None:
        self.counts: Counter[str] = Counter()
        self._head = b""
        self._protocol: Protocol | None = None
        self._receiver: Side = CLIENT if direction == TO_AGENT else SERVER
        self._fragments = b""

    def feed(self, data: bytes) -> None:
        if self._protocol is None:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            data = self._head[end + 4 :]
            self._protocol = Protocol(self._receiver, state=OPEN, max_size=None)
        self._protocol.receive_data(data)
        self._protocol.data_to_send()  # its pongs are not wanted
        for frame in self._protocol.events_received():
            assert isinstance(frame, Frame)
            if frame.opcode not in DATA_OPCODES:
                self.counts["control frames"] += 1
                continue
            self._fragments += frame.data
            if frame.fin:
                message, self._fragments = self._fragments, b""
                self._message(message)

    def _message(self, message: bytes) -> None:
        self.counts["messages"] += 1
        self.counts["bytes"] += len(message)
        at = 0
        while at < len(message):
            high, low, kind, _, _ = _HEADER.unpack_from(message, at)
            self.counts[FRAMES[kind] if kind < len(FRAMES) else f"type {kind}"] += 1
            at += _HEADER.size + (high << 16) + low


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counting: Counting) -> None:
    while data := await reader.read(_READ):
        writer.write(data)
        counting.feed(data)
        await writer.drain()
    writer.write_eof()


async def serve(proxy: int) -> None:
    to_agent, to_proxy = Counting(TO_AGENT), Counting(TO_PROXY)

    async def accept(agent_reader: asyncio.StreamReader, agent_writer: asyncio.StreamWriter) -> None:
        # Only an agent that dials again would be counted wrongly, and none is told to.
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy, limit=_READ)
        try:
            await asyncio.gather(_pass_on(reader, agent_writer, to_agent), _pass_on(agent_reader, writer, to_proxy))
        finally:
            writer.close()
            agent_writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=_READ)
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    with open(0, "rb", closefd=False) as standard_input:  # noqa: ASYNC230 - nothing is opened
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), standard_input)
        print(server.sockets[0].getsockname()[1], flush=True)
        while await lines.readline():
            print(json.dumps({TO_AGENT: to_agent.counts, TO_PROXY: to_proxy.counts}), flush=True)
            to_agent.counts, to_proxy.counts = Counter(), Counter()


if __name__ == "__main__":
    run(serve(int(sys.argv[1])))
