"""The inputs that a target begins with: those that its module makes, and the lines of `corpus/TARGET.txt`.

A line is a Python bytes literal; one that begins with # says what the next one is about.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).with_name("corpus")


def path(target: str) -> Path:
    return HERE / f"{target}.txt"


def inputs(target: str) -> list[bytes]:
    """All of a target's inputs."""
    made: dict[str, bytes] = importlib.import_module(f"fuzz.{target}").seeds()
    return [*made.values(), *_kept(target)]


def _kept(target: str) -> list[bytes]:
    if not path(target).exists():
        return []
    lines = path(target).read_text("ascii").splitlines()
    return [ast.literal_eval(line) for line in lines if line and not line.startswith("#")]


def lay_out(target: str, directory: Path) -> None:
    """Writes each input to a file of its own, as libFuzzer wants them."""
    directory.mkdir(parents=True, exist_ok=True)
    for data in inputs(target):
        (directory / hashlib.sha1(data).hexdigest()).write_bytes(data)


def keep(target: str, found: Iterable[bytes]) -> int:
    """Adds lines for the inputs that are new; returns how many are."""
    known = set(inputs(target))
    new = sorted({data for data in found if data not in known}, key=lambda data: (len(data), data))
    with path(target).open("a", encoding="ascii") as file:
        file.writelines(f"{data!r}\n" for data in new)
    return len(new)
