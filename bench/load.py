"""Load of small requests in a closed loop, by wrk where it is installed, else by the built-in client
(clients/closed_loop.py); and endless bodies beside what is measured.
"""

import json
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from bench.errors import BenchError
from bench.processes import Fleet, finish, read_line
from bench.routes import CLIENT_ID, CLIENT_ID_HEADER, HOST, MIB, SMALL

RAW = [sys.executable, "-m", "bench.clients.raw"]
"""Begins a command line of clients/raw.py."""

_SCRIPT = """\
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "errors": %d, "bytes": %.0f}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout, summary.bytes))
end
"""


@cache
def client_name() -> str:
    """What loads the contenders here, for the table."""
    if shutil.which("wrk"):
        return "wrk -t1"
    return "the built-in client, slower than wrk (install it: apt-get install wrk)"


def load(
    fleet: Fleet, port: int, connections: int, seconds: int, *, ca: str = "", fresh: bool = False
) -> dict[str, float]:
    """Requests, seconds, p50 and p99 in µs, the client's CPU seconds. BenchError if a request failed,
    or bytes of answers are missing; what is in them only the built-in client looks at.

    With a `ca` the load comes over TLS (wrk does not verify it). fresh: a new connection for each request, which only
    wrk can do.
    """
    wrk = shutil.which("wrk")
    assert wrk or not fresh
    before = _children_cpu()
    if wrk:
        argv = [
            wrk,
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--timeout",
            "10s",
            *_wrk_script(fleet.directory),
        ]
        scheme = "https" if ca else "http"
        argv += ["-H", "Connection: close"] * fresh
        argv += ["-H", f"Host: {HOST}", "-H", f"{CLIENT_ID_HEADER}: {CLIENT_ID}", f"{scheme}://127.0.0.1:{port}/small"]
    else:
        argv = [
            sys.executable,
            "-m",
            "bench.clients.closed_loop",
            str(port),
            str(connections),
            str(seconds),
            *[ca] * bool(ca),
        ]
    output = fleet.run("load client", argv, timeout=seconds + 20)
    result: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    if result["errors"] or not result["requests"]:
        raise BenchError(f"{result['errors']:.0f} of {result['requests']:.0f} requests failed")
    if wrk and result["bytes"] < result["requests"] * len(SMALL):
        # It looks at no body; the built-in client does.
        raise BenchError(f"{result['bytes']:.0f} bytes are too few for {result['requests']:.0f} answers")
    result["cpu_seconds"] = _children_cpu() - before
    return result


@contextmanager
def flood(
    fleet: Fleet,
    port: int,
    direction: str,
    streams: int,
    *,
    begin: list[str] | None = None,
    host: str = "127.0.0.1",
    settle: float = 0.0,
) -> Iterator[Callable[[], float]]:
    """Endless bodies ``down`` or ``up``, all of them under way while the block runs.

    Yields a function that ends them and returns their MiB/s together, counted `settle` seconds after all had begun.
    begin: what the command line of their client begins with instead of RAW.
    """
    argv = [*(begin or RAW), "flood", str(port), direction, "--streams", str(streams)]
    client = fleet.spawn("flood", [*argv, "--host", host, "--settle", str(settle)], pipes=True)
    try:
        read_line(client, timeout=30)

        def end() -> float:
            result = json.loads(finish(client))
            return float(result["bytes"] / MIB / result["seconds"])

        yield end
    finally:
        fleet.stop(client)


def _wrk_script(directory: Path) -> list[str]:
    path = directory / "report.lua"
    path.write_text(_SCRIPT)
    return ["-s", str(path)]


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
