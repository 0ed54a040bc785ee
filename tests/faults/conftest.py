"""Faults: with the commands on uvloop, as they run, and on both loops where all is in this process."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from tests import rig


def pytest_asyncio_loop_factories(config, item):
    return rig.UVLOOP if "commands" in item.fixturenames else rig.BOTH_LOOPS


@pytest.fixture(autouse=True)
def open_files():
    """As many as the system lets this process have: both ends of many connections are in it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Journal:
    """What the services noted: ("came" or "gone", method, path, process) in order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def entries(self) -> list[tuple[str, str, str, int]]:
        # A last line may still be on its way.
        whole, _, _ = self.path.read_text().rpartition("\n")
        lines = [line.split(" ") for line in whole.splitlines()]
        return [(word, method, path, int(process)) for word, method, path, process in lines]

    def count(self, word: str, path: str) -> int:
        return sum(entry[0] == word and entry[2] == path for entry in self.entries())

    async def has(self, word: str, path: str, count: int = 1, *, seconds: float = rig.LIMIT) -> None:
        """Waits until something was noted `count` times."""
        await rig.until(lambda: self.count(word, path) >= count, f"{word} {path} noted {count} times", seconds=seconds)


@pytest.fixture
def journal(tmp_path, monkeypatch):
    """The journal of the services whose processes are started from here on."""
    monkeypatch.setenv("FAULTS_JOURNAL", str(tmp_path / "journal"))
    return Journal(tmp_path / "journal")


@pytest.fixture
def commands(journal):
    """The commands as processes; killed at the end."""
    processes = rig.Processes()
    yield processes
    processes.end()
