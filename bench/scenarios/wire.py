"""Wire: the native one against that of the original, with the same application in the agent.

Small requests as in small.py. Bulk as 128 bodies that are 256 MiB together, each way, four at a time, each on a
connection of its own, with a Content-Length: on the original's wire a body is one message, and 10 MiB is the most of
one by default. With --quick all are 64 MiB together.
"""

from functools import partial

from bench.contenders import Contender, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamSeed
from bench.context import Context, Sample, again, start_bulk_backend
from bench.load import client_name
from bench.processes import Fleet
from bench.report.table import Section, standard_columns
from bench.routes import MIB
from bench.scenarios.bulk import bulk_sample
from bench.scenarios.small import small_sample, warm_up

BODIES, AT_ONCE = 128, 4
DIRECTIONS = {"down": "download", "up": "upload"}


def run(context: Context) -> list[Section]:
    options = context.options
    contenders: list[Contender] = [BackstreamApp(), BackstreamSeed()]
    with context.fleet() as fleet:

        def small_turn(endpoint: Endpoint) -> Sample:
            return small_sample(fleet, endpoint, options.connections, options.duration)

        started = context.cases(fleet, contenders, start_bulk_backend(fleet), small_turn)
        warm_up(context, fleet, started)
        sections = [
            Section(
                "wire-small",
                f"GET /small, {client_name()}, {options.connections} connections, "
                f"{options.duration} s × {options.repeat}",
                standard_columns("req/s", "µs/req", latency=True, reference="native"),
                context.take_turns("wire, small", started),
                "backstream-app",
            )
        ]
        for direction, name in DIRECTIONS.items():
            turn = partial(_bulk_turn, fleet, direction, options.bulk_bytes)
            sections.append(
                Section(
                    f"wire-{direction}",
                    f"{name}, {BODIES} bodies of {options.bulk_bytes / BODIES / MIB:g} MiB, {AT_ONCE} at a time "
                    f"× {options.repeat}",
                    standard_columns("MiB/s", "ms/GiB", latency=False, reference="native"),
                    context.take_turns(f"wire, {name}", again(started, turn)),
                    "backstream-app",
                )
            )
        return sections


def _bulk_turn(fleet: Fleet, direction: str, size: int, endpoint: Endpoint) -> Sample:
    return bulk_sample(fleet, endpoint, direction, size, chunked=False, streams=AT_ONCE, bodies=BODIES)
