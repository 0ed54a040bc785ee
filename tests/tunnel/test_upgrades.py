"""Upgrades: a stream of raw bytes both ways after 101, an ordinary request after anything else (RFC 9110 §7.8)."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest

import backstream
from backstream import streams
from backstream.errors import ErrorCode
from tests.rig import (
    ID,
    OK,
    Ended,
    Leaks,
    Message,
    Recorder,
    Upstream,
    Wire,
    answer,
    chunked,
    http_only,
    make_agent,
    read_body,
    request,
    tunnel,
    until,
)
from tests.session import wire as session
from tests.tunnel.played_proxy import played_proxies

NAME = "raw-echo"
OFFER = ("Connection: Upgrade", f"Upgrade: {NAME}")
PROXY = {"upgrade": (NAME, "websocket")}
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: Raw-Echo\r\nX-Extra: 1\r\n\r\n"
BLOCK = bytes(range(256)) * 256


async def echo(wire: Wire) -> None:
    """Sends back what comes, to its end."""
    while True:
        try:
            await wire.fill()
        except Ended as end:
            if end.how == "fin":
                wire.half_close()
            return
        data = bytes(wire.buffer)
        wire.buffer.clear()
        await wire.send(data)


async def switching_echo(wire: Wire, number: int) -> None:
    await wire.head()
    await wire.send(SWITCH)
    await echo(wire)


@asynccontextmanager
async def upgraded(serve, **settings):
    """A tunnel to an upstream that switches, then does what `serve(wire)` does, and a client that has switched."""

    async def switch(wire: Wire, number: int) -> None:
        await wire.head()
        await wire.send(SWITCH)
        await serve(wire)

    proxy = {**PROXY, **settings.pop("proxy", {})}
    async with (
        Upstream(switch) as upstream,
        tunnel(upstream=upstream.url, proxy=proxy, **settings) as pair,
        await pair.open() as wire,
    ):
        await wire.send(request(lines=OFFER))
        head = await wire.head()
        assert head.status == 101, head
        yield pair, wire


# --- switching ---


async def test_a_named_protocol_becomes_raw_bytes_both_ways() -> None:
    heads: list[Message] = []

    async def serve(wire, number):
        heads.append(await wire.head())
        await wire.send(SWITCH)
        await echo(wire)

    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url, proxy=PROXY) as pair,
        await pair.open() as wire,
    ):
        await wire.send(request("/a?b", lines=(*OFFER, "X-Note: 1")))
        head = await wire.head()
        assert head.start == b"HTTP/1.1 101 Switching Protocols"
        assert head.get("upgrade") == NAME.encode()
        assert head.get("connection") == b"upgrade"
        assert head.get("x-extra") == b"1"
        assert not head.all("content-length") and not head.all("transfer-encoding")
        for piece in (b"\x00\xff", b"GET / HTTP/1.1\r\n\r\n", BLOCK * 8):
            await wire.send(piece)
            assert await wire.exactly(len(piece)) == piece
        wire.half_close()
        assert await wire.rest() == (b"", "fin")
    [asked] = heads
    assert asked.start == b"GET /a?b HTTP/1.1"
    assert asked.get("upgrade") == NAME.encode()
    assert asked.get("connection") == b"upgrade"
    assert asked.get("x-note") == b"1"
    assert not asked.all("content-length") and not asked.all("transfer-encoding")


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
async def test_the_method_does_not_matter_where_there_is_no_body(method: str) -> None:
    async with (
        Upstream(switching_echo) as upstream,
        tunnel(upstream=upstream.url, proxy=PROXY) as pair,
        await pair.open() as wire,
    ):
        await wire.send(request(method=method, lines=(*OFFER, "Content-Length: 0")))
        assert (await wire.head()).status == 101
        await wire.send(b"x")
        assert await wire.exactly(1) == b"x"


@pytest.mark.parametrize(
    "lines",
    [
        (f"Upgrade: h2c, {NAME.upper()}", "Connection: keep-alive, UPGRADE"),
        ("Upgrade: h2c", f"Upgrade: foo/2 , , {NAME}, websocket", "Connection: upgrade"),
    ],
)
async def test_the_first_configured_protocol_of_a_list_is_taken(lines: tuple[str, ...]) -> None:
    async with (
        Upstream(switching_echo) as upstream,
        tunnel(upstream=upstream.url, proxy=PROXY) as pair,
        await pair.open() as wire,
    ):
        await wire.send(request(lines=lines))
        head = await wire.head()
        assert (head.status, head.get("upgrade")) == (101, NAME.encode())


async def test_bytes_ahead_of_the_101_wait_for_it() -> None:
    asked, answer_now, seen = asyncio.Event(), asyncio.Event(), bytearray()

    async def serve(wire, number):
        await wire.head()
        asked.set()
        await answer_now.wait()
        seen.extend(wire.buffer)
        seen.extend(bytes([wire.send_now(SWITCH) == len(SWITCH)]))
        await echo(wire)

    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url, proxy=PROXY) as pair,
        await pair.open() as wire,
    ):
        await wire.send(request(lines=OFFER) + b"early ")
        await asked.wait()
        await wire.send(b"bird")
        answer_now.set()
        assert (await wire.head()).status == 101
        assert await wire.exactly(10) == b"early bird"
    assert seen == b"\x01"


async def test_more_bytes_ahead_of_the_101_than_are_held_wait_at_the_client() -> None:
    asked, answer_now = asyncio.Event(), asyncio.Event()
    size = 16 * 1024 * 1024

    async def serve(wire, number):
        await wire.head()
        asked.set()
        await answer_now.wait()
        await wire.send(SWITCH)
        left = size
        while left:
            await wire.fill()
            assert wire.buffer == (BLOCK * (len(wire.buffer) // len(BLOCK) + 2))[-left % 65536 :][: len(wire.buffer)]
            left -= len(wire.buffer)
            wire.buffer.clear()
        await wire.send(b"all")

    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url, proxy=PROXY) as pair,
        await pair.open() as wire,
    ):
        await wire.send(request(lines=OFFER))
        sending = asyncio.create_task(wire.send(BLOCK * (size // len(BLOCK)), seconds=30))
        await asked.wait()
        await until(lambda: not wire.send_now(b"") and sending.done() is False)
        # What the kernel's buffers hold, and 64 KiB here, is all that leaves the client before the answer.
        done, _ = await asyncio.wait([sending], timeout=0.3)
        assert not done
        answer_now.set()
        assert (await wire.head()).status == 101
        await sending
        assert await wire.exactly(3, seconds=30) == b"all"


async def test_bytes_behind_the_101_reach_the_client() -> None:
    async def serve(wire, number):
        await wire.head()
        await wire.send(SWITCH + b"at once")
        await echo(wire)

    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url, proxy=PROXY) as pair,
        await pair.open() as wire,
    ):
        await wire.send(request(lines=OFFER))
        assert (await wire.head()).status == 101
        assert await wire.exactly(7) == b"at once"


# --- not switching ---


@pytest.mark.parametrize(
    "refusal",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhtml",
        b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhtml\r\n0\r\n\r\n",
        b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: x\r\nConnection: upgrade\r\nContent-Length: 4\r\n\r\nhtml",
    ],
    ids=["200", "400", "426"],
)
async def test_a_refusal_passes_and_the_connection_goes_on_with_what_was_sent_ahead(refusal: bytes) -> None:
    served = []

    async def serve(wire, number):
        while True:
            message = await wire.request()
            served.append(message.target)
            await wire.send(refusal if message.target == b"/switch" else OK)

    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url, proxy=PROXY) as pair,
        await pair.open() as wire,
    ):
        await wire.send(request("/switch", lines=OFFER) + request("/ahead"))
        message = await wire.answer()
        assert message.status == int(refusal[9:12])
        assert message.body == b"html"
        assert message.keeps_alive
        if message.status == 426:
            assert message.get("upgrade") == b"raw-echo, websocket"
            assert message.get("connection") == b"upgrade"
        assert (await wire.answer()).body == b"ok"
        assert (await wire.get("/later")).body == b"ok"
    assert served == [b"/switch", b"/ahead", b"/later"]


BODIES = {
    "none": ((), b"", b""),
    "sized": (("Content-Length: 5",), b"hello", b"hello"),
    "chunked": (("Transfer-Encoding: chunked",), chunked(b"hel", b"lo"), b"hello"),
}


@pytest.mark.parametrize("piecewise", [False, True], ids=["at once", "byte by byte"])
@pytest.mark.parametrize("body", list(BODIES))
async def test_h2c_is_served_as_http_1_1_with_its_body_framed_right(body: str, piecewise: bool) -> None:
    lines, sent, expected = BODIES[body]
    seen: list[Message] = []

    async def serve(wire, number):
        while True:
            seen.append(await wire.request())
            await wire.send(OK)

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
        data = request("/one", method="POST", lines=(*offer, *lines)) + sent + request("/two")
        if piecewise:
            for at in range(len(data)):
                await wire.send(data[at : at + 1])
        else:
            await wire.send(data)
        assert (await wire.answer()).body == b"ok"
        assert (await wire.answer()).body == b"ok"
    assert [message.target for message in seen] == [b"/one", b"/two"]
    assert seen[0].body == expected
    for name in ("upgrade", "http2-settings", "connection"):
        assert not seen[0].all(name)


@pytest.mark.parametrize(
    ("version", "lines", "body"),
    [
        ("1.1", OFFER, b"body"),
        ("1.0", (*OFFER, "Connection: keep-alive"), None),
        ("1.1", (f"Upgrade: {NAME}",), None),
        ("1.1", ("Connection: upgrade",), None),
        ("1.1", ("Connection: upgrade", f"Upgrade: {NAME}/1.0"), None),
        ("1.1", ("Connection: upgrade", "Upgrade: other"), None),
    ],
    ids=["with a body", "HTTP/1.0", "without Connection", "without Upgrade", "with a version", "not configured"],
)
async def test_what_is_no_offer_of_a_configured_protocol_is_an_ordinary_request(version, lines, body) -> None:
    seen: list[Message] = []

    async def serve(wire, number):
        while True:
            seen.append(await wire.request())
            await wire.send(OK)

    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url, proxy=PROXY) as pair,
        await pair.open() as wire,
    ):
        for _ in range(2):
            await wire.send(request(method="POST", version=version, lines=lines, body=body))
            assert (await wire.answer()).body == b"ok"
    assert [message.body for message in seen] == [body or b""] * 2
    assert not seen[0].all("upgrade")


async def test_an_application_that_takes_no_upgrade_sees_an_ordinary_request() -> None:
    @http_only
    async def app(scope, receive, send):
        assert await read_body(receive) == b""
        await answer(send, scope["path"].encode())

    async with tunnel(app, proxy=PROXY) as pair, await pair.open() as wire:
        await wire.send(request("/one", lines=OFFER) + request("/two", method="POST", lines=OFFER))
        assert (await wire.answer()).body == b"/one"
        assert (await wire.answer()).body == b"/two"


@pytest.mark.parametrize(
    "switch",
    [
        SWITCH.replace(b"Raw-Echo", b"websocket"),
        SWITCH.replace(b"Raw-Echo", b"raw-echo, websocket"),
        SWITCH.replace(b"Connection: upgrade\r\n", b""),
    ],
    ids=["another protocol", "a list", "no Connection"],
)
async def test_an_upstream_that_switches_to_something_else_is_at_fault(switch: bytes) -> None:
    async def serve(wire, number):
        await wire.head()
        await wire.send(switch)

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url, proxy=PROXY) as pair:
        answered = await pair.get(lines=OFFER)
        assert answered.status == 502
        assert b"http_protocol_error" in (answered.get("proxy-status") or b"")


@pytest.mark.parametrize("offer", [OFFER, ()], ids=["to another", "unasked"])
async def test_an_agent_that_switches_to_what_was_not_offered_is_at_fault(offer: tuple[str, ...]) -> None:
    class Liar(backstream.Handler):
        pass

    def handler(stream, head, end):
        streams.respond(stream, backstream.ResponseHead(status=101, upgrade=b"other"))
        return Liar()

    async with tunnel(handler=handler, proxy=PROXY) as pair:
        assert (await pair.get(lines=offer)).status == 502
        # A request whose body is still on its way is open both ways too.
        async with await pair.open() as wire:
            await wire.send(request(method="POST", lines=("Content-Length: 5",)) + b"ab")
            assert (await wire.answer()).status == 502


@pytest.mark.parametrize("name", ["h2c", "H2C", "HTTP"])
async def test_another_http_never_reaches_an_upstream_whatever_the_proxy_says(name: str) -> None:
    recorder = Recorder()
    async with (
        Upstream(recorder) as upstream,
        played_proxies() as proxies,
        make_agent(proxies.url, upstream=upstream.url),
    ):
        peer = await proxies.next()
        await peer.greet()
        head = backstream.RequestHead(method=b"GET", target=b"/", upgrade=name.encode())
        await peer.tell(session.request(1, head, end=False), session.request(3))
        assert (await peer.until(session.RESET)).value.code == ErrorCode.PROTOCOL_ERROR
        assert (await peer.until(session.RESPONSE)).stream == 3
    assert [each.get("upgrade") for each in recorder.seen] == [None]


async def test_thousands_of_refused_upgrades_do_not_end_the_session() -> None:
    @http_only
    async def app(scope, receive, send):
        await answer(send, b"no", 400)

    async with tunnel(app, proxy=PROXY) as pair, await pair.open() as wire:
        [link] = pair.agents[0].sessions
        for _ in range(40):
            await wire.send(request(lines=OFFER) * 100)
            for _ in range(100):
                assert (await wire.answer()).status == 400
        assert pair.agents[0].sessions == (link,)


# --- ends ---


async def test_a_client_that_has_ended_its_direction_still_hears_the_service() -> None:
    ended = asyncio.Event()

    async def serve(wire):
        assert await wire.rest() == (b"all of it", "fin")
        ended.set()
        await wire.send(BLOCK * 64)

    async with upgraded(serve) as (pair, wire):
        await wire.send(b"all of it")
        wire.half_close()
        await ended.wait()
        assert await wire.rest() == (BLOCK * 64, "fin")
        await until(lambda: pair.proxy.connection_count == 0)


async def test_a_service_that_has_ended_its_direction_still_hears_the_client() -> None:
    got: list[tuple[bytes, str]] = []

    async def serve(wire):
        await wire.send(b"all of it")
        wire.half_close()
        got.append(await wire.rest())

    async with upgraded(serve) as (pair, wire):
        assert await wire.rest() == (b"all of it", "fin")
        await wire.send(BLOCK * 64)
        wire.half_close()
        await until(lambda: got)
        assert got == [(BLOCK * 64, "fin")]
        await until(lambda: pair.proxy.connection_count == 0)


async def test_bytes_under_way_arrive_though_both_sides_have_ended() -> None:
    """A reader that starts when both ends are sent: nothing of what waits in between is lost."""
    read_now, got = asyncio.Event(), []

    async def serve(wire):
        wire.half_close()
        await read_now.wait()
        got.append(await wire.rest())

    async with upgraded(serve) as (_pair, wire):
        assert await wire.rest() == (b"", "fin")
        sending = asyncio.create_task(wire.send(BLOCK * 256, seconds=30))
        done, _ = await asyncio.wait([sending], timeout=0.3)
        assert not done, "16 MiB that nobody reads should not fit"
        read_now.set()
        await sending
        wire.half_close()
        wire.close()
        await until(lambda: got)
        [(data, how)] = got
        assert how == "fin"
        assert data == BLOCK * 256


async def test_a_clients_abort_resets_the_upstream() -> None:
    ends = []

    async def serve(wire):
        ends.append((await wire.rest())[1])

    async with upgraded(serve) as (_pair, wire):
        await wire.send(b"x")
        wire.reset()
        await until(lambda: ends)
    assert ends == ["reset"]


async def test_a_clients_abort_is_seen_while_its_bytes_wait() -> None:
    """The proxy does not read from this client: only a look at the socket tells."""
    stop, ends = asyncio.Event(), []

    async def serve(wire):
        await stop.wait()
        ends.append((await wire.rest())[1])

    async with upgraded(serve) as (pair, wire):
        sending = asyncio.create_task(wire.send(BLOCK * 256, seconds=30))
        done, _ = await asyncio.wait([sending], timeout=0.3)
        assert not done
        sending.cancel()
        await asyncio.wait([sending])
        wire.reset()
        await until(lambda: pair.proxy.connection_count == 0, seconds=3)
        stop.set()
        await until(lambda: ends)
    assert ends == ["reset"]


async def test_a_services_abort_resets_the_client() -> None:
    async def serve(wire):
        await wire.exactly(1)
        wire.reset()

    async with upgraded(serve) as (_pair, wire):
        await wire.send(b"x")
        assert (await wire.rest())[1] == "reset"


async def test_an_agents_loss_resets_the_client() -> None:
    async with upgraded(echo) as (pair, wire):
        await pair.agents[0].close()
        assert (await wire.rest())[1] == "reset"


async def test_an_upgraded_stream_is_cut_at_the_drain_limit() -> None:
    async with upgraded(echo, proxy={"drain_timeout": 0.3}) as (pair, wire):
        draining = asyncio.create_task(pair.proxy.drain())
        await wire.send(b"still here")
        assert await wire.exactly(10) == b"still here"
        assert (await wire.rest())[1] == "reset"
        await draining


async def test_nothing_is_left_behind() -> None:
    async with Upstream(switching_echo) as upstream, tunnel(upstream=upstream.url, proxy=PROXY) as pair:
        async with await pair.open() as first:
            await first.send(request(lines=OFFER))
            assert (await first.head()).status == 101
        await pair.settled()
        await until(lambda: upstream.open == 0 and pair.proxy.connection_count == 0)
        leaks = Leaks()
        wires = [await pair.open() for _ in range(30)]
        for wire in wires:
            await wire.send(request(lines=OFFER) + b"x")
            assert (await wire.head()).status == 101
            assert await wire.exactly(1) == b"x"
        for number, wire in enumerate(wires):
            if number % 3 == 0:
                wire.reset()
            elif number % 3 == 1:
                wire.half_close()
                assert await wire.rest() == (b"", "fin")
            wire.close()
        await pair.settled()
        await until(lambda: upstream.open == 0)
        await leaks.none()


# --- limits ---


async def test_the_idle_limit_is_no_limit_for_an_upgraded_stream() -> None:
    async with upgraded(echo, proxy={"idle_timeout": 0.1}, idle_timeout=0.1) as (_pair, wire):
        await asyncio.sleep(0.5)  # five times what would have cut any other stream
        await wire.send(b"x")
        assert await wire.exactly(1) == b"x"


@pytest.mark.parametrize("side", ["proxy", "agent"])
async def test_the_idle_limit_counts_again_once_one_direction_has_ended(side: str) -> None:
    """Nobody can ping any more: a peer that never ends its own direction would be kept for ever."""
    ended = asyncio.Event()

    async def serve(wire):
        wire.half_close()
        await ended.wait()

    settings = {"proxy": {"idle_timeout": 0.2}} if side == "proxy" else {"idle_timeout": 0.2}
    async with upgraded(serve, **settings) as (pair, wire):
        assert (await wire.rest()) == (b"", "fin")
        await until(lambda: pair.proxy.connection_count == 0, seconds=3)
        await pair.settled()
        ended.set()


async def test_a_service_that_does_not_read_stops_the_client() -> None:
    read_now, size = asyncio.Event(), 32 * 1024 * 1024

    async def serve(wire):
        await read_now.wait()
        left = size
        while left:
            await wire.fill()
            left -= len(wire.buffer)
            wire.buffer.clear()
        await wire.send(b"all")

    async with upgraded(serve) as (pair, wire):
        sending = asyncio.create_task(wire.send(bytes(size), seconds=30))
        done, _ = await asyncio.wait([sending], timeout=0.5)
        assert not done
        assert pair.proxy.window_bytes == 0
        read_now.set()
        await sending
        assert await wire.exactly(3, seconds=30) == b"all"


async def test_a_client_that_does_not_read_stops_the_service() -> None:
    size, sent = 32 * 1024 * 1024, []

    async def serve(wire):
        for _ in range(size // len(BLOCK)):
            await wire.send(BLOCK, seconds=30)
            sent.append(len(BLOCK))
        wire.half_close()
        await wire.rest()

    async with upgraded(serve) as (_pair, wire):
        stalled = -1
        while stalled != len(sent):
            stalled = len(sent)
            await asyncio.sleep(0.2)  # as long as it moves it is not stalled
        assert sum(sent) < size
        data, how = await wire.rest(seconds=30)
        assert (len(data), how) == (size, "fin")


async def test_upgraded_streams_take_no_place_in_the_upstreams_pool() -> None:
    async def serve(wire, number):
        head = await wire.head()
        if head.all("upgrade"):
            await wire.send(SWITCH)
            await echo(wire)
        else:
            await wire.send(OK)

    async with Upstream(serve) as upstream:
        settings = {"upstream": upstream.url, "upstream_connections": 1}
        async with tunnel(proxy=PROXY, **settings) as pair:
            wires = [await pair.open() for _ in range(5)]
            for wire in wires:
                await wire.send(request(lines=OFFER))
                assert (await wire.head()).status == 101
            assert (await pair.get()).body == b"ok"
            for wire in wires:
                wire.close()


async def test_an_upgraded_stream_is_one_line_of_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="backstream.access")
    async with upgraded(echo, proxy={"access_log": True}) as (_pair, wire):
        await wire.send(b"12345")
        assert await wire.exactly(5) == b"12345"
        wire.half_close()
        await wire.rest()
        await until(lambda: [each for each in caplog.records if each.name == "backstream.access"])
    [line] = [each for each in caplog.records if each.name == "backstream.access"]
    assert (line.status, line.bytes, line.id) == (101, 5, ID)  # type: ignore[attr-defined]
