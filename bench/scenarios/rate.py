"""Rate: ``GET /small`` at fixed rates over 64 kept connections, in an open loop.

Requests are due at even distances, whatever became of those before; each latency counts from when its request was due
(clients/open_loop.py), so that a pause of 10 ms at 10,000/s shows as 100 slow requests and not as one. The same
backend and contenders as in small.py. A contender that can't keep up gathers a backlog, which its latencies and
"answered/s" show; CPU is that of the run, divided by the requests answered.
"""

import json
import sys
from functools import partial

from bench import compiled
from bench.contenders import Endpoint
from bench.contenders.others import others_for_small
from bench.context import Context, CpuMeter, Sample, again, start_small_backend
from bench.errors import BenchError
from bench.processes import Fleet
from bench.report.table import Section, median, ratio, spread
from bench.scenarios.small import COMPARED, contenders, warm_up

RATES = (10_000, 30_000)
QUICK_RATES = (2_000,)

_COLUMNS = [
    median("answered/s", "rate"),
    median("p50 µs", "p50"),
    median("p99 µs", "p99"),
    spread("p99"),
    median("p99.9 µs", "p999"),
    ratio("p99 × nginx", "p99"),
    *(median(f"{role} µs/req", f"cpu.{role}", 1) for role in ("proxy", "agent", "service", "client")),
]


def run(context: Context) -> list[Section]:
    options = context.options
    try:
        compiled.load("bench.clients._open_loop")
    except BenchError as error:
        context.say(f"  rate: skipped: {error}")
        return []
    with context.fleet() as fleet:
        backend, backend_name = start_small_backend(fleet)

        def turn(rate: int, endpoint: Endpoint) -> Sample:
            return _sample(fleet, endpoint, options.connections, rate, options.duration)

        compared = [each for each in contenders(backend_name) if each.key in ("direct", *COMPARED)]
        compared += others_for_small()
        rates = QUICK_RATES if options.quick else RATES
        started = context.cases(fleet, compared, backend, partial(turn, rates[0]), "nearest")
        warm_up(context, fleet, started)
        times = f"{options.connections} connections, {options.duration} s × {options.repeat}"
        return [
            Section(
                f"rate-{rate}",
                f"GET /small at {rate:,}/s in an open loop, {times}, upstream service: {backend_name}",
                _COLUMNS,
                context.take_turns(f"rate {rate:,}/s", again(started, partial(turn, rate))),
                "nginx",
            )
            for rate in rates
        ]


def _sample(fleet: Fleet, endpoint: Endpoint, connections: int, rate: int, seconds: int) -> Sample:
    client = [sys.executable, "-m", "bench.clients.open_loop"]
    argv = [*client, str(endpoint.port), str(connections), str(rate), str(seconds)]
    meter = CpuMeter(endpoint)
    result = json.loads(fleet.run("open loop", argv, timeout=seconds + 40))
    count = result["requests"]
    if result["lost"] or not count:
        raise BenchError(f"{result['lost']} of {rate * seconds} requests were lost, {count} answered")
    return {
        "rate": count / result["seconds"],
        **{name: result[name] for name in ("p50", "p99", "p999", "longest")},
        "cpu.client": result["cpu_seconds"] * 1e6 / count,
        **meter.used(count * 1000),
    }
