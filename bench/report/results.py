"""A run's results as JSON, and back: every sample, what the table showed, and what they were taken on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.report import targets
from bench.report.table import Column, Row, Section

FORMAT = 2
"""Of the file; raised when a reader of the last one would misread it."""


@dataclass(slots=True)
class Results:
    """Everything that a run found."""

    date: str
    """Of its begin, ISO 8601 with the zone."""
    seconds: float
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    """Of whatever took part, by name."""
    options: Mapping[str, Any]
    sections: list[Section]
    failures: list[str] = field(default_factory=list)

    @property
    def by_key(self) -> dict[str, Section]:
        return {section.key: section for section in self.sections}

    def to_json(self) -> str:
        document = {
            "format": FORMAT,
            "date": self.date,
            "seconds": round(self.seconds, 1),
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "options": dict(self.options),
            "sections": [_section(section) for section in self.sections],
            "targets": [
                {
                    "target": result.text,
                    "limit": result.limit,
                    "value": result.measure.value,
                    "range": targets.span(result.measure),
                    "verdict": result.verdict,
                }
                for result in targets.results(self.by_key)
            ],
            "failures": self.failures,
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Results":
        """BenchError where it is not what to_json writes."""
        try:
            document = json.loads(text)
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise BenchError(f"not results of this bench (format {FORMAT}); take them anew with --json")
            return cls(
                date=str(document["date"]),
                seconds=float(document["seconds"]),
                machine=_texts(document["machine"]),
                versions=_texts(document["versions"]),
                options=dict(document["options"]),
                sections=[_read_section(section) for section in document["sections"]],
                failures=[str(failure) for failure in document["failures"]],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BenchError(f"not results of this bench: {error!r}") from error

    @classmethod
    def read(cls, path: Path) -> "Results":
        """BenchError, with the file's name, where it can't be read or is something else."""
        try:
            return cls.from_json(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise BenchError(f"{path}: {error}") from error
        except BenchError as error:
            raise BenchError(f"{path}: {error}") from error


def _texts(values: Mapping[str, object]) -> dict[str, str]:
    return {str(name): str(value) for name, value in values.items()}


def _section(section: Section) -> dict[str, object]:
    """Cells go with the samples: how a column is calculated stays with the code that took them."""
    return {
        "key": section.key,
        "title": section.title,
        "reference": section.reference,
        "columns": [{"heading": column.heading, "sample": column.sample} for column in section.columns],
        "rows": [
            {
                "key": row.key,
                "name": row.name,
                "samples": row.samples,
                "cells": [column.cell(row, section) for column in section.columns] if row.samples else [],
                "skipped": row.skipped,
                "failed": row.failed,
            }
            for row in section.rows
        ],
    }


def _read_section(document: Mapping[str, Any]) -> Section:
    cells = {str(row["key"]): [str(cell) for cell in row["cells"]] for row in document["rows"]}
    columns = [
        _read_column(str(column["heading"]), str(column["sample"]), number, cells)
        for number, column in enumerate(document["columns"])
    ]
    rows = [
        Row(
            str(row["key"]),
            str(row["name"]),
            {str(name): [float(value) for value in values] for name, values in row["samples"].items()},
            skipped=row["skipped"],
            failed=row["failed"],
        )
        for row in document["rows"]
    ]
    if any(row.samples and len(cells[row.key]) != len(columns) for row in rows):
        raise BenchError(f"a row of {document['key']} has not a cell for each column")
    return Section(str(document["key"]), str(document["title"]), columns, rows, str(document["reference"]))


def _read_column(heading: str, sample: str, number: int, cells: Mapping[str, list[str]]) -> Column:
    return Column(heading, lambda row, _: cells[row.key][number], sample)
