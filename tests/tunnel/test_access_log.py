"""One line for each request, when it is asked for: who, what, status, bytes, time."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest

from tests.rig import (
    Echo,
    answer,
    begin,
    echo_app,
    end,
    http_only,
    more,
    ok_app,
    read_body,
    request,
    tunnel,
    until,
)

LINE = re.compile(r"(\S+) (\S+) (\S+) (\d+) (\d+) (\d+\.\d{3})s")


@pytest.fixture
def lines(caplog):
    """The access lines so far: (address, method, target, status, bytes, seconds) and the record's own values."""
    caplog.set_level(logging.INFO, "backstream.access")

    def lines():
        found = []
        for record in caplog.records:
            if record.name == "backstream.access":
                match = LINE.fullmatch(record.getMessage())
                assert match, record.getMessage()
                address, method, target, status, size, seconds = match.groups()
                assert (record.status, record.bytes) == (int(status), int(size))
                assert abs(record.seconds - float(seconds)) < 0.001
                found.append((address, method, target, int(status), int(size), record.id))
        return found

    return lines


def logging_tunnel(app, **options):
    return tunnel(app, proxy={"access_log": True} | options.pop("proxy", {}), **options)


async def test_a_body_that_is_refused_midway_is_logged_as_what_its_client_was_told(lines) -> None:
    @http_only
    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass

    async with logging_tunnel(app, proxy={"max_body_size": 1000}) as pair:
        for body, status in ((b"7d0\r\n" + bytes(2000) + b"\r\n", 413), (b"no size\r\n", 400)):
            async with await pair.open() as wire:
                await wire.send(request("/up", method="POST", lines=["Transfer-Encoding: chunked"]))
                await until(lambda: sum(link.stream_count for link in pair.proxy.agents) == 1, "the request runs")
                await wire.send(body)
                assert (await wire.answer()).status == status
    assert [(line[1:4], line[5]) for line in lines()] == [
        (("POST", "/up", 413), "svc"),
        (("POST", "/up", 400), "svc"),
    ]


async def test_a_request_is_one_line(lines) -> None:
    @http_only
    async def app(scope, receive, send):
        await answer(send, await read_body(receive) or b"twelve bytes", 201)

    async with logging_tunnel(app) as pair, await pair.open() as wire:
        await wire.get("/a/b?c=%20d")
        await wire.send(request("/up", method="POST", body=b"u" * 1000))
        await wire.answer()
        assert lines() == [
            ("127.0.0.1", "GET", "/a/b?c=%20d", 201, 12, "svc"),
            ("127.0.0.1", "POST", "/up", 201, 1000, "svc"),
        ]


async def test_without_access_log_there_is_no_line(lines) -> None:
    async with tunnel(ok_app) as pair:
        assert (await pair.get()).status == 200
        assert lines() == []


async def test_pipelined_requests_are_a_line_each(lines) -> None:
    async with logging_tunnel(ok_app) as pair, await pair.open() as wire:
        await wire.send(b"".join(request(f"/{i}") for i in range(20)))
        for _ in range(20):
            await wire.answer()
        assert [line[2] for line in lines()] == [f"/{i}" for i in range(20)]


async def test_the_line_comes_with_the_responses_end_and_counts_its_body_without_framing(lines) -> None:
    async with logging_tunnel(echo_app) as pair, await pair.open() as wire:
        echo = await Echo.begin(wire)
        await echo.goes_on()
        assert lines() == []
        await echo.finish()
        assert lines() == [("127.0.0.1", "POST", "/echo", 200, len(b"piece 1piece 2"), "svc")]


async def test_what_the_proxy_answers_itself_is_logged_too(lines) -> None:
    async with logging_tunnel(ok_app) as pair, await pair.open() as wire:
        for data in (request("/1", client_id=None), request("/2", client_id="nobody"), request("/3", method="HEAD")):
            await wire.send(data)
            await wire.answer("HEAD" if b"HEAD" in data else "GET")
        statuses = [(line[2], line[3], line[5]) for line in lines()]
        assert statuses == [("/1", 400, ""), ("/2", 503, "nobody"), ("/3", 200, "svc")]


async def test_a_response_that_is_cut_keeps_its_status_and_the_bytes_that_went_out(lines) -> None:
    go_on = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await begin(send)
        await more(send, b"half")
        await go_on.wait()
        raise RuntimeError("on purpose")

    async with logging_tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request("/cut"))
        await wire.until(b"half\r\n")
        go_on.set()
        assert await wire.rest() == (b"", "fin")
        assert lines() == [("127.0.0.1", "GET", "/cut", 200, 4, "svc")]


async def test_a_client_that_leaves_before_the_head_is_499(lines) -> None:
    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/begun":
            await begin(send)
            await more(send, b"begun")
        while (await receive())["type"] != "http.disconnect":
            pass

    async with logging_tunnel(app) as pair:
        for path, status, size in (("/silent", 499, 0), ("/begun", 200, 5)):
            async with await pair.open() as wire:
                await wire.send(request(path))
                if size:
                    await wire.until(b"begun")
                await until(lambda: pair.counts()["accepted"] == 1)
            await until(lambda: pair.counts()["accepted"] == 0)
            assert lines()[-1] == ("127.0.0.1", "GET", path, status, size, "svc")
        assert len(lines()) == 2


async def test_a_time_limit_that_passed_is_504(lines) -> None:
    @http_only
    async def app(scope, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        await end(send)

    async with logging_tunnel(app, proxy={"request_timeout": 0.1}) as pair:
        assert (await pair.get()).status == 504
        (line,) = lines()
        assert line[3] == 504


async def test_a_target_cannot_forge_a_line(lines) -> None:
    async with logging_tunnel(ok_app) as pair, await pair.open() as wire:
        await wire.send(b"GET /a%0d%0aGET HTTP/1.1\r\nHost: a\r\nx-backstream-client-id: svc\r\n\r\n")
        await wire.answer()
        (line,) = lines()
        assert line[2] == "/a%0d%0aGET"
