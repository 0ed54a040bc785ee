"""Wide area: what one stream, and 16 together, reach on a long line, as a part of what plain TCP reaches there.

Two network namespaces are joined by a line of 1 Gbit/s (services/line.py) with the delay and loss of each cell. In
the near one is the client, in the far one the service. ``tcp`` is the client at the service itself, across the line.
For backstream the proxy is near and the agent far, with the application in its process: the line lies between proxy
and agent, and all streams share one TCP connection there. Bodies are endless and chunked. Nothing is counted until
windows have had 1.5 s and 15 round trips to grow; then bytes are counted where they arrive, for 1.5 s and 8 round
trips. The kernel's limits of buffers and its congestion control are this machine's; what TCP remembers of earlier
connections is not used. What is random of the line is the same each time. On the lines that the project has targets
for, one stream takes as many turns as elsewhere few; all else takes one.

Others' tunnels take part where packets are lost most, in one stream: their server is near and their agent far, with
the service beside it, so that the line lies within them too.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench import compiled
from bench.contenders.backstream import INSTALL, command
from bench.contenders.others import across
from bench.contenders.tunnels import Route, Tunnel
from bench.context import Case, Context, Sample
from bench.errors import BenchError
from bench.load import RAW, flood
from bench.processes import Fleet, read_line
from bench.report.table import Row, Section, median, ratio
from bench.routes import CLIENT_ID, MIB
from bench.services.line import FAR, MBIT, NEAR

NEEDS_ROOT = "needs root, /dev/net/tun and network namespaces (ip netns, of iproute2)"
PORT = 8000
"""In namespaces of our own every port is free."""
_MEETING = 7000
"""Where another's tunnel meets."""
_LIMIT = 30.0
"""Seconds for a contender to answer across the line, and for a flood to begin and end."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A line: round trip in ms, loss of each direction in percent."""

    round_trip: int
    loss: float
    streams: tuple[int, ...] = (1,)
    judged: bool = False
    """Whether the project has a target for it."""
    tunnels: bool = False
    """Whether others' tunnels take part."""

    @property
    def key(self) -> str:
        return f"{self.round_trip}ms:{self.loss:g}"

    @property
    def name(self) -> str:
        return f"{self.round_trip} ms, {self.loss:g} % loss"


CELLS = [
    Cell(20, 0),
    Cell(100, 0, (1, 16), judged=True),
    Cell(250, 0),
    Cell(100, 0.1),
    Cell(100, 1, (1, 16), judged=True, tunnels=True),
]
QUICK_CELLS = [Cell(20, 0)]
CONTENDERS = {"tcp": "plain TCP", "backstream-app": "backstream, ASGI app"}
DIRECTIONS = {"down": "download", "up": "upload"}


COLUMNS = [
    median("MiB/s", "rate", 1),
    ratio("× TCP", "rate", lambda row: f"tcp:{row.key.partition(':')[2]}"),
]


def run(context: Context) -> list[Section]:
    if reason := _missing():
        context.say(f"  wan: skipped: {reason}")
        return []
    rows: dict[tuple[str, int], list[Row]] = {}
    tunnels = {tunnel.key: tunnel for tunnel in across()}
    for cell in QUICK_CELLS if context.options.quick else CELLS:
        names = {**CONTENDERS, **{key: tunnel.name for key, tunnel in tunnels.items() if cell.tunnels}}
        for contender, name in names.items():
            if contender != "tcp" and not context.options.wants(contender):
                continue
            tunnel = tunnels.get(contender)
            cases = {
                (direction, streams): Case(
                    Row(f"{contender}:{cell.key}", f"{cell.name}, {name}"),
                    None,
                    turns=context.options.few if cell.judged and streams == 1 else 1,
                )
                for streams in ((1,) if tunnel else cell.streams)
                for direction in DIRECTIONS
            }
            for key, case in cases.items():
                rows.setdefault(key, []).append(case.row)
            with context.fleet() as fleet:
                if skipped := _skipped(fleet, contender, tunnel):
                    for case in cases.values():
                        case.row.skipped = skipped
                    continue
                if tunnel:
                    context.note_version(tunnel)
                try:
                    with _line(fleet, cell) as line:
                        target = line.start(contender, tunnel)
                        for (direction, streams), case in cases.items():
                            case.turn = partial(line.flood, target, direction, streams)
                        context.take_turns("wan", list(cases.values()), repeat=context.options.few)
                except BenchError as error:
                    for case in cases.values():
                        context.fail(case.row, error)
    return [
        Section(
            f"wan-{direction}" if streams == 1 else f"wan{streams}-{direction}",
            f"{DIRECTIONS[direction]}, {f'{streams} streams' if streams > 1 else 'one stream'}, after warm-up, "
            f"{MBIT} Mbit/s, {congestion_control()}",
            COLUMNS,
            found,
        )
        for (direction, streams), found in rows.items()
    ]


def _skipped(fleet: Fleet, contender: str, tunnel: Tunnel | None) -> str | None:
    if tunnel:
        return tunnel.missing(fleet)
    return None if contender == "tcp" or command() else INSTALL


def congestion_control() -> str:
    return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()


def _missing() -> str | None:
    """Why there can be no line here, in a line."""
    if os.geteuid() or not os.access("/dev/net/tun", os.W_OK) or not shutil.which("ip"):
        return NEEDS_ROOT
    try:
        compiled.load("bench.services._line")
    except BenchError as error:
        return str(error)
    return None


@contextmanager
def _line(fleet: Fleet, cell: Cell) -> "Iterator[_Line]":
    """Two namespaces with a line between them, until the end of the block."""
    names = [f"bench-{os.getpid()}-{side}" for side in ("near", "far")]
    with ExitStack() as made:
        for name in names:
            # Before it is made: a signal may come in between.
            made.callback(_delete, name)
            _command("ip", "netns", "add", name)
            _command("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv4.tcp_no_metrics_save=1")
        argv = [sys.executable, "-m", "bench.services.line", *names, str(cell.round_trip), str(cell.loss)]
        process = fleet.spawn("line", argv, pipes=True)
        if read_line(process, timeout=15) != "ready":
            raise BenchError("the line did not come up")
        yield _Line(fleet, cell, *([["ip", "netns", "exec", name] for name in names]))


def _delete(name: str) -> None:
    """A namespace, if it is there."""
    if Path("/var/run/netns", name).exists():
        _command("ip", "netns", "delete", name)


def _command(*argv: str) -> None:
    try:
        subprocess.run(argv, check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        raise BenchError(f"{NEEDS_ROOT}: {error}") from error


class _Line:
    """What runs at both of its ends; `near` and `far` begin a command line there."""

    def __init__(self, fleet: Fleet, cell: Cell, near: list[str], far: list[str]) -> None:
        self._fleet = fleet
        self._seconds = cell.round_trip / 1e3
        self._near = near
        self._far = far

    def start(self, contender: str, tunnel: Tunnel | None) -> str:
        """Start it, wait for its first answer, and return the address that the client is to ask."""
        host = FAR if contender == "tcp" else "127.0.0.1"
        if contender == "tcp" or tunnel:
            self._spawn_service()
        if tunnel:
            self._start_tunnel(tunnel)
        elif contender != "tcp":
            self._start_backstream()
        deadline = time.monotonic() + _LIMIT
        while True:
            try:
                self._received(host)
                return host
            except BenchError:
                self._fleet.check()
                if time.monotonic() > deadline:
                    raise

    def _spawn_service(self) -> None:
        self._fleet.spawn("bench service", [*self._far, sys.executable, "-m", "bench.services.service", str(PORT)])

    def _start_backstream(self) -> None:
        binary = command()
        assert binary is not None
        self._fleet.spawn("backstream proxy", [*self._near, binary, "proxy", "--listen", f"0.0.0.0:{PORT}"])
        argv = [binary, "agent", "--proxy-url", f"ws://{NEAR}:{PORT}/ws", "--client-id", CLIENT_ID]
        self._fleet.spawn("backstream agent", [*self._far, *argv, "--app", "bench.services.app:app"])

    def _start_tunnel(self, tunnel: Tunnel) -> None:
        server, agent = tunnel.ends(self._fleet, Route(PORT, PORT, NEAR, _MEETING))
        self._fleet.spawn(f"{tunnel.key} server", [*self._near, *server])
        argv = [*self._near, sys.executable, "-m", "bench.net", NEAR, str(_MEETING)]
        self._fleet.run(f"wait for {tunnel.key} server", argv, timeout=_LIMIT)
        self._fleet.spawn(f"{tunnel.key} agent", [*self._far, *agent])

    def flood(self, host: str, direction: str, streams: int) -> Sample:
        settle, seconds = 1.5 + 15 * self._seconds, 1.5 + 8 * self._seconds
        begin = [*self._near, *RAW]
        with flood(self._fleet, PORT, direction, streams, begin=begin, host=host, settle=settle) as end:
            time.sleep(settle)
            if direction == "up":
                count, begun = self._received(host)
                time.sleep(seconds)
                last_count, ended = self._received(host)
                rate = (last_count - count) / MIB / (ended - begun) * 1e9
            else:
                time.sleep(seconds)
                rate = end()
            self._fleet.check()
        return {"rate": rate}

    def _received(self, host: str) -> tuple[int, int]:
        """Bytes that the service has received so far, and nanoseconds."""
        argv = [*self._near, *RAW, "received", str(PORT), "--host", host]
        result = json.loads(self._fleet.run("received", argv, timeout=_LIMIT))
        return result["bytes"], result["nanoseconds"]
