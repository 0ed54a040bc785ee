"""An agent's WebSocket at the proxy: the first byte says how the rest, raw bytes behind the handshake, is cut.

Whatever an agent sends, the proxy answers with whole WebSocket frames that hold whole frames of the wire, and ends the
connection where a rule is broken. Read whole or in pieces it comes to the same, and in the end nothing is left.
"""

from __future__ import annotations

import socket

from backstream import _callbacks, _codec, _message_codec
from backstream._agents import AgentLink, AgentTable
from backstream._flow import WindowBudget
from backstream._loop import loop_state
from backstream._messages import Body, Hello, RequestHead, ResponseHead
from backstream._websocket import accept_websocket
from backstream.config import ProxySettings
from fuzz.net import Transport, shared_loop
from fuzz.session import Handler
from fuzz.steps import Steps, pieces

SETTINGS = ProxySettings()
KEY = b"AAAAAAAAAAAAAAAAAAAAAA=="
HELLO = 6
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
REQUESTS = [RequestHead(method=b"GET", target=b"/"), RequestHead(method=b"POST", target=b"/", body=Body.CHUNKED)]


class Socket:
    """What picows sends to by itself; `received` is what came out at the other end."""

    family = socket.AF_UNIX

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self._received = bytearray()

    def fileno(self) -> int:
        return self._near.fileno()

    def setsockopt(self, *_: object) -> None:
        pass

    def getsockopt(self, *_: object) -> int:
        return 1

    def received(self) -> bytearray:
        try:
            while data := self._far.recv(1 << 20):
                self._received += data
        except BlockingIOError:
            pass
        return self._received

    def close(self) -> None:
        self._near.close()
        self._far.close()


def masked(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A client's frame; a mask of zero leaves the payload as it is."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes([(0x80 if fin else 0) | opcode]) + length + bytes(4) + payload


GREETING = masked(
    BINARY,
    _message_codec.pack_frame(HELLO, 0, _codec.encode_hello(Hello(instance=bytes(16), generation=1, max_streams=9))),
)


def one(data: bytes) -> None:
    steps = Steps(data)
    cut = steps.number()
    wire = steps.rest()
    whole = talk([wire])
    in_pieces = talk(pieces(wire, cut))
    assert in_pieces == whole, f"in pieces it is {in_pieces}, whole {whole}"


def talk(parts: list[bytes]) -> tuple[object, ...]:
    """What two requests came to, and what the proxy said beside its pings."""
    with shared_loop() as loop:
        budget, sock = WindowBudget(1 << 20), Socket()
        table = AgentTable(SETTINGS, budget)
        transport = Transport(loop, None, sock=sock)
        link = AgentLink(table, loop_state(), b"svc", None)
        accept_websocket(transport, link, KEY, GREETING)
        loop.settle()
        assert table.by_id(b"svc") == [link]
        handlers = [Handler(True), Handler(True)]
        for handler, head in zip(handlers, REQUESTS, strict=True):
            handler.stream = _callbacks.open_stream(link.session, head, handler, head.body == Body.NONE)
        loop.settle()
        for part in parts:
            done = 0
            while not transport.closing:
                done += transport.feed(part[done:])
                sock.received()
                loop.settle()
                if done == len(part) or not transport.reading:
                    break
            sock.received()
        frames, pongs, closed = said(bytes(sock.received()))
        alive = not transport.closing
        assert alive or not table.by_id(b"svc")
        transport.lose()
        loop.settle()
        assert len(table) == 0 and budget.used_bytes == 0 and loop_state().deadlines == 0
        assert link.session.stream_count == link.session.opened == 0
        sock.close()
        told = [(handler.events[:1], bytes(handler.received), handler.ended) for handler in handlers]
        if closed is not None:
            frames, pongs, alive = [], [], False  # what waited for the turn's end is no longer said
        return told, frames, pongs, closed is None, alive


def said(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], list[bytes], bytes | None]:
    """The proxy's frames of the wire, its pongs and its close frame."""
    frames: list[tuple[int, int, int, bytes]] = []
    pongs: list[bytes] = []
    closed: bytes | None = None
    at = 0
    while at < len(data):
        assert closed is None, "something behind the close frame"
        opcode, size, at = data[at], data[at + 1], at + 2
        if size == 126:
            size, at = int.from_bytes(data[at : at + 2]), at + 2
        elif size == 127:
            size, at = int.from_bytes(data[at : at + 8]), at + 8
        payload, at = data[at : at + size], at + size
        assert len(payload) == size, "a cut frame"
        if opcode == 0x80 | BINARY:
            # Of HELLO, which has random bytes in it, only that it came.
            for kind, flags, stream, body in _message_codec.unpack_frames(payload):
                frames.append((kind, flags, stream, b"" if kind == HELLO else body))
        elif opcode == 0x80 | PONG:
            pongs.append(payload)
        elif opcode == 0x80 | CLOSE:
            closed = payload[:2]
        else:
            assert opcode == 0x80 | PING and size == 8, opcode
    return frames, pongs, closed


def seeds() -> dict[str, bytes]:
    """Inputs to begin with."""
    head = _message_codec.pack_frame(2, 1, _message_codec.pack_response(ResponseHead(status=200, body=Body.CHUNKED)))
    body = _message_codec.pack_frame(0, 1, b"hello", 1)
    window = _message_codec.pack_frame(4, 3, (4096).to_bytes(4))
    return {
        "message": b"\x03" + masked(BINARY, head + body + window),
        "messages": b"\xff" + masked(BINARY, head) + masked(BINARY, body),
        "fragments": b"\x05"
        + masked(BINARY, head[:4], fin=False)
        + masked(PING, b"12345678")
        + masked(CONTINUATION, head[4:] + body),
        "text": b"\x02" + masked(TEXT, b"hello"),
        "close": b"\x02" + masked(CLOSE, b"\x03\xe8bye"),
        "pong": b"\x02" + masked(PONG, bytes(8)) + masked(PING, b""),
        "long": b"\x02" + masked(BINARY, _message_codec.pack_frame(200, 0, bytes(200))),
    }
