"""The processes of a run: they end whatever happens to it."""

import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.context import Context, Options
from bench.errors import BenchError
from bench.processes import Fleet, Spawned, read_line
from bench.scenarios.agents import too_few_files
from bench.scenarios.recovery import Pair
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


def test_a_crash_takes_what_the_process_has_started_with_it(fleet: Fleet) -> None:
    code = "import subprocess, sys; child = subprocess.Popen(sys.argv[1:], start_new_session=True)\n"
    code += "print(child.pid, flush=True); child.wait()"
    parent = fleet.spawn("parent", [sys.executable, "-c", code, *SLEEPER], pipes=True)
    child = int(read_line(parent, timeout=10))
    watched = os.pidfd_open(child)
    try:
        assert fleet.runs(parent.pid)
        before = time.monotonic_ns()
        assert before <= fleet.kill(parent.pid) <= time.monotonic_ns()
        assert select.select([watched], [], [], 10)[0], "the child lives on"
    finally:
        os.close(watched)
    assert not fleet.runs(parent.pid)
    assert fleet.count == 0


def test_an_end_of_a_pair_that_gives_up_is_started_again(fleet: Fleet) -> None:
    started: list[int] = []

    def start(argv: list[str]) -> int:
        started.append(fleet.spawn("end", argv).pid)
        return started[-1]

    # The proxy stays; the agent gives up at once, each time.
    agent = [sys.executable, "-c", ""]
    pair = Pair(fleet, 0, {"proxy": lambda: start(SLEEPER), "agent": lambda: start(agent)})
    pair.start("proxy")
    pair.start("agent")
    deadline = time.monotonic() + 20
    while len(started) < 4:
        assert time.monotonic() < deadline
        pair.supervise()
        time.sleep(0.005)
    assert fleet.runs(started[0])
    assert fleet.count == 2


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
