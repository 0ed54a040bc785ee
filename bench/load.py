"""Closed-loop load of small requests: wrk where it is installed, else the built-in client (clients/closed_loop.py)."""

import json
import resource
import shutil
import sys
from functools import cache
from pathlib import Path

from bench.errors import BenchError
from bench.processes import Fleet
from bench.routes import CLIENT_ID, CLIENT_ID_HEADER, HOST

_SCRIPT = """\
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "errors": %d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


@cache
def client_name() -> str:
    """What loads the contenders here, for the table."""
    if shutil.which("wrk"):
        return "wrk -t1"
    return "the built-in client, slower than wrk (install it: apt-get install wrk)"


def load(fleet: Fleet, port: int, connections: int, seconds: int, *, ca: str = "") -> dict[str, float]:
    """Requests, seconds, p50 and p99 in µs, the client's CPU seconds. BenchError if a request failed.

    With a `ca` the load comes over TLS (wrk does not verify it).
    """
    wrk = shutil.which("wrk")
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
    result["cpu_seconds"] = _children_cpu() - before
    return result


def _wrk_script(directory: Path) -> list[str]:
    path = directory / "report.lua"
    path.write_text(_SCRIPT)
    return ["-s", str(path)]


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
