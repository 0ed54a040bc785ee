"""The commands beside peers of the original's behaviour."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig import ID, Processes, request
from tests.seed_peer import OriginalAgent, OriginalProxy, Request, Response


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.end()


async def echo(asked: Request) -> Response:
    return Response(200, {"X-Path": [asked.path]}, asked.body)


@pytest.mark.parametrize("codec", ["proto", "json"])
async def test_the_command_proxy_serves_agents_of_both_wires(processes: Processes, codec: str) -> None:
    await processes.proxy("--seed-codec-of", f"old={codec}")
    await processes.agent()
    async with OriginalAgent(f"ws://127.0.0.1:{processes.port}/ws", echo, codec=codec, client_id="old"):
        async with await processes.open() as wire:
            for body in (b"", b"hello", bytes(2_000_000)):
                await wire.send(request("/x%20y", method="POST", client_id="old", body=body))
                got = await wire.answer()
                assert (got.status, got.get("x-path"), got.body) == (200, b"/x%20y", body)
        assert (await processes.get(client_id=ID)).status == 200


@pytest.mark.parametrize("codec", ["proto", "json"])
@pytest.mark.parametrize("wire", ["auto", "seed"])
async def test_the_command_agent_serves_a_proxy_of_the_original(processes: Processes, codec: str, wire: str) -> None:
    async with OriginalProxy(codec=codec) as proxy:
        agent = processes.start(
            *("agent", "--proxy-url", proxy.url, "--client-id", ID, "--wire", wire),
            *("--app", "tests.rig:echo_app"),
        )
        await agent.said("connected to")
        await proxy.connected()
        for body in (b"", b"hello", bytes(2_000_000)):
            got = await proxy.ask(Request("POST", "/", body=body))
            assert (got.status, got.body) == (200, body)


def test_what_cannot_work_is_one_line(processes: Processes) -> None:
    for arguments, words in (
        (["proxy", "--wire", "other"], "auto, native, seed"),
        (["proxy", "--seed-codec", "xml"], "proto, json"),
        (["proxy", "--seed-codec-of", "4711"], "ID=proto or ID=json"),
        (["proxy", "--seed-budget", "16MiB"], "--seed-budget (16MiB) must be at least four times --seed-max-message"),
    ):
        process = processes.start(*arguments)
        assert process.process.wait(15) == 2
        assert words in process.output() and "Traceback" not in process.output()
