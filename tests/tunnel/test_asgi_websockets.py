"""An application's side of a WebSocket: the ASGI events, and what RFC 6455 asks of the agent."""

from __future__ import annotations

import asyncio
import enum
import logging
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any

import pytest

from tests.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Received,
    answer_close,
    close,
    frame,
    handshake,
    read_close,
    read_frame,
    switched,
    text,
)
from tests.rig import ID, Tunnel, Wire, answer, http_only, request, tunnel, until

KiB = 1024
MiB = 1024 * KiB
ACCEPT = {"type": "websocket.accept"}


class Application:
    """Takes `websocket.connect`, then does what `serve` does; keeps what it saw."""

    def __init__(self, serve: Any = None, *, accepts: bool = True) -> None:
        self._serve = serve
        self._accepts = accepts
        self.scope: Any = None
        self.events: list[Any] = []
        self.error: BaseException | None = None
        self.ended = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise NotImplementedError
        self.scope = scope

        async def kept() -> Any:
            self.events.append(await receive())
            return self.events[-1]

        try:
            assert await kept() == {"type": "websocket.connect"}
            if self._accepts:
                await send(ACCEPT)
            await (self._serve or echo)(kept, send)
        except BaseException as error:
            self.error = error
            raise
        finally:
            self.ended.set()

    @property
    def disconnect(self) -> tuple[int, str]:
        """What the last event said."""
        event = self.events[-1]
        assert event["type"] == "websocket.disconnect", self.events
        return event["code"], event["reason"]


async def echo(receive: Any, send: Any) -> None:
    while (event := await receive())["type"] == "websocket.receive":
        await send({**event, "type": "websocket.send"})


async def collect(receive: Any, send: Any) -> None:
    while (await receive())["type"] == "websocket.receive":
        pass


@asynccontextmanager
async def serving(app: Application, **settings: Any) -> AsyncIterator[tuple[Tunnel, Wire]]:
    """A WebSocket that is open, and at the end has ended in the application too."""
    async with tunnel(app, **settings) as pair:
        async with await pair.open() as wire:
            await switched(wire)
            yield pair, wire
        async with asyncio.timeout(10):
            await app.ended.wait()


# --- the handshake ---


async def test_the_scope_says_what_was_asked_for() -> None:
    app = Application()
    lines = ("X-One: 1", "Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Protocol: c", "Cookie: x=y")
    async with tunnel(app) as pair, await pair.open() as wire:
        await switched(wire, "/caf%C3%A9?q=1", *lines)
        local = wire.sock.getsockname()
    scope = app.scope
    assert scope["type"] == "websocket"
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert (scope["scheme"], scope["http_version"]) == ("ws", "1.1")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/café", b"/caf%C3%A9", b"q=1")
    assert scope["root_path"] == ""
    assert scope["subprotocols"] == ["a", "b", "c"]
    assert scope["client"] == local
    assert scope["server"] == ("service.example", 80)
    assert scope["extensions"] == {"websocket.http.response": {}}
    assert "method" not in scope
    headers = dict(scope["headers"])
    assert (headers[b"host"], headers[b"x-one"], headers[b"cookie"]) == (b"service.example", b"1", b"x=y")
    assert (headers[b"connection"], headers[b"upgrade"]) == (b"upgrade", b"websocket")
    assert headers[b"sec-websocket-version"] == b"13"


class Kind(str, enum.Enum):  # noqa: UP042  whose str() is not its value
    ACCEPT = "websocket.accept"
    SEND = "websocket.send"


async def test_an_applications_messages_may_be_any_mapping_of_strings() -> None:
    async def serve(receive: Any, send: Any) -> None:
        await send(MappingProxyType({"type": Kind.ACCEPT, "subprotocol": "a"}))
        await send(MappingProxyType({"type": Kind.SEND, "text": "hello"}))

    app = Application(serve, accepts=False)
    async with tunnel(app) as pair, await pair.open() as wire:
        head = await switched(wire, "/", "Sec-WebSocket-Protocol: a")
        assert head.get("sec-websocket-protocol") == b"a"
        assert (await read_frame(wire)).payload == b"hello"
    assert app.error is None


@pytest.mark.parametrize("accepts", [True, False])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
async def test_what_would_end_a_program_ends_the_websocket_alone(error, accepts: bool, caplog) -> None:
    async def serve(receive: Any, send: Any) -> None:
        raise error

    async with tunnel(Application(serve, accepts=accepts)) as pair, await pair.open() as wire:
        if accepts:
            await switched(wire)
            assert await answer_close(wire) == 1011
        else:
            await wire.send(handshake())
            assert (await wire.answer()).status == 500
    assert "the application failed" in caplog.text


async def test_accept_names_a_subprotocol_and_headers() -> None:
    async def serve(receive, send):
        headers = [(b"X-One", b"1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"content-length", b"7")]
        await send({**ACCEPT, "subprotocol": "b", "headers": headers})
        await collect(receive, send)

    async with tunnel(Application(serve, accepts=False)) as pair, await pair.open() as wire:
        head = await switched(wire, "/", "Sec-WebSocket-Protocol: a, b")
        assert head.get("sec-websocket-protocol") == b"b"
        assert head.get("x-one") == b"1"
        assert head.all("set-cookie") == [b"a=1", b"b=2"]
        assert not head.all("content-length")


@pytest.mark.parametrize(
    "message",
    [
        {"subprotocol": "other"},
        {"headers": [(b"Sec-WebSocket-Extensions", b"permessage-deflate")]},
        {"headers": [(b"x-a", b"1\r\nx-b: 2")]},
        {"headers": [(b"x a", b"1")]},
    ],
    ids=["a subprotocol that was not offered", "a header of the handshake", "a line end", "no name"],
)
async def test_an_accept_that_cannot_be_sent_is_the_applications_error(message: dict[str, Any]) -> None:
    async def serve(receive, send):
        await send({**ACCEPT, **message})

    app = Application(serve, accepts=False)
    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(handshake("/", "Sec-WebSocket-Protocol: a") + handshake())
        for _ in range(2):
            assert (await wire.answer()).status == 500
    assert isinstance(app.error, RuntimeError)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("Sec-WebSocket-Version: 13",), 400),
        (("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: c2hvcnQ="), 400),
        (("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: not base64 at all"), 400),
        (("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",), 426),
        (("Sec-WebSocket-Version: 8", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 426),
    ],
)
async def test_a_malformed_handshake_never_reaches_the_application(lines: tuple[str, ...], status: int) -> None:
    app = Application()
    async with tunnel(app) as pair, await pair.open() as wire:
        offer = ("Connection: Upgrade", "Upgrade: websocket")
        for _ in range(2):
            await wire.send(request(lines=(*offer, *lines)))
            answered = await wire.answer()
            assert answered.status == status
            assert answered.all("sec-websocket-version") == ([b"13"] if status == 426 else [])
    assert app.scope is None


async def test_a_handshake_is_a_get() -> None:
    @http_only
    async def app(scope, receive, send):
        await answer(send, scope["method"].encode())

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(handshake(method="POST"))
        assert (await wire.answer()).body == b"POST"


async def test_messages_ahead_of_the_101_are_received() -> None:
    async with tunnel(Application()) as pair, await pair.open() as wire:
        await wire.send(handshake() + text("early") + text("bird"))
        assert (await wire.head()).status == 101
        assert await read_frame(wire) == Received(TEXT, b"early")
        assert await read_frame(wire) == Received(TEXT, b"bird")


# --- refusals ---


async def test_a_close_instead_of_an_accept_is_403() -> None:
    async def serve(receive, send):
        await send({"type": "websocket.close", "code": 4000})
        await receive()
        with pytest.raises(RuntimeError):
            await send(ACCEPT)

    app = Application(serve, accepts=False)
    async with tunnel(app) as pair, await pair.open() as wire:
        for _ in range(2):
            await wire.send(handshake())
            answered = await wire.answer()
            assert (answered.status, answered.body) == (403, b"")
        await app.ended.wait()
    assert app.error is None
    assert app.disconnect == (1006, "")


async def test_a_denial_response_streams() -> None:
    async def serve(receive, send):
        headers = [(b"x-why", b"because")]
        await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
        for piece in (b"not ", b"you"):
            await send({"type": "websocket.http.response.body", "body": piece, "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"!"})
        await receive()

    app = Application(serve, accepts=False)
    async with tunnel(app) as pair, await pair.open() as wire:
        for _ in range(2):
            await wire.send(handshake())
            answered = await wire.answer()
            assert (answered.status, answered.get("x-why"), answered.body) == (401, b"because", b"not you!")
        await app.ended.wait()
    assert app.disconnect == (1006, "")


@pytest.mark.parametrize("how", ["raise", "return", "out of turn"])
async def test_an_application_that_fails_before_its_answer_is_500(how: str, caplog: pytest.LogCaptureFixture) -> None:
    async def serve(receive, send):
        if how == "raise":
            raise ValueError("on purpose")
        if how == "out of turn":
            await send({"type": "websocket.send", "text": "x"})

    async with tunnel(Application(serve, accepts=False)) as pair, await pair.open() as wire:
        for _ in range(2):
            await wire.send(handshake("/somewhere"))
            assert (await wire.answer()).status == 500
    errors = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert len(errors) == 2
    assert "WebSocket /somewhere" in errors[0].getMessage()
    assert bool(errors[0].exc_info) == (how != "return")


async def test_a_client_that_leaves_before_the_answer_is_a_disconnect() -> None:
    asked = asyncio.Event()

    async def serve(receive, send):
        asked.set()
        await receive()
        with pytest.raises(OSError):
            await send(ACCEPT)

    app = Application(serve, accepts=False)
    async with tunnel(app) as pair:
        async with await pair.open() as wire:
            await wire.send(handshake())
            await asked.wait()
        await app.ended.wait()
    assert app.error is None
    assert app.disconnect == (1006, "")


# --- messages ---


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 4096, 65535, 65536, 3 * MiB])
async def test_a_message_of_any_size_is_received_whole(opcode: int, size: int) -> None:
    app = Application()
    async with serving(app) as (_pair, wire):
        await wire.send(frame(opcode, b"m" * size))
        assert await read_frame(wire) == Received(opcode, b"m" * size)
    expected = {"text": "m" * size} if opcode == TEXT else {"bytes": b"m" * size}
    assert app.events[1] == {"type": "websocket.receive", **expected}


async def test_fragments_with_pings_between_them_are_one_message() -> None:
    async with serving(Application()) as (_pair, wire):
        await wire.send(frame(TEXT, b"ein Gr\xc3", fin=False) + frame(PING, b"1"))
        assert await read_frame(wire) == Received(PONG, b"1")
        await wire.send(frame(CONTINUATION, b"", fin=False) + frame(CONTINUATION, b"\xbc\xc3\x9f"[:1], fin=False))
        await wire.send(frame(PING, b"2") + frame(CONTINUATION, "ße".encode()))
        assert await read_frame(wire) == Received(PONG, b"2")
        assert await read_frame(wire) == Received(TEXT, "ein Grüße".encode())


async def test_a_receive_that_is_cancelled_loses_no_message() -> None:
    async def serve(receive, send):
        got = []
        while len(got) < 50:
            try:
                got.append(await asyncio.wait_for(receive(), 0.001))
            except TimeoutError:
                await send({"type": "websocket.send", "text": "?"})
        await send({"type": "websocket.send", "text": ",".join(event["text"] for event in got)})

    async with serving(Application(serve)) as (_pair, wire):
        for number in range(50):
            await wire.send(text(str(number)))
            if number % 5 == 0:
                while await read_frame(wire) != Received(TEXT, b"?"):
                    pass
        while (answered := await read_frame(wire)) == Received(TEXT, b"?"):
            pass
        assert answered.payload.decode() == ",".join(map(str, range(50)))


async def test_receiving_and_sending_go_on_side_by_side() -> None:
    """Neither waits for the other: a client may send all before it reads anything."""
    count, block = 64, b"b" * 65536

    async def serve(receive, send):
        async def sending() -> None:
            for _ in range(count):
                await send({"type": "websocket.send", "bytes": block})

        task = asyncio.create_task(sending())
        for _ in range(count):
            assert (await receive())["bytes"] == block
        got_all.set()
        await task

    got_all = asyncio.Event()
    async with serving(Application(serve)) as (_pair, wire):
        for _ in range(count):
            await wire.send(frame(BINARY, block))
        await got_all.wait()
        for _ in range(count):
            assert await read_frame(wire) == Received(BINARY, block)
        assert await answer_close(wire) == 1000


async def test_a_message_without_content_is_the_applications_error() -> None:
    async def serve(receive, send):
        with pytest.raises(RuntimeError):
            await send({"type": "websocket.send"})
        with pytest.raises(RuntimeError):
            await send({"type": "websocket.send", "bytes": None, "text": None})
        with pytest.raises(RuntimeError):
            await send(ACCEPT)
        await send({"type": "websocket.send", "bytes": None, "text": "ok"})

    app = Application(serve)
    async with serving(app) as (_pair, wire):
        assert await read_frame(wire) == Received(TEXT, b"ok")
        assert await answer_close(wire) == 1000
    assert app.error is None


# --- ends ---


@pytest.mark.parametrize(
    ("sent", "seen", "answered"),
    [
        (close(1000, b"done"), (1000, "done"), 1000),
        (close(), (1005, ""), None),
        (close(4999), (4999, ""), 4999),
        (frame(CONTINUATION), (1002, "unexpected continuation frame"), 1002),
        (frame(TEXT, b"\xff"), (1007, "text that is not UTF-8"), 1007),
    ],
    ids=["code and reason", "empty", "private", "protocol error", "no UTF-8"],
)
async def test_the_application_hears_how_it_ended(sent, seen, answered) -> None:
    app = Application(collect)
    async with serving(app) as (_pair, wire):
        await wire.send(text("before") + sent)
        assert await read_close(wire) == answered
        await app.ended.wait()
        assert [event["type"] for event in app.events] == [
            "websocket.connect",
            "websocket.receive",
            "websocket.disconnect",
        ]
        assert app.disconnect == seen


@pytest.mark.parametrize("how", ["reset", "half-close"])
async def test_a_client_that_goes_without_a_close_frame_is_1006(how: str) -> None:
    app = Application(collect)
    async with serving(app) as (_pair, wire):
        await wire.send(text("x"))
        await until(lambda: len(app.events) == 2)
        if how == "reset":
            wire.reset()
        else:
            wire.half_close()
            assert await wire.rest() == (b"", "fin")
        await app.ended.wait()
    assert app.disconnect == (1006, "")


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [({}, 1000, b""), ({"code": 4321, "reason": "über"}, 4321, "über".encode()), ({"code": 1012}, 1012, b"")],
)
async def test_the_application_closes(message, code, reason) -> None:
    async def serve(receive, send):
        await send({"type": "websocket.send", "text": "last"})
        await send({"type": "websocket.close", **message})
        await receive()
        with pytest.raises(RuntimeError):
            await send({"type": "websocket.send", "text": "more"})

    app = Application(serve)
    async with serving(app) as (_pair, wire):
        await wire.send(text("not received"))
        assert await read_frame(wire) == Received(TEXT, b"last")
        assert await read_frame(wire) == Received(CLOSE, code.to_bytes(2, "big") + reason)
        await wire.send(text("too late") + close(code))
        assert await wire.rest() == (b"", "fin")
    assert app.error is None
    assert app.disconnect == (code, reason.decode())


@pytest.mark.parametrize("message", [{"code": 1005}, {"code": 999}, {"code": 1000, "reason": "x" * 124}])
async def test_a_close_that_cannot_be_sent_is_the_applications_error(message) -> None:
    async def serve(receive, send):
        with pytest.raises(RuntimeError):
            await send({"type": "websocket.close", **message})

    async with serving(Application(serve)) as (_pair, wire):
        assert (await read_frame(wire)).code == 1000


@pytest.mark.parametrize(("how", "code"), [("raise", 1011), ("return", 1000)])
async def test_an_application_that_ends_closes(how: str, code: int, caplog: pytest.LogCaptureFixture) -> None:
    async def serve(receive, send):
        await receive()
        if how == "raise":
            raise ValueError("on purpose")

    async with serving(Application(serve)) as (_pair, wire):
        await wire.send(text("x"))
        assert (await read_frame(wire)).code == code
        await wire.send(close(code))
        assert await wire.rest() == (b"", "fin")
    assert ["on purpose" in str(each.exc_info) for each in caplog.records if each.levelno >= logging.ERROR] == (
        [True] if how == "raise" else []
    )


async def test_sending_to_a_client_that_is_gone_raises_and_closing_does_not() -> None:
    async def serve(receive, send):
        await receive()
        with pytest.raises(OSError):
            await send({"type": "websocket.send", "text": "x"})
        await send({"type": "websocket.close"})

    app = Application(serve)
    async with serving(app) as (_pair, wire):
        await wire.send(close(1000))
        assert await read_close(wire) == 1000
    assert app.error is None


async def test_an_open_websocket_is_cut_at_the_agents_drain_limit() -> None:
    app = Application()
    async with serving(app, drain_timeout=0.3) as (pair, wire):
        draining = asyncio.create_task(pair.agents[0].drain())
        await wire.send(text("still here"))
        assert await read_frame(wire) == Received(TEXT, b"still here")
        assert (await wire.rest())[1] == "reset"
        await draining


# --- limits ---


@pytest.mark.parametrize(
    "sent",
    [
        [frame(BINARY, b"", length=1001)],
        [frame(TEXT, b"x" * 900, fin=False), frame(CONTINUATION, b"x" * 101)],
        [frame(TEXT, b"x" * 1000, fin=False), frame(CONTINUATION, b"", fin=False), frame(CONTINUATION, b"x")],
    ],
    ids=["announced", "over two fragments", "by one byte"],
)
async def test_a_message_beyond_the_limit_is_1009(sent: list[bytes]) -> None:
    app = Application(collect)
    async with serving(app, websocket_max_message=1000) as (_pair, wire):
        await wire.send(frame(TEXT, b"y" * 600, fin=False) + frame(CONTINUATION, b"y" * 400))
        for piece in sent:
            await wire.send(piece)
        assert await read_close(wire) == 1009
    assert app.events[1]["text"] == "y" * 1000
    assert app.disconnect[0] == 1009


async def test_an_application_that_does_not_receive_stops_the_client() -> None:
    receive_now, count = asyncio.Event(), 512
    block = frame(BINARY, b"b" * 65536)

    async def serve(receive, send):
        await receive_now.wait()
        for _ in range(count):
            assert len((await receive())["bytes"]) == 65536

    async with serving(Application(serve)) as (pair, wire):

        async def send() -> None:
            for _ in range(count):
                await wire.send(block, seconds=30)

        sending = asyncio.create_task(send())
        done, _ = await asyncio.wait([sending], timeout=0.5)
        assert not done
        assert pair.proxy.window_bytes == 0
        receive_now.set()
        await sending
        assert await answer_close(wire) == 1000


async def test_messages_of_one_byte_that_nobody_receives_cost_no_more_than_the_window() -> None:
    """An event costs a hundred times its byte: they wait as bytes, not as events."""
    receive_now = asyncio.Event()
    total = 0

    async def serve(receive, send):
        nonlocal total
        await receive_now.wait()
        while (await receive())["type"] == "websocket.receive":
            total += 1

    count = 10_000
    async with serving(Application(serve)) as (pair, wire):
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await wire.send(text("x") * count)
            await until(lambda: pair.counts()["streams"])
            # An answer to a request shows that the bytes before it are through; it is a WebSocket of its own.
            await asyncio.sleep(0.3)
            held = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert held < 1 * MiB, f"{held:,} bytes for {count} messages of one byte"
        receive_now.set()
        await wire.send(close(1000))
        assert await read_close(wire) == 1000
    assert total == count


async def test_a_message_of_one_byte_fragments_costs_its_bytes() -> None:
    count = 20_000
    async with serving(Application()) as (_pair, wire):
        tracemalloc.start()
        try:
            await wire.send(frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", fin=False) * (count - 2))
            await wire.send(frame(PING))
            assert (await read_frame(wire)).opcode == PONG
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert held < 256 * KiB, f"{held:,} bytes for {count} fragments of one byte"
        await wire.send(frame(CONTINUATION, b"x"))
        assert len((await read_frame(wire)).payload) == count


async def test_a_client_that_does_not_read_stops_the_application() -> None:
    sent, count = 0, 2048

    async def serve(receive, send):
        nonlocal sent
        for _ in range(count):
            await send({"type": "websocket.send", "bytes": b"b" * 16384})
            sent += 1

    async with serving(Application(serve)) as (_pair, wire):
        stalled = -1
        while stalled != sent:
            stalled = sent
            await asyncio.sleep(0.2)  # as long as it moves it is not stalled
        assert sent < count
        for _ in range(count):
            assert len((await read_frame(wire)).payload) == 16384
        assert await answer_close(wire) == 1000


async def test_pings_of_a_client_that_does_not_read_are_not_hoarded() -> None:
    """RFC 6455 §5.5.3: of many pings only the last needs its pong."""
    blocked = asyncio.Event()

    async def serve(receive, send):
        while True:
            try:
                await asyncio.wait_for(send({"type": "websocket.send", "bytes": bytes(65536)}), 0.3)
            except TimeoutError:
                break
        blocked.set()
        await collect(receive, send)

    count = 20_000
    app = Application(serve)
    async with serving(app) as (_pair, wire):
        await asyncio.wait_for(blocked.wait(), 20)
        for number in range(0, count, 1000):
            await wire.send(b"".join(frame(PING, b"%d" % each) for each in range(number, number + 1000)))
        await wire.send(frame(PING, b"last") + text("all sent"))
        await until(lambda: app.events[-1].get("text") == "all sent")
        pongs = []
        while not pongs or pongs[-1] != b"last":
            got = await read_frame(wire)
            if got.opcode == PONG:
                pongs.append(got.payload)
        assert len(pongs) < count // 4, f"{len(pongs)} pongs for {count} pings"
        await wire.send(close(1000))


# --- signs of life ---


async def test_a_silent_client_is_pinged_and_lives_by_its_pong() -> None:
    app = Application()
    async with serving(app, websocket_ping_interval=0.1, websocket_ping_timeout=0.3) as (_pair, wire):
        for _ in range(5):
            assert (await read_frame(wire)).opcode == PING
            await wire.send(frame(PONG))
        await wire.send(text("here"))
        while (got := await read_frame(wire)).opcode == PING:
            await wire.send(frame(PONG))
        assert got == Received(TEXT, b"here")


async def test_a_client_that_answers_no_ping_is_given_up() -> None:
    app = Application(collect)
    async with serving(app, websocket_ping_interval=0.1, websocket_ping_timeout=0.2) as (_pair, wire):
        assert (await read_frame(wire)).opcode == PING
        assert (await read_frame(wire)).code == 1011
        await app.ended.wait()
        assert app.disconnect == (1011, "keepalive ping timeout")
        # It does not even close: its connection is cut.
        wire.sock.setblocking(False)
        await until(lambda: _pair.proxy.connection_count == 0)


async def test_without_an_interval_nobody_is_pinged() -> None:
    async with serving(Application(), websocket_ping_interval=0.0, websocket_ping_timeout=0.05) as (_pair, wire):
        await asyncio.sleep(0.3)
        await wire.send(text("x"))
        assert await read_frame(wire) == Received(TEXT, b"x")


async def test_a_client_whose_messages_wait_for_the_application_is_not_given_up() -> None:
    receive_now = asyncio.Event()

    async def serve(receive, send):
        await receive_now.wait()
        await echo(receive, send)

    async with serving(Application(serve), websocket_ping_interval=0.1, websocket_ping_timeout=0.1) as (_pair, wire):
        await wire.send(text("x"))
        await asyncio.sleep(0.6)  # six times what it takes to be given up
        receive_now.set()
        while (got := await read_frame(wire)).opcode == PING:
            pass
        assert got == Received(TEXT, b"x")


async def test_a_client_that_reads_slowly_is_not_given_up() -> None:
    size = 24 * MiB

    async def serve(receive, send):
        await send({"type": "websocket.send", "bytes": bytes(size)})
        await collect(receive, send)

    app = Application(serve)
    async with (
        tunnel(app, websocket_ping_interval=0.2, websocket_ping_timeout=0.2) as pair,
        await pair.open(receive_buffer=65536) as wire,
    ):
        await switched(wire)
        left = size + 10
        while left > 12 * MiB:
            left -= len(await wire.exactly(512 * KiB))
            await asyncio.sleep(0.05)
        assert not app.ended.is_set()
        while left:
            left -= len(await wire.exactly(min(left, MiB)))
        await wire.send(close(1000))
        while (got := await read_frame(wire)).opcode == PING:
            pass
        assert got.code == 1000


async def test_a_close_that_is_not_answered_has_its_limit() -> None:
    async def serve(receive, send):
        await send({"type": "websocket.close", "code": 4000})

    async with serving(Application(serve), websocket_ping_timeout=0.2) as (pair, wire):
        assert (await read_frame(wire)).code == 4000
        assert (await wire.rest())[1] == "reset"
        await pair.settled()


async def test_work_that_goes_on_after_the_client_left_holds_its_place() -> None:
    go_on = asyncio.Event()

    async def serve(receive, send):
        await collect(receive, send)
        await go_on.wait()

    app = Application(serve)
    async with tunnel(app) as pair:
        async with await pair.open() as wire:
            await switched(wire)
            await wire.send(close(1000))
            assert await read_close(wire) == 1000
        await until(lambda: pair.counts()["streams"] == 0)
        assert pair.counts()["accepted"] == 1
        go_on.set()


async def test_an_agent_of_one_id_serves_many_at_once() -> None:
    async with tunnel(Application()) as pair:
        wires = [await pair.open() for _ in range(100)]
        for wire in wires:
            await switched(wire, client_id=ID)
        for number, wire in enumerate(wires):
            await wire.send(text(str(number)))
        for number, wire in enumerate(wires):
            assert await read_frame(wire) == Received(TEXT, str(number).encode())
            await wire.send(close(1000))
            assert await read_close(wire) == 1000
            wire.close()
