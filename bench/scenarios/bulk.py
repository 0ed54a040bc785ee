"""Bulk: one stream that carries 256 MiB (64 MiB with --quick), down and up, with a Content-Length and chunked; then 16
streams that carry as much together, each a sixteenth with a Content-Length. Others' tunnels take part with a length.

A client of a few raw sockets counts every byte (clients/raw.py); the service is bench/services/service.py, or the ASGI
application in the agent's process. nginx has buffering off, once with its default buffer and once with
one of 64 KiB. Time runs from the connect to the answer's last byte, of 16 from the first connect to the last of all.
"""

import json
import sys
from functools import partial

from bench.contenders import Contender, Direct, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream
from bench.contenders.nginx import LARGE_BUFFERS, UNBUFFERED, large_buffers, unbuffered
from bench.contenders.others import others
from bench.context import Context, CpuMeter, Sample, again, peaks, start_bulk_backend
from bench.processes import Fleet
from bench.report.table import Section, standard_columns
from bench.report.targets import BULK
from bench.routes import GIB, MIB

STREAMS = 16
MANY = {
    f"bulk{STREAMS}-down-sized": "download, Content-Length",
    f"bulk{STREAMS}-up-sized": "upload, Content-Length",
}


def contenders() -> list[Contender]:
    return [
        Direct("bench service direct"),
        unbuffered(),
        large_buffers(),
        BackstreamApp(),
        BackstreamUpstream(),
        *others(f"{UNBUFFERED} {LARGE_BUFFERS}"),
    ]


def run(context: Context) -> list[Section]:
    options = context.options
    with context.fleet() as fleet:
        backend = start_bulk_backend(fleet)

        def turn(key: str, endpoint: Endpoint) -> Sample:
            _, direction, framing = key.split("-")
            streams = STREAMS if key in MANY else 1
            chunked = framing == "chunked"
            return bulk_sample(fleet, endpoint, direction, options.bulk_bytes, chunked=chunked, streams=streams)

        started = context.cases(fleet, contenders(), backend, partial(turn, "bulk-down-sized"), "tunnels")
        nearest = [case for case in started if options.wants(case.row.key, "nearest")]
        return [
            Section(
                key,
                f"{kind}, {options.bulk_bytes // MIB} MiB in {f'{STREAMS} streams' if key in MANY else 'one stream'} "
                f"× {options.repeat}",
                standard_columns("MiB/s", "ms/GiB", latency=False),
                context.take_turns(key, again(cases, partial(turn, key))),
                "nginx",
            )
            for key, kind, cases in (
                *((key, kind, nearest if key.endswith("chunked") else started) for key, kind in BULK.items()),
                *((key, kind, started) for key, kind in MANY.items()),
            )
        ]


def bulk_sample(
    fleet: Fleet, endpoint: Endpoint, direction: str, size: int, *, chunked: bool, streams: int = 1, bodies: int = 0
) -> Sample:
    """`size` bytes ``down`` or ``up`` in one body, in one for each of the `streams`, or in so many `bodies`."""
    argv = [sys.executable, "-m", "bench.clients.raw", "bulk", str(endpoint.port), direction, str(size)]
    argv += ["--ca", endpoint.ca] if endpoint.ca else []
    argv += ["--streams", str(streams), "--bodies", str(bodies)]
    meter = CpuMeter(endpoint)
    result = json.loads(fleet.run("bulk client", argv + ["--chunked"] * chunked, timeout=60 + size / (20 * MIB)))
    return {
        "rate": size / MIB / result["seconds"],
        "cpu.client": result["cpu_seconds"] * 1e3 * GIB / size,
        **meter.used(1e6 * size / GIB),
        **peaks(endpoint),
    }
