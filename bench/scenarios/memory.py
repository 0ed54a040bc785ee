"""Memory: how much the processes grow over an upload of 256 MiB and then a download, beside one that does not read.

That one asked for an endless download. The baseline is resident memory after half a second of small requests; then the
stalled client begins, then bulk goes up and then down (chunked, in one stream each; 64 MiB each with --quick). Growth
is the peak (VmHWM, begun anew at the baseline) less the baseline; that of the upload is the one at its end.
"""

import sys

from bench.contenders import Contender, Endpoint
from bench.contenders.backstream import BackstreamApp, BackstreamUpstream
from bench.contenders.nginx import UNBUFFERED, unbuffered
from bench.contenders.others import others
from bench.context import Case, Context, Sample, mib, start_bulk_backend
from bench.errors import BenchError
from bench.processes import Fleet, finish, memory_bytes, read_line, reset_peak
from bench.report.table import Row, Section, highest, median
from bench.routes import MIB
from bench.scenarios.bulk import bulk_sample

_ROLES = ("proxy", "agent")


def run(context: Context) -> list[Section]:
    contenders: list[Contender] = [
        unbuffered(),
        BackstreamApp(),
        BackstreamUpstream(),
        *others(UNBUFFERED, credit=True),
    ]
    cases = []
    with context.fleet() as fleet:
        for contender in contenders:
            if not context.options.wants(contender.key, "nearest"):
                continue
            row = Row(contender.key, contender.name, skipped=contender.missing(fleet))
            turn = None if row.skipped else _Turn(context, contender)
            cases.append(Case(row, turn, turns=context.turns_of(contender)))
        rows = context.take_turns("memory", cases)
    size = context.options.bulk_bytes // MIB
    title = f"growth over {size} MiB each way beside a stalled client, worst of {context.options.repeat}, MiB"
    columns = [
        *(median(f"{role} before", f"before.{role}", 1) for role in _ROLES),
        *(highest(f"{role} peak", f"peak.{role}", 1) for role in _ROLES),
        *(highest(f"{role} growth, upload", f"upload.{role}", 1) for role in _ROLES),
        *(highest(f"{role} growth", f"growth.{role}", 1) for role in _ROLES),
    ]
    return [Section("memory", title, columns, rows, "nginx")]


class _Turn:
    """Fresh processes each time: what an allocator keeps from the last turn would hide this one's growth."""

    def __init__(self, context: Context, contender: Contender) -> None:
        self._context = context
        self._contender = contender

    def __call__(self) -> Sample:
        with self._context.fleet() as fleet:
            endpoint = self._context.start(fleet, self._contender, start_bulk_backend(fleet))
            return self._measure(fleet, endpoint)

    def _measure(self, fleet: Fleet, endpoint: Endpoint) -> Sample:
        client = [sys.executable, "-m", "bench.clients.raw"]
        port = str(endpoint.port)
        fleet.run("warm-up", [*client, "probe", port, "--duration", "0.5", "--pause", "0"], timeout=60)
        pids = {role: pid for role, pid in endpoint.pids.items() if role in _ROLES}
        before = {role: memory_bytes(pid) for role, pid in pids.items()}
        for pid in pids.values():
            reset_peak(pid)
        stalled = fleet.spawn("stalled client", [*client, "stall", port], pipes=True)
        if read_line(stalled, timeout=15) != "ready":
            raise BenchError("the stalled client did not begin")
        sample: Sample = {}
        for direction, growth in (("up", "upload"), ("down", "growth")):
            bulk_sample(fleet, endpoint, direction, self._context.options.bulk_bytes, chunked=True)
            for role, pid in pids.items():
                base, peak = mib(before[role]), mib(memory_bytes(pid, "VmHWM"))
                sample[f"before.{role}"], sample[f"peak.{role}"] = base, peak
                if base is not None and peak is not None:
                    sample[f"{growth}.{role}"] = peak - base
        finish(stalled)
        return sample
