"""Rows of samples, and the table that shows their medians."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.report.spread import LEGEND, Measure, ratio_text
from bench.report.spread import ratio as quotient_of

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

    def measure(self, name: str) -> Measure | None:
        """The median with its range."""
        return Measure.of(self.samples.get(name, ()))

    def worst(self, name: str) -> Measure | None:
        """The highest, for what is held to a bound."""
        return Measure.worst(self.samples.get(name, ()))

    def spread(self, name: str) -> float | None:
        """Half the range of the turns, as a share of the median."""
        found = self.measure(name)
        return found.spread if found is not None else None

    @property
    def ours(self) -> bool:
        """Whether it is this project that is measured, and not what it is compared with."""
        return self.name.startswith("backstream") or self.key.startswith("backstream")


Cell = Callable[[Row, "Section"], str]


@dataclass(frozen=True, slots=True)
class Column:
    heading: str
    cell: Cell
    sample: str = ""
    """The name of the samples that it shows as they are, with the heading as their unit; for plots."""


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

    def compared(self, key: str, name: str, to: str | None = None) -> Measure | None:
        """Median of a row against that of the reference row, with its range: what may be shown and judged."""
        row, reference = self.row(key), self.row(to or self.reference)
        if row is None or reference is None:
            return None
        if row is reference:
            return Measure.exactly(1.0) if row.median(name) else None
        return quotient_of(row.measure(name), reference.measure(name))


def number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def median(heading: str, name: str, digits: int = 0) -> Column:
    return Column(heading, lambda row, _: number(row.median(name), digits), name)


def highest(heading: str, name: str, digits: int = 0) -> Column:
    return Column(heading, lambda row, _: number(row.highest(name), digits), name)


def spread(name: str) -> Column:
    def cell(row: Row, _: Section) -> str:
        share = row.spread(name)
        return "-" if share is None else f"{share:.0%}"

    return Column("±", cell)


def ratio(heading: str, name: str, to: Callable[[Row], str] | None = None) -> Column:
    """Against the section's reference row, or the one that `to` names for a row; only where the turns bear it out."""

    def cell(row: Row, section: Section) -> str:
        return ratio_text(section.compared(row.key, name, to(row) if to is not None else None))

    return Column(heading, cell)


def ratio_within(heading: str, name: str, by: str) -> Column:
    """Of two samples of one row."""
    return Column(heading, lambda row, _: ratio_text(quotient_of(row.measure(name), row.measure(by))))


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
    """The whole table as text and how to read it; the first column is as wide in every section."""
    width = max((len(row.name) for section in sections for row in section.rows), default=0)
    return "\n\n".join([*(_render(section, width) for section in sections), "\n".join(LEGEND)])


def cells(section: Section) -> tuple[list[str], dict[str, list[str]]]:
    """Headings of the columns that have something to show, and the cells of each row that was measured, by its key."""
    found = {row.key: [column.cell(row, section) for column in section.columns] for row in section.rows if row.samples}
    shown = [i for i in range(len(section.columns)) if any(row[i] != "-" for row in found.values())]
    return [section.columns[i].heading for i in shown], {key: [row[i] for i in shown] for key, row in found.items()}


def _render(section: Section, width: int) -> str:
    headings, measured = cells(section)
    widths = [max(map(len, column)) for column in zip(headings, *measured.values(), strict=True)]
    lines = [f"{section.key}: {section.title}"]
    if measured:
        lines.append("  ".join(["  " + " " * width, *map(str.rjust, headings, widths)]))
    for row in section.rows:
        text = [f"  {row.name:<{width}}", *map(str.rjust, measured.get(row.key, ()), widths)]
        if row.skipped:
            text.append(f"skipped: {row.skipped}")
        if row.failed:
            text.append(f"FAILED: {row.failed}")
        lines.append("  ".join(text))
    return "\n".join(lines)
