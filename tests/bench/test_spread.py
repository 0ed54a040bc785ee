"""A ratio stands only where the turns bear it out."""

from __future__ import annotations

import pytest

from bench.report.spread import Measure, ratio, ratio_text
from bench.report.table import Row, Section, render
from bench.report.table import ratio as ratio_column
from tests.bench.conftest import section


def measure(*samples: float) -> Measure:
    found = Measure.of(samples)
    assert found is not None
    return found


def text(value: tuple[float, ...], by: tuple[float, ...]) -> str:
    return ratio_text(ratio(measure(*value), measure(*by)))


def test_a_ratio_beyond_the_spread_of_both_is_shown() -> None:
    assert text((130, 131, 129), (100, 101, 99)) == "1.30"


def test_a_ratio_within_the_spread_of_both_is_not_shown() -> None:
    assert text((102, 110, 95), (100, 105, 97)) == "≈ ±11%"


def test_a_ratio_whose_spread_is_too_wide_is_not_shown_though_its_direction_is_clear() -> None:
    assert text((300, 900, 250), (100, 105, 97)) == "? ±115%"


def test_a_ratio_of_one_turn_is_marked() -> None:
    assert text((130,), (100, 101, 99)) == "1.30?"


def test_one_turn_is_never_within_its_spread() -> None:
    assert ratio_text(ratio(measure(100), measure(100))) == "1.00?"


@pytest.mark.parametrize("by", [(0.0, 0.0), (-1.0, -2.0)])
def test_nothing_is_divided_by_what_is_not_positive(by: tuple[float, float]) -> None:
    assert ratio(measure(1.0, 2.0), measure(*by)) is None


def test_a_divisor_whose_range_reaches_zero_gives_no_ratio() -> None:
    assert text((5, 6), (0, 4)) == "? ±∞"


def test_from_seven_turns_on_the_extreme_ones_do_not_count() -> None:
    seven, six = measure(1, 10, 11, 12, 13, 14, 99), measure(1, 10, 11, 12, 13, 99)
    assert (seven.low, seven.high) == (10, 14)
    assert (six.low, six.high) == (1, 99)


def test_a_difference_has_the_ranges_of_both() -> None:
    assert measure(10, 12) - measure(3, 4) == Measure(7.5, 6, 9)


@pytest.mark.parametrize(
    ("samples", "verdict"),
    [((4, 5, 6), "met"), ((4, 5, 11), "unclear"), ((11, 12, 13), "MISSED"), ((10, 10), "met"), ((5,), "unclear")],
)
def test_a_limit_is_decided_by_the_whole_range(samples: tuple[float, ...], verdict: str) -> None:
    assert measure(*samples).held_to(10, at_most=True) == verdict


@pytest.mark.parametrize(("samples", "verdict"), [((4, 5), "MISSED"), ((4, 11), "unclear"), ((11, 12), "met")])
def test_a_limit_from_below_too(samples: tuple[float, ...], verdict: str) -> None:
    assert measure(*samples).held_to(10, at_most=False) == verdict


def test_the_worst_of_turns_decides_even_alone() -> None:
    worst = Measure.worst([40.0])
    assert worst is not None
    assert worst.held_to(32, at_most=True) == "MISSED"


def test_the_table_says_how_to_read_what_it_refuses() -> None:
    found = section("small", {"nginx": {"rate": (100, 110)}, "haproxy": {"rate": (105, 108)}})
    shown = render([found])
    assert "≈ ±6%" in shown
    assert "≈: within the spread of both" in shown
    assert "1.00" in next(line for line in shown.splitlines() if line.startswith("  nginx"))


def test_a_row_without_samples_has_its_reason() -> None:
    found = Section("small", "", [ratio_column("×", "rate")], [Row("frp", "frp", skipped="no frps found")], "nginx")
    assert render([found]).splitlines()[1] == "  frp  skipped: no frps found"
