"""Agents and proxies that die or fall silent without a word, as processes.

In each case: nobody waits longer than the limit that holds for it, no answer looks whole that is not, the streams of
another agent go on, and everything is served again by itself once the process is back.
"""

from __future__ import annotations

import hashlib
import signal
import time

from tests.rig import Echo, Message, Wire, chunked, request

PING = ("--ping-interval", "200ms", "--ping-timeout", "600ms")
SILENCE = 0.6
CONGESTION = 2.0
"""Seconds that a request waits for a session's transport to have room."""
SLACK = 2.0
"""Seconds that a loaded machine may add to a limit."""


def assert_lost(got: Message) -> None:
    """The answer to a request whose session was lost before the answer's head."""
    assert got.status == 502, got
    assert b"error=connection_terminated; leg=session" in got.get("proxy-status")


async def read_begun(wire: Wire) -> None:
    await wire.send(request("/begun"))
    assert (await wire.head()).status == 200
    assert await wire.chunk() == b"begun"


async def assert_cut(wire: Wire, *, seconds: float = SLACK) -> None:
    """A chunked response ends now, without its last chunk."""
    data, _ = await wire.rest(seconds=seconds)
    assert not data.endswith(b"0\r\n\r\n")


async def begin_upload(wire: Wire, target: str = "/upload") -> None:
    await wire.send(request(target, method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"half", end=False))


async def test_an_agent_that_is_killed_cuts_its_streams_and_nobody_elses(commands, journal) -> None:
    proxy = await commands.proxy()
    agent = await commands.agent()
    await commands.agent(client_id="other")
    async with (
        await commands.open() as neighbour,
        await commands.open() as begun,
        await commands.open() as endless,
        await commands.open() as upload,
        await commands.open() as silent,
    ):
        echo = await Echo.begin(neighbour, client_id="other")
        await read_begun(begun)
        await endless.send(request("/endless"))
        await endless.head()
        for _ in range(100):
            assert await endless.chunk()
        await begin_upload(upload)
        await silent.send(request("/silent", method="DELETE", body=b"x"))
        await journal.has("came", "/upload")
        await journal.has("came", "/silent")
        agent.kill()
        for wire in (begun, endless):
            await assert_cut(wire)
        for wire in (upload, silent):
            assert_lost(await wire.answer())
        got = await commands.get()
        assert got.status == 503 and got.get("retry-after")
        await echo.goes_on(seconds=SLACK)
        await commands.agent()
        await commands.served()
        await echo.finish()
    assert "Traceback" not in proxy.output()


async def test_an_idle_agent_that_is_killed_is_missed_at_once(commands) -> None:
    proxy = await commands.proxy()
    agent = await commands.agent()
    await commands.served()
    agent.kill()
    # The proxy's log says it without a request or a ping.
    await proxy.said("disconnected from", seconds=SLACK)
    got = await commands.get()
    assert got.status == 503 and got.get("retry-after")
    await commands.agent()
    await commands.served()


async def test_after_a_proxy_was_killed_its_agents_come_back_by_themselves(commands, journal) -> None:
    proxy = await commands.proxy()
    agent = await commands.agent()
    idle = await commands.agent(client_id="other")
    async with await commands.open() as begun, await commands.open() as upload:
        await read_begun(begun)
        await begin_upload(upload)
        await journal.has("came", "/upload")
        proxy.kill()
        await assert_cut(begun)
        data, _ = await upload.rest(seconds=SLACK)
        assert data == b""
    # The services learn that nobody is there any more.
    await journal.has("gone", "/begun", seconds=SLACK)
    await journal.has("gone", "/upload", seconds=SLACK)
    await commands.proxy()
    # The longest pause of the back-off, by default.
    for client_id in ("svc", "other"):
        await commands.served(client_id, seconds=3 + SLACK)
    for each in (agent, idle):
        assert each.process.poll() is None
        assert each.output().count("connected to") == 2
        assert "Traceback" not in each.output()


async def test_an_agent_that_is_silent_for_longer_than_the_ping_limit_is_given_up(commands, journal) -> None:
    proxy = await commands.proxy(*PING)
    agent = await commands.agent()
    await commands.agent(client_id="other")
    async with (
        await commands.open() as neighbour,
        await commands.open() as begun,
        await commands.open() as upload,
        await commands.open() as late,
    ):
        echo = await Echo.begin(neighbour, client_id="other")
        await read_begun(begun)
        await begin_upload(upload)
        await journal.has("came", "/upload")
        stopped_at = time.monotonic()
        agent.signal(signal.SIGSTOP)
        await late.send(request("/", method="POST"))
        await assert_cut(begun, seconds=SILENCE + SLACK)
        for wire in (upload, late):
            assert_lost(await wire.answer())
        # Not before its time: the last sign of life may have come one ping's interval before the stop.
        assert time.monotonic() - stopped_at > SILENCE - 0.2 - 0.05
        assert (await commands.get()).status == 503
        await echo.goes_on(seconds=SLACK)
        agent.signal(signal.SIGCONT)
        await commands.served(seconds=3 + SLACK)
        await echo.finish()
    assert "nothing was heard for 0.6 s" in proxy.output()
    assert "Traceback" not in agent.output()


async def test_a_proxy_that_is_silent_for_longer_than_the_ping_limit_is_given_up(commands, journal) -> None:
    proxy = await commands.proxy()
    agent = await commands.agent(*PING)
    async with await commands.open() as begun:
        await read_begun(begun)
        proxy.signal(signal.SIGSTOP)
        await agent.said("nothing was heard for 0.6 s", seconds=SILENCE + SLACK)
        await journal.has("gone", "/begun", seconds=SLACK)
        proxy.signal(signal.SIGCONT)
        await assert_cut(begun)
    await commands.served(seconds=5 + SLACK)


async def test_an_agent_that_reads_nothing_is_no_reason_to_wait_for_long_and_loses_nothing(commands, journal) -> None:
    await commands.proxy()
    agent = await commands.agent()
    await commands.agent(client_id="other")
    await commands.served()
    agent.signal(signal.SIGSTOP)
    wires = []
    for _ in range(20):
        # Uploads within their streams' credit, until they are more than the kernel takes for it.
        for _ in range(150):
            wires.append(await commands.open())
            await wires[-1].send(request("/upload", method="POST", body=b"u" * 60_000))
        began = time.monotonic()
        got = await commands.get("/ok/probe", lines=["x-backstream-request-timeout: 100ms"])
        if got.status == 503:
            break
        assert got.status == 504
    assert got.status == 503 and b"the agent does not read" in got.body
    assert time.monotonic() - began < CONGESTION + SLACK
    assert (await commands.get(client_id="other")).status == 200
    async with await commands.open() as waiting:
        await waiting.send(request("/ok/waited"))
        assert (await commands.get(client_id="other")).status == 200
        agent.signal(signal.SIGCONT)
        got = await waiting.answer()
        assert got.status == 200
    wanted = hashlib.sha256(b"u" * 60_000).hexdigest().encode()
    served = 0
    for wire in wires:
        got = await wire.answer()
        # What could not be sent within its time was told so, and did not arrive.
        assert (got.status, got.body) == (200, wanted) or b"the agent does not read" in got.body, got
        served += got.status == 200
        wire.close()
    assert 0 < served == journal.count("came", "/upload")


async def test_a_silence_below_the_ping_limit_costs_nothing(commands) -> None:
    proxy = await commands.proxy("--ping-interval", "500ms", "--ping-timeout", "10s")
    agent = await commands.agent()
    async with await commands.open() as wire:
        echo = await Echo.begin(wire)
        agent.signal(signal.SIGSTOP)
        await wire.send(chunked(b"meanwhile", end=False))
        try:
            await wire.fill(0.7)
        except TimeoutError:
            pass
        agent.signal(signal.SIGCONT)
        assert await wire.chunk() == b"meanwhile"
        await echo.finish()
    assert "disconnected" not in proxy.output()
