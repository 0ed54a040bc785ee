"""`Agent.start_in_thread`: for programs that have no event loop, or another one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import backstream
from tests.rig import ID, LIMIT, ROOT, Echo, Ended, echo_app, ok_app, request, tunnel, until


def agent_for(pair, app=ok_app, **settings):
    url = pair if isinstance(pair, str) else "ws://{}:{}/ws".format(*pair.address)
    settings = {"reconnect_min": 0.02, "reconnect_max": 0.1} | settings
    return backstream.Agent(backstream.AgentSettings(proxy_url=url, client_id=ID, **settings), app)


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("backstream agent")]


async def test_an_agent_serves_from_a_thread_beside_a_running_loop() -> None:
    async with tunnel(agents=0) as pair:
        # As in a notebook: called where a loop runs, which it neither uses nor minds.
        with agent_for(pair).start_in_thread() as running:
            await asyncio.to_thread(running.wait_connected, LIMIT)
            await pair.connected()
            assert running.connected and threads() == [f"backstream agent {ID}"]
            assert (await pair.get()).body == b"ok"
            closing = asyncio.to_thread(running.close)
            await closing
            assert not running.connected and threads() == []
        with pytest.raises(RuntimeError, match="does not run any more"):
            running.wait_connected(1)


async def test_stop_lets_running_requests_end_and_close_cuts_them() -> None:
    for method in ("stop", "close"):
        async with tunnel(agents=0) as pair, await pair.open() as wire:
            running = await asyncio.to_thread(agent_for(pair, echo_app).start_in_thread)
            await pair.connected()
            echo = await Echo.begin(wire)
            ending = asyncio.create_task(asyncio.to_thread(getattr(running, method)))
            if method == "stop":
                await until(lambda: not pair.proxy.agents.by_id(ID.encode()))
                await echo.goes_on()
                await echo.finish()
            else:
                with pytest.raises(Ended):
                    await wire.chunk()
            await asyncio.wait_for(ending, LIMIT)
            assert threads() == []


async def test_stop_ends_with_the_drain_timeout() -> None:
    async with tunnel(agents=0) as pair, await pair.open() as wire:
        running = await asyncio.to_thread(agent_for(pair, echo_app, drain_timeout=0.1).start_in_thread)
        await pair.connected()
        await Echo.begin(wire)
        await asyncio.wait_for(asyncio.to_thread(running.stop), 5)
        assert threads() == []


def test_what_cannot_start_raises_where_it_was_started() -> None:
    agent = backstream.Agent(backstream.AgentSettings(client_id=ID, app="nowhere:app"))
    with pytest.raises(backstream.ConfigurationError, match="there is no module nowhere"):
        agent.start_in_thread()
    assert threads() == []


def test_waiting_for_a_connection_has_a_limit_and_ends_with_the_agent() -> None:
    with agent_for("ws://127.0.0.1:1/ws").start_in_thread() as running:
        with pytest.raises(TimeoutError):
            running.wait_connected(0.05)
        raised: list[BaseException] = []

        def wait() -> None:
            try:
                running.wait_connected(LIMIT)
            except (backstream.ConnectionFailed, RuntimeError) as error:  # the latter where it was late
                raised.append(error)

        waiting = threading.Thread(target=wait)
        waiting.start()
        running.close()
        waiting.join(5)
        running.close()  # again is no mistake
        assert len(raised) == 1 and not waiting.is_alive()


async def test_its_own_thread_cannot_wait_for_its_end() -> None:
    raised: list[BaseException] = []

    def connected(agent) -> None:
        try:
            running.stop()
        except RuntimeError as error:
            raised.append(error)

    async with tunnel(agents=0) as pair:
        settings = backstream.AgentSettings(proxy_url="ws://{}:{}/ws".format(*pair.address), client_id=ID)
        running = backstream.Agent(settings, ok_app, on_connect=connected).start_in_thread()
        await until(lambda: raised)
        await asyncio.to_thread(running.close)


PROGRAM = """
import sys, threading, time
import backstream

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({{"type": "http.response.start", "status": 200, "headers": []}})
        await send({{"type": "http.response.body", "body": b"begun", "more_body": True}})
        import asyncio
        await asyncio.sleep(3600)
    raise NotImplementedError

def left(agent, why):
    print("left", flush=True)

settings = backstream.AgentSettings(proxy_url=sys.argv[1], client_id="svc")
{body}
"""
FORGOTTEN = """
running = backstream.Agent(settings, app, on_disconnect=left).start_in_thread()
running.wait_connected(15)
print("connected", flush=True)
sys.stdin.readline()
"""
CONTEXT = """
with backstream.Agent(settings, app, on_disconnect=left).start_in_thread() as running:
    running.wait_connected(15)
    print("connected", flush=True)
    time.sleep(60)
"""
STOPPING = """
running = backstream.Agent(settings, app, on_disconnect=left).start_in_thread()
running.wait_connected(15)
print("connected", flush=True)
sys.stdin.readline()
running.stop()
"""
STARTING = """
async def app(scope, receive, send):
    print("connected", flush=True)
    await receive()
    await receive()

backstream.Agent(settings, app, on_disconnect=left).start_in_thread()
"""
ASYNC = """
import asyncio

async def main():
    async with backstream.Agent(settings, app, on_disconnect=left) as agent:
        await agent.wait_connected()
        print("connected", flush=True)
        await agent.wait_closed()

asyncio.run(main())
"""


@contextlib.contextmanager
def program(body: str, url: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(body=body), url],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("body", "interrupt", "status"),
    [
        (FORGOTTEN, False, 0),
        (FORGOTTEN, True, -signal.SIGINT),
        (CONTEXT, True, -signal.SIGINT),
        (STOPPING, True, -signal.SIGINT),
        (STARTING, True, -signal.SIGINT),
        (ASYNC, True, -signal.SIGINT),
    ],
    ids=["forgotten", "forgotten and interrupted", "context", "within stop", "within start", "asyncio.run"],
)
async def test_a_program_ends_at_once_and_its_agent_in_good_order(body, interrupt, status) -> None:
    async with tunnel(agents=0, check=False) as pair, await pair.open() as wire:
        with program(body, "ws://{}:{}/ws".format(*pair.address)) as process:
            assert await asyncio.to_thread(process.stdout.readline) == "connected\n"
            if body != STARTING:
                await wire.send(request())
                await wire.until(b"begun")
            began = time.monotonic()
            if body == STOPPING:
                process.stdin.write("\n")
                process.stdin.flush()
                await until(lambda: not pair.proxy.agents.by_id(ID.encode()))
            if interrupt:
                process.send_signal(signal.SIGINT)
            output, errors = await asyncio.to_thread(process.communicate, None if interrupt else "", LIMIT)
            assert time.monotonic() - began < 4
            assert process.returncode == status, errors
            assert output == ("" if body == STARTING else "left\n")
            # asyncio.run shows what it cancelled, too.
            assert errors.count("Traceback") == (0 if not interrupt else 2 if body == ASYNC else 1), errors
            assert not interrupt or errors.endswith("KeyboardInterrupt\n"), errors
            await until(lambda: not len(pair.proxy.agents))


@pytest.mark.parametrize("begun", [True, False])
def test_a_program_that_is_interrupted_as_the_thread_begins_leaves_none(begun: bool, monkeypatch) -> None:
    def interrupted(thread: threading.Thread) -> None:
        if begun:
            start(thread)
        raise KeyboardInterrupt

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr(backstream.thread, "EXIT_SECONDS", LIMIT if begun else 0.01)
    with pytest.raises(KeyboardInterrupt):
        agent_for("ws://127.0.0.1:1/ws").start_in_thread()
    assert threads() == []
