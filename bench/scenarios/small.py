"""Small requests: ``GET /small`` over 64 kept connections in a closed loop, through every contender.

The service is nginx answering 14 bytes by itself, or the same in the agent's process. CPU is that of the
load's window, divided by the requests answered in it; the peak is VmHWM since the process began.
"""

from bench.contenders import Direct, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamBare, BackstreamSeed, BackstreamUpstream
from bench.contenders.nginx import INSTALL, NginxProxy, find_nginx
from bench.contenders.others import others_for_small
from bench.context import Context, CpuMeter, Sample, peaks, start_small_backend
from bench.errors import BenchError
from bench.load import client_name, load
from bench.processes import Fleet
from bench.report.table import Section, standard_columns


def run(context: Context) -> list[Section]:
    options = context.options
    with context.fleet() as fleet:
        backend, backend_name = start_small_backend(fleet)
        contenders = [
            Direct(f"{backend_name} direct"),
            NginxProxy(),
            BackstreamApp(),
            BackstreamBare(),
            BackstreamUpstream(),
            BackstreamSeed(),
            *context.beside(others_for_small()),
        ]
        if not find_nginx():
            context.say(f"  {INSTALL}")

        def turn(endpoint: Endpoint) -> Sample:
            return small_sample(fleet, endpoint, options.connections, options.of(endpoint).duration)

        cases = context.cases(fleet, contenders, backend, turn)
        for case in cases:
            if case.endpoint is not None and options.warm_up:
                try:
                    load(fleet, case.endpoint.port, options.connections, options.warm_up)
                except BenchError as error:
                    context.fail(case.row, error)
        rows = context.take_turns("small", cases)
    title = (
        f"GET /small, {client_name()}, {options.connections} connections, "
        f"{options.duration} s × {options.repeat}, upstream service: {backend_name}"
    )
    return [Section("small", title, standard_columns("req/s", "µs/req", latency=True), rows, "nginx")]


def small_sample(fleet: Fleet, endpoint: Endpoint, connections: int, seconds: int) -> Sample:
    """One turn of load on an endpoint."""
    meter = CpuMeter(endpoint)
    result = load(fleet, endpoint.port, connections, seconds, ca=endpoint.ca)
    count = result["requests"]
    return {
        "rate": count / result["seconds"],
        "p50": result["p50"],
        "p99": result["p99"],
        "cpu.client": result["cpu_seconds"] * 1e6 / count,
        **meter.used(count * 1000),
        **peaks(endpoint),
    }
