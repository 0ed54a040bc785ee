"""RFC 6455 as a table: what a client does, and what becomes of it, three times.

The same echo is served by `websockets` directly, by that server through the tunnel, and by an application in the agent.
The tunnel must change nothing (the first two verdicts are the same), and the agent must be right (the third is one that
the RFC asks for). Each step but the last waits for its echo, so that no verdict hangs on how the bytes
were cut on their way. `python -m tests.interop.autobahn` runs Autobahn's test suite in the same three places.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import websockets

from tests.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    close,
    frame,
    handshake,
    read_frame,
    text,
)
from tests.rig import Ended, Wire, tunnel

LARGEST = 1024 * 1024
Outcome = tuple[Any, ...]
"""The frames that came back as (opcode, payload), close frames as ("close", code), then how the connection ended."""


async def echo_app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "websocket":
        raise NotImplementedError
    await receive()
    await send({"type": "websocket.accept"})
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


async def echo_handler(connection: websockets.ServerConnection) -> None:
    try:
        async for message in connection:
            await connection.send(message)
    except websockets.ConnectionClosed:
        pass


@asynccontextmanager
async def places() -> AsyncIterator[dict[str, Any]]:
    """The addresses of the three."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            websockets.serve(echo_handler, "127.0.0.1", 0, max_size=LARGEST, compression=None)
        )
        address = server.sockets[0].getsockname()
        through = await stack.enter_async_context(tunnel(upstream="http://{}:{}".format(*address)))
        asgi = await stack.enter_async_context(tunnel(echo_app, websocket_max_message=LARGEST))
        yield {"direct": address, "upstream": through.address, "asgi": asgi.address}


@dataclass(frozen=True)
class Case:
    name: str
    steps: tuple[bytes, ...]
    """What the client sends. Behind each but the last one frame comes back."""
    right: tuple[Outcome, ...]
    """What may come back, all in all; the client closes with 1000 where nothing has ended the connection before."""
    pieces: int = 0
    """The bytes of the last step are sent so many at a time."""


def case(name: str, *steps: bytes, right: Outcome | tuple[Outcome, ...], pieces: int = 0) -> Case:
    outcomes = right if right and isinstance(right[0], tuple) and isinstance(right[0][0], tuple) else (right,)
    return Case(name, steps, outcomes, pieces)  # type: ignore[arg-type]


def echoed(*messages: str | bytes) -> Outcome:
    """The messages come back, and then the client's close."""
    frames = [(TEXT, each.encode()) if isinstance(each, str) else (BINARY, each) for each in messages]
    return (*frames, ("close", 1000), "fin")


def failed(code: int, *before: tuple[int, bytes]) -> Outcome:
    return (*before, ("close", code), "fin")


def split(data: bytes, *at: int) -> bytes:
    """A text in fragments."""
    cuts = [0, *at, len(data)]
    parts = [data[begin:end] for begin, end in itertools.pairwise(cuts)]
    return b"".join(
        frame(TEXT if number == 0 else CONTINUATION, part, fin=number == len(parts) - 1)
        for number, part in enumerate(parts)
    )


HELLO = (TEXT, b"hello")
GREEK = "Hello-µ@ßöäüàá-UTF-8!! κόσμε".encode()
SIZES = [0, 1, 125, 126, 127, 128, 65535, 65536, LARGEST]

FRAMING = [
    *(case(f"text of {size}", frame(TEXT, b"*" * size), right=echoed("*" * size)) for size in SIZES),
    *(case(f"binary of {size}", frame(BINARY, b"\xfe" * size), right=echoed(b"\xfe" * size)) for size in SIZES),
    case("text in pieces of 997", frame(TEXT, b"*" * 65536), right=echoed("*" * 65536), pieces=997),
    case("text in pieces of 1", text("byte by byte"), right=echoed("byte by byte"), pieces=1),
    case("length in 16 bits that fits 7", frame(TEXT, b"hello", form=16), right=(echoed("hello"), failed(1002))),
    case("length in 64 bits that fits 7", frame(TEXT, b"hello", form=64), right=(echoed("hello"), failed(1002))),
    case("length with its highest bit", frame(BINARY, form=64, length=2**63), right=(failed(1002), failed(1009))),
    case("without a mask", text("hello"), frame(TEXT, b"x", masked=False), right=failed(1002, HELLO)),
]

PINGS = [
    *(
        case(f"ping of {size}", frame(PING, b"\xff" * size), right=((PONG, b"\xff" * size), ("close", 1000), "fin"))
        for size in (0, 1, 125)
    ),
    case("ping of 126", frame(PING, b"x" * 126), right=failed(1002)),
    case("ping in pieces", frame(PING, b"x" * 125), right=((PONG, b"x" * 125), ("close", 1000), "fin"), pieces=1),
    case("pong unasked", frame(PONG), text("hello"), right=echoed("hello")),
    case("pong with payload, then ping", frame(PONG, b"a") + frame(PING, b"b"), right=((PONG, b"b"), *echoed())),
    case(
        "ten pings",
        *(frame(PING, b"%d" % number) for number in range(10)),
        right=(*((PONG, b"%d" % number) for number in range(10)), *echoed()),
    ),
]

RESERVED = [
    *(
        case(f"reserved bits {rsv}", text("hello"), frame(TEXT, b"x", rsv=rsv), right=failed(1002, HELLO))
        for rsv in range(1, 8)
    ),
    case("reserved bit in a ping", text("hello"), frame(PING, b"x", rsv=4), right=failed(1002, HELLO)),
    case("reserved bit in a close", frame(CLOSE, b"\x03\xe8", rsv=1), right=failed(1002)),
]

OPCODES = [
    case(f"opcode {opcode} with {len(payload)} bytes", text("hello"), frame(opcode, payload), right=failed(1002, HELLO))
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
    for payload in (b"", b"x")
]

FRAGMENTS = [
    case("ping in two fragments", frame(PING, b"a", fin=False) + frame(CONTINUATION, b"b"), right=failed(1002)),
    case("pong in two fragments", frame(PONG, b"a", fin=False) + frame(CONTINUATION, b"b"), right=failed(1002)),
    case("text in two", split(b"hello", 2), right=echoed("hello")),
    case("text in two, in pieces of 1", split(b"hello", 2), right=echoed("hello"), pieces=1),
    case("text in empty fragments", split(b"", 0, 0), right=echoed("")),
    case("text between empty fragments", split(b"mid", 0, 3), right=echoed("mid")),
    case(
        "ping between fragments",
        frame(TEXT, b"a", fin=False) + frame(PING, b"p"),
        frame(CONTINUATION, b"b"),
        right=((PONG, b"p"), *echoed("ab")),
    ),
    case("continuation of nothing", frame(CONTINUATION, b"x"), right=failed(1002)),
    case("continuation of nothing, unfinished", frame(CONTINUATION, b"x", fin=False), right=failed(1002)),
    case("continuation behind a whole message", text("hello"), frame(CONTINUATION, b"x"), right=failed(1002, HELLO)),
    case("a message within a message", frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), right=failed(1002)),
    case("binary within a text", frame(TEXT, b"a", fin=False) + frame(BINARY, b"b"), right=failed(1002)),
]

UTF8 = [
    *(case(f"text split at {at}", split(GREEK, at), right=echoed(GREEK.decode())) for at in range(6, 15)),
    case("text in fragments of one byte", split(GREEK, *range(1, len(GREEK))), right=echoed(GREEK.decode())),
    *(
        case(f"valid: {words!r}", text(words), right=echoed(words))
        for words in ("\x00", "\x7f", "\x80", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\ufffd", "\ufffe", "\uffff",
                      "\U00010000", "\U0010ffff", "κόσμε", "𝄞")
    ),
    *(
        case(f"invalid: {data.hex()}", text("hello"), frame(TEXT, data), right=failed(1007, HELLO))
        for data in (b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc3", b"\xe0\x80\x80", b"\xe2\x82", b"\xed\xa0\x80",
                     b"\xed\xbf\xbf", b"\xf0\x80\x80\x80", b"\xf0\x9d\x84", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80",
                     b"\xfe", b"\xff", b"valid then \xce", b"\xce\xba\xe1\xbd\xb9\xed\xa0\x80edited")
    ),
    case("invalid text is as good as any binary", frame(BINARY, b"\xff\xc0"), right=echoed(b"\xff\xc0")),
    case("a code point that never ends", split(b"caf\xc3", 3), right=failed(1007)),
]  # fmt: skip

VALID_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999]
INVALID_CODES = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]

CLOSES = [
    case("close at once", close(1000), right=(("close", 1000), "fin")),
    case("close without a code", close(), right=(("close", None), "fin")),
    case("close with half a code", frame(CLOSE, b"\x03"), right=failed(1002)),
    case("close with the longest reason", close(1000, b"r" * 123), right=(("close", 1000), "fin")),
    case("close with a reason too long", close(1000, b"r" * 124), right=failed(1002)),
    case("close with a reason that is no UTF-8", close(1000, b"\xff"), right=(failed(1007), failed(1002))),
    *(case(f"close with {code}", close(code), right=(("close", code), "fin")) for code in VALID_CODES),
    *(case(f"close with {code}", close(code), right=failed(1002)) for code in INVALID_CODES),
    case("message behind a close", close(1000) + text("late"), right=(("close", 1000), "fin")),
    case("ping behind a close", close(1000) + frame(PING, b"late"), right=(("close", 1000), "fin")),
    case("two closes", close(1000) + close(1001), right=(("close", 1000), "fin")),
    case("close in two fragments", frame(CLOSE, b"\x03\xe8", fin=False), right=failed(1002)),
    # RFC 6455 §5.4 lets control frames stand between fragments.
    case("close within a message", frame(TEXT, b"a", fin=False) + close(1000), right=(("close", 1000), "fin")),
]

LIMITS = [
    case("one byte too long", frame(BINARY, b"", form=64, length=LARGEST + 1), right=failed(1009)),
    case(
        "one byte too long over fragments",
        frame(BINARY, b"x" * LARGEST, fin=False) + frame(CONTINUATION, b"x"),
        right=failed(1009),
    ),
    case(
        "the longest in a thousand fragments",
        split(b"x" * LARGEST, *range(1000, LARGEST, 1049)),
        right=echoed("x" * LARGEST),
    ),
]

CASES = {
    "framing": FRAMING,
    "pings": PINGS,
    "reserved bits": RESERVED,
    "opcodes": OPCODES,
    "fragments": FRAGMENTS,
    "UTF-8": UTF8,
    "closes": CLOSES,
    "limits": LIMITS,
}


async def verdict(address: Any, tried: Case) -> Outcome:
    """What becomes of a case at one of the places."""
    seen: list[Any] = []

    async def take(wire: Wire) -> None:
        got = await read_frame(wire)
        assert got.fin, "an echo in fragments"
        seen.append(("close", got.code) if got.opcode == CLOSE else (got.opcode, got.payload))

    async with await Wire.connect(address) as wire:
        await wire.send(handshake())
        assert (await wire.head()).status == 101
        try:
            for number, step in enumerate(tried.steps):
                last = number == len(tried.steps) - 1
                size = tried.pieces if last and tried.pieces else len(step)
                for at in range(0, len(step), size):
                    await wire.send(step[at : at + size])
                if not last and step[0] != 0x80 | PONG:
                    await take(wire)
            # Whoever has not been ended by now closes behind its echo.
            if tried.right[0][-2:] == (("close", 1000), "fin") and tried.steps[-1][0] & 0x0F != CLOSE:
                while not seen or seen[-1] != ("close", 1000):
                    if len(seen) == len(tried.right[0]) - 2:
                        await wire.send(close(1000))
                    await take(wire)
            while True:
                await take(wire)
        except Ended as end:
            assert not wire.buffer
            seen.append(end.how)
        except ConnectionError:
            seen.append("reset")
    return tuple(seen)


async def test_the_table_has_each_case_once() -> None:
    names = [each.name for cases in CASES.values() for each in cases]
    assert len(names) == len(set(names)) > 150


@pytest.mark.parametrize("category", list(CASES))
async def test_the_tunnel_changes_no_verdict_and_the_agent_is_right(category: str) -> None:
    wrong = []
    async with places() as addresses:
        for tried in CASES[category]:
            async with asyncio.timeout(15):
                direct, upstream, asgi = [await verdict(address, tried) for address in addresses.values()]
            if upstream != direct:
                wrong.append(f"{tried.name}: {direct} became {upstream} through the tunnel")
            if asgi not in tried.right:
                wrong.append(f"{tried.name}: {asgi} at the agent, not {' or '.join(map(str, tried.right))}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("data", [b"\xff", b"\xed\xa0\x80", b"\xf4\x90", b"\xc3\x28"], ids=bytes.hex)
async def test_the_agent_fails_text_before_its_message_is_whole(data: bytes) -> None:
    begun = frame(TEXT, b"begin", fin=False) + frame(CONTINUATION, data, fin=False)
    async with tunnel(echo_app) as pair, asyncio.timeout(10):
        assert await verdict(pair.address, case("", begun, right=failed(1007))) == failed(1007)
