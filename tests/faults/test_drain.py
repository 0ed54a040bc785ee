"""SIGTERM under load: what runs may finish, what comes goes elsewhere or is told to come again, and nothing is lost."""

from __future__ import annotations

import signal
import time
from collections import Counter

import pytest

from tests.faults.load import Load
from tests.faults.test_kills import SLACK, assert_cut, read_begun
from tests.rig import Echo, Ended, request, until


def arrivals(journal) -> Counter[str]:
    return Counter(entry[2] for entry in journal.entries() if entry[0] == "came")


async def test_an_agent_that_drains_beside_another_loses_nothing(commands, journal) -> None:
    proxy = await commands.proxy()
    first = await commands.agent()
    second = await commands.agent()
    load = Load(commands)
    async with await commands.open() as one, await commands.open() as two:
        echoes = [await Echo.begin(one, "/echo/1"), await Echo.begin(two, "/echo/2")]
        pids = {first.process.pid, second.process.pid}
        assert {entry[3] for entry in journal.entries()} == pids
        async with load.run():
            await load.goes_on()
            first.signal(signal.SIGTERM)
            await proxy.said("is leaving", seconds=SLACK)
            before = len(journal.entries())
            await load.goes_on()
            # Streams of its own keep it, and it takes no new ones.
            for echo in echoes:
                await echo.goes_on()
            assert first.process.poll() is None
            later = journal.entries()[before:]
            assert {entry[3] for entry in later} == {second.process.pid}
            for echo in echoes:
                await echo.finish()
            assert await first.status(SLACK) == 0
            await load.goes_on()
    assert len(load.answered) == len(load.sent) == load.whole()
    assert set(arrivals(journal).values()) == {1}
    assert "Traceback" not in first.output()


async def test_while_the_only_agent_drains_clients_are_told_to_come_again(commands, journal) -> None:
    proxy = await commands.proxy()
    agent = await commands.agent()
    async with await commands.open() as wire:
        echo = await Echo.begin(wire)
        agent.signal(signal.SIGTERM)
        await proxy.said("is leaving", seconds=SLACK)
        for method in ("GET", "POST"):
            async with await commands.open() as other:
                await other.send(request("/ok/late", method=method))
                got = await other.answer()
                assert got.status == 503 and int(got.get("retry-after")) > 0
                assert b"error=destination_unavailable; leg=session" in got.get("proxy-status")
        await echo.finish()
    assert await agent.status(SLACK) == 0
    assert journal.count("came", "/ok/late") == 0
    assert (await commands.get()).status == 503
    await commands.agent()
    await commands.served()


async def test_a_proxy_that_drains_finishes_what_runs_and_its_agents_are_at_the_next_one_before(
    commands, journal
) -> None:
    old = await commands.proxy("--drain-idle-timeout", "200ms")
    agent = await commands.agent()
    load = Load(commands)
    async with await commands.open() as running, await commands.open() as idle, load.run():
        echo = await Echo.begin(running)
        assert (await idle.get("/ok/idle")).keeps_alive
        await load.goes_on()
        old.signal(signal.SIGTERM)
        # Connections that stay idle end, and nobody listens.
        assert await idle.rest(seconds=SLACK) == (b"", "fin")
        await old.said("draining", seconds=SLACK)
        new = await commands.proxy()
        await load.goes_on()
        await until(lambda: agent.output().count("connected to") == 2)
        # The agent serves the new proxy's clients and the old one's last.
        await echo.goes_on()
        assert old.process.poll() is None
        await echo.finish()
        assert await old.status(SLACK) == 0
        await load.goes_on()
    # A request that met the end of its idle connection has no answer, and arrived nowhere; the others are whole, or
    # came while the new proxy had no agent yet.
    seen = arrivals(journal)
    for sent in load.sent:
        if sent.answer is None:
            assert seen[sent.path] == 0
        else:
            assert sent.answer.complete and sent.answer.status in (200, 503), sent
            assert sent.answer.status == 200 or sent.answer.get("retry-after")
            assert seen[sent.path] == (1 if sent.answer.status == 200 else 0)
    assert len(load.sent) - len(load.answered) <= 8
    for command in (old, new, agent):
        assert "Traceback" not in command.output()


async def test_a_proxy_that_drains_tells_running_clients_that_it_closes(commands) -> None:
    proxy = await commands.proxy("--drain-idle-timeout", "200ms")
    await commands.agent()
    async with await commands.open() as wire, await commands.open() as begun:
        await begun.send(request("/upload/1", method="POST", lines=["Content-Length: 4"]) + b"ha")
        echo = await Echo.begin(wire)
        await echo.goes_on()
        proxy.signal(signal.SIGTERM)
        await proxy.said("draining", seconds=SLACK)
        await begun.send(b"lf")
        got = await begun.answer()
        assert got.status == 200 and got.complete and not got.keeps_alive
        assert await begun.rest(seconds=SLACK) == (b"", "fin")
        await echo.finish()
        assert await wire.rest(seconds=SLACK) == (b"", "fin")
    assert await proxy.status(SLACK) == 0


@pytest.mark.parametrize("which", ["proxy", "agent"])
async def test_what_runs_for_longer_than_the_drain_limit_is_cut_and_the_status_is_0(commands, journal, which) -> None:
    limit = ("--drain-timeout", "300ms")
    proxy = await commands.proxy(*(limit if which == "proxy" else ()))
    agent = await commands.agent(*(limit if which == "agent" else ()))
    command = proxy if which == "proxy" else agent
    async with await commands.open() as begun, await commands.open() as upload, await commands.open() as endless:
        await read_begun(begun)
        await upload.send(request("/upload/1", method="POST", lines=["Content-Length: 4"]) + b"ha")
        await endless.send(request("/endless"))
        await endless.exactly(1_000_000)
        began = time.monotonic()
        command.signal(signal.SIGTERM)
        assert await command.status(0.3 + SLACK) == 0
        assert time.monotonic() - began >= 0.3
        for wire in (begun, endless):
            await assert_cut(wire)
        try:
            got = await upload.answer()
        except Ended:
            assert which == "proxy"
        else:
            assert got.status == 502
    assert "cut after 0.3 s" in command.output() and "Traceback" not in command.output()
    if which == "proxy":
        await journal.has("gone", "/begun", seconds=SLACK)


@pytest.mark.parametrize("which", ["proxy", "agent"])
async def test_a_second_signal_ends_the_drain_at_once_under_load(commands, which) -> None:
    proxy = await commands.proxy()
    agent = await commands.agent()
    command = proxy if which == "proxy" else agent
    load = Load(commands)
    async with await commands.open() as wire, load.run():
        await read_begun(wire)
        await load.goes_on(20)
        command.signal(signal.SIGTERM)
        await command.said("draining", seconds=SLACK)
        assert command.process.poll() is None
        command.signal(signal.SIGTERM)
        assert await command.status(SLACK + 3) == 128 + signal.SIGTERM
        await assert_cut(wire)
    assert all(got.complete for _, got in load.answered if got.status == 200)
    assert "Traceback" not in command.output()
