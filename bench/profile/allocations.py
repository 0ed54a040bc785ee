"""Allocations of a process for a small request, counted by memray, and what is left of them.

Every call of Python's allocators and of malloc counts, however short the block lives. An object that comes from a free
list (most tuples, floats, frames) calls no allocator and so is not seen: it costs next to nothing.

One after the other on one connection, requests cost the same from run to run. On many connections what is made once
for a turn of the loop is shared by all that it serves, and the count is lower.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from bench.errors import BenchError
from bench.net import free_port
from bench.processes import Fleet, Spawned, read_line
from bench.profile import symbols, tunnel
from bench.profile.symbols import ROOT, readable

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


Load = Callable[[int], int]
"""Sends small requests to a port; returns their number."""


def in_turn(requests: int) -> Load:
    """So many, one after the other on one connection."""

    def load(port: int) -> int:
        tunnel.one_after_the_other(port, requests)
        return requests

    return load


def count(processes: Fleet, tunnel_pair: Pair, role: str, load: Load, *, native: bool = False) -> Count:
    """Counts in one of the two processes. `native`: by place, for which symbols must be there."""
    import memray

    subject = tunnel_pair.subjects[role]
    file = processes.directory / f"{role}{len(list(processes.directory.iterdir()))}.memray"
    subject.ask(f"count {file}{' native' * native}")
    found = Count(load(tunnel_pair.port))
    subject.ask("stop")
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


def kept(tunnel_pair: Pair, role: str, load: Load) -> int:
    """How many more blocks Python's allocator has given out after a load than before it."""
    subject = tunnel_pair.subjects[role]
    before: int = subject.ask("blocks")
    load(tunnel_pair.port)
    after: int = subject.ask("blocks")
    return after - before


def report(requests: int, connections: int, top: int, *, places: bool = True) -> Iterator[str]:
    """Lines about the proxy and the agent. Builds symbols unless `places` is false.

    requests: that are sent one after the other; with more than one of `connections`, a second of load in their place.
    """
    if places:
        symbols.build()
    with tunnel.fleet(symbols=places) as processes, pair(processes) as both:

        def under_load(port: int) -> int:
            return int(tunnel.put_load(processes, port, "small", 1, connections).count)

        load = in_turn(requests) if connections == 1 else under_load
        for role, subject in both.subjects.items():
            left = kept(both, role, load)
            subject.ask("trace")
            load(both.port)
            grown = subject.ask("stop")
            found = count(processes, both, role, load)
            kinds = ", ".join(f"{name} {number / found.requests:.2f}" for name, number in found.calls.most_common())
            size = found.bytes / found.requests
            yield f"{role}, {found.requests:,} requests on connections: {connections}"
            yield f"  {found.total:.2f} calls of allocators per request ({kinds}), {size:,.0f} bytes"
            yield f"  {left:+d} blocks after all of them (sys.getallocatedblocks)"
            for place, size, blocks in grown:
                yield f"  {size:+,d} bytes, {blocks:+d} blocks after all of them (tracemalloc): {place}"
            if places:
                found = count(processes, both, role, load, native=True)
                for text, number in found.places.most_common(top):
                    if number * 50 >= found.requests:
                        yield f"  {number / found.requests:6.2f}  {text}"
