"""Rows of samples, and the table that shows their medians."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Samples = dict[str, list[float]]


@dataclass(slots=True)
class Row:
    """One contender in one measurement: every sample taken, by name."""

    key: str
    name: str
    samples: Samples = field(default_factory=dict)
    skipped: str | None = None
    """Why it was not measured, and how to install it; not an error."""
    failed: str | None = None

    def add(self, sample: Mapping[str, float | None]) -> None:
        for name, value in sample.items():
            if value is not None:
                self.samples.setdefault(name, []).append(value)

    def median(self, name: str) -> float | None:
        values = self.samples.get(name)
        return statistics.median(values) if values else None

    def highest(self, name: str) -> float | None:
        return max(self.samples.get(name, ()), default=None)

    def spread(self, name: str) -> float | None:
        """Half the distance from the lowest to the highest sample, as a share of the median."""
        values = self.samples.get(name, ())
        middle = self.median(name)
        if len(values) < 2 or not middle:
            return None
        return (max(values) - min(values)) / 2 / middle


Cell = Callable[[Row, "Section"], str]


@dataclass(frozen=True, slots=True)
class Column:
    heading: str
    cell: Cell


@dataclass(slots=True)
class Section:
    """One measurement: what was done, and a row for each contender."""

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    reference: str = ""
    """Key of the row that ratios refer to."""

    def row(self, key: str) -> Row | None:
        return next((row for row in self.rows if row.key == key), None)

    def ratio(self, key: str, name: str, to: str | None = None) -> float | None:
        """Median of a row against that of the reference row."""
        row, reference = self.row(key), self.row(to or self.reference)
        if row is None or reference is None:
            return None
        return quotient(row.median(name), reference.median(name))


def quotient(value: float | None, by: float | None) -> float | None:
    return value / by if value is not None and by else None


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def median(heading: str, name: str, digits: int = 0) -> Column:
    return Column(heading, lambda row, _: number(row.median(name), digits))


def highest(heading: str, name: str, digits: int = 0) -> Column:
    return Column(heading, lambda row, _: number(row.highest(name), digits))


def spread(name: str) -> Column:
    def cell(row: Row, _: Section) -> str:
        share = row.spread(name)
        return "-" if share is None else f"{share:.0%}"

    return Column("±", cell)


def ratio(heading: str, name: str) -> Column:
    return Column(heading, lambda row, section: number(section.ratio(row.key, name), 2))


def standard_columns(rate: str, cpu: str, *, latency: bool, reference: str = "nginx") -> list[Column]:
    """Rate, its spread and ratio, latencies, CPU per unit for each process, and peak memory."""
    return [
        median(rate, "rate"),
        spread("rate"),
        ratio(f"× {reference}", "rate"),
        *((median("p50 µs", "p50"), median("p99 µs", "p99")) if latency else ()),
        *(median(f"{role} {cpu}", f"cpu.{role}", 1) for role in ("proxy", "agent", "service", "client")),
        *(highest(f"{role} peak MiB", f"peak.{role}", 1) for role in ("proxy", "agent")),
    ]


def render(sections: Sequence[Section]) -> str:
    """The whole table as text; the first column is as wide in every section."""
    width = max((len(row.name) for section in sections for row in section.rows), default=0)
    return "\n\n".join(_render(section, width) for section in sections)


def _render(section: Section, width: int) -> str:
    measured = [row for row in section.rows if row.samples]
    cells = {row.key: [column.cell(row, section) for column in section.columns] for row in measured}
    shown = [i for i in range(len(section.columns)) if any(cells[row.key][i] != "-" for row in measured)]
    widths = {i: max([len(section.columns[i].heading), *(len(cells[row.key][i]) for row in measured)]) for i in shown}
    lines = [f"{section.key}: {section.title}"]
    if measured:
        headings = (section.columns[i].heading.rjust(widths[i]) for i in shown)
        lines.append("  ".join(["  " + " " * width, *headings]))
    for row in section.rows:
        text = [f"  {row.name:<{width}}"]
        if row.samples:
            text += [cells[row.key][i].rjust(widths[i]) for i in shown]
        if row.skipped:
            text.append(f"skipped: {row.skipped}")
        if row.failed:
            text.append(f"FAILED: {row.failed}")
        lines.append("  ".join(text))
    return "\n".join(lines)
