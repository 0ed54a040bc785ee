"""A WebSocket client byte by byte (RFC 6455 §5.2): frames right and wrong, and what comes back."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from tests.rig import ID, Message, Wire, request

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The answer to that key: RFC 6455 §1.3 has both."""
MASK = b"\x37\xfa\x21\x3d"


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: int | None = None,
    form: int | None = None,
) -> bytes:
    """A client's frame. length: what the header says; form: 7, 16 or 64 bits for it, the shortest unless given."""
    size = len(payload) if length is None else length
    form = form or (7 if size < 126 else 16 if size < 65536 else 64)
    first = bytes([fin << 7 | rsv << 4 | opcode])
    second = masked << 7 | (size if form == 7 else 126 if form == 16 else 127)
    extended = size.to_bytes(form // 8, "big") if form > 7 else b""
    if not masked:
        return first + bytes([second]) + extended + payload
    return first + bytes([second]) + extended + MASK + _xor(payload, MASK)


def _xor(payload: bytes, key: bytes) -> bytes:
    # Shorter than one at a time where it is long.
    keys = int.from_bytes((key * (len(payload) // 4 + 1))[: len(payload)], "big")
    return (int.from_bytes(payload, "big") ^ keys).to_bytes(len(payload), "big")


def text(words: str) -> bytes:
    return frame(TEXT, words.encode())


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else code.to_bytes(2, "big") + reason)


@dataclass(frozen=True)
class Received:
    """A peer's frame."""

    opcode: int
    payload: bytes
    fin: bool = True

    @property
    def code(self) -> int | None:
        """Of a close frame."""
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2], "big") if self.payload else None


async def read_frame(wire: Wire) -> Received:
    """The server's next frame, which must be well-formed and unmasked. Raises Ended where none comes."""
    first, second = await wire.exactly(2)
    assert first & 0x70 == 0 and second & 0x80 == 0, (first, second)
    size = await _length(wire, second)
    return Received(first & 0x0F, await wire.exactly(size), bool(first & 0x80))


async def _length(wire: Wire, second: int) -> int:
    size = second & 0x7F
    return size if size < 126 else int.from_bytes(await wire.exactly(2 if size == 126 else 8), "big")


async def read_masked(wire: Wire) -> tuple[Received, bytes]:
    """A client's next frame, which must be well-formed and masked, and its key. Raises Ended where none comes."""
    first, second = await wire.exactly(2)
    assert first & 0x70 == 0 and second & 0x80, (first, second)
    size = await _length(wire, second)
    key = await wire.exactly(4)
    payload = _xor(await wire.exactly(size), key)
    return Received(first & 0x0F, payload, bool(first & 0x80)), key


async def read_close(wire: Wire) -> int | None:
    """The code of the close frame that comes next, and after which nothing follows."""
    code = (await read_frame(wire)).code
    assert await wire.rest() == (b"", "fin")
    return code


async def answer_close(wire: Wire) -> int | None:
    """The code of the close frame that comes next, which is answered with the same, and after which nothing follows."""
    code = (await read_frame(wire)).code
    await wire.send(close(code))
    assert await wire.rest() == (b"", "fin")
    return code


def handshake(target: str = "/", *lines: str, client_id: str | None = ID, method: str = "GET") -> bytes:
    offer = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}")
    return request(target, method=method, client_id=client_id, lines=(*offer, *lines))


def accepted(handshake: Message) -> bytes:
    """A server's answer to a handshake, without a subprotocol (RFC 6455 §4.2.2)."""
    key = handshake.get("sec-websocket-key")
    assert key is not None
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    lines = (b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade")
    return b"\r\n".join((*lines, b"Sec-WebSocket-Accept: " + accept, b"", b""))


async def switched(wire: Wire, target: str = "/", *lines: str, client_id: str | None = ID) -> Message:
    """Opens a WebSocket on a connection; returns the 101's head."""
    await wire.send(handshake(target, *lines, client_id=client_id))
    head = await wire.head()
    assert head.status == 101, head
    assert head.get("sec-websocket-accept") == ACCEPT
    assert not head.all("sec-websocket-extensions")
    return head
