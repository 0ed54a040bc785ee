"""Two runs against each other: what decides, what only shows, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bench.errors import BenchError
from bench.report.compare import Comparison, compare
from bench.report.results import Results
from bench.report.table import Row
from tests.bench.conftest import MACHINE, SMALL, Make, Samples


def changed(make: Make, row: str, **samples: tuple[float, ...]) -> Results:
    rows: Mapping[str, Samples] = {
        **SMALL,
        row: {**SMALL[row], **{name.replace("_", "."): values for name, values in samples.items()}},
    }
    return make(rows)


def judged(before: Results, after: Results, tolerance: float = 0.1) -> Comparison:
    return compare(before, after, tolerance=tolerance)


def test_the_same_run_is_no_worse(make: Make) -> None:
    found = judged(make(), make())
    assert not found.worse
    assert found.render(0.1).splitlines()[-1] == "no worse"


def test_a_lower_rate_is_worse(make: Make) -> None:
    found = judged(make(), changed(make, "backstream-app", rate=(110, 111, 109)))
    assert found.worse
    lines = found.render(0.1).splitlines()
    assert lines[0] == "slower: small, backstream-app, rate: 140 ±1% -> 110 ±1%, × 0.79"
    assert lines[-1] == "WORSE"


def test_more_cpu_is_worse_and_less_is_faster(make: Make) -> None:
    assert judged(make(), changed(make, "backstream-app", cpu_proxy=(15, 15.1, 14.9))).worse
    found = judged(make(), changed(make, "backstream-app", cpu_proxy=(5, 5.1, 4.9)))
    assert not found.worse
    assert found.render(0.1).startswith("faster: small, backstream-app, cpu.proxy")


def test_what_is_worse_within_the_tolerance_is_not_worse(make: Make) -> None:
    after = changed(make, "backstream-app", rate=(120, 121, 119))
    assert judged(make(), after, tolerance=0.05).worse
    assert not judged(make(), after, tolerance=0.2).worse


def test_what_is_worse_within_the_spread_is_not_worse(make: Make) -> None:
    assert not judged(make(), changed(make, "backstream-app", rate=(110, 135, 105))).worse


def test_rows_of_others_show_but_do_not_decide(make: Make) -> None:
    found = judged(make(), changed(make, "nginx", rate=(50, 51, 49)))
    assert not found.worse
    assert "not ours, slower: small, nginx, rate" in found.render(0.1)


def test_a_row_that_fails_now_is_worse(make: Make) -> None:
    after = make()
    after.sections[0].rows = [*after.sections[0].rows[2:], Row("backstream-app", "backstream-app", failed="it died")]
    found = judged(make(), after)
    assert found.worse
    assert "FAILED: small, backstream-app: it died" in found.render(0.1)


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [((0, 0), (1, 1), True), ((0, 0), (0, 1), False), ((3, 11), (8, 12), False), ((0, 0), (0, 0), False)],
)
def test_requests_that_are_lost_are_held_against_none(
    before: tuple[float, ...], after: tuple[float, ...], worse: bool, make: Make
) -> None:
    found = judged(*(make({"backstream-app:proxy": {"lost": lost}}, key="recovery") for lost in (before, after)))
    assert found.worse is worse
    if worse:
        assert "slower: recovery, backstream-app:proxy, lost: 0 -> 1 ±0%, +1" in found.render(0.1)


@pytest.mark.parametrize(
    ("before", "after", "worse"), [((4, 4.1), (9, 9.1), True), ((0.1, 0.1), (0.3, 0.3), False), ((0, 0), (5, 5), True)]
)
def test_growth_is_judged_from_a_mib_on(
    before: tuple[float, ...], after: tuple[float, ...], worse: bool, make: Make
) -> None:
    found = judged(*(make({"backstream-app": {"growth.proxy": grown}}, key="memory") for grown in (before, after)))
    assert found.worse is worse


def test_peak_memory_since_a_process_began_is_not_judged(make: Make) -> None:
    rows = {"backstream-app": {**SMALL["backstream-app"], "peak.proxy": (10, 10)}}
    more = {"backstream-app": {**SMALL["backstream-app"], "peak.proxy": (90, 90)}}
    assert not judged(make(rows), make(more)).worse


def test_a_measurement_that_fails_now_is_worse_and_one_that_did_before_is_not(make: Make) -> None:
    fails = make(failures=["wan: the line did not come up", "chisel: it died"])
    found = judged(make(), fails)
    assert found.worse
    assert found.lost == ["wan: the line did not come up"]
    assert not judged(fails, make(failures=["wan: another reason"])).worse


@pytest.mark.parametrize("name", ["nginx", "wrk"])
def test_a_run_without_a_program_that_the_other_has_is_refused(name: str, make: Make) -> None:
    here, there = ({"nginx": "1.22.1", "wrk": "4.1.0", **absent} for absent in ({}, {name: "absent"}))
    with pytest.raises(BenchError, match=f"{name}: absent in one of them"):
        judged(make(versions=here), make(versions=there))


def test_numbers_of_one_turn_are_not_judged(make: Make) -> None:
    single = make({"backstream-app": {"rate": (100,)}, "nginx": {"rate": (100, 101)}})
    with pytest.raises(BenchError, match="nothing to judge"):
        judged(single, single)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": {**MACHINE, "processor": "Intel Xeon"}}, "machine: processor: AMD EPYC / Intel Xeon"),
        ({"options": {"duration": 5, "bulk_bytes": 1 << 28, "connections": 64}}, "option: duration: 2 / 5"),
    ],
)
def test_runs_of_another_machine_or_load_are_refused_unless_forced(
    make: Make, change: dict[str, object], said: str
) -> None:
    with pytest.raises(BenchError, match="not comparable") as refused:
        judged(make(), make(**change))
    assert said in str(refused.value)
    found = compare(make(), make(**change), tolerance=0.1, force=True)
    assert f"note: {said}" in found.render(0.1)


def test_another_kernel_or_version_is_noted_only(make: Make) -> None:
    after = make(machine={**MACHINE, "system": "Linux 6.2"}, versions={"backstream": "0.2.0", "nginx": "1.22.1"})
    told = judged(make(), after).render(0.1)
    assert "note: machine: system: Linux 6.1 / Linux 6.2" in told
    assert "note: version: backstream: 0.1.0 / 0.2.0" in told
    assert "note: version: chisel: 1.10 / unknown" in told
