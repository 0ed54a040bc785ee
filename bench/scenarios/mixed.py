"""Mixed: what small requests feel of eight bulk streams that share the session (and both processes) with
them.

A probe sends small requests over one connection, a millisecond after each answer, and notes each one's
latency: first with nothing else going on, then during eight endless downloads, then during eight endless
uploads, all as fast as they go. The machine's cores are shared by all of this, clients included; nginx in
the same situation is beside it. Others' tunnels take part idle and with downloads. The last row is the machine's own
floor: the same probe through a second proxy and agent, which carry nothing else, while the downloads run through the
first; what its p99 has over idle comes of the cores that are shared, not of the session.
"""

import json
import time
from collections.abc import Callable, Sequence
from functools import partial

from bench.contenders import Contender, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream
from bench.contenders.nginx import UNBUFFERED, unbuffered
from bench.contenders.others import others
from bench.context import Case, Context, CpuMeter, Sample
from bench.load import RAW
from bench.processes import Fleet
from bench.report.table import Section, median, ratio, spread
from bench.scenarios.beside import STREAMS, bulk, measure

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


class _Apart(BackstreamApp):
    """A second proxy and agent, which have nothing to do but answer the probe."""

    key = f"{BackstreamApp.key}:apart"
    name = f"{BackstreamApp.name}, idle beside {STREAMS} downloads through another pair"

    def version(self) -> str | None:
        return None  # told once, of the first


def run(context: Context) -> list[Section]:
    contenders: list[Contender] = [
        unbuffered(),
        BackstreamApp(),
        BackstreamUpstream(),
        *others(UNBUFFERED, uploads=True),
    ]
    further = partial(_floor, context)
    rows = measure(context, "mixed", contenders, STATES, _sample, nearest=["up"], further=further)
    title = f"small requests at a low rate beside {STREAMS} bulk streams, {context.options.duration} s × "
    return [Section("mixed", title + str(context.options.repeat), _COLUMNS, rows, "nginx:idle")]


def _floor(context: Context, fleet: Fleet, backend: Endpoint, started: Sequence[Case]) -> list[Case]:
    """The row of a pair that is idle itself: what of a p99 beside downloads is the machine's own."""
    busy = next((case.endpoint for case in started if case.row.key == BackstreamApp.key), None)
    if busy is None:
        return []

    def turn(apart: Endpoint) -> Sample:
        with bulk(fleet, busy, "down") as end:
            return _probe(fleet, apart, context.options.duration, end)

    return context.cases(fleet, [_Apart()], backend, turn, "tunnels")


def _sample(fleet: Fleet, endpoint: Endpoint, state: str, seconds: int) -> Sample:
    """Probe an endpoint that is ``idle``, or has bulk streams ``down`` or ``up``."""
    with bulk(fleet, endpoint, state) as end:
        return _probe(fleet, endpoint, seconds, end)


def _probe(fleet: Fleet, endpoint: Endpoint, seconds: int, end: Callable[[], float] | None) -> Sample:
    """Probe an endpoint while bulk streams go on, here or elsewhere, which `end` ends."""
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
