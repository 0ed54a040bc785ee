"""A proxy or agent that is looked into: ``python -m bench.profile.subject proxy PORT``, ``… agent PORT``.

The library inside an own process, on uvloop, with its default settings; the agent serves bench/services/app.py. Prints
``ready``, then for each line on standard input one line of JSON, until it is closed:

count FILE [native]     memray writes every allocation into FILE, with the stacks of C where it says so
trace                   tracemalloc runs
stop                    ends it; after `trace`, the lines whose blocks have grown most, as [place, bytes, blocks]
blocks                  how many blocks Python's allocator has given out
"""

import asyncio
import gc
import json
import linecache
import sys
import tracemalloc
from collections.abc import Callable

import backstream
from bench.aio import run
from bench.routes import CLIENT_ID
from bench.services.app import app

TOP = 5
STACK = 1
"""Python frames of an allocation: the hot path has hardly any."""


class Inspector:
    """Looks into its own process as it is told."""

    def __init__(self) -> None:
        self._end: Callable[[], object] | None = None

    def obey(self, words: list[str]) -> object:
        match words:
            case ["count", file, *rest]:
                self._count(file, native=bool(rest))
            case ["trace"]:
                tracemalloc.start(STACK)
                before = tracemalloc.take_snapshot()
                self._end = lambda: _grown(before)
            case ["stop"]:
                assert self._end is not None
                result, self._end = self._end(), None
                return result
            case ["blocks"]:
                gc.collect()
                return sys.getallocatedblocks()
            case _:
                raise ValueError(words)
        return None

    def _count(self, file: str, *, native: bool) -> None:
        import memray

        tracker = memray.Tracker(file, native_traces=native, trace_python_allocators=True)
        tracker.__enter__()
        self._end = lambda: tracker.__exit__(None, None, None)


def _grown(before: tracemalloc.Snapshot) -> list[tuple[str, int, int]]:
    after = tracemalloc.take_snapshot()
    tracemalloc.stop()
    ours = [tracemalloc.Filter(False, tracemalloc.__file__), tracemalloc.Filter(False, linecache.__file__)]
    found = after.filter_traces(ours).compare_to(before.filter_traces(ours), "lineno")
    return [(str(each.traceback), each.size_diff, each.count_diff) for each in found[:TOP]]


async def _obey_lines() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    inspector = Inspector()
    with open(0, "rb", closefd=False) as standard_input:  # noqa: ASYNC230 - nothing is opened
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), standard_input)
        print("ready", flush=True)
        while line := await reader.readline():
            print(json.dumps(inspector.obey(line.decode().split())), flush=True)


async def proxy(port: int) -> None:
    async with backstream.Proxy(backstream.ProxySettings(listen=f"127.0.0.1:{port}")):
        await _obey_lines()


async def agent(port: int) -> None:
    settings = backstream.AgentSettings(proxy_url=f"ws://127.0.0.1:{port}/ws", client_id=CLIENT_ID)
    async with backstream.Agent(settings, app=app) as running:
        await running.wait_connected()
        await _obey_lines()


if __name__ == "__main__":
    run({"proxy": proxy, "agent": agent}[sys.argv[1]](int(sys.argv[2])))
