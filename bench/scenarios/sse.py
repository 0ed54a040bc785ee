"""Events: how much later a Server-Sent Event arrives for what stands between the service and its client.

The service makes an event every 5 ms that says when it was made; all processes read the same clock. "Added" is the
99th percentile of that delay, idle or beside eight endless downloads by the same way, less the one of an idle service
without anything between: what the service and the client themselves take is in both. "First byte" is how long it
takes from a request for one event, on a kept connection, to the first byte of that event, one such request after the
other. Others' tunnels take part beside the downloads.
"""

import json

from bench.contenders import Contender, Direct, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream
from bench.contenders.nginx import UNBUFFERED, unbuffered
from bench.contenders.others import others
from bench.context import Context, Sample
from bench.load import RAW
from bench.processes import Fleet
from bench.report.table import Column, Row, Section, median, number, spread
from bench.scenarios.beside import STREAMS, bulk, measure

STATES = {"idle": "idle", "down": f"{STREAMS} downloads"}


def added(row: Row, section: Section) -> float | None:
    """µs that are added to the p99 of the idle service itself."""
    direct, own = section.row("direct:idle"), row.median("p99")
    base = direct.median("p99") if direct is not None else None
    return own - base if own is not None and base is not None and row is not direct else None


_COLUMNS = [
    median("events/s", "rate"),
    median("p50 µs", "p50"),
    median("p99 µs", "p99"),
    spread("p99"),
    Column("added p99 µs", lambda row, section: number(added(row, section))),
    median("first byte p50 µs", "first.p50"),
    median("first byte p99 µs", "first.p99"),
]


def run(context: Context) -> list[Section]:
    contenders: list[Contender] = [
        Direct("bench service direct"),
        unbuffered(),
        BackstreamApp(),
        BackstreamUpstream(),
        *others(UNBUFFERED, events=True),
    ]
    rows = measure(context, "sse", contenders, STATES, _sample, nearest=["idle"])
    title = f"delay of Server-Sent Events, one each 5 ms, {context.options.duration} s × {context.options.repeat}"
    return [Section("sse", title, _COLUMNS, rows)]


def _sample(fleet: Fleet, endpoint: Endpoint, state: str, seconds: int) -> Sample:
    with bulk(fleet, endpoint, state):
        result, first = (
            json.loads(
                fleet.run(what, [*RAW, what, str(endpoint.port), "--duration", str(seconds)], timeout=seconds + 30)
            )
            for what, seconds in (("events", seconds), ("first", max(1, seconds // 3)))
        )
    return {
        "rate": result["events"] / seconds,
        "p50": result["p50"],
        "p99": result["p99"],
        "first.p50": first["p50"],
        "first.p99": first["p99"],
    }
