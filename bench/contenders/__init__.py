"""Contenders: the things compared. Each knows whether it is installed, which command installs it, and how to start
itself before a backend.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from bench.contenders import binaries
from bench.errors import BenchError
from bench.processes import Fleet


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to send requests on 127.0.0.1, and the processes that the answer costs, by role."""

    port: int
    pids: dict[str, int]
    ca: str = ""
    """The file to verify it with, where it speaks TLS."""


NEAREST = ("backstream", "direct", "nginx")
"""What keys begin with of those that take part everywhere: this project, and its yardstick."""
TUNNELS = ("chisel", "frp", "rathole", "bore", "ssh", "sish", "piko", "websockets")
"""Keys of others' reverse tunnels: a pair of processes with a line between them, as this project's are."""


class Contender(ABC):
    """One way from client to service."""

    key: str
    name: str
    install: str = ""
    """The one command that installs it; empty where there is nothing to install, or no command does."""
    brief: bool = False
    """Whether few turns are enough: there are many that are there for comparison only."""

    def missing(self, fleet: Fleet) -> str | None:
        """Why it can't be started here and how to install it, in a line; None if it can."""
        return None

    def version(self) -> str | None:
        """What its binary says of its version, None if that is unknown or it is absent."""
        return None

    @abstractmethod
    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        """Start it in front of `backend`, or with its own service inside; it need not answer yet."""


def known_keys() -> set[str]:
    """The keys of all contenders whose modules are imported."""
    kinds, keys = [Contender], {"nginx-64k", "nginx"}  # the key of an nginx is its instance's
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        keys |= {kind.key} if hasattr(kind, "key") else set()
    return keys


def require_keys(parts: Sequence[str]) -> None:
    """Raises BenchError where a part of ``--contender`` is in no key: nobody would be measured, and nothing said."""
    keys = known_keys()
    for part in parts:
        # What stands behind a colon is a state of one measurement's.
        base = part.partition(":")[0]
        if not part or not any(base in key for key in keys):
            raise BenchError(f"no contender's key has {part!r}: there are {', '.join(sorted(keys))}")


class Direct(Contender):
    """The backend itself: the ceiling of what anything in front of it can reach."""

    key = "direct"

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        return backend


class Program(Contender):
    """A contender that is a binary, or several, of others."""

    binaries: Sequence[str]
    """Their names; the first is asked for its version."""
    version_flags: Sequence[str] = ("--version",)
    module: str = ""
    """Where its version is written in a Go binary that does not know it."""
    brief = True

    def missing(self, fleet: Fleet) -> str | None:
        absent = [name for name in self.binaries if binaries.find(name) is None]
        return f"no {', '.join(absent)} found; install it: {self.install}" if absent else None

    def version(self) -> str | None:
        return binaries.version(self.binaries[0], *self.version_flags, module=self.module)
