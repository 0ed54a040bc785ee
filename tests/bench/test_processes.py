"""The processes of a run: they end whatever happens to it."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.context import Context, Options
from bench.errors import BenchError
from bench.processes import Fleet, Spawned
from bench.scenarios.agents import too_few_files
from tests.rig import ROOT

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Context(Options(), tmp_path).fleet() as fleet:
        yield fleet


def test_what_cannot_be_executed_is_told_by_name(fleet: Fleet, tmp_path: Path) -> None:
    path = tmp_path / "not-executable"
    path.write_text("")
    with pytest.raises(BenchError, match=r"frps could not be started: .*not-executable"):
        fleet.spawn("frps", [str(path)])
    assert fleet.count == 0


def test_all_are_killed_where_their_end_is_broken_off(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *rest = (fleet.spawn(f"sleeper {number}", SLEEPER) for number in range(3))

    def broken_off(self: Spawned, grace: float = 1.0) -> None:
        raise SystemExit(143)

    with monkeypatch.context() as patched:
        patched.setattr(Spawned, "stop", broken_off)
        with pytest.raises(SystemExit):
            fleet.stop_from(1)
    assert [each.process.wait(10) for each in rest] == [-signal.SIGKILL] * 2
    assert first.failure() is None
    assert fleet.count == 1


def test_too_few_open_files_are_told_with_what_raises_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert too_few_files(4096 - 256) is None
    assert too_few_files(10_000) == "the hard limit of open files is 4,096; raise it: ulimit -Hn 10256"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, resource.RLIM_INFINITY))
    assert too_few_files(10_000) is None


@pytest.mark.parametrize(
    ("number", "ignored", "status"),
    [
        (signal.SIGTERM, False, 128 + signal.SIGTERM),
        (signal.SIGHUP, False, 128 + signal.SIGHUP),
        (signal.SIGHUP, True, 0),
    ],
)
def test_a_signal_ends_a_run_as_any_unless_it_is_ignored(number: signal.Signals, ignored: bool, status: int) -> None:
    code = "import signal, sys; from bench.processes import end_on_signals\n"
    # Not as the tests were started: under nohup SIGHUP is ignored.
    code += f"signal.signal({int(number)}, signal.{'SIG_IGN' if ignored else 'SIG_DFL'})\n"
    code += "end_on_signals()\ntry:\n    print('ready', flush=True); sys.stdin.read()\nfinally:\n    print('cleaned')"
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, number)
        if not ignored:
            assert process.wait(10) == status
        output, _ = process.communicate(timeout=10)
        assert output == b"cleaned\n"
        assert process.returncode == status
