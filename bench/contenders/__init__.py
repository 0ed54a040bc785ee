"""Contenders: the things compared. Each knows whether it is installed, and how to start itself before a
backend.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from bench.processes import Fleet


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send requests on 127.0.0.1, and the processes that the answer costs, by role."""

    port: int
    pids: dict[str, int]
    ca: str = ""
    """The file to verify it with, where it speaks TLS."""


class Contender(ABC):
    """One way from client to service."""

    key: str
    name: str

    def missing(self, fleet: Fleet) -> str | None:
        """Why it can't be started here and how to install it, in a line; None if it can."""
        return None

    @abstractmethod
    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        """Start it in front of `backend`, or with its own service inside; it need not answer yet."""


class Direct(Contender):
    """The backend itself: the ceiling of what anything in front of it can reach."""

    key = "direct"

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        return backend
