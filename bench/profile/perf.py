"""CPU time by function, by Linux perf, and as a flame graph by inferno.

Samples come from the clock (cpu-clock): virtual machines seldom let their counters be seen. Stacks are unwound from
copies of the stack (``--call-graph dwarf``), since Python itself and uvloop are built without frame pointers.
"""

import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.processes import Fleet
from bench.profile import symbols, tunnel
from bench.profile.symbols import readable

INSTALL = "no perf: apt-get install linux-perf"
INSTALL_INFERNO = "no inferno: cargo install inferno"
RATE = 999
"""Samples per second: no whole divisor of what else happens at round times."""
STACK_RATE = 499
"""Of samples with stacks, which cost more."""
ACK_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to look at."""

    process: str
    load: str
    seconds: int
    connections: int


def missing() -> str | None:
    """Why there is no perf that works here, in a line; None if there is."""
    if shutil.which("perf") is None:
        return INSTALL
    argv = ["perf", "stat", "-e", "cpu-clock", "true"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
    if result.returncode:
        return f"perf may not look here (see kernel.perf_event_paranoid): {result.stderr.strip().splitlines()[-1]}"
    return None


def missing_inferno() -> str | None:
    return None if _inferno("inferno-flamegraph") else INSTALL_INFERNO


def _inferno(name: str) -> str | None:
    """The command, where cargo puts it too, which is not on everybody's PATH."""
    cargo = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo")) / "bin"
    return shutil.which(name) or shutil.which(name, path=str(cargo))


@contextmanager
def perf(processes: Fleet, argv: Sequence[str]) -> Iterator[None]:
    """perf with these arguments, which looks from the beginning of the block to its end and then writes its file."""
    control, answers = processes.directory / "perf.control", processes.directory / "perf.answers"
    for pipe in (control, answers):
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
    # Open at both ends here too, so that neither side waits for the other to open.
    with open(os.open(control, os.O_RDWR), "wb", 0) as orders, open(os.open(answers, os.O_RDWR), "rb", 0) as words:
        tool = processes.spawn("perf", ["perf", *argv, "--delay=-1", f"--control=fifo:{control},{answers}"])

        def order(word: bytes) -> None:
            orders.write(word + b"\n")
            deadline = time.monotonic() + ACK_SECONDS
            while not select.select([words], [], [], 0.1)[0]:
                processes.check()
                if time.monotonic() > deadline:
                    raise BenchError(f"perf did not {word.decode()} within {ACK_SECONDS:.0f} s")
            words.read(64)

        order(b"enable")
        yield
        order(b"disable")
    tunnel.interrupt(tool)
    if tool.process.returncode not in (0, -2, 130):
        raise BenchError(tool.failure() or "perf failed")
    # It has ended as it was told, and is none of those that should be running.
    processes.stop(tool)


def _record(processes: Fleet, wanted: Wanted, file: Path, *flags: str) -> tunnel.Done:
    subject = tunnel.start(processes)
    argv = ["record", "-e", "cpu-clock", *flags, "-o", str(file), "-p", str(subject.pids[wanted.process])]
    tunnel.put_load(processes, subject.port, wanted.load, 1, wanted.connections)
    with perf(processes, argv):
        return tunnel.put_load(processes, subject.port, wanted.load, wanted.seconds, wanted.connections)


def top(wanted: Wanted, count: int) -> Iterator[str]:
    """Lines: the functions with the largest shares of the process's CPU time, those that they call not counted in."""
    symbols.build()
    with tunnel.fleet(symbols=True) as processes:
        file = processes.directory / "perf.data"
        done = _record(processes, wanted, file, "-F", str(RATE))
        yield f"{wanted.process} under {wanted.load}: {done}"
        argv = ["perf", "report", "-i", str(file), "--stdio", "--sort=dso,symbol", "--field-separator=;", "-q"]
        for line in output_of(argv).decode(errors="replace").splitlines()[:count]:
            share, library, symbol = (part.strip() for part in line.split(";")[:3])
            name = readable(re.sub(r"^\[.\] ", "", symbol))
            yield f"{float(share.rstrip('%')):6.2f} %  {name}  [{library.partition('.cpython')[0]}]"


def flame(wanted: Wanted, target: Path) -> Iterator[str]:
    """Writes the flame graph of a process as SVG; lines that say what is in it."""
    symbols.build()
    collapse, draw = _inferno("inferno-collapse-perf"), _inferno("inferno-flamegraph")
    assert collapse is not None and draw is not None
    with tunnel.fleet(symbols=True) as processes:
        file = processes.directory / "perf.data"
        done = _record(processes, wanted, file, "-F", str(STACK_RATE), "--call-graph=dwarf,16384")
        title = f"backstream {wanted.process}, {wanted.load}: {done}"
        yield title
        stacks = output_of(["perf", "script", "-i", str(file), "--no-inline"])
        folded = output_of([collapse], stacks).decode()
        if not folded:
            raise BenchError("perf took no samples: was the process idle?")
        drawn = output_of([draw, "--title", title, "--countname", "ns", "--hash"], readable(folded).encode())
        target.write_bytes(drawn)
        yield f"{len(folded.splitlines()):,} different stacks in {target}"


def output_of(argv: Sequence[str], data: bytes = b"", *, timeout: float = 600) -> bytes:
    """What a tool prints that is given `data`; BenchError where it fails, or takes more than `timeout` seconds."""
    name = " ".join([Path(argv[0]).name, *argv[1:2]])
    try:
        result = subprocess.run(argv, input=data, capture_output=True, timeout=timeout, check=True)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        raise BenchError(f"{name} failed: {lines[-1] if lines else error}") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name} took more than {timeout:.0f} s") from None
    except OSError as error:
        raise BenchError(f"{name} could not be started: {error}") from error
    return result.stdout
