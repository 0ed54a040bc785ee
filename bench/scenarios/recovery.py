"""Recovery: what a crash costs clients that go on asking: ``GET /small`` at 500/s in an open loop, 16 connections, 5 s.

After 1.5 s the agent or the proxy is killed (SIGKILL) and at once started again, as a supervisor would; or one of two
agents under the same id is, while the other lives. "Served again" is the time from the kill to the first answer to a
request that was due after it; "lost" counts requests whose answer was cut or not 200; "longest" is the longest
latency, from when the request was due. A client that is refused dials again every 5 ms and loses nothing by it: its
requests wait, which their latencies show. Fresh processes each time. Most of the time is that of a Python process to
start.
"""

import json
import sys
import time
from collections.abc import Sequence
from functools import partial

from bench import compiled
from bench.contenders import Endpoint
from bench.contenders.backstream import INSTALL, command, start_agent, start_proxy
from bench.context import Case, Context, Sample
from bench.errors import BenchError
from bench.net import wait_until_answering
from bench.processes import Fleet, read_line
from bench.report.table import Row, Section, highest, median

CONTENDERS = {
    "backstream-app": ("backstream, ASGI app", []),
    "backstream-seed": ("backstream, seed wire", ["--wire", "seed"]),
}
VICTIMS = {"agent": "agent killed", "one": "one of two agents killed", "proxy": "proxy killed"}
QUICK = [("backstream-app", "agent"), ("backstream-app", "proxy")]
RATE, CONNECTIONS, SECONDS, KILL_AFTER = 500, 16, 5, 1.5
_APP = ("--app", "bench.services.app:app")

_COLUMNS = [
    median("served again ms", "again"),
    highest("lost, most", "lost"),
    highest("unanswered, most", "unanswered"),
    median("p50 µs", "p50"),
    median("longest ms", "longest"),
]


def run(context: Context) -> list[Section]:
    try:
        compiled.load("bench.clients._open_loop")
    except BenchError as error:
        context.say(f"  recovery: skipped: {error}")
        return []
    cases = []
    for key, (name, flags) in CONTENDERS.items():
        if context.options.wants(key):
            for victim, what in VICTIMS.items():
                if context.options.quick and (key, victim) not in QUICK:
                    continue
                row = Row(f"{key}:{victim}", f"{name}, {what}", skipped=None if command() else INSTALL)
                cases.append(Case(row, None if row.skipped else partial(_turn, context, victim, flags)))
    repeat = context.options.few
    title = f"GET /small at {RATE}/s in an open loop, {CONNECTIONS} connections, {SECONDS} s × {repeat}"
    return [Section("recovery", title, _COLUMNS, context.take_turns("recovery", cases, repeat=repeat))]


def _turn(context: Context, victim: str, flags: Sequence[str]) -> Sample:
    with context.fleet() as fleet:
        proxy = start_proxy(fleet, *flags)
        endpoint = start_agent(fleet, proxy, *_APP)
        wait_until_answering(endpoint.port, "backstream", fleet.check)
        if victim == "one":
            _start_second(fleet, proxy)
        argv = [sys.executable, "-m", "bench.clients.open_loop", str(endpoint.port), str(CONNECTIONS), str(RATE)]
        client = fleet.spawn("open loop", [*argv, str(SECONDS), "--every"], pipes=True)
        if read_line(client, timeout=15) != "ready":
            raise BenchError("the open loop did not begin")
        time.sleep(KILL_AFTER)
        killed_at = time.monotonic_ns()
        fleet.kill(endpoint.pids["proxy" if victim == "proxy" else "agent"])
        if victim == "proxy":
            start_proxy(fleet, *flags, port=endpoint.port)
        else:
            start_agent(fleet, proxy, *_APP)
        result = json.loads(read_line(client, timeout=SECONDS + 30))
        fleet.check()
    again = served_again(result.pop("latencies"), RATE, result.pop("begin_ns"), killed_at)
    if again is None:
        raise BenchError("nothing was served after the kill")
    return {
        "again": again / 1e6,
        "lost": result["lost"],
        "unanswered": result["unanswered"],
        "p50": result["p50"],
        "longest": result["longest"] / 1e3,
    }


def _start_second(fleet: Fleet, proxy: Endpoint) -> None:
    """A second agent, of which nobody but its log says that it is there."""
    pid = start_agent(fleet, proxy, *_APP).pids["agent"]
    log = fleet.log(pid)
    deadline = time.monotonic() + 15
    while "connected" not in log.read_text():
        fleet.check()
        if time.monotonic() > deadline:
            raise BenchError("the second agent did not connect")
        time.sleep(0.05)


def served_again(latencies: Sequence[int], rate: float, begin_ns: int, killed_ns: int) -> int | None:
    """Nanoseconds from the kill to the first answer to a request due after it; None if there was none.

    latencies: as `OpenLoop.run` returns them. begin_ns: when the first request was due.
    """
    due = [begin_ns + int(index * 1e9 / rate) for index in range(len(latencies))]
    answers = [at + latency for at, latency in zip(due, latencies, strict=True) if at >= killed_ns and latency >= 0]
    return min(answers) - killed_ns if answers else None
