"""The command as users run it: a process of its own, without this one's BACKSTREAM_ variables."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backstream import cli
from backstream.config import AgentSettings, ProxySettings
from tests.rig import Program

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


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Start the command in an empty directory; whatever still runs at the test's end is killed."""
    commands: list[Program] = []

    def start(*arguments: str, **env: str) -> Program:
        commands.append(Program(["-m", "backstream", *arguments], cwd=tmp_path, env=environment(**env)))
        return commands[-1]

    yield start
    for command in commands:
        command.end()
