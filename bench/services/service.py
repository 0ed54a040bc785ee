"""The service behind everybody where bodies are large: routes.py over a raw protocol, with next to no cost
per byte.

``python -m bench.services.service PORT`` serves every address of this machine until it is killed, with a second
number in TCP segments of at most so many bytes. Not an HTTP server: it trusts its few clients.
"""

import asyncio
import socket
import sys
from typing import cast

from bench.aio import RECEIVE_BUFFER, allow_open_files, run
from bench.clients.framing import ChunkCounter
from bench.routes import ENDLESS, EVENT_SECONDS, SMALL, event, received
from bench.services import echo

_BLOCK = memoryview(bytes(1 << 18))
_CHUNK = memoryview(b"%x\r\n%b\r\n" % (len(_BLOCK), bytes(_BLOCK)))
_LAST_CHUNK = b"0\r\n\r\n"
_BLOCKS_PER_TURN = 4
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n"
_CHUNKED_HEAD = _HEAD + b"transfer-encoding: chunked\r\n\r\n"


def _sized(body: bytes) -> bytes:
    return b"%bcontent-length: %d\r\n\r\n%b" % (_HEAD, len(body), body)


_SMALL = _sized(SMALL)
_RECEIVED = memoryview(RECEIVE_BUFFER)


class Connection(asyncio.BufferedProtocol):
    """One client, one request at a time."""

    received = 0
    """Bytes of all sinks."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._head = bytearray()
        # Receiving: a sized body has `_body_left`, a chunked one `_chunks`.
        self._body_left = 0
        self._body_size = 0
        self._chunks: ChunkCounter | None = None
        self._deaf = False
        # Sending
        self._send_left = 0
        self._send_chunked = False
        self._paused = False
        self._scheduled = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=len(_BLOCK), low=len(_BLOCK) // 4)

    def connection_lost(self, error: Exception | None) -> None:
        self._send_left = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        position = 0
        while position < nbytes and not self._deaf:
            if self._body_left:
                step = min(self._body_left, nbytes - position)
                self._body_left -= step
                position += step
                Connection.received += step
                if not self._body_left:
                    self._answer_sink(self._body_size)
            elif self._chunks is not None:
                before = self._chunks.body
                position = self._chunks.feed(RECEIVE_BUFFER, position, nbytes)
                Connection.received += self._chunks.body - before
                if self._chunks.done:
                    self._answer_sink(self._chunks.body)
                    self._chunks = None
            else:
                position = self._receive_head(position, nbytes)

    def _receive_head(self, position: int, end: int) -> int:
        already = len(self._head)
        self._head += _RECEIVED[position:end]
        found = self._head.find(b"\r\n\r\n", max(0, already - 3))
        if found < 0:
            return end
        lines = self._head[:found].split(b"\r\n")
        method, target, _ = lines[0].decode("latin-1").split(" ")
        if target == "/echo":
            self._become_echo()
            return end
        self._head.clear()
        fields = [line.lower() for line in lines[1:]]
        self._begin(method, target, fields)
        return position + found + 4 - already

    def _become_echo(self) -> None:
        protocol = echo.Connection()
        protocol.connection_made(self._transport)
        self._transport.set_protocol(protocol)
        protocol.data_received(bytes(self._head))

    def _begin(self, method: str, target: str, fields: list[bytearray]) -> None:
        route, _, count = target.removeprefix("/").partition("/")
        if route == "stall":
            self._deaf = True
            self._transport.pause_reading()
            # Nobody else refers to a connection that is not read: a collection would close it.
            asyncio.get_running_loop().call_later(int(count), self._transport.abort)
        elif method == "POST" and route == "sink":
            self._begin_sink(fields)
        elif route == "received":
            self._transport.write(_sized(received(Connection.received)))
        elif route == "small":
            self._transport.write(_SMALL)
        elif route == "bytes":
            self._transport.write(b"%bcontent-length: %d\r\n\r\n" % (_HEAD, int(count)))
            self._send(int(count), chunked=False)
        elif route == "events":
            self._transport.write(_CHUNKED_HEAD)
            self._send_event(int(count or ENDLESS))
        elif route in ("chunked", "endless"):
            self._transport.write(_CHUNKED_HEAD)
            self._send(int(count or ENDLESS), chunked=True)
        else:
            self._transport.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")

    def _send_event(self, left: int) -> None:
        if self._transport.is_closing():
            return
        data = event()
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        if left == 1:
            self._transport.write(_LAST_CHUNK)
        else:
            asyncio.get_running_loop().call_later(EVENT_SECONDS, self._send_event, left - 1)

    def _begin_sink(self, fields: list[bytearray]) -> None:
        if any(field.startswith(b"transfer-encoding:") for field in fields):
            self._chunks = ChunkCounter()
            return
        lengths = [int(field[15:]) for field in fields if field.startswith(b"content-length:")]
        self._body_left = self._body_size = lengths[0] if lengths else 0
        if not self._body_left:
            self._answer_sink(0)

    def _answer_sink(self, count: int) -> None:
        self._transport.write(_sized(b"%d" % count))

    def _send(self, count: int, *, chunked: bool) -> None:
        self._send_left = count
        self._send_chunked = chunked
        self._send_more()

    def _send_more(self) -> None:
        self._scheduled = False
        write = self._transport.write
        for _ in range(_BLOCKS_PER_TURN):
            # Writing to a connection that is lost neither fails nor pauses.
            if not self._send_left or self._paused or self._transport.is_closing():
                return
            size = min(self._send_left, len(_BLOCK))
            self._send_left -= size
            if not self._send_chunked:
                write(_BLOCK[:size])
                continue
            write(_CHUNK if size == len(_BLOCK) else b"%x\r\n%b\r\n" % (size, bytes(size)))
            if not self._send_left:
                write(_LAST_CHUNK)
        # More would fit, but others wait for their turn.
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send_more)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if not self._scheduled:
            self._send_more()


async def serve(port: int, segment: int) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if segment:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
    listener.bind(("", port))
    server = await asyncio.get_running_loop().create_server(Connection, sock=listener, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    allow_open_files()
    run(serve(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
