"""Builds the Cython extensions; everything else is in pyproject.toml."""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

ROOT = Path(__file__).parent
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": False,
    "wraparound": False,
    "cdivision": True,
    "initializedcheck": False,
    "embedsignature": True,
}

options: dict[str, dict[str, object]] = {"build_ext": {"parallel": os.cpu_count() or 1}}
cython: dict[str, object] = {}
ldflags: list[str] = []
if os.environ.get("BACKSTREAM_SANITIZE"):
    # For fuzz/: every fault ends the process, and the fuzzer is told of branches and comparisons.
    ldflags = ["-fsanitize=address,undefined"]
    cflags = ["-O1", "-g1", "-fno-omit-frame-pointer", *ldflags, "-fno-sanitize-recover=undefined"]
    cflags += ["-fsanitize-coverage=trace-pc,trace-cmp"]
    # Apart from ordinary builds, which would take these objects for theirs.
    options["build"] = {"build_base": "build/sanitize"}
elif os.environ.get("BACKSTREAM_PROFILE"):
    # For bench/profile: frame pointers, symbols and the lines of the .pyx, so that perf and memray name places in them.
    cflags = ["-O2", "-g", "-fno-omit-frame-pointer"]
    options["build"] = {"build_base": "build/symbols"}
    cython = {"emit_linenums": True, "build_dir": "build/symbols/c"}
else:
    cflags = ["-O2", "-g0"]


def extensions() -> list[Extension]:
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / "backstream").rglob("*.pyx"))
    return [
        Extension(".".join(path.with_suffix("").parts), [str(path)], extra_compile_args=cflags, extra_link_args=ldflags)
        for path in sources
    ]


setup(
    ext_modules=cythonize(extensions(), compiler_directives=DIRECTIVES, nthreads=os.cpu_count() or 1, **cython),
    options=options,
)
