"""Where the contenders' binaries are: given on the command line, beside this Python, on PATH, or where packages,
``go install`` and ``cargo install`` put them outside an ordinary user's PATH.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from bench.errors import BenchError

NAMES = (
    "backstream",
    "backstream-original",
    "bore",
    "chisel",
    "envoy",
    "frpc",
    "frps",
    "haproxy",
    "nginx",
    "piko",
    "rathole",
    "sish",
    "ssh",
    "ssh-keygen",
    "sshd",
)
_ELSEWHERE = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin", "~/go/bin", "~/.cargo/bin")
_VERSION = re.compile(r"\d+\.\d+[\w.+-]*")

_given: dict[str, str] = {}


def given(name: str, path: str) -> None:
    """Use the binary at `path` wherever `name` is looked for. BenchError if no contender has such a binary, or the
    path is none that can be executed.
    """
    if name not in NAMES:
        raise BenchError(f"no contender has a binary named {name}; there are {', '.join(NAMES)}")
    if shutil.which(path) is None:
        raise BenchError(f"{name}={path}: there is no such executable file")
    # Processes of a run have a working directory of their own.
    _given[name] = os.path.abspath(shutil.which(path) or path)
    for cached in (find, version):
        cached.cache_clear()


def is_given(name: str) -> bool:
    """Whether the command line says where that binary is."""
    return name in _given


def take(arguments: list[str]) -> list[str]:
    """Note each ``NAME=PATH`` of ``--contender`` as `given`; returns the others, which filter by key."""
    for argument in arguments:
        name, sign, path = argument.partition("=")
        if sign:
            given(name, path)
    return [argument for argument in arguments if "=" not in argument]


@cache
def find(name: str) -> str | None:
    """The path of a binary, None if there is none."""
    if name in _given:
        return _given[name]
    beside = str(Path(sys.executable).parent)
    return shutil.which(name, path=beside) or shutil.which(name) or shutil.which(name, path=_elsewhere())


def path_of(name: str) -> str:
    """The path of a binary that must be there. BenchError if it is not."""
    found = find(name)
    if found is None:
        raise BenchError(f"no {name} found")
    return found


@cache
def version(name: str, *flags: str, module: str = "") -> str | None:
    """What the binary says of its version when called with `flags`; None if it is absent or says nothing.

    Of a Go binary that was built without being told its version, what it was built from counts: `module` is its path.
    """
    binary = find(name)
    if binary is None:
        return None
    said = _VERSION.search(_output([binary, *flags]))
    if module and (said is None or said[0].startswith("0.0.0")) and (go := shutil.which("go", path=_go_path())):
        built = re.search(
            rf"^\s+(?:mod|dep)\s+{re.escape(module)}\s+(\S+)", _output([go, "version", "-m", binary]), re.M
        )
        if built is not None:
            return built[1]
    return said[0] if said else None


def _output(argv: list[str]) -> str:
    try:
        result = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout + result.stderr


def _elsewhere() -> str:
    return os.pathsep.join(os.path.expanduser(folder) for folder in _ELSEWHERE)


def _go_path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/go/bin"])
