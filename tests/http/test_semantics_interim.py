"""Interim answers and expectations (RFC 9110 §10.1.1, §15.2), and answers that come before the request has ended."""

import asyncio
import socket
import struct
import time

import pytest

from tests import rig
from tests.rig import Ended, Wire

EXPECT = ["Expect: 100-continue", "Content-Length: 5"]
FINAL = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def test_an_expectation_travels_to_the_upstream_and_its_100_back() -> None:
    seen = []
    asked, ask = asyncio.Event(), asyncio.Event()

    async def serve(wire: Wire, number: int) -> None:
        seen.append(await wire.head())
        asked.set()
        await ask.wait()
        await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        seen.append(await wire.exactly(5))
        await wire.send(FINAL)
        await wire.fill()

    async with (
        rig.Upstream(serve) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(rig.request(method="POST", lines=EXPECT))
        await asyncio.wait_for(asked.wait(), rig.LIMIT)
        assert seen[0].all("expect") == [b"100-continue"]
        with pytest.raises(TimeoutError):
            await wire.fill(0.1)
        ask.set()
        assert (await wire.head()).status == 100
        await wire.send(b"hello")
        answer = await wire.answer()
        assert (answer.body, answer.keeps_alive) == (b"ok", True)
    assert seen[1] == b"hello"


async def test_a_client_that_does_not_wait_is_served_all_the_same() -> None:
    async with rig.tunnel(rig.echo_app) as tunnel, await tunnel.open() as wire:
        for _ in range(2):
            await wire.send(rig.request(method="POST", lines=EXPECT) + b"hello")
            answer = await wire.answer()
            assert (answer.body, answer.keeps_alive) == (b"hello", True)


@pytest.mark.parametrize("lines", [["Expect: 100-continue"], ["Expect: 100-continue", "Content-Length: 0"]])
async def test_there_is_nothing_to_wait_for_without_a_body(lines: list[str]) -> None:
    recorder = rig.Recorder()
    async with rig.Upstream(recorder) as upstream, rig.tunnel(upstream=upstream.url) as tunnel:
        answer = await tunnel.get(method="POST", lines=lines)
        assert (answer.status, answer.interim) == (200, [])
        # RFC 9110 §10.1.1: HTTP/1.0 has no such expectation.
        answer = await tunnel.get(method="POST", version="1.0", body=b"hello", lines=EXPECT[:1])
        assert (answer.status, answer.interim) == (200, [])
    assert [request.all("expect") for request in recorder.seen] == [[], []]


@pytest.mark.parametrize("value", ["200-ok", "100-continue, other", "100-continue=1"])
async def test_another_expectation_is_417_and_its_body_is_not_waited_for(value: str) -> None:
    async with rig.tunnel(rig.ok_app) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(method="POST", lines=[f"Expect: {value}", "Content-Length: 5"]))
        answer = await wire.answer()
        assert (answer.status, answer.keeps_alive) == (417, False)
        assert await wire.rest() == (b"", "fin")
        assert sum(link.served for link in tunnel.proxy.agents) == 0


async def test_an_application_that_does_not_want_the_body_spares_the_upload() -> None:
    @rig.http_only
    async def app(scope, receive, send):
        await rig.answer(send, b"no", 401)

    async with rig.tunnel(app) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(method="POST", lines=EXPECT))
        answer = await wire.answer()
        assert (answer.status, answer.body, answer.interim) == (401, b"no", [])
        assert not answer.keeps_alive
        assert await wire.rest() == (b"", "fin")


async def test_an_upstreams_final_answer_spares_the_upload_whatever_its_status() -> None:
    async def serve(wire: Wire, number: int) -> None:
        await wire.head()
        await wire.send(FINAL)
        with pytest.raises(Ended):
            await wire.fill()

    async with (
        rig.Upstream(serve) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(rig.request(method="POST", lines=EXPECT))
        answer = await wire.answer()
        assert (answer.body, answer.keeps_alive) == (b"ok", False)
        assert await wire.rest() == (b"", "fin")


# --- 1xx ---


def interim(count: int) -> bytes:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </%d>\r\nConnection: a\r\nA: b\r\n\r\n"
    return b"".join(hint % i for i in range(count))


async def test_interim_answers_pass_in_order() -> None:
    heads = interim(8) + b"HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 199 Own Reason\r\nX-A: b\r\n\r\n" + interim(6)
    async with (
        rig.Upstream(rig.always(heads + FINAL)) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        for _ in range(2):
            answer = await wire.get()
            assert answer.body == b"ok"
            links = [hint.get("link") for hint in answer.interim]
            assert links == [b"</%d>" % i for i in range(8)] + [None, None] + [b"</%d>" % i for i in range(6)]
            assert [hint.start for hint in answer.interim[8:10]] == [
                b"HTTP/1.1 102 Processing",
                b"HTTP/1.1 199 Own Reason",
            ]
            assert not any(hint.all("connection") or hint.all("a") for hint in answer.interim)


async def test_each_interim_answer_comes_before_the_next_is_made() -> None:
    step = asyncio.Semaphore(0)

    async def serve(wire: Wire, number: int) -> None:
        await wire.request()
        for i in range(3):
            await wire.send(b"HTTP/1.1 103 Early Hints\r\nX-N: %d\r\n\r\n" % i)
            await step.acquire()
        await wire.send(FINAL)
        await wire.fill()

    async with (
        rig.Upstream(serve) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(rig.request())
        for i in range(3):
            assert (await wire.head()).get("x-n") == b"%d" % i
            step.release()
        assert (await wire.answer()).body == b"ok"


@pytest.mark.parametrize("count", [17, 512])
async def test_of_many_interim_answers_the_first_16_pass_and_the_final_one(count: int) -> None:
    async with (
        rig.Upstream(rig.always(interim(count) + FINAL)) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        for _ in range(2):
            answer = await wire.get()
            assert (answer.status, answer.body) == (200, b"ok")
            assert [hint.get("link") for hint in answer.interim] == [b"</%d>" % i for i in range(16)]
        assert upstream.connections == 1


async def test_more_than_512_interim_answers_are_the_upstreams_error() -> None:
    async with (
        rig.Upstream(rig.always(interim(513) + FINAL)) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
    ):
        answer = await tunnel.get()
        assert (answer.status, len(answer.interim)) == (502, 16)


async def test_a_100_behind_many_interim_answers_reaches_the_client_that_waits_for_it() -> None:
    async def serve(wire: Wire, number: int) -> None:
        await wire.head()
        await wire.send(interim(40) + b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await wire.exactly(5) == b"hello"
        await wire.send(FINAL)
        await wire.fill()

    async with (
        rig.Upstream(serve) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(rig.request(method="POST", lines=EXPECT))
        assert [(await wire.head()).status for _ in range(16)] == [103] * 15 + [100]
        await wire.send(b"hello")
        assert (await wire.answer()).body == b"ok"


async def test_http_1_0_gets_no_interim_answer() -> None:
    async with (
        rig.Upstream(rig.always(interim(2) + FINAL)) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
    ):
        answer = await tunnel.get(version="1.0")
        assert (answer.body, answer.interim) == (b"ok", [])


# --- early answers ---


async def begin_upload(wire: Wire, size: int) -> rig.Message:
    """The answer to an upload of which only a little was sent."""
    await wire.send(rig.request(method="POST", lines=[f"Content-Length: {size}"]) + b"x" * 1000)
    return await wire.answer()


@rig.http_only
async def refusing_app(scope, receive, send):
    await rig.answer(send, b"enough", 413)


async def test_an_answer_to_an_upload_that_goes_on_comes_at_once_and_is_not_lost() -> None:
    async with rig.tunnel(refusing_app) as tunnel, await tunnel.open() as wire:
        answer = await begin_upload(wire, 100_000_000)
        assert (answer.status, answer.body, answer.keeps_alive) == (413, b"enough", False)
        # What still comes is dropped, and the connection is closed in good order.
        await wire.send(b"x" * 8_000_000)
        assert await wire.rest() == (b"", "fin")


async def test_the_answer_is_still_there_when_the_client_sends_all_before_it_reads() -> None:
    async with rig.tunnel(refusing_app) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(method="POST", lines=["Content-Length: 12000000"]) + b"x" * 12_000_000)
        assert (await wire.answer()).body == b"enough"
        assert await wire.rest() == (b"", "fin")


async def test_no_more_than_16_mib_of_the_rest_are_read() -> None:
    async with rig.tunnel(refusing_app) as tunnel, await tunnel.open() as wire:
        assert (await begin_upload(wire, 1_000_000_000)).status == 413
        sent = 0
        with pytest.raises((Ended, ConnectionError)):
            while sent < 100_000_000:
                await wire.send(b"x" * 1_000_000)
                sent += 1_000_000
        assert sent >= 16_000_000


async def test_the_rest_is_waited_for_no_longer_than_5_s() -> None:
    async with rig.tunnel(refusing_app) as tunnel, await tunnel.open() as wire:
        assert (await begin_upload(wire, 1_000_000)).status == 413
        started = time.monotonic()
        await rig.until(lambda: tunnel.proxy.connection_count == 0)
        assert 4 < time.monotonic() - started < 8


async def test_a_good_answer_may_begin_before_the_request_has_ended() -> None:
    async with rig.tunnel(rig.echo_app) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(method="POST", lines=["Content-Length: 10"]) + b"hello")
        head = await wire.head()
        assert (head.status, head.keeps_alive) == (200, True)
        assert await wire.chunk() == b"hello"
        await wire.send(b"world")
        assert await wire.chunk() == b"world"
        assert await wire.chunk() == b"" and await wire.line() == b""
        await wire.send(rig.request(method="POST", body=b"again"))
        assert (await wire.answer()).body == b"again"


@pytest.mark.parametrize("turns", range(12))
async def test_an_upstreams_early_answer_is_not_lost_when_it_resets_the_connection(turns: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(rig.LIMIT)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with rig.tunnel(upstream=url) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(method="POST", lines=["Content-Length: 100000"]) + b"x" * 1000)
        sock, _ = await asyncio.to_thread(listener.accept)
        with sock:
            assert await asyncio.to_thread(sock.recv, 100)
            await wire.send(b"x" * 1000)
            # Whichever turn it is, the answer stands before the reset.
            for _ in range(turns):
                await asyncio.sleep(0)
            sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 6\r\n\r\nenough")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        answer = await wire.answer()
        assert (answer.status, answer.body) == (413, b"enough")
    listener.close()
