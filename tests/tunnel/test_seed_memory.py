"""The seed wire, whose messages hold whole bodies: what they may take of memory, and that it is given back."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import Any

from backstream._proto import seed_pb2
from tests import rig
from tests.rig import Leaks, answer, chunked, request, tunnel, until
from tests.seed_peer import OriginalProxy, Request, Response, original_agent
from tests.tunnel.seed import HANDSHAKE, RESPONSE, agent_of_ours, echo, session


async def test_a_body_that_cannot_fit_is_413_as_soon_as_its_length_is_known() -> None:
    async with (
        tunnel(agents=0, proxy={"session": session(seed_max_message=65536)}) as pair,
        original_agent(pair.proxy, echo) as agent,
    ):
        async with await pair.open() as wire:
            # Not a byte of the body is sent.
            await wire.send(request(method="POST", lines=["Content-Length: 65536"]))
            got = await wire.answer()
            assert got.status == 413 and b"a message of at most 65536 bytes" in got.body
        async with await pair.open() as wire:
            await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
            await wire.send(chunked(bytes(65536), end=False))
            got = await wire.answer()
            assert got.status == 413 and b"does not fit" in got.body
        assert (await pair.get(method="POST", body=bytes(60_000))).status == 200
        assert len(agent.received) == 1


async def test_bodies_that_are_gathered_share_a_budget() -> None:
    settings = session(seed_max_message=2**20, seed_budget=2**22)
    async with tunnel(agents=0, proxy={"session": settings}) as pair, original_agent(pair.proxy, echo):
        wires = []
        for _ in range(3):
            wire = await pair.open()
            wires.append(wire)
            # A length alone books nothing.
            await wire.send(request(method="POST", lines=["Content-Length: 1000000"]) + bytes(10))
        (link,) = pair.proxy.agents
        await until(lambda: link.stream_count == 3, "three requests")
        assert pair.proxy.seed_bytes == 0
        for wire in wires:
            await wire.send(bytes(999_980))
        await until(lambda: pair.proxy.seed_bytes == 3_000_000, "three bodies booked")
        got = await pair.get(method="POST", lines=["Content-Length: 1000000"])
        assert got.status == 503 and b"memory" in got.body
        assert (await pair.get(method="POST", body=bytes(60_000))).status == 200
        for wire in wires:
            wire.close()
        await until(lambda: pair.proxy.seed_bytes == 0, "everything given back")
        assert (await pair.get(method="POST", body=bytes(1_000_000))).status == 200


async def test_an_answer_that_does_not_fit_ends_as_502_and_the_session_goes_on(caplog: Any) -> None:
    sizes = {"/fits": 60_000, "/long": 70_000, "/longer": 300_000}

    async def service(asked: Request) -> Response:
        return Response(body=bytes(sizes[asked.path]))

    async with (
        tunnel(agents=0, proxy={"session": session(seed_max_message=65536)}) as pair,
        original_agent(pair.proxy, service),
    ):
        for _ in range(3):
            for path in ("/long", "/longer"):
                got = await pair.get(path)
                assert got.status == 502 and b"more than 65536 bytes" in got.body
            assert len((await pair.get("/fits")).body) == 60_000
        (link,) = pair.proxy.agents
        assert link.session.dropped == 6
        await until(lambda: pair.proxy.seed_bytes == 0, "nothing held")
    assert [each.name for each in caplog.records].count("backstream.seed") == 1


async def test_an_answer_that_the_budget_has_no_room_for_ends_as_502() -> None:
    async def service(asked: Request) -> Response:
        return Response(body=bytes(7_900_000))

    settings = session(seed_max_message=2**23, seed_budget=2**25)
    async with tunnel(agents=0, proxy={"session": settings}) as pair, original_agent(pair.proxy, service):
        # Clients that do not read: what they were to get is held.
        wires = [await pair.open(receive_buffer=4096) for _ in range(8)]
        for wire in wires:
            await wire.send(request())
        await until(lambda: pair.proxy.seed_bytes > 20_000_000, "much held")
        await until(lambda: sum(link.session.dropped for link in pair.proxy.agents) > 0, "some dropped")
        assert pair.proxy.seed_bytes <= 2**25
        statuses = []
        for wire in wires:
            got = await wire.answer()
            statuses.append(got.status)
            assert got.status == 502 or len(got.body) == 7_900_000
            wire.close()
        assert set(statuses) == {200, 502}
        await until(lambda: pair.proxy.seed_bytes == 0, "everything given back")


async def test_a_large_request_does_not_wait_in_the_transport() -> None:
    async with tunnel(agents=0, check=False) as pair, await pair.open(receive_buffer=4096) as agent:
        await agent.send(request("/ws", lines=HANDSHAKE))
        await agent.until(b"\r\n\r\n")
        await pair.connected()
        (link,) = pair.proxy.agents
        async with await pair.open() as wire:
            await wire.send(request(method="POST", body=bytes(9_000_000)))
            await until(lambda: link.session.congested, "a full transport")
            assert link.session.queued == 1 and pair.proxy.seed_bytes >= 9_000_000
            # No further request is opened on it: it waits, then is told so.
            assert (await pair.get()).status == 503


async def test_memory_stays_bounded_with_a_thousand_requests_at_once() -> None:
    peak = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal peak
        body = await rig.read_body(receive) or b""
        peak = max(peak, agent._seed_budget.used_bytes)
        await answer(send, body)

    limits = session(seed_max_message=2**20, seed_budget=2**22)
    async with OriginalProxy() as proxy:
        proxy.fragment = 2**17
        async with agent_of_ours(proxy, rig.http_only(app), session=limits) as agent:
            body = bytes(100_000)
            answers = await asyncio.gather(*(proxy.ask(Request("POST", "/", body=body)) for _ in range(1000)))
            statuses = {got.status for got in answers}
            assert 200 in statuses and statuses <= {200, 502, 503}
            assert all(got.body == body for got in answers if got.status == 200)
            assert 0 < peak <= 2**22
            await until(lambda: agent._seed_budget.used_bytes == 0, "everything given back")


async def test_nothing_is_left_of_requests_that_ended_in_all_ways() -> None:
    release = asyncio.Event()

    async def service(asked: Request) -> Response:
        if asked.path == "/late":
            await release.wait()
        return await echo(asked)

    async with (
        tunnel(agents=0, proxy={"session": session(seed_max_message=2**20, seed_budget=2**22)}) as pair,
        original_agent(pair.proxy, service),
    ):
        await pair.get()
        await until(lambda: not pair.proxy.connection_count, "its connection closed")
        leaks = Leaks()
        for _ in range(3):
            await pair.get(method="POST", body=bytes(300_000))
            await pair.get("/panic")
            await pair.get("/late", lines=["x-backstream-request-timeout: 20ms"])
            assert (await pair.get(method="POST", body=bytes(2**21))).status == 413
            async with await pair.open() as wire:
                await wire.send(request("/late", method="POST", body=bytes(100_000)))
            async with await pair.open() as wire:
                await wire.send(request(method="POST", lines=["Content-Length: 500000"]) + bytes(70_000))
        release.set()
        await pair.settled()
        await leaks.none()
        assert pair.proxy.seed_bytes == 0


async def test_a_body_in_tiny_pieces_takes_no_more_memory_than_in_large_ones() -> None:
    async with tunnel(agents=0) as pair, original_agent(pair.proxy, echo), await pair.open() as wire:
        (link,) = pair.proxy.agents
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
        await until(lambda: link.stream_count, "the request")
        piece = b"2\r\nab\r\n"
        before = memory()
        for _ in range(10):
            await wire.send(piece * 20_000)
        await until(lambda: pair.proxy.seed_bytes >= 400_000, "the body held")
        assert memory() - before < 4 * 2**20
        await wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).body == b"ab" * 200_000


def memory() -> int:
    """Bytes that the allocator of Python has in use."""
    gc.collect()
    return sys.getallocatedblocks() * 48


async def hold_back(wire: rig.Wire, size: int, rest: int) -> None:
    """Sends a frame of `size` bytes but for its last `rest`: a RESPONSE that nobody waits for."""
    body = seed_pb2.Message(id="x", type=RESPONSE, data=bytes(size - 20)).SerializeToString()
    await wire.send(b"\x82\xff" + len(body).to_bytes(8, "big") + bytes(4) + body[: len(body) - rest])


async def test_a_frame_that_does_not_come_whole_is_booked_and_has_a_time_limit() -> None:
    settings = session(seed_max_message=2**20, seed_budget=2**22, message_timeout=0.5)
    async with tunnel(agents=0, proxy={"session": settings}) as pair, original_agent(pair.proxy, echo):
        async with await rig.Wire.connect(pair.proxy.agent_address) as wire:
            await wire.send(request("/ws", lines=HANDSHAKE))
            await until(lambda: len(pair.proxy.agents) == 2, "the other agent")
            await hold_back(wire, 700_000, 1)
            await until(lambda: pair.proxy.seed_bytes > 600_000, "it is booked")
            await until(lambda: len(pair.proxy.agents) == 1, "it is given up")
        await until(lambda: pair.proxy.seed_bytes == 0, "everything given back")
