"""WebSockets: messages of 32 bytes echoed on 64 connections, each sending its next one when the last came back.

The service (services/echo.py) is as light as Python allows, so that what is in front of it shows; behind the ASGI
application there is none. CPU is that of the load's window, divided by the messages that came back in it.
"""

import json
import sys

from bench.contenders import Contender, Direct, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream
from bench.contenders.nginx import NginxProxy
from bench.contenders.others import others
from bench.context import Context, CpuMeter, Sample, peaks
from bench.errors import BenchError
from bench.net import free_port, wait_until_answering
from bench.processes import Fleet
from bench.report.table import Section, standard_columns

UPGRADE = 'proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; proxy_buffering off;'


def run(context: Context) -> list[Section]:
    options = context.options
    with context.fleet() as fleet:
        contenders: list[Contender] = [
            Direct("echo direct"),
            NginxProxy(name="nginx reverse proxy", extra=UPGRADE),
            BackstreamUpstream(),
            BackstreamApp(),
            *others(UPGRADE, websockets=True),
        ]

        def turn(endpoint: Endpoint) -> Sample:
            return echo_sample(fleet, endpoint, options.connections, options.duration)

        rows = context.take_turns("websocket", context.cases(fleet, contenders, start_echo(fleet), turn, "nearest"))
    title = f"WebSocket echo of 32 bytes, {options.connections} connections, {options.duration} s × {options.repeat}"
    return [Section("websocket", title, standard_columns("msg/s", "µs/msg", latency=True), rows, "nginx")]


def start_echo(fleet: Fleet) -> Endpoint:
    port = free_port()
    service = fleet.spawn("echo service", [sys.executable, "-m", "bench.services.echo", str(port)])
    wait_until_answering(port, "echo service", fleet.check)
    return Endpoint(port, {"service": service.pid})


def echo_sample(fleet: Fleet, endpoint: Endpoint, connections: int, seconds: int) -> Sample:
    """One turn of load on an endpoint."""
    meter = CpuMeter(endpoint)
    argv = [sys.executable, "-m", "bench.clients.echo", str(endpoint.port), str(connections), str(seconds)]
    result = json.loads(fleet.run("echo load", argv, timeout=seconds + 30).strip().splitlines()[-1])
    if result["errors"] or not result["messages"]:
        raise BenchError("a WebSocket was refused or cut, or an echo was wrong")
    count = result["messages"]
    return {
        "rate": count / result["seconds"],
        "p50": result["p50"],
        "p99": result["p99"],
        **meter.used(count * 1000),
        **peaks(endpoint),
    }
