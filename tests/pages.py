"""What the pages hold: README.md, CONTRIBUTING.md and docs/, taken apart for the tests that hold them to the code."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    before: str
    """The paragraph before it, in one line."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file_name(self) -> str | None:
        """The file that it is: the last `name.py` in the paragraph before it, where that ends with a colon."""
        names = re.findall(r"`(\w+\.py)`", self.before)
        return names[-1] if names and self.before.endswith(":") else None


def blocks(*languages: str) -> list[Block]:
    """All blocks in these languages."""
    return [block for page in PAGES for block in _blocks(page) if block.language in languages]


def named(file_name: str) -> Block:
    """The block that is the file `file_name`."""
    (found,) = (block for block in blocks("python") if block.file_name == file_name)
    return found


def _blocks(page: Path) -> Iterator[Block]:
    before, going_on, language, start, lines = "", False, None, 0, []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if match := re.fullmatch(r"\s*```(\w*)", line):
            if language is None:
                language, start, lines = match[1], number, []
            else:
                name = page.relative_to(ROOT).as_posix()
                yield Block(name, start, language, "".join(f"{each}\n" for each in lines), before)
                language = None
        elif language is not None:
            lines.append(line)
        elif line.strip():
            before = f"{before} {line.strip()}" if going_on else line.strip()
        going_on = bool(line.strip()) and language is None


def commands() -> list[tuple[Block, list[str]]]:
    """Every `backstream …` that a page tells to type, with its arguments."""
    found = []
    for block in blocks("console"):
        for line in block.text.replace("\\\n", " ").splitlines():
            match = re.match(r"[$#] (?:\S*/)?backstream( .*)?$", line)
            if match:
                found.append((block, shlex.split(match[1] or "")))
    return found


def links(page: Path) -> Iterator[str]:
    """Targets of a page's links that lie in the repository."""
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(page: Path) -> set[str]:
    """What a link to a page may name behind its #: headings, as mkdocs makes ids of them, and `<a id>`."""
    found = set(re.findall(r'<a id="([^"]+)"', page.read_text()))
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading; a cell that is empty in the first column repeats the one above."""
    text = (ROOT / page).read_text()
    _, found, rest = text.partition(f"\n{heading}\n")
    assert found, f"{page} has no heading {heading!r}"
    rows: list[list[str]] = []
    for line in rest.splitlines():
        if line.startswith("|"):
            row = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if rows and not row[0]:
                row[0] = rows[-1][0]
            rows.append(row)
        elif rows:
            break
    return rows[2:]
