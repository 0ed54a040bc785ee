"""What a small request costs in allocations: as many as it did, and none that stay.

Counted are the calls of Python's allocators and of malloc in processes of their own, by memray (bench/profile), for
requests that go one after the other on a kept connection: then the count depends on neither machine nor load, but for
timers, which are few. Whoever makes it smaller lowers the ceiling.
"""

import sys
from collections.abc import Iterator

import pytest

from bench.processes import Fleet
from bench.profile import allocations, tunnel

REQUESTS = 2000
ELSEWHERE = 1.0 if sys.version_info[:2] == (3, 11) else 1.15
"""Other versions of Python than the one that these were counted on make some objects more, and some less."""
CEILINGS = {"proxy": 10.8 * ELSEWHERE, "agent": 38.2 * ELSEWHERE}
"""Calls for a request: 10.1 and 37.2, and what timers add on a slow machine."""
LEFT = 100
"""Blocks that may be more after all requests than before: caches, and what the event loop has under way."""
TRIES = 3
"""A count is taken again where it is too high: timers count by the second, and a busy machine takes more of them."""

Running = tuple[Fleet, allocations.Pair]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with tunnel.fleet() as processes, allocations.pair(processes) as both:
        yield processes, both


@pytest.mark.parametrize("role", tunnel.ROLES)
def test_a_small_request_allocates_no_more_than_it_did(running: Running, role: str) -> None:
    counts = []
    while len(counts) < TRIES and not (counts and counts[-1] <= CEILINGS[role]):
        counts.append(allocations.count(*running, role, allocations.in_turn(REQUESTS)).total)
    # The client's id, the exchange and the stream are objects, whatever becomes of the rest.
    assert 3 <= min(counts) <= CEILINGS[role], counts


@pytest.mark.parametrize("role", tunnel.ROLES)
def test_small_requests_leave_nothing_behind(running: Running, role: str) -> None:
    load = allocations.in_turn(REQUESTS)
    left = min(allocations.kept(running[1], role, load) for _ in range(2))
    assert left <= LEFT, f"{left} blocks after {REQUESTS} requests"
