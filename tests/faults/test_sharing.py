"""Two agents under one id, one of which dies or falls silent: what is safe goes to the other, nothing arrives twice."""

from __future__ import annotations

import signal
import time
from collections import Counter

from tests.faults.load import Load
from tests.faults.test_kills import PING, SILENCE, SLACK, assert_lost
from tests.rig import Echo, request


async def test_when_one_of_two_agents_is_killed_under_load_nothing_unsafe_arrives_twice(commands, journal) -> None:
    await commands.proxy()
    victim = await commands.agent()
    other = await commands.agent()
    load = Load(commands)
    async with load.run():
        await load.goes_on()
        victim.kill()
        await load.goes_on()
    arrived = Counter((method, path) for word, method, path, _ in journal.entries() if word == "came")
    for sent, got in load.answered:
        if sent.method == "GET":
            # Sent once more where no head had come; cut where one had.
            assert got.status == 200, got
            assert arrived[sent.method, sent.path] in (1, 2)
        else:
            assert got.status == 200 or assert_lost(got) is None
            assert arrived[sent.method, sent.path] <= 1
        if got.status == 200 and got.complete:
            assert int(got.body) in (victim.process.pid, other.process.pid)
    assert len(load.answered) == len(load.sent)
    assert sum(not got.complete for _, got in load.answered) <= 8
    # Both had their part before.
    assert {entry[3] for entry in journal.entries()} == {victim.process.pid, other.process.pid}


async def test_under_kills_and_drains_in_turn_nothing_unsafe_arrives_twice_and_nothing_safe_is_lost(commands, journal):
    """Safe to send again: idempotent, and without a body. Each of those has an answer, whole or visibly cut."""
    await commands.proxy()
    agents = [await commands.agent() for _ in range(3)]
    body = b"b" * 1000
    safe = [("GET", None), ("PUT", None), ("DELETE", None)]
    load = Load(commands, kinds=[*safe, ("POST", None), ("POST", body), ("PATCH", body), ("PUT", body)], path="/slow")
    killed = 0
    async with load.run(12):
        for how in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
            await load.goes_on(200)
            gone = agents.pop(0)
            gone.signal(how)
            await load.goes_on(200)
            killed += how == signal.SIGKILL
            assert await gone.status() == (-signal.SIGKILL if how == signal.SIGKILL else 0)
            agents.append(await commands.agent())
        await load.goes_on(200)
    arrived = Counter((method, path) for word, method, path, _ in journal.entries() if word == "came")
    assert len(load.answered) == len(load.sent)
    unsafe = again = lost = cut = 0
    for sent, got in load.answered:
        times = arrived[sent.method, sent.path]
        cut += not got.complete
        if (sent.method, sent.body) in safe:
            assert got.status == 200 and times in (1, 2), (sent, times)
            again += times == 2
        else:
            unsafe += 1
            assert times <= 1, (sent, times)
            assert (got.status == 200 and times == 1) or assert_lost(got) is None
            lost += got.status != 200
    # A client has one request under way: so many at most met an agent that was killed, and none one that drained.
    assert 1 <= again + lost + cut <= killed * 12
    assert unsafe > 500


async def test_what_waited_for_the_dead_agent_goes_to_the_other_if_that_is_safe(commands, journal) -> None:
    await commands.proxy()
    agents = [await commands.agent() for _ in range(2)]
    requests = [("GET", f"/silent/get-{i}") for i in range(4)] + [("POST", f"/silent/post-{i}") for i in range(4)]
    async with await commands.open() as neighbour:
        echo = await Echo.begin(neighbour)
        survivor = journal.entries()[0][3]
        (victim,) = [agent for agent in agents if agent.process.pid != survivor]
        wires = []
        for method, path in requests:
            wires.append(await commands.open())
            await wires[-1].send(request(path, method=method))
            await journal.has("came", path)
        at_victim = [entry[2] for entry in journal.entries() if entry[3] == victim.process.pid]
        assert 4 <= len(at_victim) <= 5
        victim.kill()
        for (method, path), wire in zip(requests, wires, strict=True):
            if path in at_victim and method == "GET":
                await journal.has("came", path, 2, seconds=SLACK)
            elif path in at_victim:
                assert_lost(await wire.answer())
            wire.close()
        await echo.goes_on(seconds=SLACK)
        await echo.finish()
    for method, path in requests:
        assert journal.count("came", path) == (2 if method == "GET" and path in at_victim else 1)


async def test_what_was_sent_to_a_silent_agent_goes_to_the_other_once_it_is_given_up(commands, journal) -> None:
    await commands.proxy(*PING)
    victim = await commands.agent()
    other = await commands.agent()
    stopped_at = time.monotonic()
    victim.signal(signal.SIGSTOP)
    wires = []
    for i in range(4):
        wires.append(await commands.open())
        await wires[-1].send(request(f"/ok/{i}"))
    for wire in wires:
        got = await wire.answer()
        assert got.status == 200 and int(got.body) == other.process.pid
        wire.close()
    # Some were under way to the silent one: they waited for the limit, and no longer.
    assert time.monotonic() - stopped_at < SILENCE + SLACK
    victim.signal(signal.SIGCONT)
    # It comes back by itself.
    await victim.said("disconnected", seconds=SLACK)
    load = Load(commands)
    async with load.run():
        while not any(int(got.body) == victim.process.pid for _, got in load.answered):
            await load.goes_on(10)
    assert all(got.status == 200 for _, got in load.answered)
    assert all(journal.count("came", sent.path) == 1 for sent in load.sent)
