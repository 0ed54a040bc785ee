"""Bodies of every framing and size, both ways, byte by byte what was sent."""

from __future__ import annotations

import asyncio
import hashlib
import random
from itertools import accumulate

import aiohttp
import httpx
import pytest

from tests.rig import (
    Ended,
    OddWire,
    Upstream,
    Wire,
    answer,
    begin,
    chunked,
    echo_app,
    end,
    http_only,
    more,
    ok_app,
    read_body,
    request,
    tunnel,
)

MEBIBYTE = 1024 * 1024
BLOCK = bytes(range(256)) * 4096  # 1 MiB
BIG = 32


@http_only
async def length_app(scope, receive, send):
    """Says what came: method, number of bytes, their hash."""
    body = await read_body(receive)
    text = f"{scope['method']} {len(body)} {hashlib.sha256(body).hexdigest()}".encode()
    await answer(send, text)


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


# --- requests ---


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 300_000])
async def test_a_sized_request_body_arrives_whole(size: int) -> None:
    body = (BLOCK * 1)[:size]
    async with tunnel(length_app) as pair:
        got = await pair.get(method="POST", body=body)
        assert got.body.decode() == f"POST {size} {digest(body)}"


async def test_a_chunked_request_body_arrives_whole() -> None:
    pieces = [b"a", b"bc" * 500, BLOCK[:200_000], b"z"]
    async with tunnel(length_app) as pair, await pair.open() as wire:
        await wire.send(request(method="PUT", lines=["Transfer-Encoding: chunked"]) + chunked(*pieces))
        whole = b"".join(pieces)
        assert (await wire.answer()).body.decode() == f"PUT {len(whole)} {digest(whole)}"


async def test_a_request_without_a_body_ends_at_once() -> None:
    seen = []

    @http_only
    async def app(scope, receive, send):
        seen.append(await receive())
        await answer(send)

    async with tunnel(app) as pair:
        assert (await pair.get()).status == 200
    assert seen == [{"type": "http.request", "body": b"", "more_body": False}]


# --- responses ---


@http_only
async def framings_app(scope, receive, send):
    path = scope["path"]
    if path == "/sized":
        await begin(send, [(b"content-length", b"11")])
        await more(send, b"hello ")
        await end(send, b"world")
    elif path == "/one":
        await answer(send, b"hello world")
    elif path == "/pieces":
        await begin(send)
        await more(send, b"hello ")
        await end(send, b"world")
    elif path == "/empty":
        await answer(send, b"")
    elif path == "/last-empty":
        await begin(send)
        await more(send, b"hello world")
        await end(send)
    else:
        await answer(send, b"", int(path[1:]), [(b"x-kept", b"yes")])


async def test_a_sized_response_keeps_its_length() -> None:
    async with tunnel(framings_app) as pair:
        got = await pair.get("/sized")
        assert got.get("content-length") == b"11" and got.body == b"hello world"


async def test_a_response_in_one_piece_gets_a_length() -> None:
    async with tunnel(framings_app) as pair:
        got = await pair.get("/one")
        assert got.get("content-length") == b"11" and got.body == b"hello world"


@pytest.mark.parametrize("path", ["/pieces", "/last-empty"])
async def test_a_response_in_pieces_is_chunked(path: str) -> None:
    async with tunnel(framings_app) as pair:
        got = await pair.get(path)
        assert got.get("transfer-encoding") == b"chunked" and got.body == b"hello world" and got.complete


async def test_an_empty_response_has_length_0() -> None:
    async with tunnel(framings_app) as pair:
        assert (await pair.get("/empty")).get("content-length") == b"0"


@pytest.mark.parametrize("path", ["/sized", "/one", "/pieces", "/empty"])
async def test_head_brings_the_head_alone_and_the_connection_lives_on(path: str) -> None:
    async with tunnel(framings_app) as pair, await pair.open() as wire:
        await wire.send(request(path, method="HEAD"))
        got = await wire.answer("HEAD")
        assert got.status == 200 and got.get("content-length") in (b"11", b"0", None)
        assert (await wire.get("/one")).body == b"hello world"


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none_and_the_connection_lives_on(status: int) -> None:
    async with tunnel(framings_app) as pair, await pair.open() as wire:
        await wire.send(request(f"/{status}"))
        got = await wire.answer()
        assert got.status == status and got.get("x-kept") == b"yes"
        assert got.get("transfer-encoding") is None
        assert (await wire.get("/one")).body == b"hello world"


# --- HTTP/1.0 and persistence ---


async def test_http_1_0_gets_a_body_until_close() -> None:
    async with tunnel(framings_app) as pair, await pair.open() as wire:
        await wire.send(request("/pieces", version="1.0"))
        got = await wire.answer()
        assert got.body == b"hello world" and got.complete
        assert got.get("transfer-encoding") is None and got.get("content-length") is None


async def test_http_1_0_without_keep_alive_is_closed_after_its_answer() -> None:
    async with tunnel(framings_app) as pair, await pair.open() as wire:
        await wire.send(request("/one", version="1.0"))
        assert (await wire.answer()).get("connection") == b"close"
        assert await wire.rest() == (b"", "fin")


async def test_http_1_0_with_keep_alive_serves_a_second_request() -> None:
    async with tunnel(framings_app) as pair, await pair.open() as wire:
        for _ in range(3):
            await wire.send(request("/one", version="1.0", lines=["Connection: Keep-Alive"]))
            got = await wire.answer()
            assert got.body == b"hello world" and got.get("connection") == b"keep-alive"


async def test_connection_close_is_honoured() -> None:
    async with tunnel(framings_app) as pair, await pair.open() as wire:
        await wire.send(request("/one", lines=["Connection: close"]))
        assert not (await wire.answer()).keeps_alive
        assert await wire.rest() == (b"", "fin")


async def test_pipelined_requests_are_answered_in_order() -> None:
    gates: dict[str, asyncio.Event] = {f"/{i}": asyncio.Event() for i in range(6)}

    @http_only
    async def app(scope, receive, send):
        body = await read_body(receive)
        await gates[scope["path"]].wait()
        await answer(send, scope["path"].encode() + b":" + body)

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(
            b"".join(request(f"/{i}", method="POST", body=b"x" * i) for i in range(3))
            + b"".join(
                request(f"/{i}", method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"y" * i)
                for i in range(3, 6)
            )
        )
        # The gates open from the last to the first: only the first request's decides.
        for gate in reversed(gates.values()):
            gate.set()
        for i in range(6):
            got = await wire.answer()
            assert got.body == b"/%d:" % i + (b"x" if i < 3 else b"y") * i


async def test_more_pipelined_requests_than_are_held() -> None:
    async with tunnel(ok_app) as pair, await pair.open() as wire:
        one = request("/" + "p" * 200)
        sending = asyncio.create_task(wire.send(one * 2000))
        for _ in range(2000):
            assert (await wire.answer()).body == b"ok"
        await sending


# --- big ones ---


@http_only
async def big_app(scope, receive, send):
    if scope["method"] == "POST":
        seen = hashlib.sha256()
        while (event := await receive())["type"] == "http.request":
            seen.update(event["body"])
            if not event["more_body"]:
                break
        await answer(send, seen.hexdigest().encode())
    else:
        sized = scope["path"] == "/sized"
        await begin(send, [(b"content-length", b"%d" % (BIG * MEBIBYTE))] if sized else [])
        for _ in range(BIG):
            await more(send, BLOCK)
        await end(send)


def big_digest() -> str:
    seen = hashlib.sha256()
    for _ in range(BIG):
        seen.update(BLOCK)
    return seen.hexdigest()


@pytest.mark.parametrize("path", ["/sized", "/chunked"])
async def test_a_big_download_is_what_was_sent(path: str) -> None:
    async with tunnel(big_app) as pair, aiohttp.ClientSession() as client:
        seen = hashlib.sha256()
        async with asyncio.timeout(30), client.get(pair.url + path, headers=pair.headers) as response:
            async for piece in response.content.iter_any():
                seen.update(piece)
        assert seen.hexdigest() == big_digest()


@pytest.mark.parametrize("sized", [True, False])
async def test_a_big_upload_is_what_was_sent(sized: bool) -> None:
    async def blocks():
        for _ in range(BIG):
            yield BLOCK

    async with tunnel(big_app) as pair, aiohttp.ClientSession() as client:
        headers = pair.headers | ({"content-length": str(BIG * MEBIBYTE)} if sized else {})
        async with asyncio.timeout(30), client.post(pair.url, headers=headers, data=blocks()) as response:
            assert await response.text() == big_digest()


@pytest.mark.asyncio(loop_factories=["uvloop"])
@pytest.mark.parametrize("sized", [True, False])
async def test_big_bodies_both_ways_through_an_upstream(sized: bool) -> None:
    seen = []

    async def serve(wire, number):
        while True:
            got = await wire.request()
            seen.append(digest(got.body))
            if sized:
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(got.body))
                await wire.send(got.body)
            else:
                await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for at in range(0, len(got.body), MEBIBYTE):
                    await wire.send(chunked(got.body[at : at + MEBIBYTE], end=False))
                await wire.send(b"0\r\n\r\n")

    async def blocks():
        for _ in range(BIG):
            yield BLOCK

    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url) as pair,
        httpx.AsyncClient(base_url=pair.url, headers=pair.headers, timeout=30) as client,
    ):
        headers = {"content-length": str(BIG * MEBIBYTE)} if sized else {}
        response = await client.post("/", content=blocks(), headers=headers)
        assert digest(response.content) == big_digest() and seen == [big_digest()]


async def test_a_body_until_close_from_the_upstream_is_chunked_for_the_client() -> None:
    async def serve(wire, number):
        await wire.request()
        await wire.send(b"HTTP/1.0 200 OK\r\n\r\n" + BLOCK[:300_000])

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        for _ in range(2):
            got = await wire.get()
            assert got.get("transfer-encoding") == b"chunked" and got.body == BLOCK[:300_000]


# --- peers that take a little at a time ---


def pieces() -> list[bytes]:
    """Around the sizes from which bodies leave from where they lie, and to which they are read and sent at once."""
    # Altogether more than a kernel keeps for a socket by itself.
    sizes = [1, 16383, 130_000, 2, 16384, 65280, 100, 16385, 65281, 16384, 65408, 3, 200_000, 1000] * 15
    whole = random.Random(1).randbytes(sum(sizes))
    ends = list(accumulate(sizes))
    return [whole[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("framing", ["sized", "chunked", "until close"])
@pytest.mark.parametrize("service", ["application", "upstream"])
async def test_a_client_that_reads_a_little_at_a_time_gets_every_byte(service: str, framing: str) -> None:
    whole = b"".join(pieces())

    @http_only
    async def app(scope, receive, send):
        await begin(send, [(b"content-length", b"%d" % len(whole))] if framing == "sized" else [])
        for piece in pieces():
            await more(send, piece)
        await end(send)

    async def serve(wire, number):
        while True:
            await wire.request()
            if framing == "sized":
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole)
            else:
                await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*pieces()))

    async with (
        Upstream(serve) as upstream,
        tunnel(app) if service == "application" else tunnel(upstream=upstream.url) as pair,
        await OddWire.connect(pair.address, receive_buffer=4096) as wire,
    ):
        # A second answer on the same connection begins where the first has ended.
        for _ in range(1 if framing == "until close" else 2):
            await wire.send(request(version="1.0" if framing == "until close" else "1.1"))
            got = await wire.answer()
            assert got.complete and got.body == whole


@pytest.mark.parametrize("sized", [True, False])
async def test_an_upstream_that_reads_a_little_at_a_time_gets_every_byte(sized: bool) -> None:
    whole = b"".join(pieces())

    async def serve(wire, number):
        wire = OddWire(wire.sock)
        while True:
            assert (await wire.request()).body == whole
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def upload(wire: Wire) -> None:
        if sized:
            await wire.send(request(method="POST", body=whole))
        else:
            await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(*pieces()))

    async with (
        Upstream(serve, receive_buffer=4096) as upstream,
        tunnel(upstream=upstream.url) as pair,
        await pair.open() as wire,
    ):
        for _ in range(2):
            await upload(wire)
            assert (await wire.answer()).body == b"ok"
        assert upstream.connections == 1


# --- both directions at once ---


async def test_an_echo_runs_while_the_request_is_still_being_sent() -> None:
    async with tunnel(echo_app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
        assert (await wire.head()).status == 200
        for i in range(50):
            piece = b"piece %d " % i * (i * 20 + 1)
            await wire.send(chunked(piece, end=False))
            got = b""
            while len(got) < len(piece):
                got += await wire.chunk()
            assert got == piece
        await wire.send(b"0\r\n\r\n")
        assert await wire.chunk() == b"" and await wire.line() == b""
        assert (await wire.get("/again")).status == 200


async def test_a_big_echo_at_full_speed_does_not_deadlock() -> None:
    async with tunnel(echo_app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=[f"Content-Length: {8 * MEBIBYTE}"]))
        sending = asyncio.create_task(wire.send(BLOCK * 8))
        got = await wire.answer()
        await sending
        assert digest(got.body) == digest(BLOCK * 8)


async def test_an_echo_through_an_upstream_runs_while_the_request_is_still_being_sent() -> None:
    async def serve(wire, number):
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while piece := await wire.chunk():
            await wire.send(chunked(piece, end=False))
        await wire.line()
        await wire.send(b"0\r\n\r\n")
        with pytest.raises(Ended):
            await wire.fill()

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
        assert (await wire.head()).status == 200
        for i in range(20):
            await wire.send(chunked(b"%d" % i, end=False))
            assert await wire.chunk() == b"%d" % i
        await wire.send(b"0\r\n\r\n")
        assert await wire.chunk() == b""


# --- clients that people use ---


async def test_httpx_reuses_its_connection() -> None:
    async with (
        tunnel(length_app) as pair,
        httpx.AsyncClient(base_url=pair.url, headers=pair.headers, timeout=15) as client,
    ):
        for i in range(5):
            body = b"b" * i * 1000
            assert (await client.post("/", content=body)).text == f"POST {len(body)} {digest(body)}"
        assert pair.proxy.connection_count == 1


async def test_aiohttp_sends_many_at_once() -> None:
    async with tunnel(length_app) as pair, aiohttp.ClientSession(headers=pair.headers) as client:

        async def one(i: int) -> None:
            body = BLOCK[: i * 997]
            async with client.post(pair.url, data=body) as response:
                assert await response.text() == f"POST {len(body)} {digest(body)}"

        async with asyncio.timeout(20):
            await asyncio.gather(*(one(i) for i in range(100)))


async def curl(*arguments: str) -> tuple[int, bytes]:
    process = await asyncio.create_subprocess_exec(
        "curl", "--silent", "--show-error", "--max-time", "20", *arguments, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(25):
        out, _ = await process.communicate()
    return process.returncode, out


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_curl_sends_and_gets(tmp_path) -> None:
    (tmp_path / "body").write_bytes(BLOCK * 3)
    wanted = f"POST {3 * MEBIBYTE} {digest(BLOCK * 3)}".encode()
    field = ("-H", "x-backstream-client-id: svc")
    async with tunnel(length_app) as pair:
        body = ("--data-binary", f"@{tmp_path / 'body'}")
        # Above 1 MiB curl sends "Expect: 100-continue".
        assert await curl(*field, *body, pair.url) == (0, wanted)
        assert await curl(*field, "-H", "Transfer-Encoding: chunked", *body, pair.url) == (0, wanted)
        assert await curl(*field, "--http1.0", *body, pair.url) == (0, wanted)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_curl_notices_a_response_that_was_cut() -> None:
    @http_only
    async def app(scope, receive, send):
        await begin(send)
        await more(send, b"half of it")
        raise RuntimeError("on purpose")

    async with tunnel(app) as pair:
        status, out = await curl("-H", "x-backstream-client-id: svc", pair.url)
        # What the cut overtook within its turn of the loop may be missing, the sign of the cut may not.
        assert out in (b"", b"half of it") and status in (18, 56)
