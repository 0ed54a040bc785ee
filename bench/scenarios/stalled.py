"""Stalled: what both processes hold for 1,000 streams whose readers have stopped (200 with --quick).

Half of them are endless downloads whose client does not read, half chunked uploads whose service does not. Growth is
the peak of resident memory (VmHWM, begun anew before the first of them) less what was resident then; the bound is
what backstream's proxy promises for as many connections and one agent (`proxy.memory_bound`), with a window budget of
64 MiB; others promise none. Beside them and before, small requests at a low rate. The sessions take more streams than
that, so none is cut off to make room.
"""

import json
import sys
from dataclasses import replace

from bench.clients.raw import SEGMENT
from bench.contenders import Contender, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream, start_agent, start_proxy
from bench.contenders.nginx import UNBUFFERED, unbuffered
from bench.contenders.others import others
from bench.context import Case, Context, Sample, mib, start_bulk_backend
from bench.net import wait_until_answering
from bench.processes import Fleet, finish, memory_bytes, read_line, reset_peak
from bench.report.table import Row, Section, highest, median, ratio_within
from bench.routes import MIB

_ROLES = ("proxy", "agent")
_BUDGET = 64 * MIB
_COLUMNS = [
    *(highest(f"{role} growth MiB", f"growth.{role}", 1) for role in _ROLES),
    median("bound MiB", "bound", 1),
    median("p99 µs before", "p99.idle"),
    median("p99 µs beside", "p99.beside"),
    ratio_within("×", "p99.beside", "p99.idle"),
]


def run(context: Context) -> list[Section]:
    count = context.options.stalled
    cases = []
    contenders: list[Contender] = [
        unbuffered(),
        BackstreamApp(),
        BackstreamUpstream(),
        *others(UNBUFFERED, credit=True),
    ]
    with context.fleet() as fleet:
        for contender in contenders:
            if not context.options.wants(contender.key, "nearest"):
                continue
            row = Row(contender.key, contender.name, skipped=contender.missing(fleet))
            turn = None if row.skipped else _Turn(context, contender, count)
            cases.append(Case(row, turn))
        rows = context.take_turns("stalled", cases, repeat=context.options.few)
    title = f"{count:,} streams whose readers stall, worst growth of {context.options.few}"
    return [Section("stalled", title, _COLUMNS, rows)]


class _Turn:
    """Fresh processes each time, as in memory.py."""

    def __init__(self, context: Context, contender: Contender, count: int) -> None:
        self._context = context
        self._contender = contender
        self._count = count

    def __call__(self) -> Sample:
        with self._context.fleet() as fleet:
            return self._measure(fleet)

    def _bound(self, connections: int) -> float:
        from backstream.config import ProxySettings
        from backstream.proxy import memory_bound

        settings = ProxySettings(max_connections=connections, max_agents=1)
        settings = replace(settings, session=replace(settings.session, window_budget=_BUDGET, max_streams=connections))
        return memory_bound(settings) / MIB

    def _measure(self, fleet: Fleet) -> Sample:
        connections = self._count + 100
        backend = start_bulk_backend(fleet, segment=SEGMENT)
        ours = isinstance(self._contender, BackstreamApp | BackstreamUpstream)
        if ours:
            endpoint = self._start(fleet, backend, connections)
        else:
            endpoint = self._contender.start(fleet, backend)
        wait_until_answering(endpoint.port, self._contender.name, fleet.check)
        client = [sys.executable, "-m", "bench.clients.raw"]
        duration = self._context.options.duration
        probe = [*client, "probe", str(endpoint.port), "--duration", str(duration)]
        idle = json.loads(fleet.run("probe", probe, timeout=duration + 30))
        pids = {role: endpoint.pids[role] for role in _ROLES if role in endpoint.pids}
        before = {role: memory_bytes(pid) for role, pid in pids.items()}
        for pid in pids.values():
            reset_peak(pid)
        stalled = fleet.spawn("stalled clients", [*client, "stalls", str(endpoint.port), str(self._count)], pipes=True)
        read_line(stalled, timeout=60)
        beside = json.loads(fleet.run("probe", probe, timeout=duration + 30))
        sample: Sample = {"p99.idle": idle["p99"], "p99.beside": beside["p99"]}
        if ours:
            sample["bound"] = self._bound(connections)
        for role, pid in pids.items():
            base, peak = mib(before[role]), mib(memory_bytes(pid, "VmHWM"))
            sample[f"growth.{role}"] = peak - base if base is not None and peak is not None else None
        finish(stalled)
        return sample

    def _start(self, fleet: Fleet, backend: Endpoint, connections: int) -> Endpoint:
        limits = ["--window-budget", str(_BUDGET), "--max-streams", str(connections)]
        proxy = start_proxy(fleet, *limits, "--max-connections", str(connections), "--request-timeout", "0")
        if isinstance(self._contender, BackstreamApp):
            flags = ["--app", "bench.services.app:app"]
        else:
            flags = ["--upstream", f"http://127.0.0.1:{backend.port}", "--upstream-connections", str(connections)]
        return start_agent(fleet, proxy, *limits, *flags)
