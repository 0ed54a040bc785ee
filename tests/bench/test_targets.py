"""Targets are met, missed or unclear, and not listed where nothing was measured."""

from __future__ import annotations

import pytest

from bench.contenders import TUNNELS
from bench.contenders.others import across
from bench.report import targets
from bench.report.results import Results
from bench.scenarios import bulk, small, wan
from tests.bench.conftest import SMALL, Make, section


def verdicts(results: Results) -> dict[str, str]:
    return {found.text: found.verdict for found in targets.results(results.by_key)}


def test_what_was_not_measured_is_not_listed(make: Make) -> None:
    assert verdicts(make({"nginx": SMALL["nginx"]})) == {}
    assert targets.render({}) == "targets: none measured (they are about backstream)"


def test_what_targets_are_about_has_the_keys_of_contenders_and_lines() -> None:
    keys = {contender.key for contender in small.contenders("nginx")}
    assert {"nginx", "backstream-seed", targets.ORIGINAL, targets.ORIGINAL_UPSTREAM, *targets.OURS, *TUNNELS} <= keys
    assert {tunnel.key for tunnel in across()} <= set(TUNNELS)
    assert [cell.key for cell in wan.CELLS if cell.judged] == ["100ms:0", "100ms:1"]
    assert [cell.key for cell in wan.CELLS if cell.tunnels] == ["100ms:1"]


def test_small_requests_against_nginx_and_the_tunnels(make: Make) -> None:
    found = verdicts(make())
    assert found["small requests/s in-process, against the original's pair"] == "met"  # 7
    assert found["CPU of both per small request, against the original's pair"] == "met"  # 15 / 81
    assert found["small requests/s in-process, against the fastest other tunnel"] == "met"  # 2.8 of chisel
    assert found["CPU of both per small request, against the fastest other tunnel"] == "met"  # 15 / 60
    assert found["small requests/s through an upstream, against the fastest other tunnel"] == "met"  # 2
    assert found["small requests/s in-process, against nginx"] == "met"  # 1.4, from 1.36
    assert found["small requests/s through an upstream, against nginx"] == "met"  # 0.99, from 0.94
    assert found["agent, upstream, CPU per small request, against nginx"] == "met"  # 0.45
    assert found["agent, ASGI, CPU per small request, against nginx"] == "met"  # 0.25


def test_a_limit_within_the_range_is_unclear(make: Make) -> None:
    rows = {**SMALL, "backstream-app": {**SMALL["backstream-app"], "rate": (131, 140, 125)}}
    results = make(rows)
    assert verdicts(results)["small requests/s in-process, against nginx"] == "unclear"
    line = next(line for line in targets.render(results.by_key).splitlines() if "in-process, against nginx" in line)
    assert "unclear  1.23 to 1.43" in line


def test_a_long_line_is_held_to_tcp_and_to_the_best_tunnel_in_its_worse_direction(make: Make) -> None:
    down = {
        "tcp:100ms:0": {"rate": (100, 101)},
        "backstream-app:100ms:0": {"rate": (99, 100)},
        "backstream-app:20ms:0": {"rate": (1, 1)},
        "tcp:20ms:0": {"rate": (100, 101)},
        "backstream-app:100ms:1": {"rate": (12, 13)},
        "frp:100ms:1": {"rate": (8, 9)},
        "chisel:100ms:1": {"rate": (5, 6)},
    }
    up = {**down, "backstream-app:100ms:0": {"rate": (80, 81)}}
    results = make(sections=[section("wan-down", down), section("wan-up", up), section("wan16-down", down)])
    assert verdicts(results) == {
        "one stream on a line of 100 ms, against plain TCP": "MISSED",
        "one stream on a line of 100 ms and 1 % loss, against the best tunnel": "met",
    }


@pytest.mark.parametrize("key", ["bulk-down-sized", "tls-bulk"])
def test_bulk_is_held_to_the_better_of_both_nginx(make: Make, key: str) -> None:
    rows = {"nginx": {"rate": (90, 91)}, "backstream-app": {"rate": (100, 101)}}
    (found,) = targets.results(make(rows, key=key).by_key)
    assert found.verdict == "met"
    (found,) = targets.results(make({**rows, "nginx-64k": {"rate": (110, 111)}}, key=key).by_key)
    assert found.verdict == "MISSED"


def test_bulk_nginx_has_the_keys_of_contenders() -> None:
    assert set(targets.NGINX) == {each.key for each in bulk.contenders() if each.key.startswith("nginx")}


def test_events_are_held_to_the_delay_of_the_service_itself(make: Make) -> None:
    rows = {"direct:idle": {"p99": (300, 400)}, "backstream-app:idle": {"p99": (900, 1000)}}
    (found,) = targets.results(make(rows, key="sse").by_key)
    assert (found.limit, found.verdict) == ("≤ 1 ms", "met")
    assert (found.measure.low, found.measure.high) == pytest.approx((0.5, 0.7))


def test_growth_is_held_to_the_bound_at_its_worst(make: Make) -> None:
    rows = {
        "backstream-app": {"growth.proxy": (10, 90), "bound": (100, 100)},
        "backstream-upstream": {"growth.proxy": (10, 120), "bound": (100, 100)},
    }
    (found,) = targets.results(make(rows, key="stalled").by_key)
    assert (found.measure.value, found.verdict) == (1.2, "MISSED")
