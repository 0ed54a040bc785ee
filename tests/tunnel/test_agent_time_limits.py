"""How long the agent lets its service take over a response's head, whatever the proxy does."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.rig import Leaks, Upstream, begin, chunked, http_only, more, read_body, request, tunnel, until

NO_LIMIT = {"request_timeout": 0.0}


class Slow:
    """An ASGI application that never answers, and notes how its tasks end."""

    def __init__(self) -> None:
        self.entered = 0
        self.cancelled = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            raise NotImplementedError
        await read_body(receive)
        if scope["path"] == "/begun":
            await begin(send)
            await more(send, b"begun")
        self.entered += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def test_an_application_that_does_not_begin_its_response_is_cancelled_and_its_client_gets_504(caplog) -> None:
    app = Slow()
    async with tunnel(app, proxy=NO_LIMIT, request_timeout=0.1) as pair:
        await pair.settled()
        leaks = Leaks()
        got = await pair.get("/a/path")
        assert got.status == 504 and b"no response within the time limit" in got.body
        await until(lambda: app.cancelled == 1)
        await leaks.none()
    assert "no response within 0.1 s: GET /a/path" in caplog.text
    assert "cancelled 1 s after its time limit: GET /a/path" in caplog.text


async def test_an_application_that_goes_when_it_is_told_is_not_cancelled(caplog) -> None:
    told = []

    @http_only
    async def app(scope, receive, send):
        await receive()
        told.append(await receive())

    async with tunnel(app, proxy=NO_LIMIT, request_timeout=0.1) as pair:
        assert (await pair.get()).status == 504
    assert told == [{"type": "http.disconnect"}] and "cancelled" not in caplog.text


async def test_an_application_that_goes_on_after_the_proxys_limit_is_cancelled_too(caplog) -> None:
    app = Slow()
    async with tunnel(app, proxy={"request_timeout": 0.1}) as pair:
        assert (await pair.get()).status == 504
        await until(lambda: app.cancelled == 1)
    assert "cancelled 1 s after its time limit: GET /" in caplog.text


async def test_an_application_that_goes_on_is_cancelled_though_its_session_is_lost_meanwhile(caplog) -> None:
    app = Slow()
    async with tunnel(app, proxy={"request_timeout": 0.1}, check=False) as pair:
        (link,) = pair.agents[0].sessions
        assert (await pair.get()).status == 504
        next(iter(pair.proxy.agents)).abort("for the test")
        await until(lambda: link not in pair.agents[0].sessions)
        assert app.cancelled == 0
        await until(lambda: app.cancelled == 1, seconds=5)
    (record,) = (each for each in caplog.records if "cancelled 1 s after its time limit" in each.getMessage())
    assert record.session == link.session_name


async def test_a_response_that_has_begun_has_no_limit() -> None:
    app = Slow()
    async with tunnel(app, proxy=NO_LIMIT, request_timeout=0.1) as pair, await pair.open() as wire:
        await wire.send(request("/begun"))
        assert (await wire.head()).status == 200
        assert await wire.chunk() == b"begun"
        assert (await pair.get()).status == 504  # which takes longer than the limit
        assert app.cancelled == 0
        wire.close()
        await pair.agents[0].close()


async def test_the_limit_begins_with_the_requests_end() -> None:
    app = Slow()
    async with tunnel(app, proxy=NO_LIMIT, request_timeout=0.2) as pair, await pair.open() as wire:
        await wire.send(request("/slow", method="POST", lines=["Transfer-Encoding: chunked"]))
        assert (await pair.get()).status == 504
        await wire.send(chunked(b"still here"))
        await until(lambda: app.entered == 2)
        assert (await wire.answer()).status == 504


async def test_an_upstream_that_does_not_begin_its_response_is_given_up() -> None:
    ended = asyncio.Event()

    async def serve(wire, number):
        if (await wire.request()).target == b"/begun":
            await wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            await asyncio.wait_for(ended.wait(), 15)
            await wire.send(b"begun")
        else:
            await wire.rest()
            ended.set()

    async with (
        Upstream(serve) as upstream,
        tunnel(proxy=NO_LIMIT, upstream=upstream.url, request_timeout=0.15) as pair,
        await pair.open() as wire,
    ):
        await wire.send(request("/begun"))
        assert (await pair.get("/never")).status == 504
        got = await wire.answer()
        assert (got.status, got.body, got.complete) == (200, b"begun", True)


async def test_a_request_that_waits_for_an_upstream_connection_is_not_spared() -> None:
    async def serve(wire, number):
        await wire.rest()

    settings = {"request_timeout": 0.15, "upstream_connections": 1}
    async with Upstream(serve) as upstream, tunnel(proxy=NO_LIMIT, upstream=upstream.url, **settings) as pair:
        answers = await asyncio.gather(*(pair.get() for _ in range(3)))
        assert [answer.status for answer in answers] == [504] * 3


async def test_a_thread_of_a_wsgi_application_keeps_its_place_until_it_ends() -> None:
    go, raised = threading.Event(), threading.Event()

    def app(environ, start_response):
        assert go.wait(15)
        write = start_response("200 OK", [])
        try:
            write(b"too late")
            write(b"too late")
        except OSError:
            raised.set()
            raise
        return []

    async with tunnel(app, proxy=NO_LIMIT, request_timeout=0.1) as pair:
        assert (await pair.get()).status == 504
        assert pair.agents[0].sessions[0].session.accepted == 1
        go.set()
        await until(raised.is_set)


@pytest.mark.parametrize("budget", ["100ms", "300ms"])
async def test_0_is_no_limit_of_the_agents_own(budget) -> None:
    @http_only
    async def app(scope, receive, send):
        await receive()
        await asyncio.Event().wait()

    async with tunnel(app, proxy=NO_LIMIT, request_timeout=0.0) as pair:
        lines = [f"x-backstream-request-timeout: {budget}"]
        assert (await pair.get(lines=lines)).status == 504
