"""Two runs of one machine, held against each other: what got slower by more than the spread and a tolerance.

A number changed if the ratio of the two runs' medians, at the end of its range that is nearest to 1, is still further
from 1 than the tolerance. The range is twice that of the turns: of two runs of one thing with three turns each, once in
twenty all turns of the one are above all of the other, and a run has some hundred numbers. Only this project's rows
decide; those of others show how the machine, or they themselves, changed in between. Numbers of one turn are not
judged, since nobody knows their spread; nor is peak memory, which counts from when a process began. Of requests that
were lost or unanswered none is what should be, so they are held against each other by their difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.errors import BenchError
from bench.report.results import Results
from bench.report.spread import Measure, ratio
from bench.report.table import Row, Section

Change = Literal["slower", "faster", "same", "unknown"]

SAME_MACHINE = ("processor", "cores", "memory", "architecture")
"""What must not differ between the runs."""
SAME_LOAD = ("bulk_bytes", "connections", "duration", "agents", "idle", "stalled", "pin")
"""Options that change what a number means."""
NOTED = ("system", "python")
"""What may differ, with a word."""

_CERTAINTY = 2.0
"""Ranges of the turns that a change must exceed."""
_MORE = ("rate", "bulk")
_LESS = (
    "p99",
    "p999",
    "p99.beside",
    "p99.return",
    "first.p99",
    "longest",
    "again",
    "cpu.proxy",
    "cpu.agent",
    "memory",
    "back",
    "growth.proxy",
    "growth.agent",
)
_COUNTED = ("lost", "unanswered")
"""Requests, of which one more than the ranges is worse."""
_LEAST = {"growth.proxy": 1.0, "growth.agent": 1.0}
"""What less than it counts as, in MiB: twice of next to nothing is no change."""
_PROGRAMS = ("nginx", "wrk")
"""Without them other services and clients take their places."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One number of one row in both runs."""

    section: str
    row: Row
    sample: str
    change: Change
    before: Measure
    after: Measure
    change_by: Measure | None
    """After / before; None for what is judged by its difference."""

    @property
    def decides(self) -> bool:
        return self.row.ours

    def __str__(self) -> str:
        values = " -> ".join(
            f"{each.value:,.4g}" + (f" ±{each.spread:.0%}" if each.spread is not None else "")
            for each in (self.before, self.after)
        )
        by = f"× {self.change_by.value:.2f}" if self.change_by else f"{self.after.value - self.before.value:+,.4g}"
        return f"{self.section}, {self.row.name}, {self.sample}: {values}, {by}"


@dataclass(slots=True)
class Comparison:
    findings: list[Finding] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    """Rows of this project that were measured before and failed now, and whatever else failed now only."""
    notes: list[str] = field(default_factory=list)

    def of(self, change: Change, *, ours: bool) -> list[Finding]:
        return [finding for finding in self.findings if finding.change == change and finding.decides is ours]

    @property
    def worse(self) -> bool:
        return bool(self.lost or self.of("slower", ours=True))

    def render(self, tolerance: float) -> str:
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"FAILED: {lost}" for lost in self.lost]
        lines += [f"slower: {finding}" for finding in self.of("slower", ours=True)]
        lines += [f"faster: {finding}" for finding in self.of("faster", ours=True)]
        lines += [
            f"not ours, {change}: {finding}"
            for change in ("slower", "faster")
            for finding in self.of(change, ours=False)
        ]
        same, unknown = len(self.of("same", ours=True)), len(self.of("unknown", ours=True))
        lines.append(f"{same} numbers of backstream the same within their spread and {tolerance:.0%}")
        if unknown:
            lines.append(f"{unknown} not judged: one turn in a run")
        lines.append("WORSE" if self.worse else "no worse")
        return "\n".join(lines)


def compare(before: Results, after: Results, *, tolerance: float, force: bool = False) -> Comparison:
    """What changed. BenchError if the runs are not comparable, unless forced, or if nothing in them can be judged.

    tolerance: what a number may be worse by on top of the spread, as a share.
    """
    differences = _differences(before, after)
    if differences and not force:
        raise BenchError("these runs are not comparable (--force compares them anyway):\n  " + "\n  ".join(differences))
    found = Comparison(notes=differences + _remarks(before, after))
    old = before.by_key
    for section in after.sections:
        if section.key in old:
            _compare_section(old[section.key], section, tolerance, found)
    found.lost += _failed_now(before, after)
    if not found.lost and not any(each.decides and each.change != "unknown" for each in found.findings):
        raise BenchError("nothing to judge: no row of backstream has two turns or more in both runs")
    return found


def _compare_section(before: Section, after: Section, tolerance: float, found: Comparison) -> None:
    for row in after.rows:
        old = before.row(row.key)
        if old is None or not old.samples:
            continue
        if row.failed:
            (found.lost if row.ours else found.notes).append(f"{after.key}, {row.name}: {row.failed}")
        elif not row.samples:
            found.notes.append(f"{after.key}, {row.name}: not measured: {row.skipped or 'no turn'}")
        for name in _judged(after):
            first, last = old.measure(name), row.measure(name)
            if first is None or last is None:
                continue
            least = _LEAST.get(name, 0.0)
            change_by = ratio(*(each.at_least(least).widened(_CERTAINTY) for each in (last, first)))
            if change_by is not None:
                change = _change(change_by, tolerance, more=name in _MORE)
                found.findings.append(Finding(after.key, row, name, change, first, last, change_by))
        for name in _COUNTED:
            first, last = old.measure(name), row.measure(name)
            if first is not None and last is not None:
                change = _difference(last.widened(_CERTAINTY) - first.widened(_CERTAINTY))
                found.findings.append(Finding(after.key, row, name, change, first, last, None))
    for row in before.rows:
        if row.samples and after.row(row.key) is None:
            found.notes.append(f"{after.key}, {row.name}: not in the second run")


def _failed_now(before: Results, after: Results) -> list[str]:
    """Failures of the second run that have no row, such as that of a whole measurement, and were not in the first."""
    rows = {row.name for results in (before, after) for section in results.sections for row in section.rows}
    known = rows | {failure.partition(": ")[0] for failure in before.failures}
    return [failure for failure in after.failures if failure.partition(": ")[0] not in known]


def _judged(section: Section) -> list[str]:
    """Samples of which more, or less, is better. CPU in percent is neither: more of it may mean more done."""
    shares = {column.sample for column in section.columns if "%" in column.heading}
    return [name for name in (*_MORE, *_LESS) if name not in shares]


def _change(by: Measure, tolerance: float, *, more: bool) -> Change:
    if not by.known:
        return "unknown"
    if by.high < 1 - tolerance:
        return "slower" if more else "faster"
    if by.low > 1 + tolerance:
        return "faster" if more else "slower"
    return "same"


def _difference(by: Measure) -> Change:
    if not by.known:
        return "unknown"
    return "slower" if by.low >= 1 else "faster" if by.high <= -1 else "same"


def _differences(before: Results, after: Results) -> list[str]:
    return [
        *_unequal("machine", before.machine, after.machine, SAME_MACHINE),
        *_unequal("option", before.options, after.options, SAME_LOAD),
        *(
            f"{name}: absent in one of them"
            for name in _PROGRAMS
            if (before.versions.get(name) == "absent") != (after.versions.get(name) == "absent")
        ),
    ]


def _remarks(before: Results, after: Results) -> list[str]:
    # The version of what is measured is expected to differ, and is the first that a reader wants to know.
    names = sorted({*before.versions, *after.versions})
    found = [
        *_unequal("machine", before.machine, after.machine, NOTED),
        *_unequal("version", before.versions, after.versions, names),
    ]
    left_out = [section.key for section in before.sections if section.key not in after.by_key]
    return found + ([f"not in the second run: {', '.join(left_out)}"] if left_out else [])


def _unequal(what: str, before: Mapping[str, object], after: Mapping[str, object], names: Sequence[str]) -> list[str]:
    return [
        f"{what}: {name}: {before.get(name, 'unknown')} / {after.get(name, 'unknown')}"
        for name in names
        if before.get(name) != after.get(name)
    ]
