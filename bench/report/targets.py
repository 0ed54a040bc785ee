"""The project's targets against this run's medians: ratios, since machines differ by a factor of two and
more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.report.table import Section, quotient
from bench.scenarios import sse
from bench.scenarios.bulk import KINDS

Sections = Mapping[str, Section]


@dataclass(frozen=True, slots=True)
class Target:
    """`value` looks a number up, None where not measured; `limit` is the most or the least it may be."""

    text: str
    limit: float
    at_most: bool
    value: Callable[[Sections], float | None]
    unit: str = "×"

    def met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


def _ratio(section: str, row: str, sample: str, to: str | None = None) -> Callable[[Sections], float | None]:
    def value(sections: Sections) -> float | None:
        found = sections.get(section)
        return found.ratio(row, sample, to) if found else None

    return value


def _agent_cpu(sections: Sections) -> float | None:
    """The agent's CPU against the yardstick's, nginx as reverse proxy."""
    rows = [sections["small"].row(key) for key in ("backstream-app", "nginx")] if "small" in sections else []
    if len(rows) < 2 or rows[0] is None or rows[1] is None:
        return None
    return quotient(rows[0].median("cpu.agent"), rows[1].median("cpu.proxy"))


def _seed_cpu(sections: Sections) -> float | None:
    """CPU of proxy and agent together on the seed wire, against nginx."""
    rows = [sections["small"].row(key) for key in ("backstream-seed", "nginx")] if "small" in sections else []
    if len(rows) < 2 or rows[0] is None or rows[1] is None:
        return None
    parts = [rows[0].median("cpu.proxy"), rows[0].median("cpu.agent")]
    known = [part for part in parts if part is not None]
    return quotient(sum(known), rows[1].median("cpu.proxy")) if len(known) == 2 else None


def _growth(role: str) -> Callable[[Sections], float | None]:
    def value(sections: Sections) -> float | None:
        rows = sections["memory"].rows if "memory" in sections else []
        grown = [row.highest(f"growth.{role}") for row in rows if row.key.startswith("backstream")]
        return max((growth for growth in grown if growth is not None), default=None)

    return value


def _added(row: str) -> Callable[[Sections], float | None]:
    def value(sections: Sections) -> float | None:
        found = sections["sse"].row(row) if "sse" in sections else None
        microseconds = sse.added(found, sections["sse"]) if found else None
        return microseconds / 1000 if microseconds is not None else None

    return value


def _beside_stalled(row: str) -> Callable[[Sections], float | None]:
    def value(sections: Sections) -> float | None:
        found = sections["stalled"].row(row) if "stalled" in sections else None
        return quotient(found.median("p99.beside"), found.median("p99.idle")) if found else None

    return value


def _stalled(role: str) -> Callable[[Sections], float | None]:
    """The worst growth as a part of the bound."""

    def value(sections: Sections) -> float | None:
        rows = sections["stalled"].rows if "stalled" in sections else []
        parts = [quotient(row.highest(f"growth.{role}"), row.median("bound")) for row in rows]
        return max((part for part in parts if part is not None), default=None)

    return value


def _idle(row: str, sample: str, by: str | None = None) -> Callable[[Sections], float | None]:
    def value(sections: Sections) -> float | None:
        found = sections["idle"].row(row) if "idle" in sections else None
        if found is None or by is None:
            return found.median(sample) if found else None
        return quotient(found.median(sample), found.median(by))

    return value


def _most_agents(sections: Sections) -> float | None:
    rows = [row for row in sections["agents"].rows if row.samples] if "agents" in sections else []
    return sections["agents"].ratio(rows[-1].key, "cpu.proxy") if len(rows) > 1 else None


TARGETS = [
    Target(
        "proxy CPU per small request, against nginx",
        1.0,
        True,
        _ratio("small", "backstream-app", "cpu.proxy", "nginx"),
    ),
    Target("agent CPU per small request, ASGI, against nginx", 0.4, True, _agent_cpu),
    # A third of what the original's pair takes, and 2.5 times what it reaches.
    Target("proxy and agent CPU per small request, seed wire, against nginx", 1.5, True, _seed_cpu),
    Target("requests/s on the seed wire, against nginx", 0.83, False, _ratio("small", "backstream-seed", "rate")),
    Target("requests/s in-process, against nginx", 1.1, False, _ratio("small", "backstream-app", "rate")),
    Target(
        "requests/s through an upstream, against nginx",
        0.7,
        False,
        _ratio("small", "backstream-upstream", "rate"),
    ),
    *(
        Target(f"{kind}, {name}, against nginx", 0.8, False, _ratio(key, row, "rate"))
        for key, kind in KINDS.items()
        for row, name in (("backstream-app", "in-process"), ("backstream-upstream", "upstream"))
    ),
    Target("growth of the proxy beside a stalled client", 32, True, _growth("proxy"), " MiB"),
    Target("growth of the agent beside a stalled client", 32, True, _growth("agent"), " MiB"),
    *(
        Target(
            f"p99 of small requests beside 8 bulk {name}, against idle",
            5.0,
            True,
            _ratio("mixed", f"backstream-app:{state}", "p99", "backstream-app:idle"),
        )
        for state, name in (("down", "downloads"), ("up", "uploads"))
    ),
    *(
        Target(f"delay added to events, p99, {state}, {name}", limit, True, _added(f"{row}:{key}"), " ms")
        for key, state, limit in (("idle", "idle", 1.0), ("down", "beside 8 downloads", 5.0))
        for row, name in (("backstream-app", "in-process"), ("backstream-upstream", "upstream"))
    ),
    # "Flat within noise": 15 % is what turns of one and the same thing differ by on a shared machine.
    Target("proxy CPU per request with the most agents, against one", 1.15, True, _most_agents),
    *(
        Target(f"growth of the {role} for streams that stall, against the bound", 1.0, True, _stalled(role))
        for role in ("proxy", "agent")
    ),
    *(
        Target(f"p99 of small requests beside stalled streams, {name}, against idle", 5.0, True, _beside_stalled(row))
        for row, name in (("backstream-app", "in-process"), ("backstream-upstream", "upstream"))
    ),
    Target("memory of the proxy per idle agent", 24, True, _idle("agents", "memory"), " KiB"),
    Target("memory of the proxy per idle client", 16, True, _idle("clients", "memory"), " KiB"),
    Target("all agents back after a restart of the proxy", 10, True, _idle("return", "back"), " s"),
    Target(
        "p99 of small requests while they come back, against idle", 5.0, True, _idle("return", "p99.return", "p99.idle")
    ),
]


def verdicts(sections: Sections) -> list[dict[str, object]]:
    """Each target that this run measured: its text, limit, value and whether it is met."""
    found = []
    for target in TARGETS:
        value = target.value(sections)
        if value is not None:
            sign = "≤" if target.at_most else "≥"
            found.append(
                {
                    "target": target.text,
                    "limit": f"{sign} {target.limit:g}{target.unit}",
                    "value": value,
                    "met": target.met(value),
                }
            )
    return found


def render(sections: Sections) -> str:
    rows = verdicts(sections)
    if not rows:
        return "targets: none measured (they are about backstream)"
    width = max(len(str(row["target"])) for row in rows)
    lines = ["targets:"]
    for row in rows:
        verdict = "met" if row["met"] else "MISSED"
        lines.append(f"  {row['target']:<{width}}  {row['limit']!s:>9}  {row['value']:>8.2f}  {verdict}")
    return "\n".join(lines)
