"""Events (NOTIFY) of the seed wire, and of the native one beside it."""

from __future__ import annotations

from typing import Any

import pytest

import backstream
from backstream.errors import ConnectionFailed, ErrorCode, StreamError
from tests import rig
from tests.rig import ID, Tunnel, answer, tunnel, until
from tests.seed_peer import OriginalProxy, Request, original_agent
from tests.tunnel.seed import CODECS, RESPONSE, agent_of_ours, echo, session


@pytest.mark.parametrize("codec", CODECS)
async def test_an_event_that_carries_a_request_runs_our_service_without_an_answer(codec: str) -> None:
    ran: list[tuple[str, bytes | None]] = []
    events: list[backstream.Notify] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ran.append((scope["path"], await rig.read_body(receive)))
        await answer(send, b"nobody hears it")

    async with (
        OriginalProxy(codec=codec) as proxy,
        agent_of_ours(proxy, rig.http_only(app), on_notify=events.append) as agent,
    ):
        data = proxy.event(Request("POST", "/event", body=b"data"))
        await proxy.notify(data)
        await until(lambda: ran, "the service")
        assert ran == [("/event", b"data")] and [each.data for each in events] == [data]
        await proxy.notify(b"no request")
        await until(lambda: len(events) == 2, "the second event")
        assert (await proxy.ask(Request("GET", "/"))).body == b"nobody hears it"
        assert [message.type for message in proxy.received] == [RESPONSE]
        agent.notify(b"from the agent")
        await until(lambda: proxy.events == [b"from the agent"], "the event")


async def test_the_library_sends_and_receives_events_on_both_wires() -> None:
    at_proxy: list[tuple[Any, backstream.Notify]] = []
    at_agent: list[backstream.Notify] = []
    for wire in ("seed", "native"):
        at_proxy.clear()
        at_agent.clear()
        async with backstream.Proxy(
            rig.proxy_settings(), on_notify=lambda link, event: at_proxy.append((link, event))
        ) as proxy:
            pair = Tunnel(proxy)
            url = "ws://{}:{}/ws".format(*proxy.agent_address)
            settings = backstream.AgentSettings(proxy_url=url, client_id=ID, session=session(wire=wire))
            async with backstream.Agent(settings, app=rig.ok_app, on_notify=at_agent.append) as agent:
                await agent.wait_connected()
                agent.notify(b"up", "text/plain")
                await pair.connected()
                (link,) = proxy.agents.by_id(ID.encode())
                link.notify(b"down", "text/plain")
                await until(lambda: at_proxy and at_agent, "both events")
                kind = "text/plain" if wire == "native" else ""
                assert at_proxy == [(link, backstream.Notify(content_type=kind, data=b"up"))]
                assert at_agent == [backstream.Notify(content_type=kind, data=b"down")]
                head = backstream.RequestHead(method=b"GET", target=b"/")
                if wire == "native":
                    with pytest.raises(StreamError):
                        link.notify_request(head)
                else:
                    # What was no request did not get as far as the service.
                    assert agent.requests == 0
                    link.notify_request(head)
                    await until(lambda: agent.requests, "the service ran")


@pytest.mark.parametrize("wire", ["seed", "native"])
async def test_more_events_than_are_taken_at_once_are_refused_and_end_no_session(wire: str) -> None:
    arrived: list[bytes] = []
    speaking = session(wire=wire)
    async with tunnel(rig.ok_app, proxy={"session": speaking}, session=speaking) as pair:
        pair.proxy.agents.on_notify = lambda link, event: arrived.append(event.data)
        agent = pair.agents[0]
        (before,) = agent.sessions
        sent = 0
        with pytest.raises(StreamError) as raised:
            while True:
                agent.notify(bytes(50_000))
                sent += 1
        assert raised.value.code == ErrorCode.REFUSED and sent > 1
        await until(lambda: len(arrived) == sent, "every one that was not refused")
        assert agent.sessions == (before,)
        agent.notify(b"fine again")
        await until(lambda: arrived[-1] == b"fine again", "another")
        assert (await pair.get()).status == 200


async def test_an_event_is_refused_where_1024_messages_wait() -> None:
    async with tunnel(agents=0, check=False) as pair, original_agent(pair.proxy, echo):
        (link,) = pair.proxy.agents
        for _ in range(1024):
            link.notify(b"x")
        with pytest.raises(StreamError):
            link.notify(b"one too many")
        await until(lambda: link.session.queued == 0, "they leave")
        link.notify(b"fine again")
        with pytest.raises(StreamError):
            link.notify(bytes(10 * 2**20))


@pytest.mark.parametrize("wire", ["seed", "native"])
async def test_an_event_can_be_sent_as_soon_as_the_agent_is_connected(wire: str) -> None:
    arrived: list[bytes] = []
    async with backstream.Proxy(
        rig.proxy_settings(), on_notify=lambda link, event: arrived.append(event.data)
    ) as proxy:
        agent = rig.make_agent(proxy, rig.ok_app, session=session(wire=wire))
        with pytest.raises(ConnectionFailed):
            agent.notify(b"too early")
        async with agent:
            await agent.wait_connected()
            assert agent.connected
            agent.notify(b"at once")
            await until(lambda: arrived == [b"at once"], "the event")
        with pytest.raises(ConnectionFailed):
            agent.notify(b"too late")


@pytest.mark.parametrize("size", [100, 20_000])
async def test_who_is_told_of_an_event_may_drop_the_connection_at_once(size: int) -> None:
    told: list[int] = []

    def drop(link: Any, event: backstream.Notify) -> None:
        told.append(len(event.data))
        link.abort("unwanted")

    async with backstream.Proxy(rig.proxy_settings(), on_notify=drop) as proxy:
        async with original_agent(proxy, echo) as agent:
            await agent.notify(bytes(size))
            await until(lambda: not len(proxy.agents), "the agent gone")
        assert told == [size] and proxy.seed_bytes == 0


@pytest.mark.parametrize("size", [100, 20_000])
async def test_an_agent_that_drops_its_session_on_an_event_runs_nothing_of_it(size: int) -> None:
    ran: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ran.append(scope["path"])

    def drop(event: backstream.Notify) -> None:
        (link,) = agent.sessions
        link.abort("unwanted")

    async with OriginalProxy() as proxy, agent_of_ours(proxy, rig.http_only(app), on_notify=drop) as agent:
        (first,) = agent.sessions
        await proxy.notify(proxy.event(Request("POST", "/event", body=bytes(size))))
        await until(lambda: agent.sessions and first not in agent.sessions, "another session")
        assert not ran and first.session.accepted == 0
