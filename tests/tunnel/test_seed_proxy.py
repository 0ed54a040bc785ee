"""The seed wire: our proxy with agents that behave as the original's do."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from backstream._proto import seed_pb2
from tests.rig import ID, chunked, request, tunnel, until
from tests.seed_peer import Request, Response, original_agent
from tests.tunnel.seed import CODECS, HANDSHAKE, REQUEST, RESPONSE, agents, echo


@pytest.mark.parametrize("codec", CODECS)
async def test_requests_reach_an_agent_of_the_original_and_answers_come_back(codec: str) -> None:
    async with (
        tunnel(agents=0, proxy=agents(codec)) as pair,
        original_agent(pair.proxy, echo, codec=codec) as agent,
    ):
        assert [link.wire for link in pair.proxy.agents] == [codec]
        got = await pair.get("/echo/x%20y/%E2%82%AC?q=1&r=a%20b", method="PUT", body=b"\0\xffhello")
        assert (got.status, got.body) == (200, b"\0\xffhello")
        assert got.all("set-cookie") == [b"a=1", b"b=2"]
        assert got.get("x-path") == b"/echo/x%20y/%E2%82%AC"
        assert got.get("x-query") == b"q=1&r=a%20b"
        assert got.get("content-length") == b"7"
        (message,) = agent.received
        assert uuid.UUID(message.id).version == 4
        event = agent.codec.decode(seed_pb2.EventHTTPRequest, message.data)
        assert list(event.headers["X-Backstream-Client-Id"]) == [ID]
        assert list(event.headers["Content-Length"]) == ["7"]
        assert not {"Host", "Te", "Expect"} & set(event.headers)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 65_537, 300_000, 3_000_000])
async def test_bodies_of_all_sizes_pass_both_ways(codec: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256 + 1)
    async with tunnel(agents=0, proxy=agents(codec)) as pair, original_agent(pair.proxy, echo, codec=codec):
        got = await pair.get(method="POST", body=body[:size])
        assert got.status == 200 and got.body == body[:size]
        assert got.get("content-length") == b"%d" % size
        async with await pair.open() as wire:
            await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]))
            await wire.send(chunked(body[: size // 2], body[size // 2 : size]) if size > 1 else chunked())
            got = await wire.answer()
        assert got.body == (body[:size] if size > 1 else b"")
        await pair.settled()
        assert pair.proxy.seed_bytes == 0


async def test_what_cannot_be_carried_is_settled_and_not_lost() -> None:
    async with tunnel(agents=0) as pair, original_agent(pair.proxy, echo):
        got = await pair.get(lines=HANDSHAKE)
        assert got.status == 501 and b"carries no WebSockets" in got.body
    async with tunnel(agents=0, proxy={"upgrade": ("x-raw",)}) as pair, original_agent(pair.proxy, echo) as agent:
        got = await pair.get(lines=["Connection: upgrade", "Upgrade: x-raw"])
        assert got.status == 200
        async with await pair.open() as wire:
            await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked", "Expect: 100-continue"]))
            assert (await wire.head()).status == 100
            await wire.send(b"2\r\nhi\r\n0\r\nX-Trailer: dropped\r\n\r\n")
            got = await wire.answer()
        assert (got.status, got.body, got.trailers) == (200, b"hi", [])
        for message in agent.received:
            event = agent.codec.decode(seed_pb2.EventHTTPRequest, message.data)
            assert not {"Upgrade", "Connection", "Expect", "X-Trailer", "Trailer"} & set(event.headers)


async def test_a_service_that_fails_is_502_and_so_is_an_answer_that_is_no_http() -> None:
    async def service(asked: Request) -> Response:
        if asked.path == "/panic":
            return Response(1 // 0)
        return Response(int(asked.path[1:]), {"X": [asked.query.replace("nl", "\n")]})

    async with tunnel(agents=0) as pair, original_agent(pair.proxy, service):
        assert (await pair.get("/panic")).status == 502
        for target in ("/0", "/99", "/101", "/1000", "/200?nl"):
            assert (await pair.get(target)).status == 502, target
        assert (await pair.get("/299?fine")).get("x") == b"fine"


async def test_head_and_answers_without_a_body_keep_their_length() -> None:
    async def service(asked: Request) -> Response:
        status, _, length = asked.path[1:].partition("/")
        return Response(int(status), {"Content-Length": [length]} if length else {}, b"body")

    async with tunnel(agents=0) as pair, original_agent(pair.proxy, service):
        cases = [
            ("HEAD", "/200/1234", b"1234"),
            ("HEAD", "/404", b"4"),
            ("GET", "/304/99", b"99"),
            ("GET", "/304", None),
            ("GET", "/204/7", None),
            ("GET", "/200/9999", b"4"),
        ]
        for method, target, length in cases:
            got = await pair.get(target, method=method)
            assert got.status == int(target[1:4])
            assert got.get("content-length") == length, target
            assert got.body == (b"body" if target == "/200/9999" else b"")


async def test_late_and_unknown_answers_are_dropped_and_counted() -> None:
    release = asyncio.Event()

    async def service(asked: Request) -> Response:
        await release.wait()
        return Response()

    async with tunnel(agents=0) as pair, original_agent(pair.proxy, service) as agent:
        (link,) = pair.proxy.agents
        got = await pair.get(lines=["x-backstream-request-timeout: 50ms"])
        assert got.status == 504
        release.set()
        await until(lambda: link.session.late == 1, "the late answer")
        await agent.send(agent.wire, RESPONSE, b"", "of nobody")
        await until(lambda: link.session.late == 2, "the unknown one")
        assert (await pair.get()).status == 200


async def test_garbage_ends_its_message_only_and_is_logged_once(caplog: Any) -> None:
    async with tunnel(agents=0) as pair, original_agent(pair.proxy, echo) as agent:
        (link,) = pair.proxy.agents
        for junk in (b"\xff\xff", b"\x0a\x05a", bytes(5000), b"\x10\x09"):
            await agent.send_raw(agent.wire, junk, False)
        await agent.wire.send("no JSON")
        await agent.send(agent.wire, REQUEST, b"", "1")
        await until(lambda: link.session.dropped == 6, "six dropped")
        assert (await pair.get()).status == 200
    said = [each.getMessage() for each in caplog.records if each.name == "backstream.seed"]
    assert len(said) == 2, said


async def test_an_agent_that_answers_in_the_other_encoding_is_followed() -> None:
    async with tunnel(agents=0) as pair, original_agent(pair.proxy, echo, codec="json") as agent:
        (link,) = pair.proxy.agents
        # What was sent in the wrong encoding is lost on it, as on the original.
        assert (await pair.get(lines=["x-backstream-request-timeout: 50ms"])).status == 504
        assert agent.garbage == 1
        await agent.notify(b"")
        await until(lambda: link.wire == "json", "the encoding")
        assert (await pair.get()).status == 200


async def test_a_lost_session_tries_again_what_may_be_and_fails_the_rest() -> None:
    begun = asyncio.Event()

    async def never(asked: Request) -> Response:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with tunnel(agents=0, proxy={"agent_wait": 0}) as pair:
        async with original_agent(pair.proxy, never):
            asking = asyncio.create_task(pair.get(method="POST", body=b"x"))
            await begun.wait()
        got = await asking
        assert got.status == 502 and b"closed" in got.body


async def test_bodies_in_many_fragments_and_messages_in_one_read_are_told_apart() -> None:
    async with tunnel(agents=0) as pair, original_agent(pair.proxy, echo) as agent:
        agent.fragment = 7
        assert (await pair.get(method="POST", body=b"z" * 5000)).body == b"z" * 5000
        agent.fragment = 10**9
        bodies = [b"%d" % at * 1000 for at in range(50)]
        answers = await asyncio.gather(*(pair.get(method="POST", body=body) for body in bodies))
        assert [got.body for got in answers] == bodies


async def test_a_client_that_leaves_frees_its_stream_and_its_answer_is_dropped() -> None:
    release, begun = asyncio.Event(), asyncio.Event()

    async def service(asked: Request) -> Response:
        begun.set()
        await release.wait()
        return Response(body=bytes(200_000))

    async with tunnel(agents=0) as pair, original_agent(pair.proxy, service):
        (link,) = pair.proxy.agents
        async with await pair.open() as wire:
            await wire.send(request())
            await begun.wait()
        await pair.settled()
        release.set()
        await until(lambda: link.session.late == 1, "the late answer")
        assert pair.proxy.seed_bytes == 0


async def test_a_drained_proxy_serves_its_seed_agents_to_the_last_answer() -> None:
    release, begun = asyncio.Event(), asyncio.Event()

    async def service(asked: Request) -> Response:
        begun.set()
        await release.wait()
        return Response(body=b"last")

    async with tunnel(agents=0) as pair, original_agent(pair.proxy, service):
        asking = asyncio.create_task(pair.get())
        await begun.wait()
        draining = asyncio.create_task(pair.proxy.drain())
        await until(lambda: pair.proxy.agents.draining, "the drain")
        release.set()
        assert (await asking).body == b"last"
        await draining
