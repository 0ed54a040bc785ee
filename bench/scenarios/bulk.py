"""Bulk: one stream that carries 1 GiB (64 MiB with --quick), down and up, with a Content-Length and chunked.

A client of a few raw sockets counts every byte (clients/raw.py); the service is bench/services/service.py, or the ASGI
application in the agent's process. nginx has buffering off, once with its default buffer and once with
one of 64 KiB. Time runs from the connect to the answer's last byte.
"""

import json
import sys
from functools import partial

from bench.contenders import Contender, Direct, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream
from bench.contenders.nginx import LARGE_BUFFERS, UNBUFFERED, NginxProxy
from bench.contenders.others import others
from bench.context import Case, Context, CpuMeter, Sample, peaks, start_bulk_backend
from bench.processes import Fleet
from bench.report.table import Row, Section, standard_columns
from bench.routes import GIB, MIB

KINDS = {
    "bulk-down-sized": "download, Content-Length",
    "bulk-down-chunked": "download, chunked",
    "bulk-up-sized": "upload, Content-Length",
    "bulk-up-chunked": "upload, chunked",
}


def contenders(context: Context) -> list[Contender]:
    return [
        Direct("bench service direct"),
        NginxProxy(name="nginx, buffering off", extra=UNBUFFERED),
        NginxProxy(
            key="nginx-64k",
            name="nginx, the same, 64 KiB buffer",
            extra=f"{UNBUFFERED} {LARGE_BUFFERS}",
        ),
        BackstreamApp(),
        BackstreamUpstream(),
        *context.beside(others(f"{UNBUFFERED} {LARGE_BUFFERS}")),
    ]


def run(context: Context) -> list[Section]:
    options = context.options
    sections = []
    with context.fleet() as fleet:
        backend = start_bulk_backend(fleet)

        def turn(key: str, endpoint: Endpoint) -> Sample:
            _, direction, framing = key.split("-")
            return bulk_sample(
                fleet, endpoint, direction, options.of(endpoint).bulk_bytes, chunked=framing == "chunked"
            )

        started = context.cases(fleet, contenders(context), backend, partial(turn, "bulk-down-sized"))
        for key, kind in KINDS.items():
            cases = [
                Case(
                    Row(case.row.key, case.row.name, skipped=case.row.skipped, failed=case.row.failed),
                    partial(turn, key, case.endpoint) if case.endpoint else None,
                    turns=case.turns,
                )
                for case in started
            ]
            rows = context.take_turns(kind, cases)
            title = f"{kind}, {options.bulk_bytes // MIB} MiB in one stream × {options.repeat}"
            columns = standard_columns("MiB/s", "ms/GiB", latency=False)
            sections.append(Section(key, title, columns, rows, "nginx"))
    return sections


def bulk_sample(fleet: Fleet, endpoint: Endpoint, direction: str, size: int, *, chunked: bool) -> Sample:
    """One transfer; `direction` is ``down`` or ``up``."""
    argv = [sys.executable, "-m", "bench.clients.raw", "bulk", str(endpoint.port), direction, str(size)]
    argv += ["--ca", endpoint.ca] if endpoint.ca else []
    meter = CpuMeter(endpoint)
    result = json.loads(fleet.run("bulk client", argv + ["--chunked"] * chunked, timeout=60 + size / (20 * MIB)))
    return {
        "rate": size / MIB / result["seconds"],
        "cpu.client": result["cpu_seconds"] * 1e3 * GIB / size,
        **meter.used(1e6 * size / GIB),
        **peaks(endpoint),
    }
