"""The seed wire with peers that are slow or mean harm: outlasted or given up, and never in the way of others."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

import backstream
from backstream._proto import seed_pb2
from tests import frames, rig
from tests.rig import ID, answer, request, tunnel, until
from tests.seed_peer import Codec, OriginalProxy, original_agent
from tests.tunnel.played_proxy import played_proxies
from tests.tunnel.seed import HANDSHAKE, REQUEST, agent_of_ours, echo, session


async def test_a_peer_that_takes_nothing_is_given_up_after_the_time_to_write() -> None:
    settings = session(message_timeout=0.3, seed_max_message=10 * 2**20)
    async with (
        tunnel(agents=0, proxy={"session": settings}, check=False) as pair,
        await pair.open(receive_buffer=4096) as agent,
    ):
        await agent.send(request("/ws", lines=HANDSHAKE))
        await agent.until(b"\r\n\r\n")
        await pair.connected()
        got = await pair.get(method="POST", body=bytes(9_000_000))
        assert got.status == 502 and b"took nothing for 0.3 s" in got.body
        assert not len(pair.proxy.agents)
        assert pair.proxy.seed_bytes == 0


async def test_a_proxy_that_does_not_read_for_a_while_loses_no_answer() -> None:
    answers: list[int] = []
    dropped: list[int] = []
    most = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, bytes(20_000))

    async def handle(wire: ServerConnection) -> None:
        nonlocal most
        codec = Codec("proto")
        event = codec.encode(seed_pb2.EventHTTPRequest(method="GET", rawPath="/", rawQuery="q" * 200))
        for at in range(4000):
            message = seed_pb2.Message(id=str(at), type=REQUEST, data=event)
            await wire.send(codec.encode(message))
        # What the agent says meanwhile waits: nobody receives.
        await until(lambda: agent.sessions, "the session")
        (link,) = agent.sessions
        await until(lambda: link.session.queued > 1024, "more than it takes")
        for _ in range(4000):
            most = max(most, link.session.queued)
            message = codec.decode(seed_pb2.Message, await wire.recv())
            answers.append(codec.decode(seed_pb2.EventHTTPResponse, message.data).statusCode)
        dropped.append(link.session.dropped)

    async with serve(handle, "127.0.0.1", 0, compression=None, max_size=2**24) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        settings = backstream.AgentSettings(proxy_url=f"ws://127.0.0.1:{port}/ws", client_id=ID)
        async with backstream.Agent(settings, app=rig.http_only(app)) as agent:
            await until(lambda: len(answers) == 4000 and dropped, "every answer", seconds=30)
            assert set(answers) <= {200, 503} and answers.count(200) >= 1000
            # What came in the read that was under way is answered too; from there on requests wait in the socket.
            assert 1024 < most < 1900
            assert dropped == [0]


async def test_a_message_beyond_what_is_read_ends_the_session_without_a_defect_in_the_log(caplog: Any) -> None:
    async def outgrow(proxy: OriginalProxy, agent: backstream.Agent) -> None:
        (link,) = agent.sessions
        await proxy.send(proxy.agents[ID], REQUEST, bytes(500_000))
        # Passed over: the session goes on.
        await until(lambda: link.session.dropped == 1, "the message passed over")
        await proxy.send(proxy.agents[ID], REQUEST, bytes(2 * 2**20))
        await until(lambda: agent.sessions and link not in agent.sessions, "a new session")

    async with OriginalProxy() as proxy, agent_of_ours(proxy, session=session(seed_max_message=65536)) as agent:
        proxy.fragment = 10**9
        await outgrow(proxy, agent)
        gc.collect()
        await asyncio.sleep(0)
    assert not [each for each in caplog.records if each.name == "asyncio"]


async def test_a_message_that_comes_byte_by_byte_has_a_time_limit() -> None:
    settings = session(message_timeout=0.5)
    async with (
        tunnel(agents=0, proxy={"session": settings}) as pair,
        await rig.Wire.connect(pair.proxy.agent_address) as wire,
    ):
        await wire.send(request("/ws", lines=HANDSHAKE))
        await until(lambda: len(pair.proxy.agents) == 1, "the agent")
        await wire.send(b"\x02\x81" + bytes(4) + b"a")
        async with asyncio.timeout(10):
            while len(pair.proxy.agents):
                await wire.send(b"\x00\x81" + bytes(4) + b"a")
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("frame", [b"\x82\x81\0\0\0\0\xff", b"\x81\x81\0\0\0\0{"])
async def test_a_flood_of_messages_that_are_none_ends_its_session(frame: bytes) -> None:
    async with tunnel(agents=0) as pair, original_agent(pair.proxy, echo):
        async with await rig.Wire.connect(pair.proxy.agent_address) as wire:
            await wire.send(request("/ws", lines=HANDSHAKE))
            await until(lambda: len(pair.proxy.agents) == 2, "the other agent")
            await wire.send(frame * 1500)
            await until(lambda: any(link.session.dropped == 1500 for link in pair.proxy.agents), "a burst is taken")
            await wire.send(frame * 2000)
            await until(lambda: len(pair.proxy.agents) == 1, "its session ended")
        assert (await pair.get()).status == 200


NO_TEXT = [(b"\xff",), (b'{"id":"\xc3', b'("}'), (b'{"id":"\xed\xa0\x80"}',), (b'{"id":"', b"\xe2\x82", b'"}')]


def in_fragments(parts: tuple[bytes, ...], masked: bool) -> bytes:
    last = len(parts) - 1
    return b"".join(
        frames.frame(frames.CONTINUATION if at else frames.TEXT, part, fin=at == last, masked=masked)
        for at, part in enumerate(parts)
    )


@pytest.mark.parametrize("parts", NO_TEXT)
async def test_text_that_is_not_utf_8_ends_an_agents_session_with_1007(parts: tuple[bytes, ...]) -> None:
    async with tunnel(rig.ok_app) as pair, await rig.Wire.connect(pair.proxy.agent_address) as wire:
        await wire.send(request("/ws", lines=HANDSHAKE))
        await wire.until(b"\r\n\r\n")
        await wire.send(in_fragments(parts, True))
        while (got := await frames.read_frame(wire)).opcode != frames.CLOSE:
            pass
        assert got.code == 1007
        assert (await pair.get()).status == 200


@pytest.mark.parametrize("parts", NO_TEXT)
async def test_text_that_is_not_utf_8_ends_a_proxys_session_with_1007(parts: tuple[bytes, ...]) -> None:
    async with played_proxies() as proxies, rig.make_agent(proxies.url, rig.ok_app):
        peer = await proxies.next(subprotocol="")
        await peer.wire.send(in_fragments(parts, False))
        assert (await peer.next(frames.CLOSE)).code == 1007


async def test_text_that_is_utf_8_but_no_message_ends_nothing() -> None:
    async with played_proxies() as proxies, rig.make_agent(proxies.url, rig.ok_app):
        peer = await proxies.next(subprotocol="")
        await peer.say(frames.TEXT, "{\u20ac}".encode())
        await peer.say(frames.PING)
        await peer.next(frames.PONG)
        await peer.say(frames.TEXT, b'{"id":"x","type":"REQUEST","data":"eyJtZXRob2QiOiJHRVQiLCJyYXdQYXRoIjoiLyJ9"}')
        assert b'"RESPONSE"' in (await peer.next(frames.TEXT)).payload


async def test_a_peer_that_takes_its_answers_slowly_is_not_given_up_for_what_was_not_read_of_it() -> None:
    taken = 0
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, bytes(20_000))

    async def handle(wire: ServerConnection) -> None:
        nonlocal taken
        codec = Codec("proto")
        event = codec.encode(seed_pb2.EventHTTPRequest(method="GET", rawPath="/", rawQuery="q" * 200))
        for at in range(4000):
            await wire.send(codec.encode(seed_pb2.Message(id=str(at), type=REQUEST, data=event)))
        await until(lambda: agent.sessions, "the session")
        (link,) = agent.sessions
        await until(lambda: link.session.queued > 1024, "more than it takes")
        async with asyncio.timeout(30):
            for taken in range(1, 4001):
                await wire.recv()
                if taken < 150:
                    await asyncio.sleep(0.01)  # a slow line, for longer than the agent waits for a word
        ended.set()

    async with serve(handle, "127.0.0.1", 0, compression=None, max_size=2**24, max_queue=4) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        settings = backstream.AgentSettings(
            proxy_url=f"ws://127.0.0.1:{port}/ws",
            client_id=ID,
            session=session(ping_interval=0.2, ping_timeout=0.6),
        )
        async with backstream.Agent(settings, app=rig.http_only(app)) as agent:
            await agent.wait_connected()
            (link,) = agent.sessions
            await until(lambda: ended.is_set() or link.is_lost, "an end", seconds=40)
            assert taken == 4000


@pytest.mark.parametrize("step", [1, 7, 1000, 70_000])
async def test_frames_of_all_sizes_are_taken_however_they_are_cut_on_their_way(step: int) -> None:
    sizes = [1, 120, 126, 66_000]
    if step > 7:
        sizes += [60_000, *range(65_520, 65_540), 131_072, 131_073, 300_001, 0]
    events: list[bytes] = []
    async with backstream.Proxy(rig.proxy_settings(), on_notify=lambda _, event: events.append(event.data)) as proxy:
        async with await rig.Wire.connect(proxy.agent_address) as wire:
            await wire.send(request("/ws", lines=HANDSHAKE))
            await until(lambda: len(proxy.agents) == 1, "the agent")
            sent = [bytes(at % 251 for at in range(size)) for size in sizes]
            data = b"".join(masked(seed_pb2.Message(id="x", data=each).SerializeToString()) for each in sent)
            for at in range(0, len(data), step):
                await wire.send(data[at : at + step])
            await until(lambda: len(events) == len(sent), "every event", seconds=20)
        assert events == sent and proxy.seed_bytes == 0


def masked(data: bytes) -> bytes:
    mask = b"\x11\x22\x33\x44"
    size = len(data)
    if size < 126:
        head = bytes([0x80 | size])
    else:
        head = b"\xfe" + size.to_bytes(2, "big") if size < 65536 else b"\xff" + size.to_bytes(8, "big")
    long = (mask * (size // 4 + 1))[:size]
    body = (int.from_bytes(data, "big") ^ int.from_bytes(long, "big")).to_bytes(size, "big")
    return b"\x82" + head + mask + body
