"""The project's targets against this run: ratios mostly, since machines differ by a factor of two and more.

A target is met, or MISSED, only where the turns' whole range is on one side of its limit; else it is unclear. One that
this run did not measure (a contender is absent, a scenario was left out) is not listed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.contenders import TUNNELS
from bench.report.spread import Measure, Verdict, ratio, total
from bench.report.table import Row, Section

Sections = Mapping[str, Section]
Value = Callable[[Sections], Measure | None]

OURS = {"backstream-app": "in-process", "backstream-upstream": "upstream"}
_APP, _UPSTREAM = OURS
BULK = {
    "bulk-down-sized": "download, Content-Length",
    "bulk-down-chunked": "download, chunked",
    "bulk-up-sized": "upload, Content-Length",
    "bulk-up-chunked": "upload, chunked",
}
ORIGINAL, ORIGINAL_UPSTREAM = "original", "original-upstream"
NGINX = ("nginx", "nginx-64k")
"""Keys of nginx where bodies are large: with its default buffer, and with one that suits it better there."""
_NOT_THE_WAY = ("cpu.client", "cpu.service")
"""CPU of those at both ends, whoever is between them."""


@dataclass(frozen=True, slots=True)
class Target:
    """`value` looks a number up, None where not measured; `limit` is the most or the least it may be."""

    text: str
    limit: float
    at_most: bool
    value: Value
    unit: str = "×"


@dataclass(frozen=True, slots=True)
class Result:
    """A target that a run measured."""

    text: str
    limit: str
    measure: Measure
    verdict: Verdict


def _row(sections: Sections, section: str, row: str) -> Row | None:
    found = sections.get(section)
    return found.row(row) if found else None


def _measure(sections: Sections, section: str, row: str, sample: str) -> Measure | None:
    found = _row(sections, section, row)
    return found.measure(sample) if found else None


def cpu_between(row: Row | None) -> Measure | None:
    """CPU of all processes between client and service."""
    names = [name for name in row.samples if name.startswith("cpu.") and name not in _NOT_THE_WAY] if row else []
    return total([row.measure(name) for name in names]) if row else None


def fastest(sections: Sections, section: str, keys: Sequence[str]) -> Row | None:
    """That of these rows with the highest rate."""
    rows = [row for key in keys if (row := _row(sections, section, key)) is not None and row.samples]
    return max(rows, key=lambda row: row.median("rate") or 0.0, default=None)


def fastest_tunnel(sections: Sections, section: str) -> Row | None:
    """Of others."""
    return fastest(sections, section, TUNNELS)


def against(section: str, row: str, sample: str, to: str, to_sample: str = "") -> Value:
    """A row's sample against another row's."""

    def value(sections: Sections) -> Measure | None:
        return ratio(_measure(sections, section, row, sample), _measure(sections, section, to, to_sample or sample))

    return value


def against_fastest(section: str, row: str, keys: Sequence[str]) -> Value:
    """The rate against that of the fastest of these rows."""

    def value(sections: Sections) -> Measure | None:
        best = fastest(sections, section, keys)
        return ratio(_measure(sections, section, row, "rate"), best.measure("rate") if best else None)

    return value


def against_tunnel(section: str, row: str) -> Value:
    """The rate against that of the fastest other tunnel."""
    return against_fastest(section, row, TUNNELS)


def cpu_against(row: str, to: str | None) -> Value:
    """CPU of all processes between client and service per small request; `to` None for the fastest other tunnel's."""

    def value(sections: Sections) -> Measure | None:
        other = _row(sections, "small", to) if to else fastest_tunnel(sections, "small")
        return ratio(cpu_between(_row(sections, "small", row)), cpu_between(other))

    return value


def _growth(section: str, role: str, bound: str = "") -> Value:
    """The worst growth of ours, as it is or as a part of the bound."""

    def value(sections: Sections) -> Measure | None:
        rows = [row for row in sections[section].rows if row.ours] if section in sections else []
        grown = [row.worst(f"growth.{role}") for row in rows]
        if bound:
            bounds = [row.median(bound) for row in rows]
            parts = [ratio(found, Measure.exactly(by)) if by else None for found, by in zip(grown, bounds, strict=True)]
        else:
            parts = list(grown)
        return max((part for part in parts if part is not None), key=lambda part: part.value, default=None)

    return value


def _added(row: str) -> Value:
    """Milliseconds that are added to the p99 of events of the idle service itself."""

    def value(sections: Sections) -> Measure | None:
        own, direct = (_measure(sections, "sse", key, "p99") for key in (row, "direct:idle"))
        return (own - direct).scaled(1e-3) if own is not None and direct is not None else None

    return value


def _sample(section: str, row: str, sample: str) -> Value:
    return lambda sections: _measure(sections, section, row, sample)


def _within(section: str, row: str, sample: str, by: str) -> Value:
    return against(section, row, sample, row, by)


def _most_agents(sections: Sections) -> Measure | None:
    rows = [row for row in sections["agents"].rows if row.samples] if "agents" in sections else []
    return sections["agents"].compared(rows[-1].key, "cpu.proxy") if len(rows) > 1 else None


def _line(loss: float, others: Sequence[str]) -> Value:
    """One stream of ours against the best of the others on a line of 100 ms, in the direction where it is worst.

    loss: in percent.
    """
    cell = f"100ms:{loss:g}"

    def value(sections: Sections) -> Measure | None:
        found = []
        for section in ("wan-down", "wan-up"):
            best = fastest(sections, section, [f"{key}:{cell}" for key in others])
            ours = _measure(sections, section, f"{_APP}:{cell}", "rate")
            found.append(ratio(ours, best.measure("rate") if best else None))
        return min((part for part in found if part is not None), key=lambda part: part.value, default=None)

    return value


_SMALL = "small requests"

TARGETS = [
    Target(
        f"{_SMALL}/s in-process, against the original's pair",
        4,
        False,
        against("small", _APP, "rate", ORIGINAL),
    ),
    Target(f"CPU of both per {_SMALL[:-1]}, against the original's pair", 0.2, True, cpu_against(_APP, ORIGINAL)),
    Target(f"{_SMALL}/s in-process, against the fastest other tunnel", 2, False, against_tunnel("small", _APP)),
    Target(f"CPU of both per {_SMALL[:-1]}, against the fastest other tunnel", 0.5, True, cpu_against(_APP, None)),
    Target(
        f"{_SMALL}/s through an upstream, against the fastest other tunnel",
        1.0,
        False,
        against_tunnel("small", _UPSTREAM),
    ),
    Target(f"{_SMALL}/s in-process, against nginx", 1.3, False, against("small", _APP, "rate", "nginx")),
    Target(f"{_SMALL}/s through an upstream, against nginx", 0.85, False, against("small", _UPSTREAM, "rate", "nginx")),
    *(
        Target(f"{name} CPU per small request, against nginx", limit, True, against("small", row, sample, "nginx", by))
        for name, row, sample, by, limit in (
            ("proxy", _APP, "cpu.proxy", "cpu.proxy", 0.8),
            ("agent, ASGI,", _APP, "cpu.agent", "cpu.proxy", 0.3),
            ("agent, upstream,", _UPSTREAM, "cpu.agent", "cpu.proxy", 0.8),
        )
    ),
    # A third of what the original's pair takes, and 2.5 times what it reaches.
    Target(
        "CPU of both per small request, seed wire, against nginx", 1.5, True, cpu_against("backstream-seed", "nginx")
    ),
    Target(
        "small requests/s on the seed wire, against nginx",
        0.83,
        False,
        against("small", "backstream-seed", "rate", "nginx"),
    ),
    *(
        Target(f"{kind}, {name}, against nginx", 1.0, False, against_fastest(key, row, NGINX))
        for key, kind in BULK.items()
        for row, name in OURS.items()
    ),
    *(
        Target(f"{kind}, {name}, against the fastest other tunnel", 1.5, False, against_tunnel(key, row))
        for key, kind in BULK.items()
        for row, name in OURS.items()
    ),
    *(
        Target(
            f"p99 of small requests beside 8 bulk {name}, {way}, against idle",
            3.0,
            True,
            against("mixed", f"{row}:{state}", "p99", f"{row}:idle"),
        )
        for state, name in (("down", "downloads"), ("up", "uploads"))
        for row, way in OURS.items()
    ),
    *(
        Target(f"delay added to events, p99, {state}, {name}", limit, True, _added(f"{row}:{key}"), " ms")
        for key, state, limit in (("idle", "idle", 1.0), ("down", "beside 8 downloads", 3.0))
        for row, name in OURS.items()
    ),
    Target("one stream on a line of 100 ms, against plain TCP", 0.9, False, _line(0, ["tcp"])),
    Target("one stream on a line of 100 ms and 1 % loss, against the best tunnel", 1.0, False, _line(1, TUNNELS)),
    *(
        Target(f"growth of the {role} beside a stalled client", 32, True, _growth("memory", role), " MiB")
        for role in ("proxy", "agent")
    ),
    *(
        Target(
            f"growth of the {role} for streams that stall, against the bound",
            1.0,
            True,
            _growth("stalled", role, "bound"),
        )
        for role in ("proxy", "agent")
    ),
    *(
        Target(
            f"p99 of small requests beside stalled streams, {name}, against idle",
            1.2,
            True,
            _within("stalled", row, "p99.beside", "p99.idle"),
        )
        for row, name in OURS.items()
    ),
    # "Flat within noise": 15 % is what turns of one and the same thing differ by on a shared machine.
    Target("proxy CPU per request with the most agents, against one", 1.15, True, _most_agents),
    Target("memory of the proxy per idle agent", 24, True, _sample("idle", "agents", "memory"), " KiB"),
    Target("memory of the proxy per idle client", 16, True, _sample("idle", "clients", "memory"), " KiB"),
    Target("all agents back after a restart of the proxy", 10, True, _sample("idle", "return", "back"), " s"),
    Target(
        "p99 of small requests while they come back, against idle",
        5.0,
        True,
        _within("idle", "return", "p99.return", "p99.idle"),
    ),
    *(
        Target(f"TLS on both legs, {what}, {name}, against nginx", 1.0, False, against_fastest(key, row, NGINX))
        for key, what in (("tls-small", "small requests/s"), ("tls-bulk", "download"))
        for row, name in OURS.items()
    ),
]


def results(sections: Sections) -> list[Result]:
    """Each target that this run measured."""
    found = []
    for target in TARGETS:
        measure = target.value(sections)
        if measure is not None:
            limit = f"{'≤' if target.at_most else '≥'} {target.limit:g}{target.unit}"
            verdict = measure.held_to(target.limit, at_most=target.at_most)
            found.append(Result(target.text, limit, measure, verdict))
    return found


def span(measure: Measure) -> str:
    """The range of a measure, for people."""
    if not measure.known:
        return "one turn"
    return "worst of all turns" if measure.low == measure.high else f"{measure.low:.2f} to {measure.high:.2f}"


def render(sections: Sections) -> str:
    found = results(sections)
    if not found:
        return "targets: none measured (they are about backstream)"
    width = max(len(result.text) for result in found)
    lines = ["targets (unclear: the limit lies within the range of the turns):"]
    for result in found:
        value = f"{result.measure.value:>8.2f}  {result.verdict:<7}"
        lines.append(f"  {result.text:<{width}}  {result.limit:>9}  {value}  {span(result.measure)}")
    return "\n".join(lines)
