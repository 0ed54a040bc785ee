"""The service of the measurement `websocket`: echoes WebSocket messages of up to 125 bytes, with next to nothing else.

``python -m bench.services.echo PORT``. It also answers ``GET /small``, by which a contender is known to be up.
"""

import asyncio
import base64
import hashlib
import re
import sys
from typing import cast

from bench.aio import run
from bench.routes import SMALL

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
HEADER = 6
"""Bytes before the payload of a client's short frame: two, and the mask."""

_SMALL = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(SMALL), SMALL)
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: "
_KEY = re.compile(rb"sec-websocket-key: *(\S+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """One client: HTTP until it asks for a WebSocket."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._switched = False
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._switched:
            self._echo()
            return
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = bytes(self._received[:end])
            del self._received[: end + 4]
            key = _KEY.search(head)
            if key is None:
                self._transport.write(_SMALL)
                continue
            self._switched = True
            accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest())
            self._transport.write(_SWITCH + accept + b"\r\n\r\n")
            self._echo()
            return

    def _echo(self) -> None:
        data, at, answers = self._received, 0, []
        while len(data) - at >= HEADER:
            size = data[at + 1] & 0x7F
            if len(data) - at < HEADER + size:
                break
            mask = int.from_bytes((data[at + 2 : at + HEADER] * (size // 4 + 1))[:size], "big")
            payload = int.from_bytes(data[at + HEADER : at + HEADER + size], "big") ^ mask
            answers.append(bytes((data[at], size)) + payload.to_bytes(size, "big"))
            at += HEADER + size
        del data[:at]
        if answers:
            self._transport.write(b"".join(answers))


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    run(serve(int(sys.argv[1])))
