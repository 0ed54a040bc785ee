"""Runs measurements one after the other, and gives what they found."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from bench import machine, pinning
from bench.context import Context, Options
from bench.errors import BenchError
from bench.report.progress import Progress
from bench.report.results import Results
from bench.report.table import Section

Measurement = Callable[[Context], list[Section]]


def run(measurements: Mapping[str, Measurement], options: Options) -> Results:
    """All of them; one that fails is among the failures of the results, and the next one goes on."""
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    pinned = pinning.for_this_machine() if options.pin else None
    about = machine.describe()
    about["pinning"] = str(pinned) if pinned else "none"
    for name, value in about.items():
        print(f"{name:>12}: {value}", flush=True)
    if options.pin and pinned is None:
        print(f"nothing is pinned: --pin needs Linux and {pinning.MINIMUM} CPUs", flush=True)
    begin = time.monotonic()
    sections: list[Section] = []
    progress = Progress(list(measurements))
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as directory:
        context = Context(options, Path(directory), progress=progress, pinning=pinned)
        try:
            for name, measurement in measurements.items():
                progress.scenario(name)
                try:
                    # One that has nobody to measure is no table.
                    sections += [section for section in measurement(context) if section.rows]
                except BenchError as error:
                    context.failures.append(f"{name}: {error}")
                    context.say(f"  {name}: FAILED: {error}")
        finally:
            progress.close()
    return Results(
        date=date,
        seconds=time.monotonic() - begin,
        machine=about,
        versions={**machine.versions(), **context.versions},
        options=asdict(options),
        sections=sections,
        failures=context.failures,
    )
