"""The command as users run it: a process of its own, without this one's BACKSTREAM_ variables."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest

from backstream import cli
from backstream.config import AgentSettings, ProxySettings

ROOT = Path(__file__).parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
Parse = Callable[..., Any]
KINDS = {"proxy": ProxySettings, "agent": AgentSettings}


def environment(**extra: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BACKSTREAM_")}
    paths = [str(ROOT), *filter(None, [clean.get("PYTHONPATH")])]
    return clean | {"PYTHONPATH": os.pathsep.join(paths)} | extra


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the command to its end, in an empty directory."""

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "backstream", *arguments],
            cwd=tmp_path,
            env=environment(**env),
            capture_output=True,
            text=True,
            timeout=30,
        )

    return run


@pytest.fixture
def parse(monkeypatch: pytest.MonkeyPatch) -> Parse:
    """The settings that a command line comes to, without running the command."""

    def parse(name: str, *arguments: str, **env: str) -> Any:
        given: dict[str, Any] = {}
        command = cli.cli.commands[name]
        for variable, value in env.items():
            monkeypatch.setenv(variable, value)
        with monkeypatch.context() as patch:
            patch.setattr(command, "callback", lambda **values: given.update(values))
            assert cli.main([name, *arguments]) == 0
        for extra in ("log_format", "log_level", "app_dir", "reload", "reload_dir"):
            given.pop(extra, None)
        return cli._settings(KINDS[name], given)

    return parse


class Command:
    """A running command, whose output can be waited for line by line."""

    def __init__(self, *arguments: str, cwd: Path, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "backstream", *arguments],
            cwd=cwd,
            env=environment(**env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.seen: list[str] = []
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str, seconds: float = 20) -> re.Match[str]:
        """The match in the first line that has one; fails when there is none in time."""
        while True:
            try:
                line = self._lines.get(timeout=seconds)
            except Empty:
                line = None
            if line is None:
                pytest.fail(f"no line with {pattern!r} in: {''.join(self.seen)}")
            self.seen.append(line)
            if match := re.search(pattern, line):
                return match

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def status(self, seconds: float = 20) -> int:
        """The exit status, once the process has ended."""
        return self.process.wait(seconds)

    def output(self) -> str:
        """All that was printed; call it after `status`."""
        self._reader.join(10)
        with contextlib.suppress(Empty):
            while (line := self._lines.get_nowait()) is not None:
                self.seen.append(line)
        return "".join(self.seen)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start the command in an empty directory; whatever still runs at the test's end is killed."""
    commands: list[Command] = []

    def start(*arguments: str, **env: str) -> Command:
        commands.append(Command(*arguments, cwd=tmp_path, **env))
        return commands[-1]

    yield start
    for command in commands:
        command.end()
