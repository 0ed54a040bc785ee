"""Clients, services and contenders on CPUs of their own, where there are enough."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.pinning import Pinning
from bench.processes import Fleet


@pytest.mark.parametrize(
    ("count", "clients", "services", "contenders"),
    [(4, {3}, {2}, {0, 1}), (8, {6, 7}, {5}, {0, 1, 2, 3, 4})],
)
def test_every_cpu_has_one_kind_of_process(
    count: int, clients: set[int], services: set[int], contenders: set[int]
) -> None:
    assert Pinning.over(frozenset(range(count))) == Pinning(
        clients=frozenset(clients), services=frozenset(services), contenders=frozenset(contenders)
    )


def test_with_too_few_cpus_nothing_is_pinned() -> None:
    assert Pinning.over(frozenset({0, 1, 2})) is None


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="CPUs are pinned on Linux only")
def test_a_process_has_the_cpus_of_its_kind_and_the_bench_keeps_its_own(tmp_path: Path) -> None:
    mine = os.sched_getaffinity(0)
    if len(mine) < 2:
        pytest.skip("one CPU")
    first, last = frozenset({min(mine)}), frozenset({max(mine)})
    pinning = Pinning(clients=last, services=first, contenders=first)
    tell = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    with Fleet(tmp_path, {}, pinning) as fleet:
        assert fleet.run("client", tell, timeout=20).strip() == str(sorted(last))
        service = fleet.spawn("bench service", tell)
        service.process.wait(20)
        assert service.log.read_text().strip() == str(sorted(first))
    assert os.sched_getaffinity(0) == mine
