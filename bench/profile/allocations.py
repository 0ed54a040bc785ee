"""Allocations of a process for a small request, counted by memray, and what is left of them.

Every call of Python's allocators and of malloc counts, however short the block lives. An object that comes from a free
list (most tuples, floats, frames) calls no allocator and so is not seen: it costs next to nothing.

Requests go one after the other on one connection, so that the count is the same from run to run. Under load, where a
turn of the loop serves many of them, it is lower.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.net import free_port
from bench.processes import Fleet, Spawned, read_line
from bench.profile import symbols, tunnel
from bench.profile.symbols import ROOT, SITE, readable

if TYPE_CHECKING:
    from memray import AllocationRecord

INSTALL = "no memray: pip install memray"
WARM_UP = 500
"""Requests, after which every cache and buffer has its size."""
_DEPTH = 24
_ALLOCATORS = ("memray", "PyMem_", "PyObject_Malloc", "PyObject_Realloc", "PyObject_Calloc", "_PyObject_Malloc")


def missing() -> str | None:
    """Why nothing can be counted here, in a line; None if it can."""
    return None if find_spec("memray") else INSTALL


class Subject:
    """A process of subject.py."""

    def __init__(self, processes: Fleet, role: str, port: int) -> None:
        argv = [sys.executable, "-m", "bench.profile.subject", role, str(port)]
        self.role = role
        self._spawned: Spawned = processes.spawn(f"{role} of profile", argv, pipes=True)
        if read_line(self._spawned, timeout=30) != "ready":
            raise BenchError(f"the {role} did not start")

    def ask(self, line: str) -> Any:
        """What it answers to a line of subject.py's."""
        pipe = self._spawned.process.stdin
        assert pipe is not None
        pipe.write(f"{line}\n".encode())
        pipe.flush()
        return json.loads(read_line(self._spawned, timeout=60))


@dataclass(slots=True)
class Pair:
    """A proxy and an agent that can be looked into, and the port that takes requests."""

    port: int
    subjects: dict[str, Subject]


@contextmanager
def pair(processes: Fleet) -> Iterator[Pair]:
    """Both, after WARM_UP requests."""
    port = free_port()
    subjects = {role: Subject(processes, role, port) for role in tunnel.ROLES}
    tunnel.one_after_the_other(port, WARM_UP)
    yield Pair(port, subjects)


@dataclass(slots=True)
class Count:
    """What was allocated while so many requests were served."""

    requests: int
    calls: Counter[str] = field(default_factory=Counter)
    """By allocator: PYMALLOC_MALLOC, PYMALLOC_REALLOC, MALLOC and so on."""
    bytes: int = 0
    places: Counter[str] = field(default_factory=Counter)
    """By the place in the code, with `native` only."""

    @property
    def total(self) -> float:
        """Calls for each request, those that only free not among them."""
        return sum(self.calls.values()) / self.requests


def count(processes: Fleet, tunnel_pair: Pair, role: str, requests: int, *, native: bool = False) -> Count:
    """Counts in one of the two processes. `native`: by place, for which symbols must be there."""
    import memray

    subject = tunnel_pair.subjects[role]
    file = processes.directory / f"{role}{len(list(processes.directory.iterdir()))}.memray"
    subject.ask(f"count {file}{' native' * native}")
    tunnel.one_after_the_other(tunnel_pair.port, requests)
    subject.ask("stop")
    found = Count(requests)
    with memray.FileReader(file) as reader:
        for record in reader.get_allocation_records():
            allocator = memray.AllocatorType(record.allocator)
            if "FREE" in allocator.name or allocator is memray.AllocatorType.MUNMAP:
                continue
            found.calls[allocator.name] += record.n_allocations
            found.bytes += record.size
            if native:
                found.places[_place(record)] += record.n_allocations
    return found


def _place(record: AllocationRecord) -> str:
    """``what it makes < where``: the call that allocates, and the first two frames of ours behind it."""
    made = ""
    where: list[str] = []
    for name, file, line in record.hybrid_stack_trace(_DEPTH):
        if not made:
            if not name.startswith(_ALLOCATORS) and "memray" not in file:
                made = readable(name)
            continue
        if name.startswith(_ALLOCATORS):
            continue
        inside = _short(file)
        if inside is not None:
            where.append(f"{readable(name)} ({inside}:{line})")
            if len(where) == 2:
                break
    return " < ".join([made or "?", *where])


def _short(file: str) -> str | None:
    """A file of ours, or of what the hot path is made of; None for the interpreter's."""
    for part in ("/site/backstream/", f"{ROOT}/backstream/"):
        if part in file:
            return "backstream/" + file.partition(part)[2]
    if file.startswith("backstream/") or file.startswith("build/"):
        return file
    for library in ("uvloop", "picows", "httptools", "asyncio", "bench"):
        if f"{library}/" in file:
            return f"{library}/" + file.rpartition(f"{library}/")[2]
    return None


def report(requests: int, top: int, *, places: bool = True) -> Iterator[str]:
    """Lines about the proxy and the agent. Builds symbols unless `places` is false."""
    if places:
        symbols.build()
    with tunnel.fleet(symbols=places and SITE.exists()) as processes, pair(processes) as both:
        yield f"{requests:,} requests one after the other on one connection, after {WARM_UP} that do not count"
        for role, subject in both.subjects.items():
            before = subject.ask("blocks")
            plain = count(processes, both, role, requests)
            kept = subject.ask("blocks") - before
            yield ""
            kinds = ", ".join(f"{name} {number / requests:.2f}" for name, number in plain.calls.most_common())
            yield f"{role}: {plain.total:.2f} allocator calls per request ({kinds}), {plain.bytes / requests:,.0f} bytes"
            yield f"  blocks that are left of all {requests:,} requests (sys.getallocatedblocks): {kept:+d}"
            subject.ask("trace")
            tunnel.one_after_the_other(both.port, requests)
            for place, size, blocks in subject.ask("stop"):
                yield f"  tracemalloc, left: {size:+,d} bytes, {blocks:+d} blocks, {place}"
            if places:
                found = count(processes, both, role, requests, native=True)
                for text, number in found.places.most_common(top):
                    if number * 20 >= requests:
                        yield f"  {number / requests:6.2f}  {text}"
