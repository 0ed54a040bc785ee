"""Signs of life: WebSocket pings, and PING frames for a peer that cannot see those."""

from __future__ import annotations

import time

import pytest

import backstream
from tests import frames
from tests.frames import BINARY, frame, read_frame
from tests.rig import ID, LIMIT, Ended, Wire, make_agent, ok_app, tunnel, until
from tests.session import wire as session
from tests.session.wire import ACK, PING, Sent, frames_of, greeting
from tests.tunnel.played_proxy import PlayedProxy, played_proxies

TIMES = backstream.SessionSettings(ping_interval=0.1, ping_timeout=0.5)
ABLE = {"capabilities": ("ping",)}


async def begin_session(wire: Wire, **members: object) -> None:
    await wire.send(frames.handshake("/ws", "Sec-WebSocket-Protocol: backstream.v1"))
    await wire.until(b"\r\n\r\n")
    await wire.send(frame(BINARY, greeting(**members)))


async def test_a_proxy_sends_ping_frames_to_an_agent_that_asks_for_them() -> None:
    async with tunnel(agents=0, proxy={"session": TIMES}) as pair, await pair.open() as wire:
        await begin_session(wire, **ABLE)
        began, pings, before = time.monotonic(), 0, 0
        while pings < 12:
            got = await read_frame(wire)
            before += got.opcode == frames.PING
            for sent in frames_of(got.payload) if got.opcode == BINARY else ():
                if sent.type == PING:
                    assert sent.flags == 0 and len(sent.payload) == 8
                    pings += 1
                    await wire.send(frame(BINARY, session.frame(PING, 0, sent.payload, ACK)))
        # The one that went before its HELLO was here; the first PING frames follow each other, the others the clock.
        assert before == 1 and time.monotonic() - began > 0.6
        (link,) = pair.proxy.agents
        assert 0 < link.session.round_trip < LIMIT
        # From here on it says nothing any more.
        with pytest.raises(Ended):
            while True:
                await read_frame(wire)
        await until(lambda: not len(pair.proxy.agents))


async def test_a_proxy_sends_none_to_an_agent_that_does_not_ask() -> None:
    async with tunnel(agents=0, proxy={"session": TIMES}) as pair, await pair.open() as wire:
        await begin_session(wire)
        pings = 0
        while pings < 8:
            got = await read_frame(wire)
            assert got.opcode != BINARY or all(sent.type != PING for sent in frames_of(got.payload))
            if got.opcode == frames.PING:
                pings += 1
                await wire.send(frame(frames.PONG, got.payload))
        assert len(pair.proxy.agents.by_id(ID)) == 1


async def next_ping(peer: PlayedProxy) -> Sent:
    return await peer.until(PING)


async def test_an_agent_sends_ping_frames_to_a_proxy_that_asks_for_them() -> None:
    async with played_proxies() as proxies, make_agent(proxies.url, ok_app, session=TIMES) as agent:
        peer = await proxies.next()
        await peer.greet(**ABLE)
        for _ in range(12):
            ping = await next_ping(peer)
            await peer.tell(session.frame(PING, 0, ping.payload, ACK))
        assert peer.opcodes.count(frames.PING) == 1
        (link,) = agent.sessions
        assert 0 < link.session.round_trip < LIMIT
        # Silence is death, and another session comes.
        await proxies.next()
        assert link.is_lost


async def test_answers_to_no_ping_that_waits_cost_as_frames_that_say_nothing() -> None:
    wrong = session.frame(PING, 0, b"unasked.", ACK)
    for flood in (frame(BINARY, wrong * 100), frame(frames.PONG, b"unasked.") * 100):
        async with tunnel(agents=0) as pair, await pair.open() as wire:
            await begin_session(wire)
            # The ping of the beginning stays unanswered: that makes no answer of these.
            for _ in range(60):
                await wire.send(flood)
            await wire.until(b"\x03\xf0too many frames that say nothing")
