"""Agents and requests without an id, where the proxy takes them."""

from __future__ import annotations

import pytest

import backstream
from tests.rig import ID, LIMIT, Wire, answer, http_only, make_agent, proxy_settings, request, tunnel, until


@http_only
async def app(scope, receive, send) -> None:
    headers = dict(scope["headers"])
    await answer(send, headers.get(b"x-backstream-client-id", b"none"))


async def get(pair, client_id: str | None = None, *lines: str):
    async with await Wire.connect(pair.address) as wire:
        await wire.send(request(client_id=client_id, lines=lines))
        return await wire.answer()


async def test_requests_without_an_id_reach_agents_without_one() -> None:
    async with tunnel(app, proxy={"client_id_optional": True, "agent_wait": 0}) as pair:
        got = await get(pair)
        assert got.status == 503 and b"(id" not in got.body
        await pair.agent(app, client_id=None)
        agent = pair.proxy.agents.get("")
        assert agent is not None and agent.id == ""
        assert [(await get(pair)).body for _ in range(2)] == [b"none"] * 2
        assert (await get(pair, "")).status == 200  # an empty one is none
        assert (await get(pair, ID)).body == ID.encode()
        assert agent.served == 3
        assert (await get(pair, "a b")).status == 400
        response = await agent.request("GET", "/")
        assert await response.aread() == b"none"


async def test_routes_and_the_default_come_before_the_agents_without_an_id() -> None:
    async with tunnel(app, proxy={"client_id_optional": True, "default_id": ID}) as pair:
        await pair.agent(app, client_id=None)
        assert (await get(pair)).body == ID.encode()


@pytest.mark.parametrize("client_id", [None, ""])
async def test_without_the_setting_an_id_is_required_of_both(client_id: str | None) -> None:
    async with tunnel(app) as pair:
        assert (await get(pair, client_id)).status == 400
    async with backstream.Proxy(proxy_settings()) as proxy:
        agent = make_agent(proxy, app, client_id=None)
        told: list[bool] = []

        def back_off(failures: int, *, refused: bool) -> float:
            told.append(refused)
            return LIMIT

        agent._back_off = back_off  # type: ignore[method-assign]
        await agent.start()
        await until(lambda: told == [True])
        assert len(proxy.agents) == 0
        await agent.close()
