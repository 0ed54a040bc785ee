"""The limits of heads, targets, fields, trailers and chunk extensions, and the clocks of a client's connection.

Each limit is met exactly, and passed by one; in one segment and byte by byte, since these are read in different ways.
"""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from tests.http.table import US
from tests.rig import (
    ID,
    OK,
    Ended,
    Message,
    Tunnel,
    Upstream,
    Wire,
    always,
    answer,
    http_only,
    ok_app,
    read_body,
    request,
    tunnel,
    until,
)

KiB = 1024


async def send(wire: Wire, data: bytes, segment: int) -> None:
    """Sends in segments of so many bytes; what an answer leaves unsent does not matter."""
    try:
        for at in range(0, len(data), segment or len(data)):
            await wire.send(data[at : at + segment] if segment else data)
            await asyncio.sleep(0)
    except ConnectionError:
        pass


async def ask(pair: Tunnel, data: bytes, segment: int = 0) -> Message:
    """The answer to raw bytes; an error must end the connection."""
    async with await pair.open() as wire:
        await send(wire, data, segment)
        got = await wire.answer()
        if got.status >= 400:
            assert not got.keeps_alive
            assert await wire.rest() == (b"", "fin")
        return got


def head(size: int) -> bytes:
    """A request whose head has so many bytes."""
    start = f"GET / HTTP/1.1\r\n{US}X: ".encode()
    return start + b"a" * (size - len(start) - 4) + b"\r\n\r\n"


# --- the sizes of a request ---


@pytest.mark.parametrize("segment", [0, 7])
async def test_a_head_of_the_limit_is_served_and_one_byte_more_is_431(segment: int) -> None:
    async with tunnel(ok_app, proxy={"max_head_size": KiB}) as pair:
        assert (await ask(pair, head(KiB), segment)).status == 200
        for more in (1, 2, 3, 4, 5, 100):
            assert (await ask(pair, head(KiB + more), segment)).status == 431


async def test_a_head_may_have_64_kib_unless_it_is_said_otherwise() -> None:
    async with tunnel(ok_app) as pair:
        for segment in (0, 1000):
            assert (await ask(pair, head(64 * KiB), segment)).status == 200
            assert (await ask(pair, head(64 * KiB + 1), segment)).status == 431


async def test_a_head_that_fits_the_limit_but_no_frame_is_431() -> None:
    async with tunnel(ok_app, proxy={"max_head_size": 128 * KiB, "max_fields": 4000}) as pair:
        many = f"GET / HTTP/1.1\r\n{US}".encode() + (b"a:%b\r\n" % (b"b" * 28)) * 3990 + b"\r\n"
        async with await pair.open() as wire:
            await wire.send(many)
            assert (await wire.answer()).status == 431
            assert (await wire.get()).status == 200


@pytest.mark.parametrize("segment", [0, 7])
async def test_a_target_of_the_limit_is_served_and_one_byte_more_is_414(segment: int) -> None:
    async with tunnel(ok_app, proxy={"max_target_size": 300}) as pair:
        assert (await ask(pair, request("/" + "a" * 299), segment)).status == 200
        assert (await ask(pair, request("/" + "a" * 300), segment)).status == 414


async def test_a_target_may_have_16_kib_unless_it_is_said_otherwise() -> None:
    async with tunnel(ok_app) as pair:
        assert (await ask(pair, request("/" + "a" * (16 * KiB - 1)))).status == 200
        assert (await ask(pair, request("/" + "a" * 16 * KiB))).status == 414


async def test_a_start_line_that_never_ends_is_refused_before_the_heads_limit() -> None:
    async with tunnel(ok_app, proxy={"max_target_size": 300}) as pair, await pair.open() as wire:
        await wire.send(b"GET /" + b"a" * 500)
        assert (await wire.answer()).status == 414


@pytest.mark.parametrize("segment", [0, 100])
async def test_fields_of_the_limit_are_served_and_one_more_is_431(segment: int) -> None:
    async with tunnel(ok_app) as pair:
        lines = [f"x-{i}: v" for i in range(198)]  # beside Host and the id
        assert (await ask(pair, request(lines=lines), segment)).status == 200
        assert (await ask(pair, request(lines=[*lines, "x: v"]), segment)).status == 431


@pytest.mark.parametrize("segment", [0, 7])
async def test_trailers_of_the_limit_are_served_and_one_byte_more_is_431(segment: int) -> None:
    requests: list[Message] = []

    async def serve(wire: Wire, number: int) -> None:
        while True:
            requests.append(await wire.request())
            await wire.send(OK)

    limit = 200
    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url, proxy={"max_trailers_size": limit}, check=False) as pair,
    ):
        start = request(method="POST", lines=["Transfer-Encoding: chunked"]) + b"1\r\nx\r\n0\r\n"
        assert (await ask(pair, start + b"X-A: " + b"a" * (limit - 7) + b"\r\n\r\n", segment)).status == 200
        assert (await ask(pair, start + b"X-A: " + b"a" * (limit - 6) + b"\r\n\r\n", segment)).status == 431
        await pair.settled()
    assert [message.complete for message in requests].count(True) == 1


@pytest.mark.parametrize("segment", [0, 100])
async def test_chunk_extensions_of_16_kib_are_ignored_and_one_byte_more_is_400(segment: int) -> None:
    @http_only
    async def app(scope, receive, send):
        if await read_body(receive) is not None:
            await answer(send)

    async with tunnel(app) as pair:
        start = request(method="POST", lines=["Transfer-Encoding: chunked"])
        for first, second, status in ((16383, 0, 200), (8000, 8400, 200), (16384, 0, 400), (8000, 8401, 400)):
            # The CR that ends a line counts, the semicolon does not; of the first one 18 bytes are free.
            body = b"".join(b"1;%b\r\nx\r\n" % (b"a" * size) for size in (first, second) if size) + b"0\r\n\r\n"
            assert (await ask(pair, start + body, segment)).status == status


async def test_chunk_extensions_beyond_another_limit_are_400_too() -> None:
    async with tunnel(ok_app, proxy={"max_extensions_size": 10}) as pair:
        start = request(method="POST", lines=["Transfer-Encoding: chunked"])
        for size, status in ((9, 200), (10, 400)):
            body = b"1;%b\r\nx\r\n0\r\n\r\n" % (b"a" * size)
            assert (await ask(pair, start + body, 0)).status == status


# --- the sizes of an answer ---


async def test_an_answers_head_of_the_limit_is_passed_on_and_one_byte_more_is_502() -> None:
    def serve_with(size: int) -> bytes:
        start = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: "
        return start + b"a" * (size - len(start) - 4) + b"\r\n\r\nok"

    async with (
        Upstream(always(serve_with(KiB))) as upstream,
        tunnel(upstream=upstream.url, max_response_head=KiB) as pair,
    ):
        got = await pair.get()
        assert (got.status, got.body) == (200, b"ok")
    async with (
        Upstream(always(serve_with(KiB + 1))) as upstream,
        tunnel(upstream=upstream.url, max_response_head=KiB) as pair,
    ):
        got = await pair.get()
        assert (
            got.status == 502 and b"error=http_response_header_section_size; leg=service;" in got.all("proxy-status")[0]
        )


async def test_an_answers_head_may_have_nearly_128_kib_unless_it_is_said_otherwise() -> None:
    async def serve(wire: Wire, number: int) -> None:
        while True:
            size = int((await wire.request()).target[1:])
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: " + b"a" * size + b"\r\n\r\nok")

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair:
        got = await pair.get("/130000")
        assert (got.status, len(got.get("x") or b"")) == (200, 130_000)
        assert (await pair.get("/131072")).status == 502
        assert (await pair.get("/1")).status == 200


async def test_an_answer_may_have_1000_fields_and_one_more_is_502() -> None:
    async def serve(wire: Wire, number: int) -> None:
        while True:
            count = int((await wire.request()).target[1:])
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + b"A: b\r\n" * (count - 1) + b"\r\nok")

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair:
        got = await pair.get("/1000")
        assert (got.status, len(got.all("a"))) == (200, 999)
        assert (await pair.get("/1001")).status == 502


async def test_an_answers_trailers_and_extensions_are_limited_to_16_kib() -> None:
    start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    bodies = {
        "/trailers": b"2\r\nok\r\n0\r\nX: " + b"a" * 16379 + b"\r\n\r\n",
        "/more-trailers": b"2\r\nok\r\n0\r\nX: " + b"a" * 16380 + b"\r\n\r\n",
        "/extensions": b"2;" + b"a" * 16383 + b"\r\nok\r\n0\r\n\r\n",
        "/more-extensions": b"2\r\nok\r\n1;" + b"a" * 16384 + b"\r\n!\r\n0\r\n\r\n",
    }

    async def serve(wire: Wire, number: int) -> None:
        while True:
            await wire.send(start + bodies[(await wire.request()).target.decode()])

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair:
        for target in bodies:
            got = await pair.get(target)
            if target.startswith("/more"):
                assert got.status == 502 or not got.complete, target
            else:
                assert (got.status, got.body, got.complete) == (200, b"ok", True), target


PADDED = {
    "extensions": b"400;n=12345678\r\n" + b"e" * 1024 + b"\r\n",
    "zeros": b"0000000000000400\r\n" + b"z" * 1024 + b"\r\n",
    "small chunks": b"00000008;sum=0123456789\r\n12345678\r\n",
}


@pytest.mark.parametrize("chunk", PADDED.values(), ids=list(PADDED))
async def test_what_each_chunk_may_have_beside_its_content_has_no_sum(chunk: bytes) -> None:
    """RFC 9112 §7.1.1: extensions are ignored; what limits them is in keeping with what they come with."""
    count = 5000
    content = chunk.split(b"\r\n")[1] * count

    async def serve(wire: Wire, number: int) -> None:
        assert (await wire.request()).body == content
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * count + b"0\r\n\r\n")

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunk * count + b"0\r\n\r\n")
        got = await wire.answer()
        assert (got.status, got.body, got.complete) == (200, content, True)


# --- the clocks ---


async def closed_after(wire: Wire, began: float) -> float:
    """Seconds until the connection is closed, without a byte before."""
    assert await wire.rest() == (b"", "fin")
    return time.monotonic() - began


async def test_a_head_that_does_not_come_in_time_is_408() -> None:
    async with tunnel(ok_app, proxy={"header_timeout": 0.2}) as pair, await pair.open() as wire:
        began = time.monotonic()
        await wire.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        got = await wire.answer()
        assert got.status == 408
        assert not got.keeps_alive
        assert time.monotonic() - began >= 0.2
        assert await wire.rest() == (b"", "fin")


async def test_a_head_of_head_that_does_not_come_in_time_is_408_without_a_body() -> None:
    async with tunnel(ok_app, proxy={"header_timeout": 0.2}) as pair, await pair.open() as wire:
        await wire.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n")
        assert (await wire.answer("HEAD")).status == 408
        assert await wire.rest() == (b"", "fin")


async def test_a_head_that_trickles_is_408_all_the_same() -> None:
    async with tunnel(ok_app, proxy={"header_timeout": 0.2}) as pair, await pair.open() as wire:
        reading = asyncio.create_task(wire.answer())
        sent = 0
        while not reading.done():
            assert sent < 1000
            sent += wire.send_now(b"GET / HTTP/1.1\r\nX: "[sent : sent + 1] or b"a")
            await asyncio.sleep(0.01)
        assert (await reading).status == 408
        assert sent > 5


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with tunnel(ok_app, proxy={"header_timeout": 0.2}) as pair, await pair.open() as wire:
        assert 0.15 < await closed_after(wire, time.monotonic()) < 5


async def test_the_time_for_a_head_is_not_the_bodys() -> None:
    async with tunnel(ok_app, proxy={"header_timeout": 0.1}) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Content-Length: 2"]))
        await asyncio.sleep(0.3)
        await wire.send(b"hi")
        assert (await wire.answer()).status == 200


async def test_an_idle_connection_is_closed_after_the_keep_alive_time_without_a_word() -> None:
    async with tunnel(ok_app, proxy={"keepalive_timeout": 0.2, "header_timeout": 5}) as pair, await pair.open() as wire:
        for _ in range(2):
            assert (await wire.get()).keeps_alive
        assert 0.15 < await closed_after(wire, time.monotonic()) < 3


async def test_a_next_head_that_has_begun_has_the_heads_time_and_not_the_keep_alive_time() -> None:
    async with tunnel(ok_app, proxy={"keepalive_timeout": 5, "header_timeout": 0.2}) as pair, await pair.open() as wire:
        await wire.send(request(method="HEAD"))
        assert (await wire.answer("HEAD")).status == 200
        await wire.send(b"GET / HT")
        got = await wire.answer()
        assert (got.status, got.complete) == (408, True)  # not without a body, as the answer to HEAD before it


async def test_a_next_head_has_its_time_from_its_turn_on() -> None:
    release = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        await release.wait()
        await answer(send)

    async with tunnel(app, proxy={"header_timeout": 0.1}) as pair, await pair.open() as wire:
        await wire.send(request() + b"GET / HT")
        await asyncio.sleep(0.3)
        assert not wire.buffer
        release.set()
        assert (await wire.answer()).status == 200
        assert (await wire.answer()).status == 408


# --- the lingering close ---


async def test_an_error_is_not_lost_to_a_reset_while_the_client_still_sends() -> None:
    async with tunnel(ok_app) as pair, await pair.open() as wire:
        size = 8 * 1024 * KiB
        await wire.send(request(method="POST", client_id="a b", lines=[f"Content-Length: {size}"]))
        sending = asyncio.create_task(wire.send(bytes(size)))
        assert (await wire.answer()).status == 400
        await sending
        assert await wire.rest() == (b"", "fin")


async def test_an_early_answer_is_not_lost_to_a_reset_while_the_client_still_sends() -> None:
    async with tunnel(ok_app) as pair, await pair.open() as wire:
        size = 8 * 1024 * KiB
        await wire.send(request(method="POST", lines=[f"Content-Length: {size}"]))
        sending = asyncio.create_task(wire.send(bytes(size)))
        got = await wire.answer()
        assert (got.status, got.body) == (200, b"ok")
        await sending
        assert await wire.rest() == (b"", "fin")


async def test_a_client_that_sends_on_for_ever_is_cut_off_after_16_mib() -> None:
    async with tunnel(ok_app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", client_id="a b", lines=["Transfer-Encoding: chunked"]))
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 200 * 1024 * KiB:
                await wire.send(bytes(256 * KiB))
                sent += 256 * KiB
        assert 15 * 1024 * KiB < sent < 40 * 1024 * KiB  # and what lay in the sockets' buffers


async def test_a_client_that_neither_sends_nor_closes_is_cut_off_after_5_s() -> None:
    async with tunnel(ok_app) as pair, await pair.open() as wire:
        began = time.monotonic()
        await wire.send(request(method="POST", client_id="a b", lines=["Content-Length: 5"]))
        assert (await wire.answer()).status == 400
        with pytest.raises(Ended):
            await wire.fill()
        files = len(os.listdir("/proc/self/fd"))  # the proxy's socket is one of them
        await until(lambda: len(os.listdir("/proc/self/fd")) < files, "the connection to be gone", seconds=10)
        assert 4.5 < time.monotonic() - began < 8


@http_only
async def early_app(scope, receive, send):
    await answer(send)


async def test_the_rest_of_an_answered_body_has_5_s_and_then_the_connection_ends() -> None:
    async with tunnel(early_app) as pair, await pair.open() as wire:
        began = time.monotonic()
        await wire.send(request(method="POST", lines=["Content-Length: 10"]) + b"hello")
        got = await wire.answer()
        assert (got.status, got.keeps_alive) == (200, True)
        assert await wire.rest() == (b"", "fin")
        assert 4.5 < time.monotonic() - began < 8


async def test_the_rest_of_an_answered_body_of_64_kib_is_read_off_at_any_pace_before_the_next_request() -> None:
    async with tunnel(early_app) as pair, await pair.open() as wire:
        size = 64 * KiB
        for _ in range(3):
            await wire.send(request(method="POST", lines=[f"Content-Length: {size}"]))
            got = await wire.answer()
            assert (got.status, got.keeps_alive) == (200, True)
            for at in range(0, size, 8 * KiB):
                await wire.send(bytes(8 * KiB) + (b"GET" if at == size - 8 * KiB else b""))
                await asyncio.sleep(0.01)
            await wire.send(request()[3:])
            assert (await wire.answer()).status == 200
        await wire.send(request(method="POST", lines=[f"Content-Length: {size + 1}"]))
        assert not (await wire.answer()).keeps_alive


async def test_beyond_the_connections_it_takes_a_client_is_told_503_at_once() -> None:
    async with tunnel(ok_app, proxy={"max_connections": 3}) as pair:
        # The agent's counts no more once its WebSocket has been taken over.
        wires = [await pair.open() for _ in range(3)]
        for wire in wires:
            assert (await wire.get()).status == 200
        async with await pair.open() as wire:
            got = await wire.answer()
            assert (got.status, got.get("retry-after")) == (503, b"1")
            assert (await wire.rest())[0] == b""
        assert (await wires[0].get(f"/{ID}")).status == 200
        for wire in wires:
            wire.close()
