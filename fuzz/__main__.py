"""``python -m fuzz [TARGET …]``: builds the extensions under sanitizers and runs the targets, two side by side.

Each begins with its corpus (corpus.py) and goes on for `--seconds`. What breaks a rule, an access beyond memory or
undefined behaviour ends the run with status 1; the input is kept in build/fuzz/found, and ``--reproduce FILE`` runs it
again. Its bytes belong into `corpus/TARGET.txt`: the test suite tries them from then on. What else was new to the
coverage is kept in build/fuzz/corpus for the next run; ``--merge`` takes the least of it that covers as much into
`corpus/TARGET.txt`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz import TARGETS, corpus
from fuzz.build import PLACE, build, environment

FOUND = PLACE / "found"
GATHERED = PLACE / "corpus"
OF_HTTP = ("server", "upstream")
LONGEST = 1024
"""Bytes of an input."""
KEPT = 400
"""Bytes of one that is taken into the corpus."""
HANG = 20
"""Seconds after which one input counts as a hang."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"all unless named: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=int(os.environ.get("FUZZ_SECONDS", "3600")), help="(3600)")
    parser.add_argument("--jobs", type=int, default=2, help="targets side by side (2)")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="run one input of one target")
    parser.add_argument("--merge", action="store_true", help="take what adds to the coverage into the corpus")
    arguments = parser.parse_args()
    targets = arguments.targets or list(TARGETS)
    if unknown := [name for name in targets if name not in TARGETS]:
        parser.error(f"unknown target: {unknown[0]} ({', '.join(TARGETS)})")
    begin = time.monotonic()
    build()
    print(f"built in {time.monotonic() - begin:.0f} s", flush=True)
    if arguments.reproduce:
        return start(targets[0], str(arguments.reproduce.resolve())).wait()
    for name in targets:
        corpus.lay_out(name, GATHERED / name)
    FOUND.mkdir(exist_ok=True)
    if arguments.merge:
        return max([merge(name) for name in targets])
    with ThreadPoolExecutor(arguments.jobs) as pool:
        return max(list(pool.map(lambda name: run(name, arguments.seconds), targets)))


def start(name: str, *options: str, output: int | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "fuzz.engine", name, f"-timeout={HANG}", *options],
        cwd=PLACE,
        env=environment(),
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        text=True,
        errors="replace",
    )


def run(name: str, seconds: int) -> int:
    """Fuzzes one target; prints a line, or all that it said when it found something."""
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-artifact_prefix={FOUND}/{name}-"]
    if name in OF_HTTP:
        options.append(f"-dict={Path(__file__).with_name('http.dict')}")
    process = start(name, *options, str(GATHERED / name), output=subprocess.PIPE)
    output, _ = process.communicate()
    if process.returncode:
        told = re.sub(r"^(#[0-9]|INFO:|WARNING:).*\n", "", output, flags=re.MULTILINE)
        print(f"{name}: FOUND\n{told}", flush=True)
        return 1
    done = re.search(r"^#(\d+)\s+DONE\s+cov: (\d+)", output, re.MULTILINE)
    runs, branches = done.groups() if done else ("?", "?")
    print(f"{name}: {runs} inputs in {seconds} s, {branches} branches, nothing found", flush=True)
    return 0


def merge(name: str) -> int:
    least = PLACE / "least" / name
    shutil.rmtree(least, ignore_errors=True)
    corpus.lay_out(name, least)
    status = start(name, "-merge=1", f"-max_len={KEPT}", str(least), str(GATHERED / name)).wait()
    print(f"{name}: {corpus.keep(name, (file.read_bytes() for file in least.iterdir()))} inputs are new")
    return status


if __name__ == "__main__":
    sys.exit(main())
