"""The extensions once more, with symbols, frame pointers and the lines of the .pyx: for perf and memray.

They go into build/profile, and their objects into build/symbols (setup.py): the ordinary ones stay as they are, and a
second build compiles only what has changed.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "profile" / "site"

_CYTHON_NAME = re.compile(r"__pyx_(?:f|pw|pf|tp_new|tp_dealloc)_(\w+)")


def build() -> None:
    """Raises CalledProcessError when something does not compile."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--disable-pip-version-check"]
    environment = {**os.environ, "BACKSTREAM_PROFILE": "1"}
    subprocess.run([*pip, "--target", str(SITE), str(ROOT)], env=environment, check=True)


def readable(name: str) -> str:
    """A symbol as its author knows it: Cython's are ``__pyx_f_10backstream_5_loop_9LoopState_set_deadline``."""
    return _CYTHON_NAME.sub(lambda match: _unmangled(match[0], match[1]), name)


def _unmangled(whole: str, mangled: str) -> str:
    parts = []
    rest = mangled
    while match := re.match(r"(\d+)(\w+)", rest):
        size, text = int(match[1]), match[2]
        # A number that is no length counts the functions of a class: `11buffer_updated`.
        if len(text) < size or (len(text) > size and text[size] != "_"):
            break
        parts.append(text[:size])
        rest = text[size + 1 :]
    if rest:
        parts.append(rest.lstrip("0123456789"))
    name = ".".join(parts)
    for kind in ("tp_new", "tp_dealloc"):
        if whole.startswith(f"__pyx_{kind}_"):
            return f"{name}.{kind}"
    return name
