"""Where segments end means nothing, and that a message ends too early means everything: tried at each byte."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.http.play import Tap
from tests.http.table import US, faults
from tests.rig import Ended, Message, Upstream, Wire, tunnel

AT_ONCE = 32

CHUNKED = (
    f"POST http://svc.example/split?a=b HTTP/1.1\r\n{US}Transfer-Encoding:  chunked \r\nX-A: b\r\nX-a:\tc\r\n\r\n"
    "4;x=y\r\nbody\r\n1\r\n!\r\n0\r\nX-T: u\r\n\r\n"
).encode()
SIZED = f"POST /split?a=b HTTP/1.1\r\n{US}Content-Length: 5\r\nX-A: b\r\nX-A: c\r\n\r\nbody!".encode()
UPGRADE = (
    f"POST /split?a=b HTTP/1.1\r\n{US}Connection: upgrade\r\nUpgrade: h2c\r\n"
    "X-A: b\r\nContent-Length: 5\r\nX-A: c\r\n\r\nbody!"
).encode()
BEHIND = f"GET /behind HTTP/1.1\r\n{US}\r\n".encode()

ANSWERS = {
    "sized": b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nX-T: u\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
}


async def turns() -> None:
    """The loop's turns in which the other end reads what was sent."""
    for _ in range(3):
        await asyncio.sleep(0)


async def at_each(data: bytes, one: Callable[[int], Awaitable[None]]) -> None:
    """Runs `one` for each place within `data`, some at once."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def limited(place: int) -> None:
        async with slots:
            await one(place)

    await asyncio.gather(*(limited(place) for place in range(1, len(data))))


def echo(requests: list[Message]) -> Callable[[Wire, int], Awaitable[None]]:
    async def serve(wire: Wire, number: int) -> None:
        while True:
            request = await wire.request()
            requests.append(request)
            if not request.complete:
                return
            body = request.target + b" " + request.body
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    return serve


@pytest.mark.parametrize("sent", [CHUNKED, SIZED, UPGRADE], ids=["chunked", "sized", "upgrade not taken"])
async def test_a_request_split_at_each_byte_is_the_same_request(sent: bytes) -> None:
    requests: list[Message] = []
    async with Upstream(echo(requests)) as upstream, tunnel(upstream=upstream.url) as pair:

        async def one(place: int) -> None:
            async with await pair.open() as wire:
                await wire.send(sent[:place])
                await turns()
                await wire.send(sent[place:] + BEHIND)
                assert (await wire.answer()).body == b"/split?a=b body!"
                assert (await wire.answer()).body == b"/behind "

        await at_each(sent, one)
    split = [request for request in requests if request.method == b"POST"]
    assert len(split) == len(sent) - 1
    fields = [field for field in split[0].fields if field[0] != b"x-request-id"]
    for request in split:
        assert request.body == b"body!"
        assert [field for field in request.fields if field[0] != b"x-request-id"] == fields
        assert request.all("x-a") == [b"b", b"c"]
        assert not faults(request, of_request=True)


@pytest.mark.parametrize("sent", [CHUNKED, SIZED, UPGRADE], ids=["chunked", "sized", "upgrade not taken"])
@pytest.mark.parametrize("how", ["fin", "reset"])
async def test_a_request_cut_at_each_byte_never_looks_whole_to_the_service(sent: bytes, how: str) -> None:
    requests: list[Message] = []
    async with Upstream(echo(requests)) as upstream, tunnel(upstream=upstream.url) as pair:

        async def one(place: int) -> None:
            async with await pair.open() as wire:
                await wire.send(sent[:place])
                await turns()
                if how == "reset":
                    wire.reset()
                    return
                wire.half_close()
                while True:
                    try:
                        assert (await wire.answer()).status >= 400
                    except Ended:
                        return

        await at_each(sent, one)
        await pair.settled()
        assert (await pair.get("/later")).body == b"/later "
    assert [request.target for request in requests if request.complete] == [b"/later"]


@pytest.mark.parametrize("kind", ANSWERS)
async def test_an_answer_split_at_each_byte_is_the_same_answer(kind: str) -> None:
    sent = ANSWERS[kind]

    async def serve(wire: Wire, number: int) -> None:
        while True:
            place = int((await wire.request()).target[1:])
            await wire.send(sent[:place])
            await turns()
            await wire.send(sent[place:])

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair:

        async def one(place: int) -> None:
            async with await pair.open() as wire:
                for _ in range(2):
                    answer = await wire.get(f"/{place}")
                    assert (answer.status, answer.body, answer.complete) == (200, b"hello", True)
                    assert [interim.status for interim in answer.interim] == ([103] if kind == "interim" else [])

        await at_each(sent, one)


@pytest.mark.parametrize("kind", ANSWERS)
@pytest.mark.parametrize("how", ["fin", "reset"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_an_answer_cut_at_each_byte_never_looks_whole_to_the_client(kind: str, how: str, version: str) -> None:
    sent = ANSWERS[kind]

    async def serve(wire: Wire, number: int) -> None:
        await wire.send(sent[: int((await wire.request()).target[1:])])
        if how == "reset":
            wire.reset()

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair:

        async def one(place: int) -> None:
            async with await Tap.connect(pair.address) as wire:
                await wire.send(f"GET /{place} HTTP/{version}\r\n{US}\r\n".encode())
                try:
                    answer = await wire.answer()
                except Ended:
                    assert not wire.raw  # a client takes this for no answer at all
                    return
                if answer.status == 502:
                    assert answer.complete
                else:
                    assert not answer.complete
                    assert b"hello".startswith(answer.body)

        await at_each(sent, one)


async def test_empty_lines_before_a_request_are_ignored_wherever_they_are_cut() -> None:
    requests: list[Message] = []
    async with Upstream(echo(requests)) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        for _ in range(2):
            for piece in (b"\r", b"\n\r", b"\n", b"\r", b"\n" + BEHIND):
                await wire.send(piece)
                await turns()
            assert (await wire.answer()).body == b"/behind "
    assert len(requests) == 2
