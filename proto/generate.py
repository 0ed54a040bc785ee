"""Generates `backstream/_proto/` from the schemas in this folder: run `make proto` after changing one.

`--check` writes nothing and exits with status 1 when a committed file is not what its schema gives. The
output depends on the compiler's version, so only the one pinned in pyproject.toml is taken.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "backstream/_proto"
SCHEMAS = ("proto/backstream/v1/tunnel.proto", "proto/backstream/seed.proto")


def compiler_problem() -> str | None:
    """One line about a compiler that is absent or not the pinned one."""
    pin = re.search(r'"grpcio-tools==([\w.]+)"', (ROOT / "pyproject.toml").read_text())
    if pin is None:
        return "pyproject.toml does not pin grpcio-tools"
    try:
        found = importlib.metadata.version("grpcio-tools")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    if found == pin[1]:
        return None
    return f"grpcio-tools {pin[1]} is needed, found {found}: pip install grpcio-tools=={pin[1]}"


def generate(into: Path) -> dict[str, bytes]:
    """Runs the compiler with `into` for its output; returns what it wrote, by path from the root."""
    # The schemas' folders are mapped onto the package, so that modules and messages get importable names.
    folders = [f"-I{PACKAGE}={ROOT / Path(schema).parent}" for schema in SCHEMAS]
    sources = [f"{PACKAGE}/{Path(schema).name}" for schema in SCHEMAS]
    outputs = [f"--python_out={into}", f"--pyi_out={into}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *folders, *outputs, *sources]
    subprocess.run(command, check=True, cwd=into)
    return {path.relative_to(into).as_posix(): path.read_bytes() for path in sorted(into.rglob("*_pb2.py*"))}


def stale_files(fresh: dict[str, bytes]) -> list[str]:
    """Committed files that differ from `fresh`, are absent, or have no schema any more."""
    committed = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / PACKAGE).glob("*_pb2.py*")}
    return sorted(
        name
        for name in fresh.keys() | committed.keys()
        if name not in fresh or name not in committed or committed[name].read_bytes() != fresh[name]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Generate backstream/_proto/ from proto/.")
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 if a file is stale")
    check: bool = parser.parse_args().check
    if problem := compiler_problem():
        print(problem, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        fresh = generate(Path(folder))
    stale = stale_files(fresh)
    if check:
        for name in stale:
            print(f"{name} is stale: run `make proto`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        if name in fresh:
            (ROOT / name).write_bytes(fresh[name])
        else:
            (ROOT / name).unlink()
        print(f"{'wrote' if name in fresh else 'removed'} {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
