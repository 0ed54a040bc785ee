"""Results as a run would give them, without a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from bench.report.results import Results
from bench.report.table import Row, Section, standard_columns

Samples = Mapping[str, Sequence[float]]
Make = Callable[..., Results]

MACHINE = {"processor": "AMD EPYC", "cores": "2", "memory": "8 GiB", "architecture": "x86_64", "system": "Linux 6.1"}


def section(key: str, rows: Mapping[str, Samples], *, names: Mapping[str, str] | None = None) -> Section:
    """A section whose rows have these samples, against nginx."""
    found = [
        Row(row, (names or {}).get(row, row), {name: list(map(float, values)) for name, values in samples.items()})
        for row, samples in rows.items()
    ]
    return Section(key, f"what {key} is about", standard_columns("req/s", "µs/req", latency=True), found, "nginx")


SMALL: Mapping[str, Samples] = {
    "nginx": {"rate": (100, 102, 98), "cpu.proxy": (20, 20.5, 19.5), "p99": (900, 950, 1000)},
    "backstream-app": {"rate": (140, 141, 139), "cpu.proxy": (10, 10.1, 9.9), "cpu.agent": (5, 5.1, 4.9)},
    "backstream-upstream": {"rate": (99, 104, 96), "cpu.proxy": (10, 10, 10), "cpu.agent": (9, 9.2, 8.8)},
    "original": {"rate": (20, 21, 19), "cpu.proxy": (40, 41, 39), "cpu.agent": (41, 42, 40)},
    "chisel": {"rate": (50, 51, 49), "cpu.proxy": (30, 30, 30), "cpu.agent": (30, 30, 30)},
}


@pytest.fixture
def make() -> Make:
    def make_results(rows: Mapping[str, Samples] = SMALL, *, key: str = "small", **changes: object) -> Results:
        given = {
            "date": "2026-11-25T10:11:12+00:00",
            "seconds": 600.0,
            "machine": dict(MACHINE),
            "versions": {"backstream": "0.1.0", "nginx": "1.22.1", "chisel": "1.10"},
            "options": {"duration": 2, "bulk_bytes": 1 << 28, "connections": 64},
            "sections": [section(key, rows)],
            **changes,
        }
        return Results(**given)  # type: ignore[arg-type]

    return make_results
