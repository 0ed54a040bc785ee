"""Who becomes an agent, and which of several agents serves a request."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections import Counter

import pytest

import backstream
from backstream._agents import AgentLink
from backstream._http._server import ServerConnection
from tests import frames
from tests.frames import BINARY, frame
from tests.rig import (
    ID,
    LIMIT,
    QUICK,
    Echo,
    Message,
    Wire,
    answer,
    echo_app,
    http_only,
    make_agent,
    ok_app,
    proxy_settings,
    request,
    tunnel,
    until,
)
from tests.session.wire import EMPTY, goaway, greeting, response

KEY = base64.b64encode(b"0123456789abcdef").decode()


async def handshake(
    wire: Wire,
    target: str = "/ws",
    *,
    method: str = "GET",
    version: str = "1.1",
    client_id: str | None = ID,
    drop: str = "",
    **fields: str,
) -> Message:
    """The answer to an agent's handshake; `fields` replace those of a good one, `drop` leaves one out."""
    lines = {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec_websocket_version": "13",
        "sec_websocket_key": KEY,
        "sec_websocket_protocol": "backstream.v1",
    } | fields
    lines.pop(drop, None)
    text = [f"{name.replace('_', '-')}: {value}" for name, value in lines.items()]
    await wire.send(request(target, method=method, version=version, client_id=client_id, lines=text))
    head = await wire.head()
    if head.status != 101:
        await wire.body(head, to_close=True)
    return head


# --- the handshake ---


async def test_a_good_handshake_is_answered_as_rfc_6455_asks() -> None:
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        got = await handshake(wire)
        assert got.status == 101
        # RFC 6455 §4.2.2: the SHA-1 of the key and a fixed text.
        assert got.get("sec-websocket-accept") == b"BACScCJPNqyz+UBoqMH89VmURoA="
        assert got.get("sec-websocket-protocol") == b"backstream.v1"
        assert got.get("sec-websocket-extensions") is None


async def test_a_handshake_may_say_that_its_body_has_no_bytes() -> None:
    # RFC 9112 §6.3: that is the same as none.
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        assert (await handshake(wire, content_length="0")).status == 101
        await wire.send(frame(BINARY, greeting()))
        await until(lambda: len(pair.proxy.agents.by_id(ID)) == 1)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"client_id": None}, 400, "header x-backstream-client-id is required"),
        ({"client_id": ""}, 400, "x-backstream-client-id is not 1 to 128 visible ASCII characters"),
        ({"client_id": "x" * 129}, 400, "x-backstream-client-id is not 1 to 128 visible ASCII characters"),
        ({"X_Backstream_Client_ID": "twice"}, 400, "more than one header x-backstream-client-id"),
        ({"sec_websocket_version": "12"}, 426, "Sec-WebSocket-Version must be 13"),
        ({"drop": "sec_websocket_version"}, 426, "Sec-WebSocket-Version must be 13"),
        ({"sec_websocket_key": "c2hvcnQ="}, 400, "Sec-WebSocket-Key is not 16 bytes in base64"),
        ({"sec_websocket_key": "?" * 24}, 400, "Sec-WebSocket-Key is not 16 bytes in base64"),
        ({"drop": "sec_websocket_key"}, 400, "Sec-WebSocket-Key is not 16 bytes in base64"),
        ({"content_length": "1"}, 400, "without a body"),
        ({"transfer_encoding": "chunked"}, 400, "without a body"),
    ],
)
async def test_a_faulty_handshake_is_refused_in_one_line(change: dict[str, str], status: int, words: str) -> None:
    async with tunnel(ok_app) as pair, await pair.open() as wire:
        got = await handshake(wire, **change)
        assert got.status == status, got
        assert words in got.body.decode() and got.body.count(b"\n") == 1
        if status == 426:
            assert got.get("sec-websocket-version") == b"13" and got.get("upgrade") == b"websocket"
        # No agent came of it, and the others serve on.
        assert len(pair.proxy.agents) == 1
        assert (await pair.get()).status == 200


async def test_the_agents_path_without_an_upgrade_is_a_path_like_any_other() -> None:
    seen = []

    @http_only
    async def app(scope, receive, send):
        seen.append(scope["path"])
        await answer(send)

    async with tunnel(app) as pair:
        assert (await pair.get("/ws")).status == 200
        assert seen == ["/ws"]


async def test_the_agents_path_can_be_another_one() -> None:
    async with backstream.Proxy(proxy_settings(agent_path="/agents/here")) as proxy:
        async with await Wire.connect(proxy.address) as wire:
            assert (await handshake(wire, "/agents/here?token=1")).status == 101
        async with await Wire.connect(proxy.address) as wire:
            got = await handshake(wire, "/ws")
            assert got.status == 404 and got.body == b"agents connect at /agents/here\n"


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_an_agent_that_says_no_hello_is_closed_after_the_hellos_limit() -> None:
    async with tunnel(agents=0, proxy={"session": QUICK}) as pair, await pair.open() as wire:
        assert (await handshake(wire)).status == 101
        assert await wire.until(b"no HELLO within 0.6 s", seconds=QUICK.hello_timeout + 2)
        # It need not answer the close either.
        await until(lambda: len(pair.proxy.agents) == 0)


async def test_an_agent_that_breaks_the_websocket_protocol_is_gone_at_once() -> None:
    """The limits of a session that is merely silent are far away."""
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        assert (await handshake(wire)).status == 101
        await wire.send(b"\x82\x05hello")  # without a mask
        await until(lambda: len(pair.proxy.agents) == 0, seconds=2)
        said, how = await wire.rest(seconds=2)
        assert b"\x03\xea" in said, said  # 1002
        assert how == "fin"


def count_of(kinds: tuple[type, ...]) -> list[int]:
    there = Counter(map(type, gc.get_objects()))
    return [there[kind] for kind in kinds]


async def test_what_comes_to_a_proxy_and_goes_is_freed_without_a_collection() -> None:
    """Among the objects of many agents one takes so long that everybody waits."""
    kinds = (AgentLink, ServerConnection)
    gc.collect()
    gc.disable()
    try:
        async with tunnel(ok_app) as pair:
            before = count_of(kinds)
            agent = await pair.agent(ok_app, client_id="other")
            async with await pair.open() as wire:
                assert (await wire.get(client_id="other")).status == 200
                assert count_of(kinds) == [count + 1 for count in before]
            await agent.close()
            await until(lambda: count_of(kinds) == before, "nothing left", seconds=5, pause=0.05)
    finally:
        gc.enable()


async def test_an_agents_path_may_have_a_long_query() -> None:
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        assert (await handshake(wire, "/ws?" + "a" * 16000)).status == 101
        assert b"backstream/" in await wire.until(b"backstream/")


async def test_agents_beyond_the_caps_get_503() -> None:
    async with tunnel(ok_app, proxy={"max_agents": 2, "max_agents_per_id": 1}) as pair:
        async with await pair.open() as wire:
            got = await handshake(wire)
            assert got.status == 503 and b"the id has its 1 agents" in got.body and got.get("retry-after")
        await pair.agent(ok_app, client_id="other")
        async with await pair.open() as wire:
            got = await handshake(wire, client_id="third")
            assert got.status == 503 and b"the proxy has its 2 agents" in got.body and got.get("retry-after")
        assert (await pair.get()).status == 200


async def test_agents_that_pass_the_cap_of_their_id_together_are_closed_with_1008() -> None:
    # Neither is counted before its HELLO.
    async with (
        backstream.Proxy(proxy_settings(max_agents_per_id=1)) as proxy,
        make_agent(proxy, ok_app) as one,
        make_agent(proxy, ok_app) as two,
    ):
        await until(lambda: one.connected or two.connected)
        await until(lambda: len(proxy.agents) == 1 and one.connected != two.connected)
        async with await Wire.connect(proxy.address) as wire:
            assert (await wire.get()).status == 200


# --- authorize ---


async def test_authorize_sees_the_handshake_and_true_accepts() -> None:
    seen: list[backstream.Handshake] = []

    def authorize(handshake: backstream.Handshake) -> bool:
        seen.append(handshake)
        return True

    async with tunnel(ok_app, authorize=authorize) as pair:
        assert (await pair.get()).status == 200
        assert len(seen) == 1 and seen[0].client_id == ID
        assert seen[0].address is not None and seen[0].address[0] == "127.0.0.1"
        assert seen[0].field("Sec-WebSocket-Protocol") == "backstream.v1"
        assert seen[0].field("x-absent") is None
        async with await pair.open() as wire:
            assert (await handshake(wire, client_id="two", Authorization="Bearer a", cookie="b=1")).status == 101
            assert wire.sock.getsockname() == seen[1].address
        assert seen[1].client_id == "two" and seen[1].field("AUTHORIZATION") == "Bearer a"
        assert (b"cookie", b"b=1") in seen[1].fields


async def test_authorize_finds_the_fields_that_an_agent_is_told_to_send() -> None:
    def authorize(handshake: backstream.Handshake) -> bool:
        return handshake.field("authorization") == "Bearer 6f1c" and handshake.field("x-two") == "a: b"

    async with tunnel(ok_app, authorize=authorize, header=("Authorization: Bearer 6f1c", "X-Two:a: b")) as pair:
        assert (await pair.get()).status == 200


@pytest.mark.parametrize("verdict", [False, None, 0, 1, "yes", object()])
async def test_whatever_authorize_returns_but_true_refuses(verdict: object) -> None:
    async with tunnel(agents=0, authorize=lambda handshake: verdict) as pair, await pair.open() as wire:
        got = await handshake(wire)
        assert got.status == 403 and b"the agent is not authorized for this id" in got.body
        assert len(pair.proxy.agents) == 0


async def test_authorize_is_not_asked_about_clients_and_faulty_handshakes() -> None:
    asked = []
    async with (
        tunnel(agents=0, authorize=lambda handshake: asked.append(handshake)) as pair,
        await pair.open() as wire,
    ):
        assert (await wire.get()).status == 503
        assert (await handshake(wire, sec_websocket_version="12")).status == 426
    assert asked == []


async def test_authorize_that_raises_refuses_with_500_and_is_logged(caplog) -> None:
    def authorize(handshake: backstream.Handshake) -> bool:
        raise LookupError("the directory is down")

    async with tunnel(agents=0, authorize=authorize) as pair, await pair.open() as wire:
        got = await handshake(wire)
        assert got.status == 500 and b"directory" not in got.body
        assert len(pair.proxy.agents) == 0
    record = next(record for record in caplog.records if record.levelname == "ERROR")
    assert ID in record.getMessage() and record.exc_info is not None and record.exc_info[0] is LookupError


async def test_an_agent_that_was_refused_comes_in_once_it_is_allowed(caplog) -> None:
    allowed = False
    async with (
        backstream.Proxy(proxy_settings(), authorize=lambda handshake: allowed) as proxy,
        make_agent(proxy, ok_app) as agent,
    ):
        await until(lambda: "refused the agent: 403 Forbidden" in caplog.text)
        assert not agent.connected
        allowed = True
        async with asyncio.timeout(LIMIT):
            await agent.wait_connected()


# --- ports apart ---


async def test_with_ports_apart_each_serves_its_own_side_only() -> None:
    async with backstream.Proxy(proxy_settings(agent_listen="127.0.0.1:0")) as proxy:
        assert proxy.address != proxy.agent_address
        async with make_agent(proxy, ok_app) as agent:
            await agent.wait_connected()
            async with await Wire.connect(proxy.address) as wire:
                assert (await wire.get()).status == 200
            async with await Wire.connect(proxy.address) as wire:
                got = await handshake(wire, client_id="intruder")
                assert got.status == 404 and got.body == b"agents have a port of their own\n"
            async with await Wire.connect(proxy.agent_address) as wire:
                got = await wire.get()
                assert got.status == 404 and b"this port is for agents, at /ws" in got.body
            assert len(proxy.agents) == 1


# --- several agents under one id ---


def named(name: str, seen: Counter[str]):
    @http_only
    async def app(scope, receive, send):
        seen[name] += 1
        await echo_app(scope, receive, send)

    return app


async def test_requests_go_to_the_agent_with_the_fewest_streams() -> None:
    seen: Counter[str] = Counter()
    async with tunnel(agents=0) as pair:
        for name in "abc":
            await pair.agent(named(name, seen))
        wires = [await pair.open() for _ in range(9)]
        echoes = [await Echo.begin(wire) for wire in wires]
        assert seen == {"a": 3, "b": 3, "c": 3}
        # Of those whose streams have ended, each is the next that is asked.
        counts = {link: link.stream_count for link in pair.proxy.agents}
        assert set(counts.values()) == {3}
        loads = [agent.sessions[0].session.accepted for agent in pair.agents]
        assert loads == [3, 3, 3]
        # The streams went round in turn, so every third one is on the same agent: it is left with none.
        for echo in echoes[::3]:
            await echo.finish()
        await until(lambda: sorted(agent.sessions[0].session.accepted for agent in pair.agents) == [0, 3, 3])
        idle = next(i for i, agent in enumerate(pair.agents) if agent.sessions[0].session.accepted == 0)
        for i in range(1, 4):
            async with await pair.open() as wire:
                echo = await Echo.begin(wire)
                assert seen["abc"[idle]] == 3 + i
                await echo.finish()
            await until(lambda: sorted(link.stream_count for link in pair.proxy.agents) == [0, 3, 3])
        for i, echo in enumerate(echoes):
            if i % 3:
                await echo.finish()
        for wire in wires:
            wire.close()


async def test_ties_are_broken_in_turn() -> None:
    order: list[str] = []

    def app(name: str):
        @http_only
        async def one(scope, receive, send):
            order.append(name)
            await answer(send)

        return one

    async with tunnel(agents=0) as pair:
        for name in "abcd":
            await pair.agent(app(name))
        async with await pair.open() as wire:
            for _ in range(12):
                assert (await wire.get()).status == 200
        assert len(set(order[:4])) == 4 and order == order[:4] * 3


async def test_an_id_reaches_its_own_agents_only() -> None:
    seen: Counter[str] = Counter()
    async with tunnel(agents=0) as pair:
        for name in ("a", "b", "A"):
            await pair.agent(named(name, seen), client_id=name)
        async with await pair.open() as wire:
            for name, count in (("a", 3), ("b", 2), ("A", 1)):
                for _ in range(count):
                    await wire.send(request(client_id=name))
                    assert (await wire.answer()).status == 200
        assert seen == {"a": 3, "b": 2, "A": 1}


# --- sessions of one agent ---


class Twin(backstream.Agent):
    """Agents that are one and the same to the proxy, each with one session only."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._instance = b"the same to all."
        self.close_codes: list[int | None] = []

    def _back_off(self, failures, *, refused) -> float:
        return LIMIT

    def session_lost(self, link, why) -> None:
        self.close_codes.append(link.close_code)
        super().session_lost(link, why)


async def test_a_newer_session_of_an_agent_takes_over_and_the_older_one_finishes_its_streams() -> None:
    seen: Counter[str] = Counter()
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        old = make_agent(pair.proxy, named("old", seen), kind=Twin)
        new = make_agent(pair.proxy, named("new", seen), kind=Twin)
        new._generation = 7
        async with old:
            await pair.connected()
            echo = await Echo.begin(wire)
            async with new:
                await until(lambda: [link.generation for link in pair.proxy.agents.by_id(b"svc")] == [8])
                # The older one dials again, as it does on every GOAWAY, and is too late.
                await until(lambda: old.close_codes == [1008])
                for _ in range(4):
                    assert (await pair.get()).status == 200
                await echo.finish()
                # With its last stream the older session ends, and not before.
                await until(lambda: old.close_codes == [1008, 1001])
                assert seen == {"old": 1, "new": 4} and new.close_codes == []


async def test_a_session_that_is_no_newer_is_refused_with_1008_and_the_running_one_stays() -> None:
    seen: Counter[str] = Counter()
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        first = make_agent(pair.proxy, named("first", seen), kind=Twin)
        again = make_agent(pair.proxy, named("again", seen), kind=Twin)
        async with first:
            await pair.connected()
            echo = await Echo.begin(wire)
            async with again:
                await until(lambda: again.close_codes == [1008])
                await until(lambda: len(pair.proxy.agents) == 1)
                await echo.goes_on()
                assert (await pair.get()).status == 200
            assert seen == {"first": 2} and first.close_codes == []
            await echo.finish()


@pytest.mark.parametrize(("generation", "taken"), [(3, False), (9, False), (10, True)])
async def test_a_session_that_drains_is_live_as_to_which_one_is_newer(generation: int, taken: bool) -> None:
    async with tunnel(agents=0) as pair, await pair.open() as client, await pair.open() as draining:
        await begin_session(draining, 9)
        await until(lambda: len(pair.proxy.agents.by_id(ID)) == 1)
        await client.send(request())
        await draining.until(b"GET")  # the head of a REQUEST
        await draining.send(frame(BINARY, goaway(last_stream=1)))
        await until(lambda: not pair.proxy.agents.by_id(ID))
        async with await pair.open() as late:
            await begin_session(late, generation)
            if taken:
                await until(lambda: [link.generation for link in pair.proxy.agents.by_id(ID)] == [generation])
            else:
                await late.until(b"\x03\xf0a session of this agent that is no older is connected")
                assert not pair.proxy.agents.by_id(ID)
            # The one that drains serves its stream to the end.
            await draining.send(frame(BINARY, response(1, EMPTY, end=True)))
            assert (await client.answer()).status == 204
        await until(lambda: not len(pair.proxy.agents))
        # Nothing is remembered of sessions that are gone.
        async with await pair.open() as again:
            await begin_session(again, 1)
            await until(lambda: len(pair.proxy.agents.by_id(ID)) == 1)


async def begin_session(wire: Wire, generation: int) -> None:
    await wire.send(frames.handshake("/ws", "Sec-WebSocket-Protocol: backstream.v1"))
    await wire.until(b"\r\n\r\n")
    await wire.send(frame(BINARY, greeting(generation=generation)))


async def test_an_agent_that_is_refused_after_its_hello_does_not_hurry(caplog) -> None:
    async with tunnel(agents=0) as pair:
        first = make_agent(pair.proxy, ok_app, kind=Twin)
        again = make_agent(pair.proxy, ok_app, kind=Twin)
        waits = asyncio.Queue()
        again._back_off = lambda failures, refused: waits.put_nowait((failures, refused)) or 0.0
        first._generation = 9
        async with first:
            await pair.connected()
            async with again, asyncio.timeout(LIMIT):
                # It waits each time before it dials again, and longer each time.
                assert [await waits.get() for _ in range(5)] == [(i, True) for i in range(1, 6)]


async def test_an_agent_that_dials_another_path_is_told_where_agents_connect(caplog) -> None:
    """A request would wait for an agent of its own id, or come to its application."""
    asked = []

    @http_only
    async def app(scope, receive, send):
        asked.append(scope["path"])
        await answer(send)

    async with tunnel(app, proxy={"agent_path": "/agents/dial"}, agents=0) as pair:
        good = backstream.AgentSettings(proxy_url=f"ws://127.0.0.1:{pair.address[1]}/agents/dial", client_id=ID)
        async with backstream.Agent(good, app) as agent:
            await agent.wait_connected()
            lost = f"ws://127.0.0.1:{pair.address[1]}/"
            async with make_agent(lost, app):
                await until(lambda: "refused the agent: 404 Not Found (agents connect at /agents/dial)" in caplog.text)
            for fields in ("Sec-WebSocket-Protocol: chat", "X-Other: backstream.v1"):
                async with await pair.open() as wire:
                    upgrade = ["Connection: Upgrade", "Upgrade: websocket", fields]
                    await wire.send(request("/a", lines=upgrade))
                    await wire.answer()
            assert asked == []  # they came as WebSockets, which this application refuses
            assert (await pair.get("/b")).status == 200
        assert asked == ["/b"]
