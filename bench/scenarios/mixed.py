"""Mixed: what small requests feel of eight bulk streams that share the session (and both processes) with
them.

A probe sends small requests over one connection, a millisecond after each answer, and notes each one's
latency: first with nothing else going on, then during eight endless downloads, then during eight endless
uploads, all as fast as they go. The machine's cores are shared by all of this, clients included; nginx in
the same situation is beside it.
"""

import json
import sys
from functools import partial

from bench.contenders import Contender, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream
from bench.contenders.nginx import UNBUFFERED, NginxProxy
from bench.contenders.others import others
from bench.context import Context, CpuMeter, Sample, in_states, start_bulk_backend
from bench.processes import Fleet, Spawned, finish, read_line
from bench.report.table import Column, Row, Section, median, number, ratio, spread
from bench.routes import MIB

STREAMS = 8
STATES = {"idle": "idle", "down": f"{STREAMS} downloads", "up": f"{STREAMS} uploads"}
_COLUMNS = [
    median("probe req/s", "rate"),
    median("bulk MiB/s", "bulk"),
    median("p50 µs", "p50"),
    median("p99 µs", "p99"),
    spread("p99"),
    Column("p99 × idle", lambda row, section: number(section.ratio(row.key, "p99", f"{_contender(row)}:idle"), 1)),
    ratio("p99 × nginx idle", "p99"),
    median("proxy CPU %", "cpu.proxy"),
    median("agent CPU %", "cpu.agent"),
    median("service CPU %", "cpu.service"),
]


def _contender(row: Row) -> str:
    return row.key.partition(":")[0]


def run(context: Context) -> list[Section]:
    contenders: list[Contender] = [
        NginxProxy(name="nginx, buffering off", extra=UNBUFFERED),
        BackstreamApp(),
        BackstreamUpstream(),
        *context.beside(others(UNBUFFERED)),
    ]
    with context.fleet() as fleet:
        backend = start_bulk_backend(fleet)

        def turn(state: str, endpoint: Endpoint) -> Sample:
            return mixed_sample(fleet, endpoint, state, context.options.of(endpoint).duration)

        cases = context.cases(fleet, contenders, backend, partial(turn, "idle"))
        rows = context.take_turns("mixed", in_states(cases, STATES, turn))
    title = f"small requests at a low rate beside {STREAMS} bulk streams, {context.options.duration} s × "
    return [Section("mixed", title + str(context.options.repeat), _COLUMNS, rows, "nginx:idle")]


def mixed_sample(fleet: Fleet, endpoint: Endpoint, state: str, seconds: int) -> Sample:
    """Probe an endpoint that is ``idle``, or has bulk streams ``down`` or ``up``."""
    client = [sys.executable, "-m", "bench.clients.raw"]
    port = str(endpoint.port)
    bulk: Spawned | None = None
    if state != "idle":
        bulk = fleet.spawn("flood", [*client, "flood", port, state, "--streams", str(STREAMS)], pipes=True)
    try:
        if bulk is not None:
            read_line(bulk, timeout=15)
        meter = CpuMeter(endpoint)
        result = json.loads(
            fleet.run("probe", [*client, "probe", port, "--duration", str(seconds)], timeout=seconds + 30)
        )
        sample: Sample = {
            "rate": result["requests"] / result["seconds"],
            "p50": result["p50"],
            "p99": result["p99"],
            **meter.used(1e7 * result["seconds"]),
        }
        if bulk is not None:
            moved = json.loads(finish(bulk))
            sample["bulk"] = moved["bytes"] / MIB / moved["seconds"]
        return sample
    finally:
        if bulk is not None:
            fleet.stop(bulk)
