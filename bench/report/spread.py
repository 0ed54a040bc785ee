"""What turns tell: a median, the range it may as well lie in, and whether that range decides anything.

The range is that of the turns, lowest to highest; from seven turns on without a sixth of them at either end, so that
more turns make it narrower. It is no confidence interval: of two turns each of one and the same thing, those of the one
are all above those of the other, or all below, once in three times, and then a ratio stands by chance. The spread is
half the range as a share of the median. Ranges go through every calculation at their worst (the quotient of two begins
at low / high and ends at high / low), so a verdict holds wherever in its range each median really lies. One turn has no
range: its value is shown and decides nothing.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TOO_WIDE = 0.5
"""The spread from which on a ratio is not shown at all, whatever it may be."""

Verdict = Literal["met", "MISSED", "unclear"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A number and where it may lie: low ≤ value ≤ high; `known` is False where no spread was taken."""

    value: float
    low: float
    high: float
    known: bool = True

    @classmethod
    def of(cls, samples: Sequence[float]) -> "Measure | None":
        """The median of turns; None where there is none."""
        if not samples:
            return None
        ordered = sorted(samples)
        trimmed = (len(ordered) - 1) // 6
        low, high = ordered[trimmed], ordered[-1 - trimmed]
        return cls(statistics.median(ordered), low, high, len(ordered) > 1)

    @classmethod
    def worst(cls, samples: Sequence[float]) -> "Measure | None":
        """The highest of turns, as a bound has it: what was seen once counts, and there is no spread in it."""
        return cls.exactly(max(samples)) if samples else None

    @classmethod
    def exactly(cls, value: float) -> "Measure":
        return cls(value, value, value)

    @property
    def spread(self) -> float | None:
        """Half the range as a share of the value; None where unknown."""
        return (self.high - self.low) / 2 / abs(self.value) if self.known and self.value else None

    def __add__(self, other: "Measure") -> "Measure":
        known = self.known and other.known
        return Measure(self.value + other.value, self.low + other.low, self.high + other.high, known)

    def __sub__(self, other: "Measure") -> "Measure":
        known = self.known and other.known
        return Measure(self.value - other.value, self.low - other.high, self.high - other.low, known)

    def scaled(self, factor: float) -> "Measure":
        """Times a factor that is not negative."""
        return Measure(self.value * factor, self.low * factor, self.high * factor, self.known)

    def at_least(self, least: float) -> "Measure":
        """With nothing below `least`."""
        return Measure(max(self.value, least), max(self.low, least), max(self.high, least), self.known)

    def widened(self, factor: float) -> "Measure":
        """With a range that goes so many times as far from the value."""
        low, high = (self.value + factor * (end - self.value) for end in (self.low, self.high))
        return Measure(self.value, low, high, self.known)

    def held_to(self, limit: float, *, at_most: bool) -> Verdict:
        """MISSED or met only if the whole range is on one side of the limit."""
        if not self.known:
            return "unclear"
        if self.high <= limit if at_most else self.low >= limit:
            return "met"
        return "MISSED" if (self.low > limit if at_most else self.high < limit) else "unclear"


def ratio(value: Measure | None, by: Measure | None) -> Measure | None:
    """Of two measures of what is never negative; None where one is missing, or there is nothing to divide by."""
    if value is None or by is None or by.value <= 0:
        return None
    high = value.high / by.low if by.low > 0 else math.inf
    return Measure(value.value / by.value, max(value.low, 0.0) / by.high, high, value.known and by.known)


def undecided(found: Measure) -> str | None:
    """What stands in the place of a ratio that the turns do not bear out; None where they do."""
    spread = found.spread
    if spread is None:
        return None
    if spread > TOO_WIDE:
        return f"? ±{spread:.0%}" if math.isfinite(spread) else "? ±∞"
    return f"≈ ±{spread:.0%}" if spread and found.low <= 1 <= found.high else None


def total(parts: Sequence[Measure | None]) -> Measure | None:
    """The sum, None where there is nothing to add."""
    found = [part for part in parts if part is not None]
    return sum(found[1:], found[0]) if found else None


def ratio_text(found: Measure | None, digits: int = 2) -> str:
    """A ratio for a table, or what stands there instead of a verdict that the turns do not bear out.

    ``1.30`` is a ratio whose range leaves 1 out; ``≈ ±8%`` one within its spread; ``? ±60%`` one whose
    spread is more than TOO_WIDE; ``1.30?`` one of which nobody knows the spread.
    """
    if found is None:
        return "-"
    text = f"{found.value:,.{digits}f}"
    return undecided(found) or (text if found.known else f"{text}?")


LEGEND = (
    "Numbers are medians of the turns. ± is half the range from the lowest to the highest turn (from seven turns on "
    "without a sixth at either end), as a share of the median.",
    "A ratio stands only where the turns of both rows bear it out; with two turns each it does by chance once in "
    "three times. ≈: within the spread of both, no difference that "
    f"this run can show. ? ±: a spread of more than {TOO_WIDE:.0%}. 1.30?: one turn, its spread unknown.",
)
