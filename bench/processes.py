"""The processes of a run: started, watched, measured from /proc, and ended whatever happens.

CPU time is that of a process, its threads and its children, from /proc/PID/task/TID/schedstat
(nanoseconds), or from utime + stime where the kernel has no schedstat. Peak memory is VmHWM. Without
/proc (not Linux) both are absent.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

from bench.errors import BenchError
from bench.pinning import Pinning

HAVE_PROC = Path("/proc/self/stat").exists()
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this process by SystemExit, so that its own are ended as at the end of any run."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Whoever ignores it, as nohup has it, is not to be ended by it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ended)


def _ended(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


class Spawned:
    """A helper or contender that runs until it is stopped; its output is in a file, shown when it fails."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid

    def failure(self) -> str | None:
        """Why it is no longer running, in a line; None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"{self.name} ended with status {status}: {lines[-1] if lines else 'no output'}"

    def stop(self, grace: float = 1.0) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds, to the whole process group."""
        for number, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(wait)
                break
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # children it may have left
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def kill(self) -> None:
        """SIGKILL to the whole process group, and no waiting."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class Fleet:
    """A context manager that owns processes: those still running at its end are stopped."""

    def __init__(self, directory: Path, environment: Mapping[str, str], pinning: Pinning | None = None) -> None:
        self.directory = directory
        self._pinning = pinning
        self._environment = dict(environment)
        self._running: list[Spawned] = []
        self._count = 0

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_from(0)

    def spawn(self, name: str, argv: Sequence[str], *, pipes: bool = False) -> Spawned:
        """Start `argv` in the fleet's directory; with `pipes`, as a client, its standard input and output are ours.

        BenchError where it can't be executed.
        """
        self._count += 1
        log = self.directory / f"{self._count}-{name.replace(' ', '-')}.log"
        pinned = self._pinning.applied(name, client=pipes) if self._pinning is not None else nullcontext()
        with log.open("wb") as output, pinned:
            try:
                process = subprocess.Popen(
                    argv,
                    cwd=self.directory,
                    env=self._environment,
                    stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                    stdout=subprocess.PIPE if pipes else output,
                    stderr=output,
                    start_new_session=True,
                )
            except OSError as error:
                raise BenchError(f"{name} could not be started: {error}") from error
        spawned = Spawned(name, process, log)
        self._running.append(spawned)
        return spawned

    @property
    def count(self) -> int:
        """How many run."""
        return len(self._running)

    def stop_from(self, count: int) -> None:
        """Stop all but the first `count`, the last first: what was started for something that then failed.

        Where that is broken off, by a signal, they are killed.
        """
        while len(self._running) > count:
            last = self._running[-1]
            try:
                last.stop()
            except BaseException:
                while len(self._running) > count:
                    self._running.pop().kill()
                raise
            self._running.remove(last)

    def stop(self, spawned: Spawned) -> None:
        spawned.stop()
        self._running.remove(spawned)

    def log(self, pid: int) -> Path:
        """Where a process of the fleet writes to."""
        return next(spawned.log for spawned in self._running if spawned.pid == pid)

    def kill(self, pid: int) -> int:
        """SIGKILL to a process of the fleet and those that it has started, as a crash; when, of `time.monotonic_ns`."""
        # sshd serves each connection in a process with a group of its own, which would outlive it.
        # Of one that has ended by itself the pid may be another's already.
        members = _tree(pid) if self.runs(pid) else []
        killed_at = time.monotonic_ns()
        for member in members:
            with suppress(ProcessLookupError):
                os.kill(member, signal.SIGKILL)
        for spawned in [each for each in self._running if each.pid == pid]:
            self.stop(spawned)
        return killed_at

    def runs(self, pid: int) -> bool:
        """Whether a process of the fleet has not ended by itself."""
        return any(spawned.pid == pid and spawned.failure() is None for spawned in self._running)

    def check(self) -> None:
        """BenchError, with the last line it wrote, if a process that should be running is not."""
        for spawned in self._running:
            if failure := spawned.failure():
                raise BenchError(failure)

    def run(self, name: str, argv: Sequence[str], *, timeout: float) -> str:
        """Run a client to its end, within `timeout` seconds; returns its standard output."""
        spawned = self.spawn(name, argv, pipes=True)
        try:
            output, _ = spawned.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{name} took more than {timeout:.0f} s") from None
        finally:
            self.stop(spawned)
        if spawned.process.returncode:
            raise BenchError(spawned.failure() or name)
        return output.decode()


def read_line(spawned: Spawned, *, timeout: float, meanwhile: Callable[[], None] = lambda: None) -> str:
    """The next line of a helper's standard output, within `timeout` seconds; `meanwhile` is called time and again."""
    pipe = spawned.process.stdout
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    deadline = time.monotonic() + timeout
    line = b""
    while not line.endswith(b"\n"):
        piece = _read_some(pipe)
        if piece is not None:
            line += piece
            if piece:
                continue
            raise BenchError(spawned.failure() or f"{spawned.name} closed its output")
        if time.monotonic() > deadline:
            raise BenchError(f"{spawned.name} said nothing for {timeout:.0f} s")
        meanwhile()
        time.sleep(0.005)
    return line.decode().strip()


def _read_some(pipe: IO[bytes]) -> bytes | None:
    try:
        return os.read(pipe.fileno(), 65536)
    except BlockingIOError:
        return None


def tell(spawned: Spawned) -> None:
    """Write an empty line to a helper's standard input, which lets it go on."""
    pipe = spawned.process.stdin
    assert pipe is not None
    with suppress(BrokenPipeError):
        pipe.write(b"\n")
        pipe.flush()


def finish(spawned: Spawned, *, timeout: float = 15.0) -> str:
    """Close a helper's standard input, which ends it, and return its last line."""
    pipe = spawned.process.stdin
    assert pipe is not None
    with suppress(BrokenPipeError):
        pipe.close()
    return read_line(spawned, timeout=timeout)


def cpu_ns(pid: int) -> int | None:
    """CPU time so far of a process, its threads and its living descendants, in nanoseconds."""
    if not HAVE_PROC:
        return None
    return sum(_own_cpu_ns(member) for member in _tree(pid))


def memory_bytes(pid: int, field: str = "VmRSS") -> int | None:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of a process and its descendants."""
    if not HAVE_PROC:
        return None
    total = 0
    for member in _tree(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{member}/status").read_text().splitlines():
                if line.startswith(field + ":"):
                    total += int(line.split()[1]) * 1024
    return total


def reset_peak(pid: int) -> None:
    """Let VmHWM begin anew at what is resident now (where the kernel allows it)."""
    for member in _tree(pid):
        with suppress(OSError):
            Path(f"/proc/{member}/clear_refs").write_text("5")


def _own_cpu_ns(pid: int) -> int:
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
    except (FileNotFoundError, PermissionError, IndexError):
        pass
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_NS
    return 0


def _tree(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    if HAVE_PROC:
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for member in found:
        found.extend(children.get(member, ()))
    return found
