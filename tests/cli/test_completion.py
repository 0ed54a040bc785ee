"""Shells complete the command with what `backstream completion` prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import environment

Run = Callable[..., subprocess.CompletedProcess[str]]
ASK = {
    "bash": 'eval "$(backstream completion bash)"; COMP_WORDS=(backstream proxy --route-); COMP_CWORD=2; '
    '_backstream_completion backstream; printf "%s\\n" "${COMPREPLY[@]}"',
    "fish": 'backstream completion fish | source; complete -C "backstream proxy --route-"',
}
"""zsh completes only where somebody types."""


@pytest.mark.parametrize("shell", [shell for shell in ASK if shutil.which(shell)])
def test_a_shell_completes_flags(shell: str, tmp_path: Path) -> None:
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    done = subprocess.run(
        [shell, "-c", ASK[shell]],
        env=environment(PATH=path, HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert {line.split("\t")[0] for line in done.stdout.split("\n")} >= {"--route-host", "--route-path"}, done


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_names_the_command(shell: str, run: Run) -> None:
    done = run("completion", shell)
    assert done.returncode == 0 and "backstream" in done.stdout and "_BACKSTREAM_COMPLETE" in done.stdout


def test_an_unknown_shell_costs_one_line(run: Run) -> None:
    done = run("completion", "csh")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "csh" in done.stderr
