"""The command line of the bench: helps, refusals and exit statuses; nothing is measured here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import bench.__main__ as command_line
from bench.context import Options
from bench.report import plots
from bench.report.results import Results
from bench.routes import MIB
from tests.bench.conftest import MACHINE, SMALL, Make


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command_line.main, arguments, prog_name="python -m bench")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, make: Make) -> list[tuple[list[str], Options]]:
    """What would have been measured."""
    found: list[tuple[list[str], Options]] = []

    def measure(measurements: Mapping[str, object], options: Options) -> Results:
        found.append((list(measurements), options))
        return make()

    monkeypatch.setattr(command_line, "measure", measure)
    return found


def test_help_names_every_command() -> None:
    told = invoke("--help").output
    for name in ("run", "quick", "compare", "report", "soak"):
        assert f"\n  {name} " in told
        assert invoke(name, "--help").exit_code == 0


def test_help_names_every_measurement() -> None:
    told = " ".join(invoke("run", "--help").output.split())
    assert f"may be repeated: {', '.join(command_line.MEASUREMENTS)}." in told


@pytest.mark.parametrize("arguments", [(), ("run",)])
def test_without_a_command_the_ten_minutes_table_is_made(
    measured: list[tuple[list[str], Options]], arguments: tuple[str, ...]
) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 0
    assert measured == [(list(command_line.TABLE), Options())]
    assert "small requests/s in-process, against nginx" in done.output


@pytest.mark.parametrize("arguments", [("quick",), ("--quick",), ("run", "--quick")])
def test_a_quick_run_is_shorter_and_has_only_the_nearest_contenders(
    measured: list[tuple[list[str], Options]], arguments: tuple[str, ...]
) -> None:
    assert invoke(*arguments).exit_code == 0
    names, options = measured[0]
    assert names == list(command_line.QUICK)
    assert (options.repeat, options.duration, options.bulk_bytes) == (1, 1, 64 * MIB)
    assert options.wants("nginx-64k")
    assert options.wants("backstream-app")
    assert not options.wants("chisel")


@pytest.mark.parametrize("arguments", [("--all",), ("run", "--all"), ("run", "--all", "--quick"), ("quick", "--all")])
def test_a_run_of_everything(measured: list[tuple[list[str], Options]], arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 0
    assert measured[0][0] == list(command_line.MEASUREMENTS)


def test_options_reach_the_run_in_the_order_of_measurements(measured: list[tuple[list[str], Options]]) -> None:
    invoke("--only", "bulk", "--only", "small", "--repeat", "5", "--duration", "7", "--bulk", "32", "--pin")
    names, options = measured[0]
    assert names == ["small", "bulk"]
    assert (options.repeat, options.duration, options.bulk_bytes, options.pin) == (5, 7, 32 * MIB, True)


def test_contenders_that_are_named_take_part_in_a_quick_run_too(measured: list[tuple[list[str], Options]]) -> None:
    invoke("quick", "--contender", "chi")
    assert measured[0][1].wants("chisel")
    assert not measured[0][1].wants("nginx")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("--nonsense",), "No such option"),
        (("--only", "nonsense"), "'nonsense' is not one of 'small'"),
        (("--contender", "ngnix"), "no contender's key has 'ngnix': there are"),
        (("quick", "--contender", "nginx", "--contender", "absent:idle"), "no contender's key has 'absent:idle'"),
        (("--contender", ""), "no contender's key has ''"),
        (("--repeat", "0"), "0 is not in the range x>=1"),
        (("--duration", "long"), "'long' is not a valid integer"),
        (("--json", "/nonexistent/file.json"), "there is no directory /nonexistent"),
        (("compare", "one.json"), "Missing argument 'AFTER'"),
        (("compare", "one.json", "two.json"), "one.json"),
        (("report", "absent.json"), "absent.json"),
        (("soak", "--seconds", "0"), "0.0 is not in the range x>0"),
    ],
)
def test_a_mistake_is_a_line_and_status_2(
    measured: list[tuple[list[str], Options]], arguments: tuple[str, ...], said: str
) -> None:
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert measured == []


def test_a_failure_in_a_run_is_status_1_and_its_samples_are_written(
    monkeypatch: pytest.MonkeyPatch, make: Make, tmp_path: Path
) -> None:
    results = make(failures=["frp: it died"])
    monkeypatch.setattr(command_line, "measure", lambda measurements, options: results)
    done = invoke("--json", str(tmp_path / "out.json"))
    assert done.exit_code == 1
    assert "FAILED: frp: it died" in done.output
    assert (tmp_path / "out.json").read_text() == results.to_json()


def test_compare_has_a_status_for_no_worse_worse_and_refused(make: Make, tmp_path: Path) -> None:
    slow = {**SMALL, "backstream-app": {"rate": (50, 51, 49)}}
    files = {"same": make(), "slow": make(slow), "elsewhere": make(machine={**MACHINE, "cores": "64"})}
    for name, results in files.items():
        (tmp_path / name).write_text(results.to_json())
    same, slower, elsewhere = (str(tmp_path / name) for name in files)
    assert invoke("compare", same, same).exit_code == 0
    assert invoke("compare", same, slower).exit_code == 1
    assert invoke("compare", same, slower, "--tolerance", "80").exit_code == 0
    assert invoke("compare", same, elsewhere).exit_code == 2
    assert invoke("compare", same, elsewhere, "--force").exit_code == 0


def test_the_readme_snippet_goes_to_standard_output(make: Make, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(make().to_json())
    done = invoke("report", str(tmp_path / "results.json"), "--readme")
    assert done.exit_code == 0
    assert "on 25 November 2026, two CPUs of AMD EPYC" in done.output


@pytest.mark.parametrize(
    ("arguments", "directory"),
    [
        (("--report",), "bench-report"),
        (("--report", "--only", "small"), "bench-report"),
        (("--report", "there"), "there"),
    ],
)
def test_a_report_goes_to_a_directory_of_its_own_unless_one_is_named(
    measured: list[tuple[list[str], Options]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    directory: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "matplotlib_plotter", lambda suffix: plots.no_plots)
    done = invoke(*arguments)
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1] == f"{directory}/report.md"
    assert sorted(path.name for path in (tmp_path / directory).iterdir()) == ["report.md", "results.json"]


def test_without_matplotlib_a_report_is_refused_before_anything_is_measured(
    measured: list[tuple[list[str], Options]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = invoke("--report", str(tmp_path))
    assert done.exit_code == 2
    assert "pip install -e '.[bench]'" in done.output
    assert measured == []


@pytest.mark.parametrize("part", ["nginx", "nginx-64k", "backstream-app", "app", "frp", "direct", "backstream-app:up"])
def test_every_part_of_a_key_may_be_asked_for(measured: list[tuple[list[str], Options]], part: str) -> None:
    assert invoke("--contender", part).exit_code == 0
    assert measured[0][1].only_contenders == (part,)


def test_a_run_that_measured_nothing_is_status_2_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, make: Make, tmp_path: Path
) -> None:
    monkeypatch.setattr(command_line, "measure", lambda measurements, options: make(sections=[]))
    done = invoke("--json", str(tmp_path / "out.json"))
    assert done.exit_code == 2 and "nothing was measured" in done.output
    assert not (tmp_path / "out.json").exists()
