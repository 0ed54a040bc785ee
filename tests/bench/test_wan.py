"""The bench's long line where there can be none."""

import os
from pathlib import Path

import pytest

from bench.context import Context, Options
from bench.report.table import Row, Section
from bench.scenarios import wan


def test_who_is_not_root_is_told_so_in_a_line_and_nothing_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    context = Context(Options(), tmp_path)
    assert wan.run(context) == []
    assert capsys.readouterr().err == f"  wan: skipped: {wan.NEEDS_ROOT}\n"
    assert context.failures == []


def test_a_contender_is_held_against_plain_tcp_in_the_same_cell() -> None:
    rows = [
        Row("tcp:100ms:0", "", {"rate": [10, 10]}),
        Row("backstream-app:100ms:0", "", {"rate": [9, 9]}),
        Row("backstream-app:100ms:1", "", {"rate": [9]}),
        Row("tcp:100ms:1", "", {"rate": [1]}),
    ]
    section = Section("wan-down", "", wan.COLUMNS, rows)
    assert [wan.COLUMNS[1].cell(row, section) for row in rows] == ["1.00", "0.90", "9.00?", "1.00"]
