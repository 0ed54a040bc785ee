"""The progress of a run: one line on a terminal, lines elsewhere."""

from __future__ import annotations

import io

import pytest

from bench.report import progress as module
from bench.report.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_each_turn_is_a_line_with_what_is_left(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = Progress(["websocket", "memory"], stream)
    progress.scenario("websocket")
    progress.planned(2)
    clock[0] += 30
    progress.turn("echo", "nginx", 1, 2)
    progress.turn_ended("echo", "nginx", 1, 2, ": 1,234")
    assert stream.getvalue() == "websocket (0:00)\n  echo, nginx, turn 1/2: 1,234 (0:30, about 1:30 left)\n"


def test_a_terminal_has_one_line_that_is_written_anew(clock: list[float]) -> None:
    stream = Terminal()
    progress = Progress(["websocket", "memory"], stream)
    progress.scenario("websocket")
    progress.planned(1)
    progress.turn("echo", "nginx", 1, 1)
    progress.turn_ended("echo", "nginx", 1, 1, "")
    clock[0] += 60
    progress.scenario("memory")
    assert stream.getvalue().split("\r\x1b[K")[-2:] == [
        "[0:00, ? left] websocket: echo, nginx, turn 1/1",
        "[1:00, about 1:00 left] memory",
    ]
    assert "\n" not in stream.getvalue()


def test_what_stays_is_a_line_of_its_own_on_a_terminal() -> None:
    stream = Terminal()
    progress = Progress(["tls"], stream)
    progress.scenario("memory")
    progress.say("frp: FAILED")
    assert stream.getvalue().endswith("\r\x1b[Kfrp: FAILED\n")


def test_scenarios_that_take_longer_count_for_more(clock: list[float]) -> None:
    progress = Progress(["bulk", "memory"], io.StringIO())
    progress.scenario("bulk")
    clock[0] += 50
    progress.scenario("memory")
    assert progress.remaining() == pytest.approx(50 / module.SHARES["bulk"])
