"""Mixed: what small requests feel of eight bulk streams that share the session (and both processes) with
them.

A probe sends small requests over one connection, a millisecond after each answer, and notes each one's
latency: first with nothing else going on, then during eight endless downloads, then during eight endless
uploads, all as fast as they go. The machine's cores are shared by all of this, clients included; nginx in
the same situation is beside it. Others' tunnels take part idle and with downloads.
"""

import json
import time
from contextlib import nullcontext
from functools import partial

from bench.contenders import Contender, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream
from bench.contenders.nginx import UNBUFFERED, unbuffered
from bench.contenders.others import others
from bench.context import Context, CpuMeter, Sample, start_bulk_backend
from bench.load import RAW, flood
from bench.processes import Fleet
from bench.report.table import Section, median, ratio, spread

STREAMS = 8
STATES = {"idle": "idle", "down": f"{STREAMS} downloads", "up": f"{STREAMS} uploads"}
_COLUMNS = [
    median("probe req/s", "rate"),
    median("bulk MiB/s", "bulk"),
    median("p50 µs", "p50"),
    median("p99 µs", "p99"),
    spread("p99"),
    median("p99.9 µs", "p999"),
    ratio("p99 × idle", "p99", lambda row: f"{row.key.partition(':')[0]}:idle"),
    ratio("p99 × nginx idle", "p99"),
    median("proxy CPU %", "cpu.proxy"),
    median("agent CPU %", "cpu.agent"),
    median("service CPU %", "cpu.service"),
]


def run(context: Context) -> list[Section]:
    contenders: list[Contender] = [
        unbuffered(),
        BackstreamApp(),
        BackstreamUpstream(),
        *others(UNBUFFERED, uploads=True),
    ]
    with context.fleet() as fleet:
        backend = start_bulk_backend(fleet)

        def turn(state: str, endpoint: Endpoint) -> Sample:
            return mixed_sample(fleet, endpoint, state, context.options.duration)

        started = context.cases(fleet, contenders, backend, partial(turn, "idle"), "tunnels")
        rows = context.take_turns("mixed", context.in_states(started, STATES, turn, nearest=["up"]))
    title = f"small requests at a low rate beside {STREAMS} bulk streams, {context.options.duration} s × "
    return [Section("mixed", title + str(context.options.repeat), _COLUMNS, rows, "nginx:idle")]


def mixed_sample(fleet: Fleet, endpoint: Endpoint, state: str, seconds: int) -> Sample:
    """Probe an endpoint that is ``idle``, or has bulk streams ``down`` or ``up``."""
    with flood(fleet, endpoint.port, state, STREAMS) if state != "idle" else nullcontext() as end:
        begin, meter = time.perf_counter(), CpuMeter(endpoint)
        argv = [*RAW, "probe", str(endpoint.port), "--duration", str(seconds)]
        result = json.loads(fleet.run("probe", argv, timeout=seconds + 30))
        # Bulk goes on while the probe starts and ends: CPU is that of all this time.
        window = time.perf_counter() - begin
        sample: Sample = {
            "rate": result["requests"] / result["seconds"],
            **{name: result[name] for name in ("p50", "p99", "p999")},
            **meter.used(1e7 * window),
        }
        if end is not None:
            sample["bulk"] = end()
        return sample
