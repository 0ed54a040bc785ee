"""Recovery: what a crash costs clients that go on asking: ``GET /small`` at 500/s in an open loop, 16 connections, 5 s.

After 1.5 s the agent or the proxy is killed (SIGKILL) and at once started again, as a supervisor would; or one of two
agents under the same id is, while the other lives. Others' tunnels take part too, with the bench's service behind the
agent; of theirs the end that gives up when the other has gone is started again as well, ten times a second at the most.
"Served again" is the time from the kill to the first answer to a request that was due after it; "lost" counts requests
whose answer was cut or not 200; "longest" is the longest latency, from when the request was due. A client that is
refused dials again every 5 ms and loses nothing by it: its requests wait, which their latencies show. Fresh processes
each time. Most of the time is, for this project, that of a Python process to start; for others, the pause before their
agent dials again.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from bench import compiled
from bench.contenders import Endpoint
from bench.contenders.backstream import INSTALL, command, start_agent, start_proxy
from bench.contenders.tunnels import Tunnel, tunnels
from bench.context import Case, Context, Sample, start_bulk_backend
from bench.errors import BenchError
from bench.net import free_port, wait_until_answering, wait_until_listening
from bench.processes import Fleet, read_line
from bench.report.table import Row, Section, highest, median

CONTENDERS = {
    "backstream-app": ("backstream, ASGI app", []),
    "backstream-seed": ("backstream, seed wire", ["--wire", "seed"]),
}
VICTIMS = {"agent": "agent killed", "one": "one of two agents killed", "proxy": "proxy killed"}
QUICK = [("backstream-app", "agent"), ("backstream-app", "proxy")]
RATE, CONNECTIONS, SECONDS, KILL_AFTER = 500, 16, 5, 1.5
SUPERVISED_EVERY = 0.1
_APP = ("--app", "bench.services.app:app")

_COLUMNS = [
    median("served again ms", "again"),
    highest("lost, most", "lost"),
    highest("unanswered, most", "unanswered"),
    median("p50 µs", "p50"),
    median("longest ms", "longest"),
]


class Pair:
    """A proxy and its agent, either of which can be started again as it was."""

    def __init__(self, fleet: Fleet, port: int, starts: Mapping[str, Callable[[], int]]) -> None:
        """port: where clients go. starts: by role what starts it and returns its pid."""
        self.port = port
        self._fleet = fleet
        self._starts = starts
        self._pids: dict[str, int] = {}
        self._begun = 0.0

    def start(self, role: str) -> None:
        self._pids[role] = self._starts[role]()
        self._begun = time.monotonic()

    def kill(self, role: str) -> int:
        """When it was, of `time.monotonic_ns`."""
        return self._fleet.kill(self._pids[role])

    def supervise(self) -> None:
        """Start again what has ended, unless it has just been tried."""
        for role, pid in self._pids.items():
            if not self._fleet.runs(pid) and time.monotonic() > self._begun + SUPERVISED_EVERY:
                self.kill(role)
                self.start(role)


def run(context: Context) -> list[Section]:
    try:
        compiled.load("bench.clients._open_loop")
    except BenchError as error:
        context.say(f"  recovery: skipped: {error}")
        return []
    cases = []
    for key, (name, flags) in CONTENDERS.items():
        if context.options.wants(key):
            for victim, what in VICTIMS.items():
                if context.options.quick and (key, victim) not in QUICK:
                    continue
                row = Row(f"{key}:{victim}", f"{name}, {what}", skipped=None if command() else INSTALL)
                cases.append(Case(row, None if row.skipped else partial(_turn, context, victim, flags)))
    cases += _others(context)
    repeat = context.options.few
    title = f"GET /small at {RATE}/s in an open loop, {CONNECTIONS} connections, {SECONDS} s × {repeat}"
    return [Section("recovery", title, _COLUMNS, context.take_turns("recovery", cases, repeat=repeat))]


def _others(context: Context) -> list[Case]:
    cases = []
    for tunnel in tunnels():
        if not context.options.wants(tunnel.key, "tunnels"):
            continue
        with context.fleet() as fleet:
            missing = tunnel.missing(fleet)
        context.note_version(tunnel)
        for victim in ("agent", "proxy"):
            row = Row(f"{tunnel.key}:{victim}", f"{tunnel.name}, {VICTIMS[victim]}", skipped=missing)
            cases.append(Case(row, None if missing else partial(_others_turn, context, victim, tunnel)))
    return cases


def _turn(context: Context, victim: str, flags: Sequence[str]) -> Sample:
    with context.fleet() as fleet:
        meeting = Endpoint(free_port(), {})
        starts = {
            "proxy": lambda: start_proxy(fleet, *flags, port=meeting.port).pids["proxy"],
            "agent": lambda: start_agent(fleet, meeting, *_APP).pids["agent"],
        }
        pair = Pair(fleet, meeting.port, starts)
        for role in starts:
            pair.start(role)
        wait_until_answering(pair.port, "backstream", fleet.check)
        if victim == "one":
            _start_second(fleet, meeting)
        sample = _sample(fleet, pair, "proxy" if victim == "proxy" else "agent", fleet.check)
        fleet.check()
    if sample["again"] is None:
        raise BenchError("nothing was served after the kill")
    return sample


def _others_turn(context: Context, victim: str, tunnel: Tunnel) -> Sample:
    with context.fleet() as fleet:
        route = tunnel.route(start_bulk_backend(fleet))
        server, agent = tunnel.ends(fleet, route)
        starts = {
            "proxy": lambda: fleet.spawn(f"{tunnel.key} server", server).pid,
            "agent": lambda: fleet.spawn(f"{tunnel.key} agent", agent).pid,
        }
        pair = Pair(fleet, route.port, starts)
        pair.start("proxy")
        wait_until_listening(route.address, route.meeting, f"{tunnel.key} server", fleet.check)
        pair.start("agent")
        wait_until_answering(pair.port, tunnel.name, fleet.check)
        return _sample(fleet, pair, victim, pair.supervise)


def _sample(fleet: Fleet, pair: Pair, role: str, meanwhile: Callable[[], None]) -> Sample:
    """Load, under which the end of that role is killed and started again; `meanwhile` is called while it goes on."""
    argv = [sys.executable, "-m", "bench.clients.open_loop", str(pair.port), str(CONNECTIONS), str(RATE)]
    client = fleet.spawn("open loop", [*argv, str(SECONDS), "--every"], pipes=True)
    if read_line(client, timeout=15) != "ready":
        raise BenchError("the open loop did not begin")
    time.sleep(KILL_AFTER)
    killed_at = pair.kill(role)
    pair.start(role)
    result = json.loads(read_line(client, timeout=SECONDS + 30, meanwhile=meanwhile))
    again = served_again(result.pop("latencies"), RATE, result.pop("begin_ns"), killed_at)
    return {
        "again": None if again is None else again / 1e6,
        "lost": result["lost"],
        "unanswered": result["unanswered"],
        "p50": result["p50"],
        "longest": result["longest"] / 1e3,
    }


def _start_second(fleet: Fleet, proxy: Endpoint) -> None:
    """A second agent, of which nobody but its log says that it is there."""
    pid = start_agent(fleet, proxy, *_APP).pids["agent"]
    log = fleet.log(pid)
    deadline = time.monotonic() + 15
    while "connected" not in log.read_text():
        fleet.check()
        if time.monotonic() > deadline:
            raise BenchError("the second agent did not connect")
        time.sleep(0.05)


def served_again(latencies: Sequence[int], rate: float, begin_ns: int, killed_ns: int) -> int | None:
    """Nanoseconds from the kill to the first answer to a request due after it; None if there was none.

    latencies: as `OpenLoop.run` returns them. begin_ns: when the first request was due.
    """
    due = [begin_ns + int(index * 1e9 / rate) for index in range(len(latencies))]
    answers = [at + latency for at, latency in zip(due, latencies, strict=True) if at >= killed_ns and latency >= 0]
    return min(answers) - killed_ns if answers else None
