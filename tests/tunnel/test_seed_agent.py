"""The seed wire: our agent with a proxy that behaves as the original's does."""

from __future__ import annotations

import asyncio
from typing import Any

from backstream import RequestHead, _seed_codec
from tests import rig
from tests.frames import BINARY, CLOSE, accepted, frame
from tests.rig import ID, answer, until
from tests.seed_peer import OriginalProxy, Request
from tests.tunnel.seed import REQUEST, agent_of_ours, session


async def test_our_agent_gives_its_service_what_the_original_would() -> None:
    scopes: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await answer(send, await rig.read_body(receive) or b"")

    async with OriginalProxy() as proxy, agent_of_ours(proxy, rig.http_only(app)):
        headers = {"X-Mixed": ["v"], "X-Multi": ["one", "two"], "Content-Length": ["99"], "Host": ["evil"], "Te": ["x"]}
        got = await proxy.ask(Request("PATCH", "/a%2Fb/x y/€", "q=%2f&r", headers, b"body"))
    assert (got.status, got.body, got.headers["Content-Length"]) == (200, b"body", ["4"])
    (scope,) = scopes
    assert (scope["method"], scope["path"], scope["query_string"]) == ("PATCH", "/a/b/x y/€", b"q=%2f&r")
    assert scope["raw_path"] == b"/a%2Fb/x%20y/%E2%82%AC"
    assert sorted(scope["headers"]) == [
        (b"content-length", b"4"),
        (b"host", b"localhost"),
        (b"x-mixed", b"v"),
        (b"x-multi", b"one"),
        (b"x-multi", b"two"),
    ]


async def test_an_application_that_fails_is_answered_and_the_session_goes_on(caplog: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/before":
            raise ValueError
        await rig.begin(send)
        await rig.more(send, b"part")
        if scope["path"] == "/within":
            raise ValueError
        await rig.end(send)

    async with OriginalProxy() as proxy, agent_of_ours(proxy, rig.http_only(app)):
        assert (await proxy.ask(Request("GET", "/before"))).status == 500
        # Nothing had gone out: what failed later can still be told.
        got = await proxy.ask(Request("GET", "/within"))
        assert got.status == 502 and b"the application failed" in got.body
        assert (await proxy.ask(Request("GET", "/fine"))).body == b"part"


async def test_an_answer_of_ours_that_does_not_fit_is_502() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        size = int(scope["path"][1:])
        announced = [(b"content-length", b"%d" % size)] if scope["query_string"] else []
        await rig.begin(send, announced)
        for at in range(0, size, 10_000):
            await rig.more(send, bytes(min(10_000, size - at)))
        await rig.end(send)

    limits = session(seed_max_message=65536)
    async with OriginalProxy() as proxy, agent_of_ours(proxy, rig.http_only(app), session=limits) as agent:
        assert len((await proxy.ask(Request("GET", "/60000"))).body) == 60_000
        for query in ("", "sized"):
            got = await proxy.ask(Request("GET", "/200000", query))
            assert got.status == 502, query
            assert b"65536 bytes" in got.body
        (link,) = agent.sessions
        assert link.session.dropped == 2
        assert len((await proxy.ask(Request("GET", "/60000"))).body) == 60_000


async def test_a_head_that_has_no_body_keeps_what_a_get_would_have_had() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, b"body", headers=[(b"content-length", b"4")])

    async with OriginalProxy() as proxy, agent_of_ours(proxy, rig.http_only(app)):
        got = await proxy.ask(Request("HEAD", "/"))
        assert (got.headers["Content-Length"], got.body) == (["4"], b"")


async def test_requests_that_cannot_be_read_are_answered_400_and_those_without_an_id_dropped() -> None:
    async with OriginalProxy() as proxy, agent_of_ours(proxy) as agent:
        for bad in (
            Request("CONNECT", "/"),
            Request("G T", "/"),
            Request("GET", "/", headers={"A b": ["c"]}),
            Request("GET", "/", headers={"A": ["c\r\nd: e"]}),
        ):
            assert (await proxy.ask(bad)).status == 400
        wire = await proxy.connected()
        await proxy.send_raw(wire, b"\xff\xff\xff", False)
        await proxy.send_raw(wire, b"{}", True)
        (link,) = agent.sessions
        await until(lambda: link.session.dropped == 6, "the junk")
        assert (await proxy.ask(Request("GET", "/"))).status == 200


async def test_an_id_that_repeats_is_refused_while_its_request_runs() -> None:
    release = asyncio.Event()
    runs = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        await release.wait()
        await answer(send, b"once")

    async with OriginalProxy() as proxy, agent_of_ours(proxy, rig.http_only(app)) as agent:
        (link,) = agent.sessions
        asking = asyncio.create_task(proxy.ask(Request("GET", "/", message_id="same")))
        await until(lambda: runs == 1, "the first")
        await proxy.send(proxy.agents[ID], REQUEST, proxy.event(Request("GET", "/")), "same")
        await until(lambda: link.session.dropped == 1, "the second dropped")
        release.set()
        assert (await asking).body == b"once"
        assert runs == 1


async def test_requests_beyond_the_most_and_those_of_a_leaving_agent_are_answered_503() -> None:
    release = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await release.wait()
        await answer(send)

    async with (
        OriginalProxy() as proxy,
        agent_of_ours(proxy, rig.http_only(app), session=session(max_streams=3)) as agent,
    ):
        (link,) = agent.sessions
        asking = [asyncio.create_task(proxy.ask(Request("GET", "/"))) for _ in range(3)]
        await until(lambda: link.session.accepted == 3, "three requests")
        got = await proxy.ask(Request("GET", "/"))
        assert got.status == 503 and b"all the requests that it takes" in got.body
        draining = asyncio.create_task(agent.drain())
        await until(lambda: link.session.leaving, "the agent leaves")
        got = await proxy.ask(Request("GET", "/"))
        assert got.status == 503 and b"leaving" in got.body
        release.set()
        assert [(await each).status for each in asking] == [200, 200, 200]
        await draining


async def test_a_request_that_takes_longer_than_it_may_is_given_up() -> None:
    ended: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        event = await receive()
        ended.append(event["type"])

    async with OriginalProxy() as proxy:
        async with agent_of_ours(proxy, rig.http_only(app), request_timeout=0.2):
            assert (await proxy.ask(Request("GET", "/"))).status == 504
        async with agent_of_ours(proxy, rig.http_only(app)):
            own = {"X-Backstream-Request-Timeout": ["200ms"]}
            assert (await proxy.ask(Request("GET", "/", headers=own))).status == 504
    assert ended == ["http.disconnect"] * 2


async def test_an_answer_that_is_ready_behind_the_close_frame_is_not_sent() -> None:
    seen: list[int] = []
    entered, closed, answered = (asyncio.Event() for _ in range(3))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        await closed.wait()
        await answer(send, b"too late")
        answered.set()

    async def frames(wire: rig.Wire) -> None:
        """The opcodes of the agent's frames."""
        while True:
            first, second = await wire.exactly(2)
            size = second & 0x7F
            if size == 126:
                size = int.from_bytes(await wire.exactly(2))
            await wire.exactly(4 + size)
            seen.append(first & 0x0F)
            if seen[-1] == CLOSE:
                closed.set()
                await answered.wait()
                await wire.send(frame(CLOSE, b"\x03\xe9", masked=False))

    async def serve(wire: rig.Wire, number: int) -> None:
        await wire.send(accepted(await wire.head()))
        head = RequestHead(method=b"GET", target=b"/")
        await wire.send(frame(BINARY, _seed_codec.pack_request(_seed_codec.make_id(), head), masked=False))
        await frames(wire)

    async with rig.Upstream(serve) as proxy:
        url = proxy.url.replace("http", "ws") + "/ws"
        agent = rig.make_agent(url, rig.http_only(app), session=session(wire="seed"))
        await agent.start()
        async with asyncio.timeout(rig.LIMIT):
            await entered.wait()
            await agent.close()
        assert answered.is_set()
        await until(lambda: not proxy.open, "the connection's end")
    assert seen[-1] == CLOSE and seen.count(CLOSE) == 1


async def test_our_agent_comes_back_when_its_proxy_has_gone() -> None:
    async with OriginalProxy() as proxy, agent_of_ours(proxy) as agent:
        (link,) = agent.sessions
        await proxy.agents[ID].close(1001)
        await until(lambda: agent.sessions and link not in agent.sessions and ID in proxy.agents, "a new session")
        assert (await proxy.ask(Request("POST", "/", body=b"again"))).body == b"again"
