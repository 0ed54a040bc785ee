"""Services that fail: they close, reset, send rubbish or nothing, answer too early or lie about their lengths.

In each case the client gets an error, or a response that is visibly cut, within the limit that holds; a neighbour on
the same session, and whoever comes after on the same connection, is served as if nothing had been.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time

import pytest

from tests.rig import (
    LIMIT,
    OK,
    Echo,
    Ended,
    Leaks,
    Tunnel,
    Upstream,
    Wire,
    begin,
    chunked,
    end,
    http_only,
    more,
    request,
    tunnel,
    until,
)

REQUEST_TIMEOUT = 0.3
IDLE_TIMEOUT = 0.4
SLACK = 2.0


def unread(port: int) -> int:
    """Bytes that have come for whoever is connected to a port, and that they have not read."""
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(int(row[4].partition(":")[2], 16) for row in rows if int(row[2].partition(":")[2], 16) == port)


class Service:
    """An upstream with an echo for the neighbour, and one target on which it fails as the test says."""

    def __init__(self, fail) -> None:
        self.fail = fail
        self.failed = 0

    async def __call__(self, wire: Wire, number: int) -> None:
        while True:
            head = await wire.head()
            if head.target == b"/echo":
                await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                while piece := await wire.chunk():
                    await wire.send(chunked(piece, end=False))
                await wire.line()
                await wire.send(b"0\r\n\r\n")
            elif head.target == b"/":
                await wire.body(head, to_close=False)
                await wire.send(OK)
            else:
                self.failed += 1
                await self.fail(wire, head)
                return


class Beside:
    """A tunnel to a failing service, with a neighbour's stream on the same session."""

    def __init__(self, fail) -> None:
        self.service = Service(fail)

    async def __aenter__(self) -> Beside:
        self.upstream = Upstream(self.service)
        await self.upstream.__aenter__()
        limits = {"request_timeout": REQUEST_TIMEOUT}
        self.made = tunnel(upstream=self.upstream.url, idle_timeout=IDLE_TIMEOUT, proxy=limits)
        self.tunnel: Tunnel = await self.made.__aenter__()
        self.neighbour = await self.tunnel.open()
        self.echo = await Echo.begin(self.neighbour)
        await self.echo.goes_on()
        return self

    async def __aexit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                await self.echo.finish()
                # Who comes next is served, on whatever connection that is.
                for _ in range(3):
                    got = await self.tunnel.get()
                    assert got.status == 200 and got.body == b"ok" and got.complete
                assert len(self.tunnel.proxy.agents) == 1
        finally:
            self.neighbour.close()
            await self.made.__aexit__(kind, error, traceback)
            await self.upstream.__aexit__(kind, error, traceback)


def says(data: bytes, end: str = "close"):
    """Reads the request, sends bytes and ends as said."""

    async def fail(wire, head):
        await wire.body(head, to_close=False)
        if data:
            await wire.send(data)
        if end == "reset":
            wire.reset()
        elif end == "silence":
            await until_ended(wire)

    return fail


async def until_ended(wire: Wire) -> None:
    try:
        while True:
            wire.buffer.clear()
            await wire.fill()
    except Ended:
        pass


HEAD = b"HTTP/1.1 200 OK\r\n"

BEFORE_THE_HEAD = {
    "nothing": b"",
    "half a status line": b"HTTP/1.1 20",
    "half a head": HEAD + b"Content-Length: 5\r\nX-A",
    "rubbish": b"\x00\xff\x16\x03\x01rubbish\r\n\r\n",
    "another protocol": b"220 mail.example ESMTP\r\n250 ok\r\n\r\n",
    "HTTP/2": b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64",
    "a status that is none": b"HTTP/1.1 099 No\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
    "a length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "an unknown coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\nok",
    "a folded field": HEAD + b"X-A: 1\r\n 2\r\nContent-Length: 2\r\n\r\nok",
    "a NUL in a field": HEAD + b"X-A: 1\x002\r\nContent-Length: 2\r\n\r\nok",
    "101 unasked": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    "a head without end": HEAD + b"".join(b"X-%d: %s\r\n" % (i, b"v" * 1000) for i in range(200)),
    "interim answers without end": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 600,
}


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("what", BEFORE_THE_HEAD)
async def test_a_service_that_fails_before_its_head_is_502(what: str, how: str) -> None:
    async with Beside(says(BEFORE_THE_HEAD[what], how)) as beside, await beside.tunnel.open() as wire:
        began = time.monotonic()
        got = await wire.get("/fail")
        assert got.status == 502 and got.complete and b"(id svc)" in got.body
        assert b"leg=service" in got.get("proxy-status")
        assert time.monotonic() - began < SLACK
        # The client's connection is as good as before.
        assert (await wire.get()).status == 200
        assert beside.service.failed == 1


CUTS = {
    "a sized body, empty": HEAD + b"Content-Length: 10\r\n\r\n",
    "a sized body": HEAD + b"Content-Length: 10\r\n\r\nhalf",
    "chunks, none of them": HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
    "chunks, within a size": HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n1",
    "chunks, within a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n8\r\nhalf",
    "chunks, between them": HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
    "chunks, before the last line": HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
    "chunks, within the trailers": HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nX-Sum: 1\r\n",
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("what", CUTS)
async def test_a_service_that_breaks_off_within_its_body_never_looks_whole(what: str, how: str, version: str) -> None:
    async with Beside(says(CUTS[what], how)) as beside, await beside.tunnel.open() as wire:
        await wire.send(request("/fail", version=version))
        try:
            got = await wire.answer()
        except Ended as ended:
            # HTTP/1.0 has no other sign of a cut than a reset; it may overtake the head.
            assert version == "1.0" and ended.how == "reset"
            return
        # A reset may overtake what was sent before it, the head included: then it is an error like any other.
        assert (got.status, got.complete) in ((200, False), (502, True))
        assert b"half".startswith(got.body) or got.status == 502
        if got.status == 200:
            await assert_over(wire)


async def assert_over(wire: Wire) -> None:
    assert (await wire.rest(seconds=SLACK))[0] == b""


@pytest.mark.parametrize(
    "data",
    [
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nrubbish\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf too long\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nffffffffffffffffff\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\nContent-Length: 4\r\n\r\n",
    ],
)
async def test_rubbish_within_chunks_cuts_the_response(data: bytes) -> None:
    async with Beside(says(data, "silence")) as beside, await beside.tunnel.open() as wire:
        got = await wire.get("/fail")
        assert got.status == 502 or (got.status == 200 and not got.complete)
        if got.status == 200:
            await assert_over(wire)


async def test_a_service_that_says_more_than_its_length_is_cut_off_there() -> None:
    more_than = HEAD + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad"
    async with Beside(says(more_than, "silence")) as beside, await beside.tunnel.open() as wire:
        got = await wire.get("/fail")
        assert got.status == 200 and got.body == b"ok" and got.complete
        for _ in range(3):
            assert (await wire.get()).body == b"ok"


async def test_a_service_that_says_nothing_is_504_after_the_requests_limit() -> None:
    async with Beside(says(b"", "silence")) as beside, await beside.tunnel.open() as wire:
        began = time.monotonic()
        got = await wire.get("/fail")
        assert got.status == 504 and b"error=connection_read_timeout; leg=service" in got.get("proxy-status")
        assert REQUEST_TIMEOUT <= time.monotonic() - began < REQUEST_TIMEOUT + SLACK
        # Its connection is closed: a late answer has nowhere to go.
        await until(lambda: beside.upstream.open == 1)
        assert (await wire.get()).status == 200


async def test_a_service_that_falls_silent_within_its_body_is_cut_after_the_idle_limit() -> None:
    async with (
        Beside(says(HEAD + b"Content-Length: 10\r\n\r\nhalf", "silence")) as beside,
        await beside.tunnel.open() as wire,
    ):
        await wire.send(request("/fail"))
        await wire.until(b"half")
        began = time.monotonic()
        # The neighbour moves, or it would be cut as well.
        while time.monotonic() - began < IDLE_TIMEOUT + SLACK and not wire.ended:
            await beside.echo.goes_on()
            try:
                await wire.fill(0.05)
            except (TimeoutError, Ended):
                pass
        assert wire.ended == "fin" and not wire.buffer
        assert time.monotonic() - began > IDLE_TIMEOUT - 0.1


@pytest.mark.parametrize("then", ["reads on", "closes", "resets", "falls silent"])
async def test_a_service_may_answer_before_it_has_read_the_body(then: str) -> None:
    async def fail(wire, head):
        await wire.exactly(4)
        await wire.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 6\r\n\r\nrefuse")
        if then == "resets":
            wire.reset()
        elif then == "reads on":
            await until_ended(wire)
        elif then == "falls silent":
            await asyncio.sleep(LIMIT)

    async with Beside(fail) as beside, await beside.tunnel.open() as wire:
        await wire.send(request("/fail", method="POST", lines=["Content-Length: 50000000"]) + b"half")
        got = await wire.answer()
        if then == "resets" and got.status == 502:
            return  # the reset overtook the answer
        assert got.status == 403 and got.body == b"refuse" and got.complete
        # The upload goes nowhere, and the client is not left alone with it for ever: it can send on, or stop.
        wire.half_close()
        assert (await wire.rest(seconds=SLACK))[0] == b""


async def test_a_request_that_may_not_be_repeated_goes_on_no_connection_whose_end_has_come_unread(commands) -> None:
    ends = asyncio.Event()

    async def serve(wire: Wire, number: int) -> None:
        while True:
            await wire.request()
            await wire.send(OK)
            if number == 1:
                await ends.wait()
                return

    async with Upstream(serve) as upstream:
        await commands.proxy()
        agent = await commands.agent("--upstream", upstream.url)
        assert (await commands.get()).status == 200
        agent.signal(signal.SIGSTOP)
        async with await commands.open() as wire:
            await wire.send(request(method="POST", body=b"x"))
            # The request is what the agent finds first when it goes on.
            await until(lambda: unread(commands.port) > 0, "the request at the agent's door")
            ends.set()
            await until(lambda: not upstream.open, "the end of the idle connection")
            agent.signal(signal.SIGCONT)
            got = await wire.answer()
            assert (got.status, got.body) == (200, b"ok")
        assert upstream.connections == 2


# --- an application in the agent's process ---


async def test_an_application_that_fails_in_every_way_at_once_leaves_nothing_behind(caplog) -> None:
    # Logged tracebacks would keep what they came through.
    caplog.set_level(logging.CRITICAL, "backstream.agent")

    @http_only
    async def app(scope, receive, send):
        kind = scope["path"]
        if kind == "/raise":
            raise RuntimeError("on purpose")
        if kind == "/return":
            return
        await begin(send)
        await more(send, b"half")
        if kind == "/cut":
            raise RuntimeError("on purpose")
        if kind == "/endless":
            while True:
                await more(send, b"b" * 65536)
        await end(send, b" and half")

    async with tunnel(app) as pair:
        await pair.get("/")
        await until(lambda: pair.proxy.connection_count == 0)
        leaks = Leaks()

        async def one(kind: str) -> None:
            async with await pair.open() as wire:
                await wire.send(request(kind))
                if kind == "/endless":
                    await wire.exactly(100_000)
                    return
                got = await wire.answer()
                expected = {"/raise": (500, True), "/return": (500, True), "/cut": (200, False), "/": (200, True)}
                assert (got.status, got.complete) == expected[kind]

        async with asyncio.timeout(LIMIT):
            await asyncio.gather(*(one(kind) for kind in ("/raise", "/return", "/cut", "/endless", "/") * 20))
        await until(lambda: pair.proxy.connection_count == 0)
        await pair.settled()
        await leaks.none()


async def test_an_agent_holds_its_service_to_the_time_that_a_request_names_though_the_proxy_says_nothing_more(
    commands, journal
) -> None:
    proxy = await commands.proxy()
    agent = await commands.agent()
    async with await commands.open() as wire:
        await wire.send(request("/deaf/1", lines=["x-backstream-request-timeout: 1s"]))
        await journal.has("came", "/deaf/1")
        proxy.signal(signal.SIGSTOP)
        await agent.said("no response within 1 s")
        proxy.signal(signal.SIGCONT)
        assert (await wire.answer()).status == 504
