"""System calls of the proxy and the agent for a request, or a MiB.

Counted by the kernel's tracepoints where perf may use them, which hardly slows the process. Else by ``strace -c -f``,
which slows it several times: more then gathers in each turn of its loop, and the calls for a request under load look
fewer than they are.
"""

import csv
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError
from bench.processes import Fleet
from bench.profile import tunnel
from bench.profile.perf import output_of, perf

INSTALL = "neither perf with tracepoints nor strace: apt-get install strace"
_ALL = "raw_syscalls:sys_enter"
_NAMED = (
    *("read", "readv", "recvfrom", "recvmsg", "write", "writev", "sendto", "sendmsg", "sendfile64"),
    *("epoll_wait", "epoll_pwait", "epoll_ctl", "poll", "ppoll", "io_uring_enter", "futex"),
    *("mmap", "munmap", "brk", "madvise", "openat", "close", "accept4", "setsockopt", "getpid", "clock_gettime"),
)
"""The calls that are told by name: each tracepoint takes perf a tenth of a second to begin with."""
OTHERS = "others"


def tool() -> str | None:
    """What counts here: perf, strace, or nothing."""
    if shutil.which("perf"):
        argv = ["perf", "stat", "-e", f"{_ALL},syscalls:sys_enter_read", "true"]
        if subprocess.run(argv, capture_output=True, timeout=30, check=False).returncode == 0:
            return "perf"
    return "strace" if shutil.which("strace") else None


def report(with_tool: str, load: str, seconds: int, connections: int) -> Iterator[str]:
    """Lines with a count for each process and call; with_tool: what `tool` said."""
    for role in tunnel.ROLES:
        with tunnel.fleet() as processes:
            subject = tunnel.start(processes)
            tunnel.put_load(processes, subject.port, load, 1, connections)
            count = _by_perf if with_tool == "perf" else _by_strace
            done, calls = count(processes, subject, role, load, seconds, connections)
        told = f"{load}, {connections} connections" if load == "small" else load
        yield f"{role}, {told}, by {with_tool}: {calls.total() / done.count:.2f} calls per {done.unit} ({done})"
        for name, number in calls.most_common():
            if number * 1000 >= done.count:
                yield f"  {number / done.count:8.3f}  {name}"


def _by_perf(
    processes: Fleet, subject: tunnel.Tunnel, role: str, load: str, seconds: int, connections: int
) -> tuple[tunnel.Done, Counter[str]]:
    file = processes.directory / "perf.csv"
    argv = ["stat", "-x", ",", "-e", ",".join([_ALL, *tracepoints()]), "-o", str(file), "-p", str(subject.pids[role])]
    with perf(processes, argv):
        done = tunnel.put_load(processes, subject.port, load, seconds, connections)
    return done, read_perf(file.read_text())


def tracepoints() -> list[str]:
    """Those of _NAMED that this kernel and processor have. BenchError where perf can't list them."""
    argv = ["perf", "list", "--no-desc", "syscalls:sys_enter_*"]
    there = output_of(argv, timeout=60).decode().split()
    return [event for name in _NAMED if (event := f"syscalls:sys_enter_{name}") in there]


def read_perf(text: str) -> Counter[str]:
    """What ``perf stat -x ,`` has counted, by call; those that were counted together only are OTHERS."""
    found = Counter[str]()
    for row in csv.reader(line for line in text.splitlines() if not line.startswith("#")):
        if len(row) > 2 and row[0].isdigit():
            found[row[2]] += int(row[0])
    found[OTHERS] = found.pop(_ALL, 0) - found.total()
    return Counter({name.rpartition("sys_enter_")[2]: number for name, number in found.items() if number > 0})


def _by_strace(
    processes: Fleet, subject: tunnel.Tunnel, role: str, load: str, seconds: int, connections: int
) -> tuple[tunnel.Done, Counter[str]]:
    file = processes.directory / "strace.txt"
    argv = ["strace", "-c", "-f", "-o", str(file), "-p", str(subject.pids[role])]
    with tunnel.attached(processes, "strace", argv, ready=b"attached"):
        done = tunnel.put_load(processes, subject.port, load, seconds, connections)
    return done, read_strace(file)


def read_strace(file: Path) -> Counter[str]:
    """The summary of ``strace -c``, by call."""
    found = Counter[str]()
    for line in file.read_text().splitlines():
        if match := re.fullmatch(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)(?:\s+\d+)?\s+(\w+)", line):
            found[match[2]] += int(match[1])
    found.pop("total", None)
    if not found:
        raise BenchError(f"strace counted nothing: {file.read_text()[:200]!r}")
    return found
