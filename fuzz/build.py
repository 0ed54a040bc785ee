"""Builds what the fuzzers run: the extensions under AddressSanitizer and UBSan, apart from the ordinary ones.

All of it goes into build/fuzz, and its objects into build/sanitize (setup.py), so that a second build is quick.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "build" / "fuzz"
SITE = PLACE / "site"
COVERAGE = PLACE / "coverage.so"
COMPILER = os.environ.get("CC", "gcc")


def build() -> None:
    """Raises CalledProcessError when something does not compile."""
    PLACE.mkdir(parents=True, exist_ok=True)
    # By a link, targets are found without what else lies in the checkout: the ordinary extensions.
    link = PLACE / "fuzz"
    if not link.is_symlink():
        link.symlink_to(Path(__file__).parent)
    source = str(Path(__file__).with_name("coverage.c"))
    subprocess.run([COMPILER, "-O2", "-shared", "-fPIC", "-Wall", "-o", str(COVERAGE), source], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    subprocess.run([*pip, "--target", str(SITE), str(ROOT)], env={**os.environ, "BACKSTREAM_SANITIZE": "1"}, check=True)


def environment() -> dict[str, str]:
    """For a Python that runs the sanitized extensions."""
    runtimes = [COVERAGE, *(_library(name) for name in ("libasan.so", "libubsan.so", "libstdc++.so"))]
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("BACKSTREAM_")},
        "LD_PRELOAD": " ".join(map(str, runtimes)),
        # Python leaves memory to the end of the process; coverage.so before the runtime is meant.
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0:abort_on_error=1:quarantine_size_mb=16",
        "UBSAN_OPTIONS": "print_stacktrace=1:abort_on_error=1",
        # So that every object has a fence of its own.
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{SITE}:{PLACE}",
        "FUZZ_COVERAGE": str(COVERAGE),
    }


def _library(name: str) -> str:
    found = subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()
