"""What a client's connection goes through beside single messages: pipelines, upgrades not taken, expectations."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from pathlib import Path

import pytest

from tests.http.table import US
from tests.rig import (
    Ended,
    Message,
    Tunnel,
    Upstream,
    Wire,
    answer,
    begin,
    chunked,
    end,
    http_only,
    more,
    read_body,
    request,
    tunnel,
    until,
)


class Gate:
    """An application that answers /gate when it is opened, and everything else with the target and the body at once."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.seen: list[str] = []

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        self.seen.append(scope["path"])
        body = await read_body(receive)
        if scope["path"] == "/gate":
            await self.opened.wait()
        if body is not None:
            await answer(send, scope["path"].encode() + b" " + body)


MALFORMED = {
    "a malformed field": (f"GET /bad HTTP/1.1\r\n{US}X : y\r\n\r\n", 400),
    "a malformed line": ("GET /bad\r\n\r\n", 400),
    "both framings": (f"POST / HTTP/1.1\r\n{US}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "an unknown method": (f"FROB /bad HTTP/1.1\r\n{US}\r\n", 501),
    "another version": (f"GET /bad HTTP/2.0\r\n{US}\r\n", 505),
    "a head too large": (f"GET /bad HTTP/1.1\r\n{US}X: {'y' * 70_000}\r\n\r\n", 431),
    "a target too long": (f"GET /{'y' * 20_000} HTTP/1.1\r\n{US}\r\n", 414),
    "an unknown coding": (f"POST /bad HTTP/1.1\r\n{US}Transfer-Encoding: gzip, chunked\r\n\r\n", 501),
    "no line at all": ("\x16\x03\x01", 400),
}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_answers_before_a_malformed_pipelined_request_are_given_first_and_nothing_behind_it_is_served(
    kind: str,
) -> None:
    bad, status = MALFORMED[kind]
    gate = Gate()
    async with tunnel(gate) as pair, await pair.open() as wire:
        sending = asyncio.create_task(
            wire.send(request("/gate") + request("/next") + bad.encode("latin-1") + request("/behind"))
        )
        await until(lambda: gate.seen, "the first request")
        assert not wire.buffer
        gate.opened.set()
        assert (await wire.answer()).body == b"/gate "
        assert (await wire.answer()).body == b"/next "
        got = await wire.answer()
        assert (got.status, got.keeps_alive) == (status, False)
        await sending
        assert await wire.rest() == (b"", "fin")
    assert gate.seen == ["/gate", "/next"]


async def test_a_pipelined_request_reaches_the_service_only_when_its_turn_has_come() -> None:
    gate = Gate()
    async with tunnel(gate) as pair, await pair.open() as wire:
        await wire.send(request("/gate") + request("/next", method="POST", body=b"hello"))
        await until(lambda: gate.seen, "the first request")
        assert (await pair.get("/other")).status == 200
        assert gate.seen == ["/gate", "/other"]
        gate.opened.set()
        assert (await wire.answer()).body == b"/gate "
        assert (await wire.answer()).body == b"/next hello"


@pytest.mark.parametrize("ahead", [1, 2000], ids=["read", "unread"])
@pytest.mark.parametrize("how", ["fin", "reset", "half-close"])
async def test_pipelined_requests_of_a_client_that_leaves_are_not_served(how: str, ahead: int) -> None:
    gate = Gate()
    async with tunnel(gate) as pair:
        async with await pair.open() as wire:
            await wire.send(request("/gate"))
            await until(lambda: gate.seen, "the first request")
            wire.send_now(request("/next") * ahead)
            if how == "reset":
                wire.reset()
            elif how == "fin":
                wire.close()
            else:
                wire.half_close()
            await until(lambda: not pair.counts()["opened"], "the proxy to have noticed")
        gate.opened.set()
        assert (await pair.get("/other")).status == 200
    assert gate.seen == ["/gate", "/other"]


async def test_errors_of_pipelined_requests_stand_in_their_places() -> None:
    gate = Gate()
    async with tunnel(gate) as pair, await pair.open() as wire:
        gate.opened.set()
        await wire.send(
            request("/1")
            + request("/2", client_id=None, method="POST", body=b"GET /evil HTTP/1.1\r\n\r\n")
            + request("/3", method="POST", body=b"x")
            + request("/4", lines=["x-backstream-request-timeout: soon"])
            + request("/5", method="HEAD", client_id="a b")
            + request("/6")
        )
        assert (await wire.answer()).body == b"/1 "
        # A body that nobody wants is not read on: its connection ends.
        assert (await wire.answer()).status == 400
        assert await wire.rest() == (b"", "fin")
        assert gate.seen == ["/1"]
    async with tunnel(gate) as pair, await pair.open() as wire:
        await wire.send(
            request("/3", method="POST", body=b"x")
            + request("/4", lines=["x-backstream-request-timeout: soon"])
            + request("/5", method="HEAD", client_id="a b")
            + request("/6")
        )
        assert (await wire.answer()).body == b"/3 x"
        assert (await wire.answer()).status == 400
        assert (await wire.answer("HEAD")).status == 400
        assert (await wire.answer()).body == b"/6 "


async def test_an_error_within_a_body_comes_in_the_place_of_its_answer() -> None:
    gate = Gate()
    async with tunnel(gate) as pair, await pair.open() as wire:
        await wire.send(request("/1", method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"x", end=False))
        await until(lambda: gate.seen, "the request")
        await wire.send(b"zz\r\n" + request("/2"))
        assert (await wire.answer()).status == 400
        assert await wire.rest() == (b"", "fin")
        assert gate.seen == ["/1"]


async def test_an_error_within_a_body_whose_answer_has_begun_cuts_it() -> None:
    @http_only
    async def app(scope, receive, send):
        await begin(send)
        await more(send, b"begun")
        if await read_body(receive) is not None:
            await end(send)

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"x", end=False))
        head = await wire.head()
        assert await wire.chunk() == b"begun"
        await wire.send(b"zz\r\n")
        await wire.body(head, to_close=False)
        assert not head.complete


# --- upgrades that nobody takes ---

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


async def curl(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        "curl",
        *("--silent", "--show-error", "--max-time", "20", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


@needs_curl
@pytest.mark.parametrize("size", [5, 3_000_000])
async def test_curl_that_offers_http_2_uploads_and_goes_on_with_its_connection(size: int, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(b"GET /evil HTTP/1.1\r\n\r\n"[:size].ljust(size, b"x"))
    heads: list[list[bytes]] = []

    @http_only
    async def app(scope, receive, send):
        heads.append([name for name, _ in scope["headers"]])
        body = await read_body(receive)
        assert body is not None
        await answer(send, f"{scope['http_version']} {hashlib.sha256(body).hexdigest()}\n".encode())

    async with tunnel(app) as pair:
        options = ("-H", "x-backstream-client-id: svc", "--http2", "--data-binary", f"@{upload}")
        status, out = await curl(*options, "-w", "%{num_connects} ", f"{pair.url}/one", f"{pair.url}/two")
        line = f"1.1 {hashlib.sha256(upload.read_bytes()).hexdigest()}\n"
        assert (status, out) == (0, f"{line}1 {line}0 ")
    for names in heads:
        assert not {b"upgrade", b"connection", b"http2-settings"} & set(names)


@pytest.mark.parametrize("framing", ["sized", "chunked"])
async def test_a_body_behind_an_upgrade_that_nobody_takes_is_streamed_as_it_comes(framing: str) -> None:
    requests: list[Message] = []

    async def serve(wire: Wire, number: int) -> None:
        message = await wire.head()
        if framing == "sized":
            assert await wire.exactly(5) == b"first"
        else:
            assert await wire.chunk() == b"first"
        requests.append(message)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        with pytest.raises(Ended):
            while True:
                await wire.fill()

    lines = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"]
    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        if framing == "sized":
            await wire.send(request(method="POST", lines=[*lines, "Content-Length: 11"]) + b"first")
        else:
            await wire.send(
                request(method="POST", lines=[*lines, "Transfer-Encoding: chunked"]) + chunked(b"first", end=False)
            )
        await until(lambda: requests, "the first piece of the body")
        assert (await wire.answer()).status == 200


# --- expectations ---


async def open_with_expectation(pair: Tunnel, wire: Wire, size: int = 5) -> None:
    await wire.send(request(method="POST", lines=["Expect: 100-continue", f"Content-Length: {size}"]))


async def test_an_application_that_does_not_ask_for_the_body_spares_the_upload() -> None:
    @http_only
    async def app(scope, receive, send):
        await answer(send, b"no", 403)

    async with tunnel(app) as pair, await pair.open() as wire:
        await open_with_expectation(pair, wire)
        got = await wire.answer()
        assert (got.status, got.body, got.interim) == (403, b"no", [])
        # The body may or may not follow: what comes now can't be told from it, so nothing of it is served.
        assert await wire.rest() == (b"", "fin")


async def test_a_service_that_refuses_an_expectation_is_believed() -> None:
    async def serve(wire: Wire, number: int) -> None:
        message = await wire.head()
        assert message.get("expect") == b"100-continue"
        await wire.send(b"HTTP/1.1 417 Expectation Failed\r\nContent-Length: 2\r\n\r\nno")
        with pytest.raises(Ended):
            while True:
                await wire.fill()

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        await open_with_expectation(pair, wire)
        got = await wire.answer()
        assert (got.status, got.body, got.interim) == (417, b"no", [])


async def test_a_client_that_waits_is_told_to_go_on_by_the_service_and_by_nobody_else() -> None:
    release = asyncio.Event()

    async def serve(wire: Wire, number: int) -> None:
        message = await wire.head()
        await release.wait()
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await wire.body(message, to_close=False)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + message.body)

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        await open_with_expectation(pair, wire)
        await until(lambda: upstream.open, "the request")
        with pytest.raises(TimeoutError):
            await wire.fill(0.2)
        release.set()
        assert (await wire.head()).status == 100
        await wire.send(b"hello")
        assert (await wire.answer()).body == b"hello"
