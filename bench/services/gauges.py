"""A proxy or agent that says what it holds: ``python -m bench.services.gauges proxy PORT``, ``… agent PORT ID WHAT``.

The library inside an own process, for the soak: WHAT is an upstream's URL, or ``app`` for bench/services/app.py. Prints
``ready``, then for each line on standard input one line of JSON, until it is closed. An agent that gets SIGTERM drains
and says in a last line what is left then.
"""

import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import backstream
from backstream._loop import loop_state
from bench.aio import allow_open_files, run
from bench.services.app import app

Gauges = dict[str, int]

SESSION = backstream.SessionSettings(window_budget=16 << 20)
"""So small a budget that it is used up: who wants some of it has to do without."""
POOL_SECONDS = 1.0
"""How long an upstream connection without work is kept."""
IDLE_SECONDS = 6.0
"""How long a body may pause: who leaves behind bytes that nobody reads is noticed by nothing else."""
DRAIN_SECONDS = 15.0


def of_proxy(proxy: backstream.Proxy) -> Gauges:
    """What must be zero when nothing is under way."""
    sessions = [link.session for link in proxy.agents]
    return {
        "streams": sum(session.stream_count for session in sessions),
        "places": sum(session.opened + session.accepted for session in sessions),
        "connections": proxy.connection_count,
        "waiting": proxy.agents.waiting,
        "addresses": len(proxy._clients),
        "window bytes": proxy.window_bytes,
        # Each session has its next ping.
        "deadlines": loop_state().deadlines - len(sessions),
    }


def of_agent(agent: backstream.Agent) -> Gauges:
    sessions = [link.session for link in agent.sessions]
    return {
        "streams": sum(session.stream_count for session in sessions),
        "places": sum(session.opened + session.accepted for session in sessions),
        "connections": getattr(agent._service, "connections", 0),
        "window bytes": agent._budget.used_bytes,
        "deadlines": loop_state().deadlines - len(sessions),
    }


def of_process() -> Gauges:
    """What must be as much as it was."""
    gc.collect()
    return {
        "tasks": len(asyncio.all_tasks()),
        "files": len(os.listdir("/proc/self/fd")),
        "objects": len(gc.get_objects()),
    }


async def proxy(port: int) -> None:
    settings = backstream.ProxySettings(
        listen=f"127.0.0.1:{port}", idle_timeout=IDLE_SECONDS, max_aborts_per_address=0, session=SESSION
    )
    async with backstream.Proxy(settings) as running:
        await _answer(lambda: of_proxy(running))


async def agent(port: int, client_id: str, what: str) -> None:
    settings = backstream.AgentSettings(
        proxy_url=f"ws://127.0.0.1:{port}/ws",
        client_id=client_id,
        upstream=None if what == "app" else what,
        upstream_idle_timeout=POOL_SECONDS,
        idle_timeout=IDLE_SECONDS,
        drain_timeout=DRAIN_SECONDS,
        reconnect_max=0.5,
        session=SESSION,
    )
    async with backstream.Agent(settings, app=app if what == "app" else None) as running:
        await running.wait_connected()
        answering = asyncio.create_task(_answer(lambda: of_agent(running)))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, answering.cancel)
        with suppress(asyncio.CancelledError):
            await answering
        if answering.cancelled():
            await running.drain()
            print(json.dumps(of_agent(running)), flush=True)


async def _answer(gauges: Callable[[], Gauges]) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    with open(0, "rb", closefd=False) as standard_input:  # noqa: ASYNC230 - nothing is opened
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), standard_input)
        print("ready", flush=True)
        while await reader.readline():
            print(json.dumps({**gauges(), **of_process()}), flush=True)


if __name__ == "__main__":
    allow_open_files()
    role, port, *rest = sys.argv[1:]
    run(proxy(int(port)) if role == "proxy" else agent(int(port), *rest))
