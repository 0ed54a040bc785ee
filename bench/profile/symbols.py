"""The extensions once more, with symbols, frame pointers and the lines of the .pyx: for perf and memray.

They go into build/profile, and their objects into build/symbols (setup.py): the ordinary ones stay as they are, and the
next build compiles only what has changed.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from bench.errors import BenchError

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "profile" / "site"
_BUILT = ROOT / "build" / "profile" / "built"

_CYTHON_NAME = re.compile(r"__pyx_([a-z_]+?)_+(\d+[A-Za-z_]\w*)")
_FUNCTIONS = ("f", "pw", "pf")
"""Kinds of names that are functions of the author's; the others are Cython's own, for his classes and generators."""


def build() -> None:
    """Compiles what is older than its source. BenchError when something does not compile; pip has said what."""
    sources = [ROOT / "setup.py", *(ROOT / "backstream").rglob("*.py*")]
    newest = max(source.stat().st_mtime for source in sources if source.suffix in (".py", ".pyx", ".pxd"))
    if _BUILT.exists() and _BUILT.stat().st_mtime > newest:
        return
    begun = time.time()
    print("building the extensions with symbols, which takes minutes the first time", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--disable-pip-version-check"]
    environment = {**os.environ, "BACKSTREAM_PROFILE": "1"}
    try:
        subprocess.run([*pip, "--target", str(SITE), str(ROOT)], env=environment, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchError(f"the extensions could not be built with symbols: {error}") from error
    _BUILT.touch()
    os.utime(_BUILT, (begun, begun))


def readable(text: str) -> str:
    """Symbols as their author knows them: Cython's are ``__pyx_f_10backstream_5_loop_9LoopState_set_deadline``."""
    return _CYTHON_NAME.sub(lambda match: _unmangled(match[1], match[2]), text)


def _unmangled(kind: str, mangled: str) -> str:
    parts = []
    while match := re.match(r"(\d+)(\w+)", mangled):
        size, text = int(match[1]), match[2]
        # A number that is no length counts the functions of a class: `11buffer_updated`.
        if len(text) < size or (len(text) > size and text[size] != "_"):
            break
        parts.append(text[:size])
        mangled = text[size + 1 :]
    if mangled:
        parts.append(mangled.lstrip("0123456789"))
    return ".".join(parts) if kind in _FUNCTIONS else f"{'.'.join(parts)}.{kind}"
