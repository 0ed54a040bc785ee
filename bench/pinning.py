"""Which CPUs the processes of a run may use, with ``--pin``: clients, services and contenders apart.

Clients get the last quarter of the CPUs, at least one; services the one before; contenders, most of which are two
busy threads, all the others. Below MINIMUM nothing is pinned: proxy and agent would share a CPU while
another one idles, which measures the pinning.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MINIMUM = 4


@dataclass(frozen=True, slots=True)
class Pinning:
    """The CPUs of each kind of process."""

    clients: frozenset[int]
    services: frozenset[int]
    contenders: frozenset[int]

    @classmethod
    def over(cls, cpus: frozenset[int]) -> "Pinning | None":
        """None where there are too few."""
        if len(cpus) < MINIMUM:
            return None
        ordered = sorted(cpus)
        clients = len(cpus) // 4
        return cls(
            clients=frozenset(ordered[-clients:]),
            services=frozenset(ordered[-clients - 1 : -clients]),
            contenders=frozenset(ordered[: -clients - 1]),
        )

    @contextmanager
    def applied(self, name: str, *, client: bool) -> Iterator[None]:
        """Processes started meanwhile stay on the CPUs of their kind, with all of their threads."""
        before = os.sched_getaffinity(0)
        kind = self.clients if client else self.services if name.endswith("service") else self.contenders
        os.sched_setaffinity(0, kind)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def __str__(self) -> str:
        return "; ".join(
            f"{name} on CPU {', '.join(map(str, sorted(cpus)))}"
            for name, cpus in (("clients", self.clients), ("services", self.services), ("contenders", self.contenders))
        )


def for_this_machine() -> Pinning | None:
    """None where there are too few CPUs, or no way to pin (not Linux)."""
    if sys.platform != "linux":
        return None
    return Pinning.over(frozenset(os.sched_getaffinity(0)))
