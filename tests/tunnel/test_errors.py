"""What a client is told when there is no answer: a status, one line that names id and cause, Proxy-Status."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

import backstream
from tests.rig import (
    ID,
    Leaks,
    Message,
    Upstream,
    always,
    answer,
    begin,
    end,
    http_only,
    more,
    ok_app,
    request,
    tunnel,
    until,
)


def check(got: Message, status: int, words: str, cause: str, *, client_id: str | None = ID) -> None:
    assert got.status == status, got
    assert got.body.endswith(b"\n") and got.body.count(b"\n") == 1
    assert got.get("content-type") == b"text/plain; charset=utf-8"
    text = got.body.decode()
    assert words in text, text
    if client_id is not None:
        assert client_id in text, text
    proxy_status = got.get("proxy-status").decode()
    assert re.fullmatch(rf'backstream; error={cause}; leg=[a-z]+; details="[^"]*"', proxy_status), proxy_status


async def test_400_without_the_id() -> None:
    async with tunnel(ok_app) as pair:
        got = await pair.get(client_id=None)
        check(got, 400, "header x-backstream-client-id is required", "http_request_error", client_id=None)


@pytest.mark.parametrize("client_id", ["", "two words", "x" * 129, "caf\xe9"])
async def test_400_for_an_id_that_can_be_none(client_id: str) -> None:
    async with tunnel(ok_app) as pair:
        got = await pair.get(client_id=client_id)
        check(got, 400, "x-backstream-client-id", "http_request_error", client_id=None)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_422_for_an_id_that_was_never_seen() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 0.0}) as pair:
        # For the first 10 s of its life a proxy can't know who is about to come back.
        async with asyncio.timeout(14):
            while (got := await pair.get(client_id="nobody")).status == 503:
                await asyncio.sleep(0.2)
        check(got, 422, "no agent", "destination_not_found", client_id="nobody")
        check(await pair.get(client_id="nobody"), 422, "no agent", "destination_not_found", client_id="nobody")
        await pair.agents[0].close()
        await pair.connected(0)
        check(await pair.get(), 503, "away", "destination_unavailable")


async def test_503_for_an_unknown_id_while_the_proxy_is_young() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 0.0}) as pair:
        got = await pair.get(client_id="nobody")
        check(got, 503, "just started", "destination_unavailable", client_id="nobody")
        assert int(got.get("retry-after")) > 0


async def test_503_for_an_id_that_is_away() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 0.0}) as pair:
        await pair.agents[0].close()
        await pair.connected(0)
        got = await pair.get()
        check(got, 503, "away", "destination_unavailable")
        assert int(got.get("retry-after")) > 0


async def test_503_for_an_id_at_its_limit() -> None:
    release = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await begin(send)
        await more(send, b"begun")
        await release.wait()
        await end(send)

    async with tunnel(app, session=backstream.SessionSettings(max_streams=2)) as pair:
        wires = [await pair.open() for _ in range(2)]
        for wire in wires:
            await wire.send(request())
            await wire.until(b"begun")
        got = await pair.get()
        check(got, 503, "limit", "connection_limit_reached")
        assert got.get("retry-after")
        release.set()
        for wire in wires:
            await wire.until(b"0\r\n\r\n")
        assert (await pair.get()).status == 200
        for wire in wires:
            wire.close()


async def test_502_when_the_upstream_refuses_connections() -> None:
    async with Upstream(always(b"")) as upstream:
        url = upstream.url
    async with tunnel(upstream=url) as pair:
        check(await pair.get(), 502, "cannot be reached", "connection_refused")


async def test_504_when_no_head_comes_in_time_and_the_service_is_told() -> None:
    events = []

    @http_only
    async def app(scope, receive, send):
        while True:
            events.append((await receive())["type"])
            if events[-1] == "http.disconnect":
                return

    async with tunnel(app, proxy={"request_timeout": 0.1}) as pair:
        check(await pair.get(), 504, "within 0.1 s", "connection_read_timeout")
        await until(lambda: events[-1:] == ["http.disconnect"], "the service's disconnect")


@pytest.mark.parametrize(("text", "seconds"), [("100ms", 0.1), ("0.05s", 0.05), ("0h0m0.1s", 0.1), ("50us", 0.0)])
async def test_the_time_limit_of_one_request(text: str, seconds: float) -> None:
    @http_only
    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async with tunnel(app) as pair:
        began = time.monotonic()
        got = await pair.get(lines=[f"x-backstream-request-timeout: {text}"])
        assert got.status == 504 and seconds <= time.monotonic() - began < seconds + 2


@pytest.mark.parametrize("text", ["0", "-1s", "0s", "1h2m3.5s"])
async def test_a_request_without_a_limit_or_with_a_long_one(text: str) -> None:
    release = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await release.wait()
        await answer(send)

    async with tunnel(app, proxy={"request_timeout": 0.1}) as pair, await pair.open() as slow:
        await slow.send(request(lines=[f"x-backstream-request-timeout: {text}"]))
        # A request under the proxy's own limit ends first.
        assert (await pair.get()).status == 504
        release.set()
        assert (await slow.answer()).status == 200


@pytest.mark.parametrize("text", ["", "12", "s", "1 s", "1x", "1s1", "abc", "--1s", "1s" * 51])
async def test_400_for_a_time_limit_that_is_none(text: str) -> None:
    async with tunnel(ok_app) as pair:
        got = await pair.get(lines=[f"x-backstream-request-timeout: {text}"])
        check(got, 400, "x-backstream-request-timeout", "http_request_error", client_id=None)


async def test_the_cap_holds_for_what_a_request_asks_for() -> None:
    @http_only
    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async with tunnel(app, proxy={"max_request_timeout": 0.1}) as pair:
        for text in ("1h", "0", "-5s"):
            assert (await pair.get(lines=[f"x-backstream-request-timeout: {text}"])).status == 504


async def test_the_time_limit_begins_with_the_requests_end() -> None:
    @http_only
    async def app(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        await answer(send)

    async with tunnel(app, proxy={"request_timeout": 0.2}) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Content-Length: 20"]))
        for _ in range(20):
            await wire.send(b"x")
            await asyncio.sleep(0.02)
        assert (await wire.answer()).status == 200


async def test_the_time_limit_ends_with_the_head() -> None:
    head_there = asyncio.Event()
    release = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/late":
            await release.wait()
        await begin(send)
        await more(send, b"1")
        head_there.set()
        await release.wait()
        await end(send, b"2")

    async with tunnel(app, proxy={"request_timeout": 0.1}) as pair, await pair.open() as wire:
        await wire.send(request())
        await wire.until(b"1\r\n1\r\n")
        assert (await pair.get("/late")).status == 504
        release.set()
        assert await wire.chunk() == b"2"


async def test_silence_within_a_response_cuts_it_after_the_idle_limit() -> None:
    gone = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await begin(send)
        await more(send, b"half")
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with tunnel(app, proxy={"idle_timeout": 0.3}) as pair, await pair.open() as wire:
        got = await wire.get()
        assert got.body == b"half" and not got.complete
        await asyncio.wait_for(gone.wait(), 5)


async def test_a_stream_that_moves_is_not_cut_by_the_idle_limit() -> None:
    @http_only
    async def app(scope, receive, send):
        await begin(send)
        for _ in range(12):
            await more(send, b"x")
            await asyncio.sleep(0.05)
        await end(send)

    async with tunnel(app, proxy={"idle_timeout": 0.3}, idle_timeout=0.3) as pair:
        got = await pair.get()
        assert got.complete and got.body == b"x" * 12


async def test_a_client_that_stops_sending_its_body_gets_408() -> None:
    @http_only
    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async with tunnel(app, proxy={"idle_timeout": 0.3}) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Content-Length: 10"]) + b"half")
        got = await wire.answer()
        check(got, 408, "body", "http_request_error")


async def test_a_service_that_stops_reading_a_body_is_the_one_to_blame_504() -> None:
    ended = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await ended.wait()

    async with tunnel(app, proxy={"idle_timeout": 0.3}) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Content-Length: 10000000"]) + bytes(500_000))
        check(await wire.answer(), 504, "the service took no byte of the body", "connection_write_timeout")
        ended.set()


async def test_an_upstream_that_falls_silent_is_cut_after_the_agents_idle_limit() -> None:
    async def serve(wire, number):
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        await wire.rest()

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url, idle_timeout=0.3) as pair:
        got = await pair.get()
        assert got.body == b"half" and not got.complete


async def test_errors_keep_the_connection_where_they_can() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 0.0}) as pair, await pair.open() as wire:
        for _ in range(3):
            await wire.send(request(client_id="nobody"))
            assert (await wire.answer()).keeps_alive
            await wire.send(request(client_id=None))
            assert (await wire.answer()).status == 400
        assert (await wire.get()).status == 200


async def test_an_error_answers_head_without_a_body() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 0.0}) as pair, await pair.open() as wire:
        await wire.send(request(client_id="nobody", method="HEAD"))
        got = await wire.answer("HEAD")
        assert got.status == 503 and int(got.get("content-length")) > 0
        assert (await wire.get()).status == 200


async def test_failed_requests_leave_nothing_behind() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 0.0}) as pair:
        leaks = Leaks()
        for _ in range(20):
            await pair.get(client_id="nobody")
            await pair.get(client_id=None)
            await pair.get(lines=["x-backstream-request-timeout: soon"])
        await until(lambda: pair.proxy.connection_count == 0)
        await leaks.none()


async def test_a_client_that_leaves_with_requests_ahead_of_their_turn_is_forgotten() -> None:
    @http_only
    async def app(scope, receive, send):
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    async with tunnel(app) as pair:
        async with await pair.open() as wire:
            await wire.send(request("/first") + request("/second") * 20)
            await until(lambda: pair.counts()["streams"])
            wire.half_close()
            assert await wire.rest() == (b"", "fin")
        assert pair.agents[0].requests == 1
