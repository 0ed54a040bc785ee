"""A section as bars with their spread, by matplotlib (the extra ``bench``), which is imported only here."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BenchError
from bench.report.spread import Measure, total
from bench.report.table import Row, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INSTALL = "plots need matplotlib, which is not installed: pip install -e '.[bench]'"

Plotter = Callable[[Section, Path], Path | None]
"""Makes the plot of a section in a directory; None where it has nothing to show."""

_OURS, _OTHERS = "#2f6db3", "#a7adb5"
_PARTS = ("#2f6db3", "#7fb0e0", "#e0a458", "#8a8f98")
_BAR_INCHES = 0.3
_OUTLIER, _SHOWN = 8, 4
"""A scale ends at _SHOWN times the median bar where the longest one is more than _OUTLIER times it: it would hide the
others. Its number stands at the edge.
"""


def no_plots(section: Section, directory: Path) -> None:
    """A plotter for where there is no matplotlib."""


@dataclass(frozen=True, slots=True)
class Bar:
    name: str
    ours: bool
    parts: Sequence[tuple[str, Measure]]
    """What is stacked, each with its name."""

    @property
    def whole(self) -> Measure:
        found = total([part for _, part in self.parts])
        assert found is not None
        return found


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the plots of a section, which share their rows."""

    title: str
    bars: Sequence[Bar]
    more_is_better: bool = False


def panels(section: Section) -> list[Panel]:
    """What of a section is worth a plot: rate, CPU of each process, p99s, memory; not what nothing is known of."""
    headings: dict[str, str] = {}
    for column in section.columns:
        if column.sample:
            headings.setdefault(column.sample, column.heading)
    cpu = [name for name in headings if name.startswith("cpu.") and name != "cpu.client"]
    plans = [[name] for name in headings if name in ("rate", "bulk")]
    plans.append(cpu)
    plans += [[name] for name in headings if name.startswith("p99") or name.startswith("growth.")]
    plans += [[name] for name in headings if name in ("memory", "back", "again")]
    found = []
    for names in plans:
        bars = [bar for row in section.rows if (bar := _bar(row, names)) is not None]
        if bars:
            title = headings[names[0]] if len(names) == 1 else _common(headings[names[0]], names[0])
            found.append(Panel(title, bars, more_is_better=names[0] in ("rate", "bulk")))
    return found


def _bar(row: Row, names: Sequence[str]) -> Bar | None:
    parts = [(name.partition(".")[2], measure) for name in names if (measure := row.measure(name)) is not None]
    return Bar(row.name, row.ours, parts) if parts else None


def _common(heading: str, name: str) -> str:
    """``CPU µs/req`` of ``proxy µs/req``."""
    return "CPU " + heading.removeprefix(name.partition(".")[2]).replace("CPU", "").strip()


def matplotlib_plotter(suffix: str) -> Plotter:
    """Writes ``KEY.svg`` or ``KEY.png``. BenchError, with how to install it, where there is no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise BenchError(INSTALL) from None
    matplotlib.use("agg")
    # Text stays text: smaller files, and one can search in them.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})

    def plot(section: Section, directory: Path) -> Path | None:
        found = panels(section)
        if not found:
            return None
        path = directory / f"{section.key}.{suffix}"
        _draw(section, found, path)
        return path

    return plot


def _draw(section: Section, found: Sequence[Panel], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [row.name for row in section.rows if any(row.name == bar.name for panel in found for bar in panel.bars)]
    columns = 2 if len(found) == 4 else min(len(found), 3)
    lines = -(-len(found) // columns)
    figure = Figure(
        figsize=(2.4 + 3.4 * columns, lines * (1.1 + _BAR_INCHES * len(names))), dpi=110, layout="constrained"
    )
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True)
    every = [axes for line in grid for axes in line]
    for axes, panel in zip(every, found, strict=False):
        _draw_panel(axes, panel, names)
    for axes in every[len(found) :]:
        axes.set_axis_off()
    every[0].set_ylim(len(names) - 0.4, -0.6)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw_panel(axes: "Axes", panel: Panel, names: Sequence[str]) -> None:
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    places = {name: number for number, name in enumerate(names)}
    stacked = sorted({part for bar in panel.bars for part, _ in bar.parts}, key=_order)
    several = len(stacked) > 1
    end = scale_end(panel)
    for bar in panel.bars:
        left = 0.0
        for part, measure in bar.parts:
            color = _PARTS[stacked.index(part) % len(_PARTS)] if several else _OURS if bar.ours else _OTHERS
            axes.barh(places[bar.name], measure.value, 0.7, left=left, color=color)
            left += measure.value
        whole = bar.whole
        if whole.known:
            error = [[max(0.0, whole.value - whole.low)], [max(0.0, whole.high - whole.value)]]
            axes.errorbar(whole.value, places[bar.name], xerr=error, color="black", capsize=2.5, linewidth=1)
        place = max(whole.value, whole.high)
        beside = place <= 0.85 * end
        axes.annotate(
            _short(whole.value) + (" →" if whole.value > end else ""),
            (place if beside else end, places[bar.name]),
            xytext=(4 if beside else -4, 0),
            textcoords="offset points",
            ha="left" if beside else "right",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5} if not beside else None,
        )
    axes.set_xlim(0, end)
    axes.set_title(panel.title, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    if several:
        handles = [Patch(color=_PARTS[number % len(_PARTS)], label=part) for number, part in enumerate(stacked)]
        axes.legend(
            handles=handles,
            ncols=len(handles),
            fontsize=8,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.3 / (_BAR_INCHES * len(names))),
        )


def scale_end(panel: Panel) -> float:
    """Where the panel's scale ends: with room for the numbers, and without an outlier that hides the others."""
    wholes = [bar.whole for bar in panel.bars]
    median = statistics.median(whole.value for whole in wholes)
    longest = max(max(whole.value, whole.high) for whole in wholes)
    # A rate is what one is good at: there the longest bar is what one looks for.
    if not panel.more_is_better and median > 0 and longest > _OUTLIER * median:
        longest = _SHOWN * median
    return max(longest, 1e-9) * 1.25


def _order(part: str) -> int:
    known = ("proxy", "agent", "service")
    return known.index(part) if part in known else len(known)


def _short(value: float) -> str:
    """Three digits or so: ``0.25``, ``31.4``, ``1,560``, ``24.3k``."""
    if abs(value) >= 10_000:
        return f"{value / 1000:.3g}k" if abs(value) < 1_000_000 else f"{value / 1000:,.0f}k"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
