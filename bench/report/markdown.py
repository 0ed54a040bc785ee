"""A run as a page: report.md with its tables, and its plots beside it."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from bench.report import targets
from bench.report.plots import Plotter
from bench.report.results import Results
from bench.report.spread import LEGEND
from bench.report.table import Section, cells


def write(results: Results, directory: Path, plotter: Plotter) -> Path:
    """report.md, results.json and a plot for each section; returns the page's path."""
    directory.mkdir(parents=True, exist_ok=True)
    # First what can't be made anew.
    (directory / "results.json").write_text(results.to_json())
    plots = {section.key: plotter(section, directory) for section in results.sections}
    page = directory / "report.md"
    page.write_text(render(results, {key: path.name for key, path in plots.items() if path is not None}))
    return page


def render(results: Results, plots: dict[str, str]) -> str:
    """The page. plots: names of files by the keys of their sections."""
    parts = [
        f"# Benchmark of {day(results)}",
        f"By `python -m bench`, in {results.seconds / 60:.0f} min, samples in [results.json](results.json).",
        "\n".join(f"- {line}" for line in LEGEND),
        "## Machine",
        _pairs(results.machine.items()),
        "## Versions",
        _pairs(results.versions.items()),
        "Plots: bars are medians, whiskers the range that ± is half of; backstream is blue where a bar is no sum.",
        "## Targets",
        _targets(results),
    ]
    if results.failures:
        parts += ["## Failures", "\n".join(f"- {_escape(failure)}" for failure in results.failures)]
    for section in results.sections:
        parts += [f"## {section.key}", f"{_escape(section.title)}.", _section(section)]
        if section.key in plots:
            parts.append(f"![{section.key}]({plots[section.key]})")
        if notes := [f"- {row.name}: {_escape(why)}" for row in section.rows if (why := row.failed or row.skipped)]:
            parts.append("Not measured:\n\n" + "\n".join(notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def day(results: Results) -> str:
    """As ``25 November 2026``."""
    date = datetime.fromisoformat(results.date)
    return f"{date.day} {date:%B %Y}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = False) -> str:
    """In Markdown; with `numbers` all columns but the first to the right."""
    rule = "|---" + ("|---:" if numbers else "|---") * (len(headings) - 1) + "|"
    return "\n".join([_line(headings), rule, *(_line([_escape(cell) for cell in row]) for row in rows)])


def _line(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"


def _pairs(pairs: Iterable[tuple[str, str]]) -> str:
    return table(["", ""], pairs)


def _targets(results: Results) -> str:
    found = targets.results(results.by_key)
    if not found:
        return "None measured."
    rows = [
        (result.text, result.limit, f"{result.measure.value:.2f}", targets.span(result.measure), result.verdict)
        for result in found
    ]
    counts = {verdict: sum(result.verdict == verdict for result in found) for verdict in ("met", "MISSED", "unclear")}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"{told}. Unclear: the limit lies within the range of the turns.\n\n" + table(
        ["target", "limit", "found", "range", ""], rows
    )


def _section(section: Section) -> str:
    headings, measured = cells(section)
    rows = [[row.name, *measured[row.key]] for row in section.rows if row.key in measured]
    return table(["", *headings], rows, numbers=True) if rows else "Nothing was measured."


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
