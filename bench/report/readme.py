"""The README's table of figures, from a run's results: nobody types a number."""

import re
from collections.abc import Mapping, Sequence

from bench.errors import BenchError
from bench.report.markdown import day, table
from bench.report.results import Results
from bench.report.spread import Measure, undecided
from bench.report.targets import (
    NGINX,
    ORIGINAL,
    ORIGINAL_UPSTREAM,
    OURS,
    Sections,
    Value,
    against,
    against_fastest,
    against_tunnel,
    cpu_against,
    fastest_tunnel,
)
from bench.routes import GIB, MIB

_APP, _UPSTREAM = OURS


def _lines(size: str) -> Mapping[str, Sequence[Value]]:
    """What is in each line of the table."""
    return {
        "small requests per second: ASGI application in the agent / upstream": [
            against("small", _APP, "rate", "nginx"),
            against("small", _UPSTREAM, "rate", "nginx"),
        ],
        "CPU per small request: proxy / agent with an ASGI application": [
            against("small", _APP, "cpu.proxy", "nginx"),
            against("small", _APP, "cpu.agent", "nginx", "cpu.proxy"),
        ],
        f"download of {size} in one stream: ASGI / upstream": [
            against_fastest("bulk-down-sized", row, NGINX) for row in OURS
        ],
        f"upload of {size} in one stream: ASGI / upstream": [
            against_fastest("bulk-up-sized", row, NGINX) for row in OURS
        ],
        "small requests per second under TLS on both legs: ASGI / upstream": [
            against("tls-small", row, "rate", "nginx") for row in OURS
        ],
    }


def _no_bodies(sections: Sections) -> None:
    """In the place of the original, which holds a body whole, in one message."""


def _tunnel_lines(size: str) -> Mapping[str, Sequence[Value]]:
    return {
        "small requests per second, ASGI application in the agent": [
            against("small", _APP, "rate", ORIGINAL),
            against_tunnel("small", _APP),
        ],
        "small requests per second, upstream": [
            against("small", _UPSTREAM, "rate", ORIGINAL_UPSTREAM),
            against_tunnel("small", _UPSTREAM),
        ],
        "CPU of both processes per small request, ASGI application in the agent": [
            cpu_against(_APP, ORIGINAL),
            cpu_against(_APP, None),
        ],
        "CPU of both processes per small request, upstream": [
            cpu_against(_UPSTREAM, ORIGINAL_UPSTREAM),
            cpu_against(_UPSTREAM, None),
        ],
        f"download of {size} in one stream, ASGI application": [
            _no_bodies,
            against_tunnel("bulk-down-sized", _APP),
        ],
        f"upload of {size} in one stream, ASGI application": [
            _no_bodies,
            against_tunnel("bulk-up-sized", _APP),
        ],
    }


def snippet(results: Results) -> str:
    """What stands in the README under "How fast". BenchError where the run has not what it is about."""
    sections = results.by_key
    size = _size(results)
    rows = _measured(_lines(size), sections)
    if not rows:
        raise BenchError("nothing for the README in these results: it is about small and bulk, with nginx beside")
    parts = [
        "Through proxy and agent, against nginx as reverse proxy in the same run (for bulk its buffering off, "
        "and the better of\ntwo buffers); medians of "
        f"`python -m bench` on {day(results)}, {_machine(results)}, all clients on the same machine:",
        table(["", "backstream / nginx"], [(name, " / ".join(map(_text, found))) for name, found in rows]),
    ]
    beside = _measured(_tunnel_lines(size), sections)
    if any(measure for _, found in beside for measure in found):
        fastest = fastest_tunnel(sections, "small")
        told = f" (small requests: {fastest.name})" if fastest is not None else ""
        headings = ["", "backstream / original", f"backstream / the fastest other tunnel{told}"]
        parts += [
            "Against other tunnels in that run:",
            table(headings, [(name, *map(_text, found)) for name, found in beside]),
            "The original takes small requests only, since it holds whole bodies.",
        ]
    if any(" ±" in part for part in parts):
        parts.append("≈: no difference beyond the spread of the turns; ?: turns too far apart to say.")
    return "\n\n".join(parts) + "\n"


def _measured(lines: Mapping[str, Sequence[Value]], sections: Sections) -> list[tuple[str, list[Measure | None]]]:
    found = [(name, [value(sections) for value in values]) for name, values in lines.items()]
    return [(name, measures) for name, measures in found if any(measures)]


def _text(measure: Measure | None) -> str:
    """``1.30 ×``, or what the turns bear out instead."""
    if measure is None:
        return "not measured"
    if not measure.known:
        return "one turn only"
    if (text := undecided(measure)) is not None:
        return text
    digits = 2 if measure.value < 2 else 1
    return f"{measure.value:.{digits}f} ×"


def _machine(results: Results) -> str:
    cores = results.machine.get("cores", "?")
    words = {"1": "one CPU", "2": "two CPUs"}
    processor = re.sub(r"\((R|TM)\)|\s+Processor$", "", results.machine.get("processor", "an unknown processor"))
    return f"{words.get(cores, f'{cores} CPUs')} of {processor}"


def _size(results: Results) -> str:
    count = int(results.options.get("bulk_bytes", 0))
    return f"{count // GIB} GiB" if count >= GIB and not count % GIB else f"{count // MIB} MiB"
