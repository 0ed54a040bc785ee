"""The rooms of CONTRIBUTING.md and of the page on architecture are the code's, and imports point the way they say."""

from __future__ import annotations

import re
from pathlib import Path

from tests import pages

PACKAGE = pages.ROOT / "backstream"
IMPORT = re.compile(r"(?m)^(?:from|import|cimport) backstream((?:\.\w+)*)(?: c?import \(?([\w, ]+))?")
DIRECTION = re.compile(r"(?m)^ *(codec <- .*)$")
ROWS = pages.table("CONTRIBUTING.md", "## Layout")
ROOMS = {row[0]: re.findall(r"`([\w/]+)(?:\.\w+|/)`", row[1]) for row in ROWS}
EVERYWHERE = "everywhere"


def columns(page: str) -> list[list[str]]:
    """The rooms from left to right; those that stand side by side know nothing of each other."""
    (line,) = DIRECTION.findall((pages.ROOT / page).read_text())
    return [column.split(", ") for column in line.split(" <- ")]


def module_of(path: Path) -> str:
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    return next((room for room in ("config", "_proto") if name.startswith(f"{room}/")), name)


FILES = [
    path
    for path in PACKAGE.rglob("*.*")
    if path.suffix in (".py", ".pyx", ".pxd") and (path.stem != "__init__" or path.parent.name == "config")
]
MODULES = {module_of(path) for path in FILES}


def imports_of(path: Path) -> set[str]:
    """Modules of the package; a name that is imported from a package may be one."""
    found = set()
    for module, names in IMPORT.findall(path.read_text()):
        place = module[1:].replace(".", "/")
        found |= {f"{place}/{name.strip().partition(' ')[0]}".lstrip("/") for name in names.split(",")}
        found |= {place, place.partition("/")[0]}
    return found & MODULES


def test_every_module_is_in_one_room() -> None:
    named = [file for files in ROOMS.values() for file in files]
    assert sorted(named) == sorted(MODULES)


def test_both_pages_have_the_same_rooms_in_the_same_order() -> None:
    ours = columns("CONTRIBUTING.md")
    assert columns("docs/explanation/architecture.md") == ours
    in_order = [room for column in ours for room in column]
    assert [row[0] for row in pages.table("docs/explanation/architecture.md", "## Rooms")] == in_order
    assert [*in_order, EVERYWHERE] == list(ROOMS)


def test_imports_point_to_the_left() -> None:
    place = {room: number for number, column in enumerate(columns("CONTRIBUTING.md")) for room in column}
    room_of = {module: room for room, modules in ROOMS.items() for module in modules}
    assert sum(len(imports_of(path)) for path in FILES) > 200
    wrong = []
    for path in FILES:
        room = room_of[module_of(path)]
        for other in imports_of(path):
            theirs = room_of[other]
            if theirs in (room, EVERYWHERE):
                continue
            if room == EVERYWHERE or place[theirs] >= place[room]:
                wrong.append(f"{path.name} ({room}) imports {other} ({theirs})")
    assert wrong == []
