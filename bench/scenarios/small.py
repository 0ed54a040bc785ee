"""Small requests: ``GET /small`` over 64 kept connections in a closed loop, through everyone; then over 1 and 512.

Over 1 and 512 nginx, the ASGI application and the upstream take part. The service is nginx answering 14 bytes by
itself, or the same in the agent's process. CPU is that of the load's window, divided by the requests answered in it;
the peak is VmHWM since the process began.
"""

from functools import partial

from bench.contenders import Contender, Direct, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamBare, BackstreamSeed, BackstreamUpstream
from bench.contenders.nginx import INSTALL, NginxProxy, find_nginx
from bench.contenders.others import others_for_small
from bench.context import Case, Context, CpuMeter, Sample, again, peaks, start_small_backend
from bench.errors import BenchError
from bench.load import client_name, load
from bench.processes import Fleet
from bench.report.table import Section, standard_columns

COMPARED = ("nginx", "backstream-app", "backstream-upstream")
"""Keys of the contenders whose requests are looked at more closely, here and in rate.py."""


def contenders(backend_name: str) -> list[Contender]:
    return [
        Direct(f"{backend_name} direct"),
        NginxProxy(),
        BackstreamApp(),
        BackstreamBare(),
        BackstreamUpstream(),
        BackstreamSeed(),
        *others_for_small(),
    ]


def run(context: Context) -> list[Section]:
    options = context.options
    if not find_nginx():
        context.say(f"  {INSTALL}")
    with context.fleet() as fleet:
        backend, backend_name = start_small_backend(fleet)

        def turn(connections: int, endpoint: Endpoint) -> Sample:
            return small_sample(fleet, endpoint, connections, options.duration)

        started = context.cases(fleet, contenders(backend_name), backend, partial(turn, options.connections))
        warm_up(context, fleet, started)
        fewer = [case for case in started if case.row.key in COMPARED]
        return [
            Section(
                "small" if connections == options.connections else f"small-{connections}",
                f"GET /small, {client_name()}, {connections} connection{'s' * (connections > 1)}, "
                f"{options.duration} s × {options.repeat}, upstream service: {backend_name}",
                standard_columns("req/s", "µs/req", latency=True),
                context.take_turns(f"small, {connections}", again(cases, partial(turn, connections))),
                "nginx",
            )
            for connections, cases in (
                (options.connections, started),
                *((other, fewer) for other in options.other_connections),
            )
        ]


def warm_up(context: Context, fleet: Fleet, cases: list[Case]) -> None:
    """A little load on each, before its first turn."""
    for case in cases:
        if case.endpoint is not None and context.options.warm_up:
            try:
                load(fleet, case.endpoint.port, context.options.connections, context.options.warm_up)
            except BenchError as error:
                context.fail(case.row, error)


def small_sample(fleet: Fleet, endpoint: Endpoint, connections: int, seconds: int, *, fresh: bool = False) -> Sample:
    """One turn of load on an endpoint; with `fresh` on a new connection for each request."""
    meter = CpuMeter(endpoint)
    result = load(fleet, endpoint.port, connections, seconds, ca=endpoint.ca, fresh=fresh)
    count = result["requests"]
    return {
        "rate": count / result["seconds"],
        "p50": result["p50"],
        "p99": result["p99"],
        "cpu.client": result["cpu_seconds"] * 1e6 / count,
        **meter.used(count * 1000),
        **peaks(endpoint),
    }
