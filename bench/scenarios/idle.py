"""Idle: what the proxy holds for those who ask for nothing, and how soon all are back when it was restarted.

Agents and clients are those of one helper process (clients/swarm.py), 10,000 of each (1,000 with --quick), each kind
with a fresh proxy. Memory is resident memory (VmRSS) with all of them connected less that before they came, divided by
their number; what the kernel holds for their sockets is not in it. Every client has had one answer.

For the return the proxy is killed and started again on its port. When another agent serves small requests once more, at
a low rate, all of the idle ones come at once: time runs until each has the new proxy's HELLO, and the p99 of the small
requests in that time stands beside that with all agents there and idle. Swarm, proxy, agent and probe share the
machine; the swarm, which stands for other machines, runs where nobody else wants to. What is the machine's own part
shows the last row: there the requests go through another proxy, to which nobody returns.
"""

import json
import sys
import time
from functools import partial

from bench.contenders.backstream import BackstreamApp, start_agent, start_proxy
from bench.context import Case, Context, Sample
from bench.errors import BenchError
from bench.net import wait_until_answering, wait_until_listening
from bench.processes import Fleet, Spawned, finish, memory_bytes, read_line, tell
from bench.report.table import Row, Section, median, ratio_within
from bench.scenarios.agents import too_few_files

_KIB = 1024
_COLUMNS = [
    median("KiB each", "memory", 1),
    median("connect s", "connect", 1),
    median("back s", "back", 1),
    median("p99 µs, idle", "p99.idle"),
    median("p99 µs, return", "p99.return"),
    ratio_within("×", "p99.return", "p99.idle"),
]


def run(context: Context) -> list[Section]:
    options = context.options
    if not options.wants(BackstreamApp.key):
        return []
    count = options.idle
    cases = []
    with context.fleet() as fleet:
        skipped = BackstreamApp().missing(fleet) or too_few_files(count)
        for key, name, turn in (
            ("agents", f"{count:,} idle agents", _agents),
            ("clients", f"{count:,} idle clients", _clients),
            ("return", f"{count:,} agents return", _return),
            ("floor", f"{count:,} agents return, to another proxy", partial(_return, elsewhere=True)),
        ):
            row = Row(key, f"backstream, {name}", skipped=skipped)
            cases.append(Case(row, None if skipped else partial(turn, context, count)))
        rows = context.take_turns("idle", cases, repeat=options.few)
    return [Section("idle", f"the proxy's cost of those who ask for nothing × {options.few}", _COLUMNS, rows)]


def _swarm(fleet: Fleet, port: int, count: int, kind: str) -> Spawned:
    swarm = fleet.spawn("swarm", [sys.executable, "-m", "bench.clients.swarm", str(port), str(count), kind], pipes=True)
    if read_line(swarm, timeout=60) != "ready":
        raise BenchError("the swarm did not gather")
    return swarm


def _each(pid: int, before: int | None, count: int) -> float | None:
    after = memory_bytes(pid)
    return None if before is None or after is None else (after - before) / count / _KIB


def _flags(count: int) -> tuple[str, ...]:
    return ("--max-connections", str(count + 1000), "--max-agents", str(count + 1000))


def _agents(context: Context, count: int) -> Sample:
    with context.fleet() as fleet:
        proxy = start_proxy(fleet, *_flags(count))
        endpoint = start_agent(fleet, proxy, "--app", "bench.services.app:app")
        wait_until_answering(endpoint.port, "backstream", fleet.check)
        before = memory_bytes(proxy.pids["proxy"])
        begin = time.perf_counter()
        swarm = _swarm(fleet, proxy.port, count, "agents")
        connect = time.perf_counter() - begin
        sample: Sample = {"memory": _each(proxy.pids["proxy"], before, count), "connect": connect}
        finish(swarm)
        return sample


def _clients(context: Context, count: int) -> Sample:
    with context.fleet() as fleet:
        proxy = start_proxy(fleet, *_flags(count), "--keepalive-timeout", "600s")
        endpoint = start_agent(fleet, proxy, "--app", "bench.services.app:app")
        wait_until_answering(endpoint.port, "backstream", fleet.check)
        before = memory_bytes(proxy.pids["proxy"])
        swarm = _swarm(fleet, proxy.port, count, "clients")
        sample: Sample = {"memory": _each(proxy.pids["proxy"], before, count)}
        finish(swarm)
        return sample


def _return(context: Context, count: int, *, elsewhere: bool = False) -> Sample:
    with context.fleet() as fleet:
        proxy = start_proxy(fleet, *_flags(count))
        asked = start_proxy(fleet) if elsewhere else proxy
        start_agent(fleet, asked, "--app", "bench.services.app:app")
        wait_until_answering(asked.port, "backstream", fleet.check)
        swarm = _swarm(fleet, proxy.port, count, "returning")
        client = [sys.executable, "-m", "bench.clients.raw", "probe", str(asked.port), "--duration"]
        duration = context.options.duration
        idle = json.loads(fleet.run("probe", [*client, str(duration)], timeout=duration + 30))
        fleet.kill(proxy.pids["proxy"])
        start_proxy(fleet, *_flags(count), port=proxy.port)
        wait_until_listening("127.0.0.1", proxy.port, "the proxy after its restart", fleet.check)
        wait_until_answering(asked.port, "the proxy after its restart", fleet.check)
        probe = fleet.spawn("probe", [*client, "0"], pipes=True)
        read_line(probe, timeout=15)
        begin = time.perf_counter()
        tell(swarm)
        if read_line(swarm, timeout=60) != "back":
            raise BenchError("not all agents came back")
        back = time.perf_counter() - begin
        busy = json.loads(finish(probe))
        sample: Sample = {"back": back, "p99.idle": idle["p99"], "p99.return": busy["p99"]}
        finish(swarm)
        return sample
