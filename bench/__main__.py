"""``python -m bench``: runs the measurements one after the other and prints one table.

``python -m bench soak`` measures nothing: see soak.py.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from bench import soak
from bench.contenders import binaries
from bench.context import Context, Options
from bench.errors import BenchError
from bench.machine import describe
from bench.report import targets
from bench.report.table import Section, render
from bench.scenarios import agents, bulk, idle, memory, mixed, small, sse, stalled, tls, websocket

MEASUREMENTS: dict[str, Callable[[Context], list[Section]]] = {
    "small": small.run,
    "bulk": bulk.run,
    "mixed": mixed.run,
    "websocket": websocket.run,
    "sse": sse.run,
    "agents": agents.run,
    "memory": memory.run,
    "stalled": stalled.run,
    "idle": idle.run,
    "tls": tls.run,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a minute; its numbers mean little")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(MEASUREMENTS),
        metavar="NAME",
        help=f"one measurement, may be repeated: {', '.join(MEASUREMENTS)}",
    )
    parser.add_argument(
        "--contender",
        action="append",
        default=[],
        metavar="PART|NAME=PATH",
        help="only contenders whose key has this part (direct, nginx, backstream-app, …), or where a binary is "
        "(frps=/opt/frp/frps); may be repeated",
    )
    parser.add_argument("--repeat", type=_positive, metavar="N", help="turns of each contender (3; 1 with --quick)")
    parser.add_argument("--duration", type=_positive, metavar="S", help="seconds of each turn (5; 1 with --quick)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    return parser.parse_args()


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def main() -> int:
    if sys.argv[1:2] == ["soak"]:
        signal.signal(signal.SIGTERM, _terminated)
        return soak.main(sys.argv[2:])
    arguments = _arguments()
    try:
        only_contenders = binaries.take(arguments.contender)
    except BenchError as error:
        sys.exit(f"--contender: {error}")
    # So that the processes of a terminated run are ended like those of a finished one.
    signal.signal(signal.SIGTERM, _terminated)
    options = Options.for_run(
        quick=arguments.quick,
        duration=arguments.duration,
        repeat=arguments.repeat,
        contenders=only_contenders,
    )
    machine = describe()
    for name, value in machine.items():
        print(f"{name:>10}: {value}", flush=True)
    begin = time.monotonic()
    sections: list[Section] = []
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as directory:
        context = Context(options, Path(directory))
        for name in arguments.only or MEASUREMENTS:
            context.say(f"{name} ({time.monotonic() - begin:.0f} s)")
            try:
                sections += MEASUREMENTS[name](context)
            except BenchError as error:
                context.failures.append(f"{name}: {error}")
                context.say(f"  {name}: FAILED: {error}")
    by_key = {section.key: section for section in sections}
    print(f"\n{render(sections)}\n\n{targets.render(by_key)}\n\n{time.monotonic() - begin:.0f} s in all")
    for failure in context.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if arguments.json:
        arguments.json.write_text(_as_json(machine, options, sections, context.failures))
    return 1 if context.failures else 0


def _as_json(machine: dict[str, str], options: Options, sections: list[Section], failures: list[str]) -> str:
    document = {
        "machine": machine,
        "options": asdict(options),
        "sections": {
            section.key: {"title": section.title, "rows": [asdict(row) for row in section.rows]} for section in sections
        },
        "targets": targets.verdicts({section.key: section for section in sections}),
        "failures": failures,
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
