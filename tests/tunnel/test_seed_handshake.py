"""Which wire a connection speaks: what the handshake settles, and agents of both wires on one port."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import backstream
from backstream import _seed_codec
from backstream._message_codec import pack_frame, pack_notify
from backstream._messages import Notify
from tests import rig
from tests.frames import BINARY, frame
from tests.rig import ID, answer, request, tunnel, until
from tests.seed_peer import OriginalProxy, Request, Response, original_agent
from tests.session.wire import NOTIFY, greeting
from tests.tunnel.seed import CODECS, HANDSHAKE, agent_of_ours, session


async def test_agents_of_both_wires_share_a_port_and_an_id() -> None:
    async def native(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"native")

    async def seed(asked: Request) -> Response:
        return Response(body=b"seed")

    async with tunnel(rig.http_only(native)) as pair, original_agent(pair.proxy, seed):
        assert sorted(link.wire for link in pair.proxy.agents) == ["native", "proto"]
        bodies = {(await pair.get()).body for _ in range(4)}
        assert bodies == {b"native", b"seed"}


async def test_a_proxy_on_native_refuses_handshakes_of_the_seed_wire() -> None:
    async with tunnel(agents=0, proxy={"session": session(wire="native")}) as pair:
        for offered in ([], ["Sec-WebSocket-Protocol: chat, backstream.v2"]):
            got = await pair.get("/ws", lines=[*HANDSHAKE, *offered])
            assert got.status == 501
            assert b"the subprotocol backstream.v1 is required" in got.body


@pytest.mark.parametrize("cut", [0, 1, 7])
@pytest.mark.parametrize("wire", ["native", "seed"])
async def test_what_lies_directly_behind_a_handshake_is_taken_and_harms_no_other_connection(
    wire: str, cut: int
) -> None:
    """cut: bytes of the frame that come with the handshake; 0 for all."""
    events: list[bytes] = []
    if wire == "native":
        lines = [*HANDSHAKE, "Sec-WebSocket-Protocol: backstream.v1"]
        first = frame(BINARY, greeting(max_streams=1) + pack_frame(NOTIFY, 0, pack_notify(Notify(data=b"first"))))
        second = frame(BINARY, pack_frame(NOTIFY, 0, pack_notify(Notify(data=b"second"))))
    else:
        lines = HANDSHAKE
        first = frame(BINARY, _seed_codec.pack(_seed_codec.make_id(), 0, b"first"))
        second = frame(BINARY, _seed_codec.pack(_seed_codec.make_id(), 0, b"second"))
    async with tunnel(agents=0, check=False) as pair, await pair.open() as agent:
        pair.proxy.agents.on_notify = lambda link, event: events.append(event.data)
        whole = request("/ws", lines=lines) + first
        at = len(whole) - len(first) + cut if cut else len(whole)
        await agent.send(whole[:at])
        assert (await agent.head()).status == 101
        for _ in range(2):
            assert (await pair.get(client_id="nobody")).status == 503
        await agent.send(whole[at:])
        await until(lambda: events == [b"first"], "the first event")
        await agent.send(second)
        await until(lambda: events == [b"first", b"second"], "the second event")
        assert (await pair.get(client_id="nobody")).status == 503


@pytest.mark.parametrize(
    ("wire", "offered", "spoken"),
    [
        ("auto", [], "proto"),
        ("auto", ["chat, backstream.v2"], "proto"),
        ("auto", ["chat", "x, backstream.v1"], "native"),
        ("seed", ["backstream.v1"], "proto"),
        ("native", ["backstream.v1"], "native"),
    ],
)
async def test_the_handshake_settles_the_wire(wire: str, offered: list[str], spoken: str) -> None:
    async with (
        tunnel(agents=0, proxy={"session": session(wire=wire)}, check=False) as pair,
        await pair.open() as agent,
    ):
        lines = [*HANDSHAKE, *(f"Sec-WebSocket-Protocol: {names}" for names in offered)]
        await agent.send(request("/ws", lines=lines))
        head = await agent.head()
        assert head.status == 101
        assert head.get("sec-websocket-protocol") == (b"backstream.v1" if spoken == "native" else None)
        await until(lambda: [link.wire for link in pair.proxy.agents] == [spoken], spoken)


@pytest.mark.parametrize("codec", CODECS)
async def test_our_agent_falls_back_to_the_seed_wire_and_follows_the_encoding(codec: str) -> None:
    async with OriginalProxy(codec=codec) as proxy, agent_of_ours(proxy) as agent:
        assert proxy.handshakes[0].headers["Sec-WebSocket-Protocol"] == "backstream.v1"
        got = await proxy.ask(Request("POST", "/x y", "q=1", {"X-A": ["1", "2"]}, b"hello"))
        assert (got.status, got.body) == (200, b"hello")
        (link,) = agent.sessions
        assert link.wire == codec
        big = bytes(range(256)) * 12_000
        assert (await proxy.ask(Request("POST", "/", body=big))).body == big


async def test_an_agent_on_seed_offers_nothing_and_one_on_native_does_not_fall_back() -> None:
    async with OriginalProxy() as proxy:
        async with agent_of_ours(proxy, session=session(wire="seed")):
            assert "Sec-WebSocket-Protocol" not in proxy.handshakes[0].headers
        made = backstream.AgentSettings(proxy_url=proxy.url, client_id=ID, session=session(wire="native"))
        async with backstream.Agent(made, app=rig.ok_app) as agent:
            await until(lambda: len(proxy.handshakes) > 1, "the second agent's handshake")
            await until(lambda: ID not in proxy.agents, "it leaves")
            assert not agent.connected


@pytest.mark.parametrize("codec", CODECS)
async def test_proxy_and_agent_of_ours_speak_it_to_each_other(codec: str) -> None:
    speaking = session(wire="seed", seed_codec=codec)
    async with tunnel(rig.echo_app, proxy={"session": speaking}, session=speaking) as pair:
        assert [link.wire for link in pair.proxy.agents] == [codec]
        for size in (0, 5, 100_000, 4_000_000):
            assert (await pair.get("/", method="POST", body=bytes(size))).body == bytes(size)
        answers = await asyncio.gather(*(pair.get("/", method="POST", body=b"%d" % at) for at in range(200)))
        assert [got.body for got in answers] == [b"%d" % at for at in range(200)]
        await pair.settled()
        assert pair.proxy.seed_bytes == 0


async def test_an_upstream_is_served_over_the_seed_wire() -> None:
    async def serve(wire: rig.Wire, number: int) -> None:
        while True:
            asked = await wire.request()
            body = asked.body or b"nothing"
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    async with rig.Upstream(serve) as upstream, tunnel(upstream=upstream.url, session=session(wire="seed")) as pair:
        assert (await pair.get()).body == b"nothing"
        assert (await pair.get(method="POST", body=bytes(1_000_000))).body == bytes(1_000_000)
