"""A proxy and an agent with the bench's ASGI application, the load on them, and what is attached to one of them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.clients.raw import Answer, connect, request
from bench.contenders import Endpoint
from bench.contenders.backstream import INSTALL, command, start_agent, start_proxy
from bench.errors import BenchError
from bench.load import load
from bench.net import wait_until_answering, wait_until_listening
from bench.processes import Fleet, Spawned, finish, read_line
from bench.profile.symbols import SITE
from bench.routes import MIB, SMALL

APP = "bench.services.app:app"
LOADS = ("small", "bulk-down", "bulk-up")
ROLES = ("proxy", "agent")
END_SECONDS = 60.0
"""For what was attached to a process to write down what it saw."""


@contextmanager
def fleet(*, symbols: bool = False) -> Iterator[Fleet]:
    """Processes that find `bench`, and backstream as it is installed or, with `symbols`, as symbols.py has built it."""
    with tempfile.TemporaryDirectory(prefix="profile-", ignore_cleanup_errors=True) as place:
        directory = Path(place)
        (directory / "bench").symlink_to(Path(__file__).parents[1])
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKSTREAM_")}
        environment["PYTHONPATH"] = f"{SITE}:{directory}" if symbols else str(directory)
        with Fleet(directory, environment) as processes:
            yield processes


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Where requests go, and the processes that they pass."""

    port: int
    pids: dict[str, int]


def start(processes: Fleet, *, relay: Callable[[int], int] | None = None) -> Tunnel:
    """The commands ``backstream proxy`` and ``backstream agent``, once they answer. BenchError where they do not.

    relay: gets the proxy's port, and returns that which the agent dials in its place.
    """
    if command() is None:
        raise BenchError(INSTALL)
    proxy = start_proxy(processes)
    dialled = proxy
    if relay is not None:
        wait_until_listening("127.0.0.1", proxy.port, "backstream proxy", processes.check)
        dialled = Endpoint(relay(proxy.port), proxy.pids)
    endpoint = start_agent(processes, dialled, "--app", APP)
    wait_until_answering(proxy.port, "backstream", processes.check)
    return Tunnel(proxy.port, endpoint.pids)


@dataclass(frozen=True, slots=True)
class Done:
    """What a load has done: so many requests, or MiB."""

    count: float
    unit: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.count:,.0f} {self.unit}{'s' * (self.unit == 'request')} in {self.seconds:.1f} s"


def put_load(processes: Fleet, port: int, what: str, seconds: int, connections: int) -> Done:
    """One of LOADS. `connections` are those of small requests; bulk is one endless chunked body."""
    if what == "small":
        result = load(processes, port, connections, seconds)
        return Done(result["requests"], "request", result["seconds"])
    direction = what.removeprefix("bulk-")
    return _flood(processes, port, direction, seconds)


def _flood(processes: Fleet, port: int, direction: str, seconds: int) -> Done:
    argv = [sys.executable, "-m", "bench.clients.raw", "flood", str(port), direction, "--streams", "1"]
    client = processes.spawn("bulk client", argv, pipes=True)
    read_line(client, timeout=20)
    time.sleep(seconds)
    result = json.loads(finish(client))
    return Done(result["bytes"] / MIB, "MiB", result["seconds"])


def one_after_the_other(port: int, requests: int) -> None:
    """So many small requests on one connection: nothing but the tunnel decides what shares a turn of its loops."""
    message = request("GET", "/small")
    with connect(port) as client:
        for _ in range(requests):
            client.sendall(message)
            if Answer(client).receive_text() != SMALL:
                raise BenchError("a small request had another answer")


@contextmanager
def attached(processes: Fleet, name: str, argv: Sequence[str], *, ready: bytes) -> Iterator[Spawned]:
    """A tool that runs until SIGINT; inside, it has said `ready`. BenchError where it fails."""
    tool = processes.spawn(name, argv)
    _wait_for(processes, tool, ready)
    yield tool
    interrupt(tool)
    # It has ended as it was told, and is none of those that should be running.
    processes.stop(tool)


def _wait_for(processes: Fleet, tool: Spawned, words: bytes) -> None:
    deadline = time.monotonic() + END_SECONDS
    while words not in tool.log.read_bytes():
        processes.check()
        if time.monotonic() > deadline:
            raise BenchError(f"{tool.name} was not ready within {END_SECONDS:.0f} s")
        time.sleep(0.02)


def interrupt(tool: Spawned) -> None:
    """SIGINT, and the time to write what it has to."""
    tool.process.send_signal(signal.SIGINT)
    try:
        tool.process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        raise BenchError(f"{tool.name} did not end within {END_SECONDS:.0f} s") from None
