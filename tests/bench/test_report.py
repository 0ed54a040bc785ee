"""Results go into JSON and come back the same; a report and the README's figures are made of them."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.errors import BenchError
from bench.report import markdown, plots, readme
from bench.report.results import Results
from bench.report.table import Row, render
from tests.bench.conftest import SMALL, Make, section


def test_results_come_back_from_json_as_they_were(make: Make) -> None:
    results = make(failures=["frp: it died"])
    again = Results.from_json(results.to_json())
    assert again.to_json() == results.to_json()
    assert render(again.sections) == render(results.sections)
    assert json.loads(again.to_json())["targets"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1}', '{"format": 2}', '{"format": 2, "sections": [{}]}', "null"]
)
def test_what_is_no_results_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="not results of this bench"):
        Results.from_json(text)


def test_a_file_that_is_absent_or_something_else_is_named(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    with pytest.raises(BenchError, match=r"picture\.png"):
        Results.read(path)
    path.write_bytes(b"\x89PNG")
    with pytest.raises(BenchError, match=r"picture\.png"):
        Results.read(path)


def test_the_report_has_machine_versions_targets_and_every_row(make: Make, tmp_path: Path) -> None:
    results = make(failures=["frp: it died"])
    results.sections[0].rows = [*results.sections[0].rows, Row("frp", "frp", skipped="no frps | frpc found")]
    page = markdown.write(results, tmp_path / "out", plots.no_plots).read_text()
    assert page.startswith("# Benchmark of 25 November 2026\n")
    assert "| processor | AMD EPYC |" in page
    assert "| chisel | 1.10 |" in page
    assert "| small requests/s in-process, against nginx | ≥ 1.3× | 1.40 | 1.36 to 1.44 | met |" in page
    assert "| backstream-upstream | 99 | 4% | ≈ ±6% |" in page
    assert "- frp: no frps \\| frpc found" in page
    assert "- frp: it died" in page
    assert "![" not in page
    assert Results.read(tmp_path / "out" / "results.json").to_json() == results.to_json()


def test_a_report_has_a_plot_of_each_section_with_all_contenders(make: Make, tmp_path: Path) -> None:
    page = markdown.write(make(), tmp_path, plots.matplotlib_plotter("svg")).read_text()
    assert "![small](small.svg)" in page
    texts = [
        element.text for element in ElementTree.parse(tmp_path / "small.svg").iter("{http://www.w3.org/2000/svg}text")
    ]
    assert set(texts) >= {*SMALL, "req/s", "CPU µs/req", "p99 µs", "proxy", "agent"}


def test_a_plot_can_be_a_png(make: Make, tmp_path: Path) -> None:
    markdown.write(make(), tmp_path, plots.matplotlib_plotter("png"))
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")


def test_panels_are_rate_cpu_and_p99_of_those_that_have_them() -> None:
    found = plots.panels(section("small", SMALL))
    assert [(panel.title, [bar.name for bar in panel.bars]) for panel in found] == [
        ("req/s", list(SMALL)),
        ("CPU µs/req", list(SMALL)),
        ("p99 µs", ["nginx"]),
    ]
    app = found[1].bars[1]
    assert [part for part, _ in app.parts] == ["proxy", "agent"]
    assert (app.whole.value, app.ours) == (15, True)


def test_an_outlier_does_not_hide_the_others_where_less_is_better() -> None:
    rows = {
        key: {"rate": (value,), "p99": (value,)} for key, value in (("a", 100), ("b", 110), ("c", 120), ("d", 9000))
    }
    rate, p99 = plots.panels(section("small", rows))
    assert plots.scale_end(rate) == 9000 * 1.25
    assert plots.scale_end(p99) == 115 * 4 * 1.25


def test_a_section_without_samples_has_no_plot() -> None:
    assert plots.panels(section("small", {"frp": {}})) == []


def test_the_readme_has_date_machine_and_only_ratios_that_stand(make: Make) -> None:
    bulk = {
        "nginx": {"rate": (100, 101)},
        "nginx-64k": {"rate": (155, 156)},
        "backstream-app": {"rate": (310, 312)},
        "chisel": {"rate": (104, 106)},
    }
    results = make(sections=[section("small", SMALL), section("bulk-down-sized", bulk)])
    assert readme.snippet(results) == (
        "Through proxy and agent, against nginx as reverse proxy in the same run (for bulk its buffering off, "
        "and the better of\ntwo buffers); medians of "
        "`python -m bench` on 25 November 2026, two CPUs of AMD EPYC, all clients on the same machine:\n"
        "\n"
        "| | backstream / nginx |\n"
        "|---|---|\n"
        "| small requests per second: ASGI application in the agent / upstream | 1.40 × / ≈ ±6% |\n"
        "| CPU per small request: proxy / agent with an ASGI application | 0.50 × / 0.25 × |\n"
        "| download of 256 MiB in one stream: ASGI / upstream | 2.0 × / not measured |\n"
        "\n"
        "Against other tunnels in that run:\n"
        "\n"
        "| | backstream / original | backstream / the fastest other tunnel (small requests: chisel) |\n"
        "|---|---|---|\n"
        "| small requests per second, ASGI application in the agent | 7.0 × | 2.8 × |\n"
        "| small requests per second, upstream | not measured | 1.98 × |\n"
        "| CPU of both processes per small request, ASGI application in the agent | 0.19 × | 0.25 × |\n"
        "| CPU of both processes per small request, upstream | not measured | 0.32 × |\n"
        "| download of 256 MiB in one stream, ASGI application | not measured | 3.0 × |\n"
        "\n"
        "The original takes small requests only, since it holds whole bodies.\n\n"
        "≈: no difference beyond the spread of the turns; ?: turns too far apart to say.\n"
    )


def test_results_without_small_and_bulk_have_nothing_for_the_readme(make: Make) -> None:
    with pytest.raises(BenchError, match="nothing for the README"):
        readme.snippet(make(key="websocket"))
