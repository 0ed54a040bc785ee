"""The agent as a client of an upstream: its pool of connections, what it sends again, what it never does."""

from __future__ import annotations

import asyncio

import pytest

from tests.rig import (
    LIMIT,
    OK,
    Ended,
    Message,
    Upstream,
    Wire,
    always,
    chunked,
    full_listener,
    request,
    tunnel,
    until,
)


class Recorder:
    """An upstream's behaviour: notes every request, and answers as `act(wire, connection, request)` says."""

    def __init__(self, act=None) -> None:
        self.act = act
        self.came: list[tuple[int, Message]] = []

    async def __call__(self, wire: Wire, number: int) -> None:
        while True:
            got = await wire.request()
            self.came.append((number, got))
            if self.act is None:
                await wire.send(OK)
            elif await self.act(wire, number, got):
                return

    @property
    def connections(self) -> list[int]:
        """The number of the connection on which each request came."""
        return [number for number, _ in self.came]


# --- where it is ---


async def test_a_unix_socket_serves_as_well(tmp_path) -> None:
    recorder = Recorder()
    async with Upstream(recorder, tmp_path / "socket") as upstream, tunnel(upstream=upstream.url) as pair:
        assert upstream.url.startswith("unix:/")
        for _ in range(3):
            assert (await pair.get("/a?b")).body == b"ok"
        got = await pair.get(method="POST", body=b"b" * 300_000)
        assert got.body == b"ok"
    assert recorder.connections == [1, 1, 1, 1]
    assert recorder.came[0][1].target == b"/a?b" and recorder.came[3][1].body == b"b" * 300_000


async def test_an_upstream_that_is_not_there_yet_is_found_once_it_is(tmp_path) -> None:
    path = tmp_path / "socket"
    async with tunnel(upstream=f"unix:{path}") as pair:
        for _ in range(2):
            got = await pair.get()
            assert got.status == 502 and b"leg=service" in got.get("proxy-status")
        async with Upstream(Recorder(), path):
            assert (await pair.get()).status == 200


async def test_an_upstream_that_takes_no_connection_fails_after_the_connects_limit() -> None:
    with full_listener() as url:
        async with tunnel(upstream=url, connect_timeout=0.2) as pair:
            got = await pair.get()
            assert got.status == 504 and b"the upstream cannot be reached" in got.body
            assert b"error=connection_timeout; leg=service;" in got.get("proxy-status")


async def test_a_connection_whose_time_is_up_as_it_comes_about_takes_up_one_place_and_gives_it_back() -> None:
    most = 0
    loop = asyncio.get_running_loop()
    connect = loop.create_connection
    late = 2

    async def connect_late(make, *arguments, **options):
        """As the loop's, but for the first two, which are cancelled between `connection_made` and their return."""
        nonlocal late
        transport, protocol = await connect(make, *arguments, **options)
        if late:
            late -= 1
            try:
                await asyncio.Event().wait()
            finally:
                transport.close()  # as both loops do
        return transport, protocol

    async def serve(wire, number):
        nonlocal most
        while True:
            await wire.request()
            most = max(most, upstream.open)
            await wire.send(OK)

    async with (
        Upstream(serve) as upstream,
        tunnel(upstream=upstream.url, connect_timeout=0.1, upstream_connections=1) as pair,
    ):
        loop.create_connection = connect_late
        try:
            for _ in range(2):
                assert (await pair.get()).status == 504
                await until(lambda: upstream.open == 0)
                assert pair.agents[0]._service.connections == 0
            answers = await asyncio.gather(*(pair.get() for _ in range(8)))
        finally:
            del loop.create_connection
        assert [got.status for got in answers] == [200] * 8
        assert most == upstream.open == pair.agents[0]._service.connections == 1


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("http://255.255.255.255:9", "destination_ip_unroutable"),
        ("http://-a.invalid:9", "dns_error"),
        ("unix:/nowhere/service.sock", "connection_refused"),
    ],
)
async def test_why_an_upstream_cannot_be_reached_is_told(url: str, cause: str) -> None:
    async with tunnel(upstream=url) as pair:
        got = await pair.get()
        assert got.status == 502 and b"the upstream cannot be reached" in got.body
        assert f"error={cause}; leg=service;" in got.get("proxy-status").decode()
        # The place in the pool is free again.
        assert (await pair.get()).status == 502


async def test_the_host_is_the_clients_or_else_the_upstreams(tmp_path) -> None:
    recorder = Recorder()
    async with Upstream(recorder) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        await wire.get()
        await wire.send(b"GET / HTTP/1.0\r\nx-backstream-client-id: svc\r\nConnection: keep-alive\r\n\r\n")
        await wire.answer()
    assert recorder.came[0][1].get("host") == b"service.example"
    assert recorder.came[1][1].get("host") == upstream.url.removeprefix("http://").encode()


# --- the pool ---


async def test_a_connection_is_used_again_and_again() -> None:
    recorder = Recorder()
    async with Upstream(recorder) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        for i in range(5):
            assert (await wire.get(f"/{i}")).status == 200
            await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"x" * 1000))
            assert (await wire.answer()).status == 200
    assert recorder.connections == [1] * 10


async def test_the_connection_used_last_is_used_first() -> None:
    go_on = asyncio.Event()

    async def act(wire, number, got):
        if got.target == b"/wait":
            await go_on.wait()
        await wire.send(OK)

    recorder = Recorder(act)
    async with Upstream(recorder) as upstream, tunnel(upstream=upstream.url) as pair:
        waiting = [await pair.open() for _ in range(3)]
        for wire in waiting:
            await wire.send(request("/wait"))
        await until(lambda: len(recorder.came) == 3)
        go_on.set()
        for wire in waiting:
            await wire.answer()
            wire.close()
        for _ in range(4):
            assert (await pair.get()).status == 200
        assert len(set(recorder.connections[3:])) == 1 and upstream.open == 3


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok and more",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
    ],
)
async def test_a_connection_that_is_not_clean_is_not_used_again(answer: bytes) -> None:
    recorder = Recorder(lambda wire, number, got: wire.send(answer))
    async with Upstream(recorder) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        for _ in range(3):
            assert (await wire.get()).body == b"ok"
        await until(lambda: upstream.open == 0)
    assert recorder.connections == [1, 2, 3]


async def test_bytes_that_nobody_asked_for_end_a_pooled_connection_and_reach_nobody() -> None:
    spoken = asyncio.Event()

    async def serve(wire, number):
        await wire.request()
        await wire.send(OK)
        if number == 1:
            await spoken.wait()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad")
        with pytest.raises(Ended):
            await wire.fill()

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair:
        assert (await pair.get()).body == b"ok"
        spoken.set()
        await until(lambda: upstream.open == 0)
        assert (await pair.get()).body == b"ok"
        assert upstream.connections == 2


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    async with Upstream(always(OK)) as upstream, tunnel(upstream=upstream.url, upstream_idle_timeout=0.1) as pair:
        assert (await pair.get()).status == 200
        await until(lambda: upstream.open == 0, seconds=2)
        assert (await pair.get()).status == 200
        assert upstream.connections == 2


async def test_the_pool_has_a_cap_and_the_rest_waits_its_turn() -> None:
    gates: asyncio.Queue[None] = asyncio.Queue()

    async def act(wire, number, got):
        await gates.get()
        await wire.send(OK)

    recorder = Recorder(act)
    async with Upstream(recorder) as upstream, tunnel(upstream=upstream.url, upstream_connections=2) as pair:
        wires = [await pair.open() for _ in range(7)]
        for i, wire in enumerate(wires):
            # One after the other, so that their order is known.
            await wire.send(request(f"/{i}"))
            await until(lambda n=i: pair.agents[0].requests == n + 1)
        await until(lambda: len(recorder.came) == 2)
        # One of those that wait leaves: it is never sent, and holds nobody up.
        wires[3].close()
        await until(lambda: pair.counts()["accepted"] == 6)
        for done in range(6):
            assert upstream.open == 2 and upstream.connections == 2
            assert len(recorder.came) == min(2 + done, 6)
            gates.put_nowait(None)
            await until(lambda n=done: len(recorder.came) == min(3 + n, 6))
        for i, wire in enumerate(wires):
            if i != 3:
                assert (await wire.answer()).status == 200
                wire.close()
        assert [got.target for _, got in recorder.came] == [b"/0", b"/1", b"/2", b"/4", b"/5", b"/6"]


async def test_a_place_in_the_pool_comes_back_however_a_request_ends() -> None:
    async def act(wire, number, got):
        if got.target == b"/reset":
            wire.reset()
            return True
        if got.target == b"/rubbish":
            await wire.send(b"rubbish\r\n\r\n")
        elif got.target == b"/cut":
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ncut")
            return True
        elif got.target == b"/silent":
            pass
        else:
            await wire.send(OK)
        return False

    async with (
        Upstream(Recorder(act)) as upstream,
        tunnel(upstream=upstream.url, upstream_connections=1, proxy={"request_timeout": 0.1}) as pair,
    ):
        for path in ("/reset", "/rubbish", "/cut", "/silent", "/", "/reset"):
            async with await pair.open() as wire:
                got = await wire.get(path)
                assert (got.status, got.complete) == {
                    "/": (200, True),
                    "/cut": (200, False),
                    "/silent": (504, True),
                }.get(path, (502, True)), path
        async with await pair.open() as wire:
            await wire.send(request("/silent"))
            await until(lambda: pair.counts()["accepted"] == 1)
        assert (await pair.get()).status == 200
        assert upstream.open == 1


# --- what is sent again ---


def closes_on(target: bytes, how: str, *, from_request: int):
    """Ends a connection on its request number `from_request` for this target, without a byte of an answer."""
    served: dict[int, int] = {}

    async def act(wire, number, got):
        served[number] = served.get(number, 0) + 1
        if got.target == target and number == 1 and served[number] >= from_request:
            if how == "reset":
                wire.reset()
            else:
                wire.close()
            return True
        await wire.send(OK)

    return act


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    ("method", "body", "again"),
    [
        ("GET", None, True),
        ("OPTIONS", None, True),
        ("DELETE", None, True),
        ("PUT", b"", True),
        ("POST", None, False),
        ("PATCH", b"", False),
        ("GET", b"body", False),
        ("PUT", b"body", False),
        ("POST", b"body", False),
    ],
)
async def test_a_request_that_met_a_closing_connection_is_sent_again_only_if_that_is_safe(
    how: str, method: str, body, again: bool
) -> None:
    recorder = Recorder(closes_on(b"/x", how, from_request=2))
    async with Upstream(recorder) as upstream, tunnel(upstream=upstream.url) as pair:
        assert (await pair.get()).status == 200
        got = await pair.get("/x", method=method, body=body)
        assert got.status == (200 if again else 502)
        if not again:
            assert b"error=connection_terminated; leg=service" in got.get("proxy-status")
        # The next one finds a good connection.
        assert (await pair.get("/y")).status == 200
    arrived = [number for number, request_ in recorder.came if request_.target == b"/x"]
    assert arrived == ([1, 2] if again else [1])


async def test_a_fresh_connection_that_closes_is_not_tried_again() -> None:
    recorder = Recorder(closes_on(b"/", "close", from_request=1))
    async with Upstream(recorder) as upstream, tunnel(upstream=upstream.url) as pair:
        assert (await pair.get()).status == 502
    assert recorder.connections == [1]


async def test_a_request_is_sent_again_once_only_and_on_a_fresh_connection() -> None:
    closing = False
    go_on = asyncio.Event()

    async def act(wire, number, got):
        if closing:
            wire.close()
            return True
        await go_on.wait()
        await wire.send(OK)

    recorder = Recorder(act)
    async with Upstream(recorder) as upstream, tunnel(upstream=upstream.url) as pair:
        wires = [await pair.open() for _ in range(3)]
        for wire in wires:
            await wire.send(request())
        await until(lambda: len(recorder.came) == 3)
        go_on.set()
        for wire in wires:
            await wire.answer()
            wire.close()
        # Three connections are pooled, and the upstream closes whatever comes.
        closing = True
        assert (await pair.get("/x")).status == 502
    assert [number for number, got in recorder.came if got.target == b"/x"][1:] == [4]


async def test_an_answer_that_has_begun_is_never_sent_again() -> None:
    async def act(wire, number, got):
        if got.target == b"/x":
            await wire.send(b"HTTP/1.1 2")
            return True
        await wire.send(OK)

    recorder = Recorder(act)
    async with Upstream(recorder) as upstream, tunnel(upstream=upstream.url) as pair:
        assert (await pair.get()).status == 200
        assert (await pair.get("/x")).status == 502
    assert recorder.connections == [1, 1]


async def test_a_connection_that_the_upstream_closed_while_it_was_idle_is_not_used() -> None:
    async def act(wire, number, got):
        await wire.send(OK)
        return True

    recorder = Recorder(act)
    async with Upstream(recorder) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        for _ in range(3):
            # Not idempotent, so that a retry would not help.
            await wire.send(request(method="POST", body=b"x"))
            assert (await wire.answer()).status == 200
            await until(lambda: upstream.open == 0)
            # The agent has read the end of the connection by the time it answers something else.
            assert (await pair.get(client_id="nobody")).status == 503
    assert recorder.connections == [1, 2, 3]


# --- answers before the request's end ---


async def test_an_answer_before_the_requests_end_stops_the_upload_and_ends_that_connection() -> None:
    async def serve(wire, number):
        head = await wire.head()
        if head.target == b"/early":
            await wire.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 6\r\n\r\nenough")
            try:
                while True:
                    wire.buffer.clear()
                    await wire.fill()
            except Ended:
                return
        await wire.send(OK)

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair, await pair.open() as wire:
        await wire.send(request("/early", method="POST", lines=["Content-Length: 100000000"]) + b"x" * 1000)
        got = await wire.answer()
        assert got.status == 413 and got.body == b"enough" and got.complete
        await until(lambda: upstream.open == 0)
        assert (await pair.get()).status == 200
        assert upstream.connections == 2


async def test_a_request_that_ends_behind_its_answer_leaves_the_client_served() -> None:
    """The upstream answers at the head and reads the body all the same: nothing of it may disturb the next answer."""

    async def serve(wire, number):
        while True:
            head = await wire.head()
            await wire.send(OK)
            await wire.body(head, to_close=False)

    async with Upstream(serve) as upstream, tunnel(upstream=upstream.url) as pair:
        for _ in range(5):
            async with await pair.open() as wire, asyncio.timeout(LIMIT):
                await wire.send(request(method="POST", lines=["Content-Length: 4"]))
                got = await wire.answer()
                assert got.status == 200 and got.body == b"ok"
        assert (await pair.get()).body == b"ok"
        assert upstream.connections >= 5
