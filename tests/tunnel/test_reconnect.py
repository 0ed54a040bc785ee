"""An agent that cannot connect, or lost its session, dials again: how soon depends on why."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random

import pytest

import backstream
import backstream.agent
from tests.rig import (
    LIMIT,
    Echo,
    Upstream,
    Wire,
    echo_app,
    free_port,
    make_agent,
    ok_app,
    proxy_settings,
    tunnel,
    until,
)
from tests.session.wire import goaway, greeting


class Pauses:
    """The agent's pauses: the test sees the bounds between which each is drawn, and none takes time."""

    def __init__(self) -> None:
        self.bounds: asyncio.Queue[tuple[float, float]] = asyncio.Queue()

    def uniform(self, low: float, high: float) -> float:
        self.bounds.put_nowait((low, high))
        return 0.0

    async def next(self, count: int) -> list[float]:
        """The upper bounds of the next pauses; the lower ones are all 0."""
        async with asyncio.timeout(LIMIT):
            bounds = [await self.bounds.get() for _ in range(count)]
        assert [low for low, _ in bounds] == [0] * count
        return [high for _, high in bounds]


@pytest.fixture
def pauses(monkeypatch) -> Pauses:
    made = Pauses()
    monkeypatch.setattr(backstream.agent.random, "uniform", made.uniform)
    return made


BACK_OFF = {"reconnect_min": 0.1, "reconnect_max": 0.8, "refused_max": 3.2}


async def test_the_back_off_doubles_from_the_shortest_to_the_longest_pause(pauses) -> None:
    async with make_agent(f"ws://127.0.0.1:{free_port()}/ws", ok_app, **BACK_OFF):
        assert await pauses.next(6) == [0.1, 0.2, 0.4, 0.8, 0.8, 0.8]


async def test_the_back_off_goes_on_to_a_longer_pause_while_the_proxy_refuses(pauses) -> None:
    async with (
        backstream.Proxy(proxy_settings(), authorize=lambda handshake: False) as proxy,
        make_agent(proxy, ok_app, **BACK_OFF),
    ):
        assert await pauses.next(7) == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 3.2]


async def test_a_pause_is_any_part_of_its_bound() -> None:
    agent = make_agent("ws://127.0.0.1:1/ws", ok_app, **BACK_OFF)
    random.seed(7)
    for failures, bound in ((1, 0.1), (3, 0.4), (1000, 0.8)):
        drawn = sorted(agent._back_off(failures, refused=False) for _ in range(1000))
        assert 0 <= drawn[0] < bound / 50 and bound * 49 / 50 < drawn[-1] <= bound
        assert bound * 0.45 < drawn[500] < bound * 0.55


async def test_a_session_that_served_a_request_ends_the_back_off(pauses) -> None:
    allowed = False
    async with (
        backstream.Proxy(proxy_settings(), authorize=lambda handshake: allowed) as proxy,
        make_agent(proxy, ok_app, **BACK_OFF) as agent,
    ):
        assert await pauses.next(3) == [0.1, 0.2, 0.4]
        allowed = True
        await agent.wait_connected()
        while not pauses.bounds.empty():
            pauses.bounds.get_nowait()
        for served in (False, True):
            await until(lambda: len(proxy.agents) == 1 and agent.connected)
            (link,) = proxy.agents
            if served:
                async with await Wire.connect(proxy.address) as wire:
                    assert (await wire.get()).status == 200
            link.abort("the test cuts it")
            (bound,) = await pauses.next(1)
            assert bound == 0.1 if served else bound > 0.1


async def test_after_a_goaway_the_replacement_comes_first_and_the_old_session_serves_on(pauses) -> None:
    async with tunnel(echo_app, **BACK_OFF) as pair, await pair.open() as wire:
        (agent,) = pair.agents
        (old,) = pair.proxy.agents
        echo = await Echo.begin(wire)
        old.session.go_away(0, "the test says so", 1500)
        await until(lambda: len(agent.sessions) == 2)
        # At once, but spread over the time that the proxy named.
        assert await pauses.next(1) == [1.5]
        await until(lambda: [link.generation for link in pair.proxy.agents.by_id(b"svc")] == [2])
        assert agent.connected
        await echo.goes_on()
        async with await pair.open() as other:
            await (await Echo.begin(other)).finish()
        assert len(agent.sessions) == 2
        await echo.finish()
        await until(lambda: len(agent.sessions) == 1 and len(pair.proxy.agents) == 1)
        assert agent.connected and pauses.bounds.empty()


async def test_one_goaway_after_another_makes_no_storm_of_handshakes(pauses) -> None:
    async with tunnel(ok_app, **BACK_OFF) as pair:
        for generation in range(1, 5):
            await until(lambda n=generation: [a.generation for a in pair.proxy.agents.by_id(b"svc")] == [n])
            (link,) = pair.proxy.agents.by_id(b"svc")
            link.session.go_away(0, "again")
        assert await pauses.next(4) == [0.0, 0.2, 0.4, 0.8]


async def test_a_proxy_that_closes_has_its_agent_back_at_once(pauses) -> None:
    port = free_port()
    async with make_agent(f"ws://127.0.0.1:{port}/ws", ok_app, **BACK_OFF) as agent:
        for _ in range(2):
            async with backstream.Proxy(proxy_settings(listen=f"127.0.0.1:{port}")) as proxy:
                async with asyncio.timeout(LIMIT):
                    await agent.wait_connected()
                async with await Wire.connect(proxy.address) as wire:
                    assert (await wire.get()).status == 200
                while not pauses.bounds.empty():
                    pauses.bounds.get_nowait()
            assert await pauses.next(1) == [0.0]


async def silent(wire, number):
    await wire.rest()


def says(answer: bytes):
    async def serve(wire, number):
        await wire.head()
        await wire.send(answer)

    return serve


SWITCHING = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {}\r\n"
)


NATIVE = "Sec-WebSocket-Protocol: backstream.v1\r\n"


def accepts(rest: bytes, lines: str = NATIVE, connection: str = "Connection: Upgrade\r\n"):
    """A good handshake's answer, `rest` directly behind it, and the end."""

    async def serve(wire, number):
        head = await wire.head()
        key = head.get("sec-websocket-key") + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        accept = base64.b64encode(hashlib.sha1(key).digest()).decode()
        switching = SWITCHING.format(accept).replace("Connection: Upgrade\r\n", connection)
        await wire.send(f"{switching}{lines}\r\n".encode() + rest)

    return serve


def message(payload: bytes) -> bytes:
    return bytes([0x82, len(payload)]) + payload


HELLO = message(greeting(max_streams=0))
CLOSE = b"\x88\x02\x03\xe8"


@pytest.mark.parametrize(
    ("serve", "words"),
    [
        (says(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\n\r\nlate"), "503 Service Unavailable (late)"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), "200 OK"),
        (says(b"HTTP/1.1 302 Found\r\nLocation: ws://192.0.2.1/\r\nContent-Length: 0\r\n\r\n"), "302 Found"),
        (says(b"220 mail.example ESMTP\r\n\r\n"), "no connection to"),
        (says(b"220 mail.example ESMTP\r\n"), "closed the connection during the handshake"),
        (says(b""), "closed the connection during the handshake"),
        (says(f"{SWITCHING}\r\n".encode()), "no connection to"),
        (accepts(b"", connection=""), "invalid connection header"),
        (accepts(b"", connection="Connection: close\r\n"), "invalid connection header"),
        (accepts(b"", connection="Connection: keep-alive, upgraded\r\n"), "invalid connection header"),
        (accepts(b"", lines=""), "does not take the subprotocol backstream.v1"),
        (accepts(b"", lines="Sec-WebSocket-Protocol: chat\r\n"), "wants the subprotocol 'chat'"),
        (accepts(b"", lines=NATIVE + "Sec-WebSocket-Protocol: chat\r\n"), "says Sec-WebSocket-Protocol twice"),
        (accepts(b"", lines=NATIVE + "Sec-WebSocket-Accept: a\r\n"), "says Sec-WebSocket-Accept twice"),
        (
            accepts(b"", lines=NATIVE + "Sec-WebSocket-Extensions: permessage-deflate\r\n"),
            "uses the extension 'permessage-deflate', which was not offered",
        ),
        (says(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 40000\r\n\r\n" + b"x" * 40000), "502 Bad Gateway"),
        (says(b"HTTP/1.1 101 Switching Protocols\r\nA: " + b"a" * 40000), "headers exceed max_size"),
        (says(f"{SWITCHING}\r\n".encode() + b"x" * 40000), "invalid sec-websocket-accept"),
        (accepts(b"x" * 40000, lines=NATIVE + NATIVE), "says Sec-WebSocket-Protocol twice"),
        (silent, "no connection to {} within 0.2 s"),
    ],
)
async def test_whatever_answers_instead_of_a_proxy_is_named_and_tried_again(serve, words, caplog) -> None:
    async with Upstream(serve) as other:
        url = other.url.replace("http", "ws") + "/ws"
        native = backstream.SessionSettings(wire="native")  # it falls back on none
        async with make_agent(url, ok_app, connect_timeout=0.2, session=native) as agent:
            await until(lambda: other.connections >= 2)
            assert not agent.connected and agent.sessions == ()
            record = next(r for r in caplog.records if "next try in" in r.getMessage())
            assert url in record.getMessage() and words.format(url) in record.getMessage(), record.getMessage()
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.mark.parametrize(
    "lines", ["", "Sec-WebSocket-Protocol: chat\r\n", NATIVE + NATIVE, NATIVE + "Sec-WebSocket-Extensions: x\r\n"]
)
async def test_what_lies_behind_an_answer_that_is_refused_is_not_heard(lines: str) -> None:
    connected: list[backstream.Agent] = []
    async with Upstream(accepts(HELLO, lines)) as other:
        settings = backstream.AgentSettings(
            proxy_url=other.url.replace("http", "ws") + "/ws",
            client_id="svc",
            session=backstream.SessionSettings(wire="native"),
            reconnect_min=0.01,
            refused_max=0.01,
        )
        async with backstream.Agent(settings, app=ok_app, on_connect=connected.append):
            await until(lambda: other.connections >= 3)
    assert not connected


@pytest.mark.parametrize("rest", [b"", CLOSE, HELLO, HELLO + CLOSE, HELLO + message(goaway()), message(b"rubbish")])
async def test_a_proxy_that_ends_with_its_first_words_is_dialled_again(rest: bytes) -> None:
    async with Upstream(accepts(rest)) as other:
        url = other.url.replace("http", "ws") + "/ws"
        async with make_agent(url, ok_app) as agent:
            await until(lambda: other.connections >= 3)
        assert agent.sessions == ()


@pytest.mark.parametrize(
    "connection",
    [
        "connection: UPGRADE\r\n",
        "Connection: keep-alive, upgrade\r\n",
        "Connection:Upgrade ,x\r\nVia: 1.1 a\r\n",
        "Connection: keep-alive\r\nVia: 1.1 a\r\nConnection: Upgrade\r\n",
    ],
)
@pytest.mark.parametrize("piece", [1, 1000])
async def test_connection_in_an_answer_may_be_a_list_that_has_upgrade_in_it(connection: str, piece: int) -> None:
    class Pieces:
        """Sends in pieces; each waits for no more than that the one before has left."""

        def __init__(self, wire) -> None:
            self.head = wire.head
            self._wire = wire

        async def send(self, data: bytes) -> None:
            for at in range(0, len(data), piece):
                await self._wire.send(data[at : at + piece])
                await asyncio.sleep(0)

    async def serve(wire, number):
        await accepts(HELLO, connection=connection)(Pieces(wire), number)
        await wire.rest()

    async with Upstream(serve) as other, make_agent(other.url.replace("http", "ws") + "/ws", ok_app) as agent:
        await until(lambda: agent.connected)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_a_goaway_among_the_first_words_calls_for_a_replacement() -> None:
    async def serve(wire, number):
        await accepts(HELLO + message(goaway()))(wire, number)
        await wire.rest()

    async with Upstream(serve) as other, make_agent(other.url.replace("http", "ws") + "/ws", ok_app) as agent:
        await until(lambda: len(agent.sessions) >= 3)


async def test_of_more_than_8_sessions_that_a_proxy_leaves_the_oldest_are_closed() -> None:
    closed: list[int] = []

    async def serve(wire, number):
        await accepts(HELLO + message(goaway()))(wire, number)
        await wire.rest()
        closed.append(number)

    async with (
        Upstream(serve) as other,
        make_agent(other.url.replace("http", "ws") + "/ws", ok_app, reconnect_min=0.001, reconnect_max=0.01) as agent,
    ):
        await until(lambda: len(closed) >= 2)
        assert closed[:2] == [1, 2] and 8 <= len(agent.sessions) <= 10
