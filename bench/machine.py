"""What the numbers were taken on: printed first, since ratios travel between machines and numbers do not."""

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from bench.contenders.backstream import command as backstream_command
from bench.contenders.nginx import find_nginx


def describe() -> dict[str, str]:
    """Machine, system and versions of everything that takes part; what is absent says so."""
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory()}",
        "load": f"{os.getloadavg()[0]:.2f} in the last minute; numbers of a busy machine are worth little",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})",
        "packages": ", ".join(
            f"{name} {_package(name)}" for name in ("backstream", "uvloop", "picows", "httptools", "protobuf")
        ),
        "backstream": backstream_command() or "absent",
        "nginx": _output([find_nginx() or "", "-v"], r"nginx/(\S+)"),
        "wrk": _output([shutil.which("wrk") or "", "-v"], r"wrk (\S+)"),
    }


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.0f} GiB"


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _output(argv: list[str], pattern: str) -> str:
    if not argv[0]:
        return "absent"
    result = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    match = re.search(pattern, result.stdout + result.stderr)
    return match[1] if match else "unknown version"
