"""What a program that embeds a proxy sees of its agents."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.rig import ID, LIMIT, Echo, echo_app, ok_app, tunnel, until


async def test_agents_are_looked_up_by_id_counted_and_gone_through() -> None:
    async with tunnel(ok_app, agents=2) as pair:
        await pair.agent(ok_app, client_id="other")
        agents = pair.proxy.agents
        assert len(agents) == 3 and sorted(agent.id for agent in agents) == ["other", ID, ID]
        assert {agent.id for agent in agents.by_id(ID)} == {ID} and len(agents.by_id(ID)) == 2
        assert agents.by_id(ID.encode()) == agents.by_id(ID)
        other = agents.get("other")
        assert other is not None and agents.by_id("other") == [other]
        assert agents.get("nobody") is None and agents.by_id("n\u00f6body") == []


async def test_an_agent_says_who_it_is_and_since_when() -> None:
    before = datetime.now(UTC)
    async with tunnel(ok_app) as pair:
        (agent,) = pair.proxy.agents
        assert agent.id == ID and agent.wire == "native" and len(agent.instance) == 16 and not agent.draining
        assert agent.address is not None and agent.address[0] == "127.0.0.1"
        assert before - timedelta(seconds=1) <= agent.since <= datetime.now(UTC) + timedelta(seconds=1)


async def test_an_agents_streams_and_bytes_are_counted() -> None:
    async with tunnel(echo_app) as pair:
        (agent,) = pair.proxy.agents
        sent, received = agent.bytes_sent, agent.bytes_received
        async with await pair.open() as wire:
            echo = await Echo.begin(wire)
            assert agent.stream_count == 1
            await echo.finish()
        await until(lambda: agent.stream_count == 0)
        assert agent.served == 1
        got = await pair.get("/", method="POST", body=b"x" * 100_000)
        assert len(got.body) == 100_000
        for grown in (agent.bytes_sent - sent, agent.bytes_received - received):
            assert 100_000 < grown < 110_000


async def test_an_agent_that_leaves_is_draining_until_its_last_stream_ends() -> None:
    async with tunnel(echo_app) as pair:
        (agent,) = pair.proxy.agents
        async with await pair.open() as wire:
            echo = await Echo.begin(wire)
            agent.retire("enough")
            assert agent.draining and agent in pair.proxy.agents and agent not in pair.proxy.agents.by_id(ID)
            await echo.finish()
        await until(lambda: agent not in pair.proxy.agents, seconds=LIMIT)
