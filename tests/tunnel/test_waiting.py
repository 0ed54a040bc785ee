"""Requests whose agent is away for the moment: they wait for it, as long as they may and in bounded number."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import backstream
from backstream import streams
from tests.rig import ID, echo_app, http_only, ok_app, request, tunnel, until


async def test_a_request_waits_for_an_agent_that_comes_back() -> None:
    async with tunnel(ok_app) as pair:
        await pair.agents[0].close()
        answer = asyncio.create_task(pair.get())
        await until(lambda: pair.proxy.agents.waiting == 1, "the request waits")
        await pair.agent(ok_app)
        assert (await answer).status == 200
        assert pair.proxy.agents.waiting == 0


async def test_in_the_first_seconds_of_a_proxy_a_request_waits_for_any_id() -> None:
    async with tunnel(ok_app) as pair:
        answer = asyncio.create_task(pair.get(client_id="later"))
        await until(lambda: pair.proxy.agents.waiting == 1, "the request waits")
        await pair.agent(ok_app, client_id="later")
        assert (await answer).status == 200


async def test_a_request_with_a_body_waits_without_losing_a_byte() -> None:
    async with tunnel(echo_app) as pair:
        await pair.agents[0].close()
        body = bytes(range(256)) * 4096
        async with await pair.open() as wire:
            sending = asyncio.create_task(wire.send(request("/echo", method="POST", body=body)))
            await until(lambda: pair.proxy.agents.waiting == 1, "the request waits")
            await pair.agent(echo_app)
            got = await wire.answer()
            await sending
        assert (got.status, got.body) == (200, body)


async def test_a_request_waits_no_longer_than_the_setting_says() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 0.2}) as pair:
        await pair.agents[0].close()
        begin = time.monotonic()
        got = await pair.get()
        assert got.status == 503 and got.get("retry-after") == b"1"
        assert 0.2 <= time.monotonic() - begin < 2
        assert pair.proxy.agents.waiting == 0


async def test_a_request_waits_no_longer_than_its_own_time_limit() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 10.0}) as pair:
        await pair.agents[0].close()
        begin = time.monotonic()
        got = await pair.get(lines=["x-backstream-request-timeout: 200ms"])
        assert got.status == 503
        assert time.monotonic() - begin < 2


async def test_0_switches_waiting_off() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 0.0}) as pair:
        await pair.agents[0].close()
        begin = time.monotonic()
        assert (await pair.get()).status == 503
        assert time.monotonic() - begin < 0.15


async def test_no_more_requests_wait_than_may() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 5.0, "max_waiting": 2}) as pair:
        await pair.agents[0].close()
        waiting = [asyncio.create_task(pair.get()) for _ in range(2)]
        await until(lambda: pair.proxy.agents.waiting == 2, "two requests wait")
        assert (await pair.get()).status == 503
        await pair.agent(ok_app)
        assert [got.status for got in await asyncio.gather(*waiting)] == [200, 200]


async def test_a_client_that_leaves_waits_no_more() -> None:
    async with tunnel(ok_app, proxy={"agent_wait": 5.0}) as pair:
        await pair.agents[0].close()
        async with await pair.open() as wire:
            await wire.send(request())
            await until(lambda: pair.proxy.agents.waiting == 1, "the request waits")
        await until(lambda: pair.proxy.agents.waiting == 0, "nobody waits")


async def test_the_time_that_was_waited_is_taken_off_the_heads_time_budget() -> None:
    budgets: list[int] = []

    def serve(stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler:
        budgets.append(head.time_budget_ms)
        streams.respond(stream, backstream.ResponseHead(status=204), True)
        return backstream.Handler()

    async with tunnel(ok_app, proxy={"request_timeout": 3.0}) as pair:
        await pair.agents[0].close()
        answer = asyncio.create_task(pair.get())
        await until(lambda: pair.proxy.agents.waiting == 1, "it waits")
        begin = time.monotonic()
        await until(lambda: time.monotonic() - begin > 0.1, "it has waited a while")
        settings = backstream.AgentSettings(proxy_url=f"{pair.url.replace('http', 'ws')}/ws", client_id=ID)
        async with backstream.Agent(settings, handler=serve):
            assert (await answer).status == 204
    assert budgets[0] <= 3000 - 100


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_an_idempotent_request_whose_session_was_lost_waits_for_the_agent(method: str) -> None:
    served = asyncio.Event()
    never = asyncio.Event()

    @http_only
    async def first(scope: Any, receive: Any, send: Any) -> None:
        served.set()
        await never.wait()

    async with tunnel(first) as pair:
        answer = asyncio.create_task(pair.get(method=method))
        await served.wait()
        for link in pair.agents[0].sessions:
            link.abort("lost")
        await pair.agents[0].close()
        await pair.agent(ok_app)
        assert (await answer).status == 200
