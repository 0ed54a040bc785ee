"""Agents: the cost of a request in a proxy that holds 1, 100 and 10,000 sessions.

One agent serves (services/app.py); the others are idle sessions of one helper process (clients/swarm.py), each with
its own client id, which the proxy pings as it does any. Every turn begins with a fresh proxy. The request
and its client are those of the small requests' measurement.
"""

import resource
import sys
import time
from functools import partial

from bench.contenders.backstream import BackstreamApp, start_agent, start_proxy
from bench.context import Case, Context, Sample
from bench.errors import BenchError
from bench.load import client_name
from bench.net import wait_until_answering
from bench.processes import finish, read_line
from bench.report.table import Row, Section, median, ratio, spread, standard_columns
from bench.scenarios.small import small_sample

_SPARE_FILES = 256


def run(context: Context) -> list[Section]:
    options = context.options
    if not options.wants(BackstreamApp.key):
        return []
    cases = []
    with context.fleet() as fleet:
        missing = BackstreamApp().missing(fleet)
        for count in options.agents:
            skipped = missing or too_few_files(count)
            row = Row(f"agents-{count}", f"backstream, {count:,} agent{'s' * (count > 1)}", skipped=skipped)
            cases.append(Case(row, None if row.skipped else partial(_turn, context, count)))
        rows = context.take_turns("agents", cases, repeat=options.few)
    title = (
        f"GET /small with so many agents connected, {client_name()}, {options.connections} connections, "
        f"{options.duration} s × {options.few}"
    )
    columns = [
        median("req/s", "rate"),
        spread("rate"),
        ratio("× 1 agent", "rate"),
        ratio("proxy CPU × 1 agent", "cpu.proxy"),
        *standard_columns("", "µs/req", latency=True)[3:],
        median("connect s", "connect", 1),
    ]
    return [Section("agents", title, columns, rows, f"agents-{min(options.agents)}")]


def too_few_files(count: int) -> str | None:
    """Why a process can't hold so many connections here, in a line; None if it can."""
    hard, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[1], count + _SPARE_FILES
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return None
    return f"the hard limit of open files is {hard:,}; raise it: ulimit -Hn {needed}"


def _turn(context: Context, count: int) -> Sample:
    """A fresh proxy with `count` agents under load; everything is gone again afterwards."""
    with context.fleet() as fleet:
        proxy = start_proxy(fleet, "--max-connections", str(count + 1000), "--max-agents", str(count + 1000))
        endpoint = start_agent(fleet, proxy, "--app", "bench.services.app:app")
        wait_until_answering(endpoint.port, "backstream", fleet.check)
        begin = time.perf_counter()
        swarm = fleet.spawn(
            "swarm", [sys.executable, "-m", "bench.clients.swarm", str(proxy.port), str(count - 1)], pipes=True
        )
        read_line(swarm, timeout=60)
        connect = time.perf_counter() - begin
        sample = small_sample(fleet, endpoint, context.options.connections, context.options.duration)
        finish(swarm)
        if lost := swarm.log.read_text().strip().splitlines():
            raise BenchError(f"{len(lost)} lines from the swarm, the first: {lost[0]}")
        return {**sample, "connect": connect}
