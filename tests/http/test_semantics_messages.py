"""Statuses and methods with rules of their own, the target's forms, Host, and HTTP/1.0 (RFC 9110, RFC 9112)."""

from typing import Any

import pytest

from backstream import _callbacks
from backstream._messages import Body, ResponseHead
from tests import rig


def app_with(status: int, *, body: bytes = b"", headers: Any = ()) -> rig.App:
    @rig.http_only
    async def app(scope, receive, send):
        await rig.begin(send, headers, status)
        await rig.more(send, body)
        await rig.end(send, body)

    return app


def upstream_answer(status: int, rest: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d Reason\r\nX-A: b\r\n" % status + (rest or b"\r\n")


# --- statuses ---


async def check_205(tunnel: rig.Tunnel) -> None:
    async with await tunnel.open() as wire:
        for _ in range(2):
            answer = await wire.get()
            assert (answer.status, answer.body, answer.get("content-length")) == (205, b"", b"0")
            assert answer.get("transfer-encoding") is None


@pytest.mark.parametrize("body", [b"", b"not to be seen", b"x" * 300_000])
async def test_205_has_no_content_whatever_the_application_sends(body: bytes) -> None:
    async with rig.tunnel(app_with(205, body=body)) as tunnel:
        await check_205(tunnel)
    length = [(b"content-length", b"%d" % (2 * len(body)))]
    async with rig.tunnel(app_with(205, body=body, headers=length)) as tunnel:
        await check_205(tunnel)


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 0\r\n\r\n",
        b"Content-Length: 5\r\n\r\nhello",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_205_has_no_content_whatever_the_upstream_sends(rest: bytes) -> None:
    async with (
        rig.Upstream(rig.always(upstream_answer(205, rest))) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
    ):
        await check_205(tunnel)
        assert upstream.connections == 1


async def test_204_has_no_content_and_no_length() -> None:
    async with (
        rig.Upstream(rig.always(upstream_answer(204, b"Content-Length: 5\r\n\r\n"))) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        for _ in range(2):
            answer = await wire.get()
            assert (answer.status, answer.get("x-a")) == (204, b"b")
            assert answer.get("content-length") is None and answer.get("transfer-encoding") is None


async def test_304_and_head_keep_the_length_that_a_get_would_have() -> None:
    length = b"Content-Length: 500\r\n\r\n"
    async with (
        rig.Upstream(rig.always(upstream_answer(304, length))) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        for method in ("GET", "HEAD", "GET"):
            await wire.send(rig.request(method=method))
            answer = await wire.answer(method)
            assert (answer.status, answer.get("content-length")) == (304, b"500")
    async with (
        rig.Upstream(rig.always(upstream_answer(200, length))) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        for _ in range(2):
            await wire.send(rig.request(method="HEAD"))
            assert (await wire.answer("HEAD")).get("content-length") == b"500"


@pytest.mark.parametrize(("method", "status"), [("GET", 204), ("GET", 304), ("HEAD", 200), ("HEAD", 205)])
async def test_body_bytes_where_there_is_no_body_reach_nobody(method: str, status: int) -> None:
    def handler(stream, head, end):
        _callbacks.respond(stream, ResponseHead(status=status, body=Body.SIZED, length=5))
        _callbacks.write(stream, b"hello")
        _callbacks.end(stream)
        return _callbacks.Handler()

    async with rig.tunnel(handler=handler, check=False) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(method=method) + rig.request())
        assert (await wire.answer(method)).status == status
        assert await wire.rest() == (b"", "fin")


# --- the target and Host ---


@pytest.mark.parametrize(
    ("line", "host", "target"),
    [
        ("GET http://other:81/a?b HTTP/1.1", b"other:81", b"/a?b"),
        ("GET HTTPS://other HTTP/1.1", b"other", b"/"),
        ("GET http://other?q HTTP/1.1", b"other", b"/?q"),
        ("GET http://other/ HTTP/1.0", b"other", b"/"),
        ("OPTIONS http://other HTTP/1.1", b"other", b"*"),
        ("GET /http://other/ HTTP/1.1", b"first", b"/http://other/"),
        ("GET //other/ HTTP/1.1", b"first", b"//other/"),
    ],
)
async def test_the_targets_authority_is_worth_more_than_host(line: str, host: bytes, target: bytes) -> None:
    recorder = rig.Recorder()
    async with (
        rig.Upstream(recorder) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(f"{line}\r\nHost: first\r\nx-backstream-client-id: svc\r\n\r\n".encode())
        assert (await wire.answer()).status == 200
    assert (recorder.seen[0].get("host"), recorder.seen[0].target) == (host, target)


@pytest.mark.parametrize(
    "head",
    [
        "GET / HTTP/1.1",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a",
        "GET / HTTP/1.1\r\nHost: a b",
        "GET / HTTP/1.1\r\nHost: a/",
        "GET / HTTP/1.1\r\nHost: user@a",
        "GET http://u@a/ HTTP/1.1\r\nHost: a",
        "GET http:///a HTTP/1.1\r\nHost: a",
        "GET ftp://a/ HTTP/1.1\r\nHost: a",
        "GET a/b HTTP/1.1\r\nHost: a",
        "GET * HTTP/1.1\r\nHost: a",
        "GET /a#b HTTP/1.1\r\nHost: a",
    ],
)
async def test_a_target_or_host_that_is_none_is_400_and_what_follows_is_served(head: str) -> None:
    async with rig.tunnel(rig.ok_app) as tunnel, await tunnel.open() as wire:
        await wire.send(f"{head}\r\nx-backstream-client-id: svc\r\n\r\n".encode() + rig.request())
        answer = await wire.answer()
        assert answer.status == 400
        if answer.keeps_alive:
            assert (await wire.answer()).body == b"ok"
        else:
            assert await wire.rest() == (b"", "fin")


# --- HTTP/1.0 ---


async def test_http_1_0_without_a_host_is_served() -> None:
    async with rig.tunnel(rig.ok_app) as tunnel, await tunnel.open() as wire:
        await wire.send(b"GET / HTTP/1.0\r\nx-backstream-client-id: svc\r\n\r\n")
        answer = await wire.answer()
        assert (answer.body, answer.keeps_alive) == (b"ok", False)


async def test_a_cut_body_until_close_ends_in_a_reset() -> None:
    @rig.http_only
    async def app(scope, receive, send):
        await rig.begin(send)
        await rig.more(send, b"hello")
        raise RuntimeError("meant")

    async with rig.tunnel(app) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(version="1.0", lines=["Connection: keep-alive"]))
        data, how = await wire.rest()
        assert how == "reset" or b" 502 " in data


async def test_a_body_until_close_is_cut_by_a_client_that_ends_its_direction_and_does_not_look_whole_to_it() -> None:
    @rig.http_only
    async def app(scope, receive, send):
        await rig.begin(send)
        await rig.more(send, b"hello")
        while (await receive())["type"] != "http.disconnect":
            pass

    async with rig.tunnel(app, check=False) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(version="1.0"))
        await wire.until(b"hello")
        wire.half_close()
        assert await wire.rest() == (b"", "reset")


# --- the time that is left ---


async def test_the_service_knows_how_long_its_answer_is_waited_for() -> None:
    @rig.http_only
    async def app(scope, receive, send):
        await rig.answer(send, repr(scope["extensions"].get("backstream")).encode())

    async with rig.tunnel(app) as tunnel, await tunnel.open() as wire:
        for text, seen in (("2500ms", {"time_left": 2.5}), ("0", None), ("1h", {"time_left": 3600.0})):
            await wire.send(rig.request(lines=[f"x-backstream-request-timeout: {text}"]))
            assert (await wire.answer()).body == repr(seen).encode()


async def test_an_upstream_is_told_by_choice() -> None:
    recorder = rig.Recorder()
    async with rig.Upstream(recorder) as upstream:
        for chosen in (True, False):
            async with rig.tunnel(upstream=upstream.url, time_left_header=chosen) as tunnel:
                for text in ("2.5s", "0"):
                    lines = [f"x-backstream-request-timeout: {text}", "x-backstream-time-left: 1h"]
                    assert (await tunnel.get(lines=lines)).status == 200
    assert [request.get("x-backstream-time-left") for request in recorder.seen] == [b"2500ms", None, None, None]
