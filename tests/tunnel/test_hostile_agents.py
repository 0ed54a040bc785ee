"""What an agent that is anyone may not do to a client, to the proxy, or to other agents."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import pytest

import backstream
from backstream import streams
from backstream._codec import encode_hello
from backstream._message_codec import pack_frame
from backstream._messages import Hello
from backstream.errors import ErrorCode
from tests.frames import BINARY, CLOSE, CONTINUATION, PONG, close, frame, read_frame
from tests.rig import ID, Ended, Tunnel, Wire, make_agent, ok_app, request, tunnel, until

Serve = Callable[[streams.Stream, backstream.RequestHead], None]


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: backstream.v1\r\nx-backstream-client-id: evil\r\n\r\n"
)


class Quiet(backstream.Handler):
    """Takes what comes and keeps it to itself."""


async def add(pair: Tunnel, serve: Serve) -> None:
    """An agent of the library's handlers, for what no application could do."""

    def handle(stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler:
        serve(stream, head)
        return Quiet()

    count = len(pair.proxy.agents.by_id(ID.encode()))
    agent = make_agent(pair.proxy, handler=handle)
    pair.agents.append(agent)
    await agent.start()
    await pair.connected(count + 1)


async def test_the_words_of_an_agent_make_no_line_of_an_answer() -> None:
    evil = 'x"\r\nset-cookie: a=1\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nEVIL!'

    def serve(stream: streams.Stream, head: backstream.RequestHead) -> None:
        streams.reset(stream, ErrorCode.INTERNAL, evil)

    async with tunnel(agents=0) as pair, await pair.open() as wire:
        await add(pair, serve)
        got = await wire.get()
        assert got.status == 502 and got.all("set-cookie") == []
        assert len(got.all("content-length")) == 1 and b"\r" not in got.body
        assert (await wire.get()).status == 502


@pytest.mark.parametrize("split", [False, True])
async def test_a_pipelined_request_never_overtakes_one_that_was_held(split: bool) -> None:
    order: list[bytes] = []
    wire: Wire

    def serve(stream: streams.Stream, head: backstream.RequestHead) -> None:
        order.append(head.target)
        streams.respond(stream, backstream.ResponseHead(status=204), True)
        if head.target == b"/1":
            # In the turn of the loop in which the answer comes to the proxy.
            wire.sock.send(second[10:] + request("/3") if split else request("/3"))

    second = request("/2")
    async with tunnel(agents=0) as pair:
        await add(pair, serve)
        for _ in range(20):
            order.clear()
            async with await pair.open() as wire:
                await wire.send(request("/1") + (second[:10] if split else second))
                for _ in range(3):
                    assert (await wire.answer()).status == 204
            assert order == [b"/1", b"/2", b"/3"]


@pytest.mark.parametrize("sign", ["an interim answer", "credit"])
async def test_what_an_agent_began_is_not_given_to_another_when_it_refuses_late(sign: str) -> None:
    served: list[str] = []

    class Late(backstream.Handler):
        def data_received(self, stream: streams.Stream, data: bytes) -> None:
            streams.consume(stream, len(data))
            asyncio.get_running_loop().call_later(0.05, streams.reset, stream, ErrorCode.REFUSED)

    def handle(stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler:
        served.append("first")
        if sign == "an interim answer":
            streams.respond(stream, backstream.ResponseHead(status=103))
            asyncio.get_running_loop().call_later(0.05, streams.reset, stream, ErrorCode.DRAINING)
        return Late()

    def second(stream: streams.Stream, head: backstream.RequestHead) -> None:
        served.append("second")
        streams.respond(stream, backstream.ResponseHead(status=204), True)

    async with tunnel(agents=0) as pair, await pair.open() as wire:
        agent = make_agent(pair.proxy, handler=handle)
        pair.agents.append(agent)
        await agent.start()
        await pair.connected(1)
        body = b"" if sign == "an interim answer" else bytes(32 * 1024)
        await wire.send(request(method="POST", body=body))
        await until(lambda: served == ["first"])
        await add(pair, second)
        assert (await wire.answer()).status == 503
        assert served == ["first"]


async def test_handshakes_on_long_paths_take_no_places_for_good() -> None:
    async with tunnel(agents=0, proxy={"max_agents": 3}) as pair:
        for number in range(6):
            async with await pair.open() as wire:
                await wire.send(
                    b"GET /ws?" + b"a" * 16300 + b" HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
                    b"Connection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
                    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                    b"Sec-WebSocket-Protocol: backstream.v1\r\nx-backstream-client-id: e%d\r\n\r\n" % number
                )
                assert (await wire.until(b"\r\n")).startswith(b"HTTP/1.1 101")
            await until(lambda: len(pair.proxy.agents) == 0, "its place is free again")
        await pair.agent(ok_app)
        assert (await pair.get()).status == 200


async def test_a_reserved_bit_in_a_websocket_frame_ends_the_session_with_1002() -> None:
    async with tunnel(ok_app) as pair, await pair.open() as wire:
        await wire.send(HANDSHAKE)
        await wire.until(b"\r\n\r\n")
        await wire.send(b"\xc2\x80\0\0\0\0")
        data, _ = await wire.rest()
        assert b"\x88" in data and b"\x03\xea" in data, data
        assert (await pair.get()).status == 200


async def test_a_message_that_is_never_finished_ends_its_session_with_1002_whatever_else_it_says() -> None:
    session = backstream.SessionSettings(message_timeout=0.5, ping_interval=0.1)
    async with tunnel(ok_app, proxy={"session": session}) as pair, await pair.open() as wire:
        await wire.send(HANDSHAKE)
        await wire.until(b"\r\n\r\n")
        began = time.monotonic()
        hello = pack_frame(6, 0, encode_hello(Hello(instance=bytes(16), generation=1)))
        await wire.send(frame(BINARY, hello) + frame(BINARY, b"\0", fin=False))
        data = bytearray()
        with contextlib.suppress(Ended):
            while True:
                await wire.send(frame(PONG))  # a sign of life
                await wire.fill()
                data += wire.buffer
                wire.buffer.clear()
        assert b"\x03\xeaa message unfinished after 0.5 s" in data
        assert 0.4 < time.monotonic() - began < 5
        assert (await pair.get()).status == 200


EMPTY_FRAGMENT = frame(CONTINUATION, fin=False)
SMALL_FRAGMENT = frame(CONTINUATION, b"\0", fin=False)
HELLO = pack_frame(6, 0, encode_hello(Hello(instance=bytes(16), generation=1)))
NOTIFY = pack_frame(8, 0, b"\x12\x80\x08" + bytes(1024))
PIECES = b"".join(frame(BINARY if at == 0 else CONTINUATION, NOTIFY[at : at + 1], fin=False) for at in range(8))


@pytest.mark.parametrize(
    ("begin", "flood", "ends"),
    [
        (frame(BINARY, fin=False), EMPTY_FRAGMENT, True),
        (frame(BINARY, NOTIFY, fin=False), EMPTY_FRAGMENT, True),
        (frame(BINARY, b"\0", fin=False), SMALL_FRAGMENT, True),
        (b"", frame(BINARY, fin=False) + frame(CONTINUATION), True),
        # An honest sender's: a message in pieces, a few of them small, or with an empty one at its end.
        (b"", PIECES + frame(CONTINUATION, NOTIFY[8:]), False),
        (b"", frame(BINARY, NOTIFY, fin=False) + frame(CONTINUATION), False),
        (b"", frame(BINARY, NOTIFY[:128], fin=False) + frame(CONTINUATION, NOTIFY[128:]), False),
    ],
)
async def test_fragments_that_bring_nothing_end_their_session_in_a_flood(
    begin: bytes, flood: bytes, ends: bool
) -> None:
    events: list[bytes] = []
    async with tunnel(ok_app) as pair, await pair.open() as wire:
        pair.proxy.agents.on_notify = lambda agent, event: events.append(event.data)
        await wire.send(HANDSHAKE)
        await wire.until(b"\r\n\r\n")
        await wire.send(frame(BINARY, HELLO) + begin)
        for _ in range(400 if ends else 40):
            await wire.send(flood * 100)
        if ends:
            await wire.until(b"\x03\xf0too many frames that say nothing")
        else:
            await until(lambda: len(events) == 4000, "all that it said")
        assert (await pair.get()).status == 200


async def test_a_hello_in_fragments_has_no_more_time_than_one_in_a_piece() -> None:
    session = backstream.SessionSettings(hello_timeout=0.5, ping_interval=0.1)
    async with tunnel(ok_app, proxy={"session": session}) as pair, await pair.open() as wire:
        await wire.send(HANDSHAKE)
        await wire.until(b"\r\n\r\n")
        began = time.monotonic()
        await wire.send(frame(BINARY, b"\0", fin=False))
        data, _ = await wire.rest()
        assert b"\x03\xeano HELLO within 0.5 s" in data
        assert 0.4 < time.monotonic() - began < 5
        assert (await pair.get()).status == 200


@pytest.mark.parametrize(
    ("code", "answered"),
    [(None, 1000), (1000, 1000), (1001, 1001), (3000, 3000), (4999, 4999)]
    + [(wrong, 1002) for wrong in (0, 1, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535)],
)
async def test_a_close_frame_is_answered_with_a_code_that_may_stand_in_one(code: int | None, answered: int) -> None:
    async with tunnel(ok_app) as pair, await pair.open() as wire:
        await wire.send(HANDSHAKE)
        await wire.until(b"\r\n\r\n")
        await wire.send(close(code))
        while (got := await read_frame(wire)).opcode != CLOSE:
            pass
        assert got.code == answered
        assert await wire.rest() == (b"", "fin")
