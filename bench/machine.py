"""What the numbers were taken on: printed first, since ratios travel between machines and numbers do not."""

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from bench.contenders import binaries
from bench.contenders.backstream import command as backstream_command
from bench.contenders.nginx import find_nginx


def describe() -> dict[str, str]:
    """The machine and its system, each in a few words."""
    return {
        "processor": _processor(),
        "cores": _cores(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / (1 << 30):.0f} GiB",
        "architecture": platform.machine(),
        "system": f"{platform.system()} {platform.release()}{_congestion_control()}",
        "load": f"{os.getloadavg()[0]:.2f} in the last minute; numbers of a busy machine are worth little",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "command": backstream_command() or "absent",
    }


def versions() -> dict[str, str]:
    """Of everything that always takes part; what is absent says so. Contenders tell their own."""
    return {
        **_own_versions(),
        "nginx": _output([find_nginx() or "", "-v"], r"nginx/(\S+)"),
        "wrk": _output([shutil.which("wrk") or "", "-v"], r"wrk (\S+)"),
    }


def _own_versions() -> dict[str, str]:
    names = ("uvloop", "picows", "httptools", "protobuf")
    if binaries.is_given("backstream"):
        # What it was built from, and what lies beside it, is its own.
        return {
            "backstream": binaries.version("backstream", "--version") or "unknown version",
            **dict.fromkeys((*names, "commit"), "unknown"),
        }
    return {**{name: _package(name) for name in ("backstream", *names)}, "commit": _commit()}


def _cores() -> str:
    count = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else count
    return str(count) if usable == count else f"{usable} of {count}"


def _processor() -> str:
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()


def _congestion_control() -> str:
    """Which TCP paces bulk: on loopback, too."""
    try:
        return f", TCP {Path('/proc/sys/net/ipv4/tcp_congestion_control').read_text().strip()}"
    except OSError:
        return ""


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _commit() -> str:
    """Of this checkout, with a + where files differ from it."""
    found = _output(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"], r"^(\w+\+?)$")
    return found if found != "unknown version" else "none"


def _output(argv: list[str], pattern: str) -> str:
    if not argv[0]:
        return "absent"
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown version"
    match = re.search(pattern, result.stdout + result.stderr, re.MULTILINE)
    return match[1] if match else "unknown version"
