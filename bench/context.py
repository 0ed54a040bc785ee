"""What every measurement needs: the options, a place for its processes, and turns taken fairly.

Contenders of one measurement take turns (A B C A B C …), so that what drifts on a machine drifts for all
of them. Each is warmed up before its first one.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from bench.contenders import NEAREST, TUNNELS, Contender, Endpoint
from bench.contenders.nginx import find_nginx
from bench.contenders.nginx import start_service as start_nginx_service
from bench.errors import BenchError
from bench.net import free_port, wait_until_answering, warm_up
from bench.pinning import Pinning
from bench.processes import Fleet, cpu_ns, memory_bytes
from bench.report.progress import Progress
from bench.report.table import Row
from bench.routes import MIB

Sample = dict[str, float | None]

Who = Literal["everyone", "tunnels", "nearest"]
"""Who takes part where nobody says: everyone, or the nearest (`NEAREST`) with or without others' tunnels."""
_WARM_UP_SECONDS = 0.2
"""Of small requests on one connection, after a contender's first answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure."""

    quick: bool = False
    duration: int = 2
    """Seconds of load in each turn."""
    repeat: int = 3
    """Turns of each contender."""
    few: int = 2
    """Turns where one takes long, and of contenders that are there for comparison only."""
    bulk_bytes: int = 256 * MIB
    connections: int = 64
    other_connections: Sequence[int] = (1, 512)
    """Numbers of connections that small requests are measured with besides."""
    agents: Sequence[int] = (1, 100, 10_000)
    idle: int = 10_000
    """Idle agents, and clients, whose cost is measured."""
    stalled: int = 1000
    """Streams whose readers stall."""
    warm_up: int = 1
    """Seconds of load before the first turn."""
    pin: bool = False
    """Whether clients, services and contenders keep to CPUs of their own (pinning.py)."""
    only_contenders: Sequence[str] = ()
    """Parts of the keys of the contenders to run; empty for all."""

    @classmethod
    def for_run(
        cls,
        *,
        quick: bool,
        duration: int | None,
        repeat: int | None,
        contenders: Sequence[str],
        bulk_bytes: int | None = None,
        pin: bool = False,
    ) -> "Options":
        """The defaults, or those of a quick run, with what the command line says instead."""
        options = cls(only_contenders=tuple(contenders), pin=pin)
        if quick:
            options = replace(
                options,
                quick=True,
                duration=1,
                repeat=1,
                few=1,
                bulk_bytes=64 * MIB,
                other_connections=(1,),
                agents=(1, 100),
                idle=1000,
                stalled=200,
                warm_up=0,
            )
        return replace(
            options,
            duration=duration or options.duration,
            repeat=repeat or options.repeat,
            few=repeat or options.few,
            bulk_bytes=bulk_bytes or options.bulk_bytes,
        )

    def wants(self, key: str, who: Who = "everyone") -> bool:
        """Whether a contender takes part: those that the command line names, else `who`, in a quick run the nearest."""
        if self.only_contenders:
            return any(part in key for part in self.only_contenders)
        if key.startswith(NEAREST):
            return True
        return not self.quick and (who == "everyone" or (who == "tunnels" and key.partition(":")[0] in TUNNELS))


@dataclass(slots=True)
class Case:
    """One row to be: `turn` takes one sample."""

    row: Row
    turn: Callable[[], Sample] | None
    """None where it is skipped."""
    endpoint: Endpoint | None = None
    """Where the contender runs, if it was started before its first turn."""
    turns: int | None = None
    """The most turns it takes, None for as many as the options say."""


def again(cases: Sequence[Case], turn: Callable[[Endpoint], Sample]) -> list[Case]:
    """The same contenders, as they run, for another measurement."""
    return [
        Case(
            Row(case.row.key, case.row.name, skipped=case.row.skipped, failed=case.row.failed),
            partial(turn, case.endpoint) if case.endpoint else None,
            case.endpoint,
            case.turns,
        )
        for case in cases
    ]


@dataclass(slots=True)
class Context:
    """Options and the scratch directory that all processes of the run work in."""

    options: Options
    directory: Path
    failures: list[str] = field(default_factory=list)
    progress: Progress = field(default_factory=lambda: Progress(()))
    pinning: Pinning | None = None
    versions: dict[str, str] = field(default_factory=dict)
    """Of the contenders that took part, as far as they tell, by key."""

    def __post_init__(self) -> None:
        # Processes under measurement find `bench` by this link, and not what else lies in the checkout:
        # an uncompiled package beside it must not hide the installed one.
        (self.directory / "bench").symlink_to(Path(__file__).parent)

    def fleet(self) -> Fleet:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKSTREAM_")}
        return Fleet(self.directory, {**environment, "PYTHONPATH": os.fspath(self.directory)}, self.pinning)

    def say(self, text: str) -> None:
        """A line that stays, on standard error."""
        self.progress.say(text)

    def start(self, fleet: Fleet, contender: Contender, backend: Endpoint) -> Endpoint:
        """Start a contender, wait for its first answer, and warm it up."""
        self.progress.status(f"starting {contender.name}")
        endpoint = contender.start(fleet, backend)
        wait_until_answering(endpoint.port, contender.name, fleet.check, ca=endpoint.ca)
        if self.options.warm_up:
            warm_up(endpoint.port, contender.name, _WARM_UP_SECONDS, ca=endpoint.ca)
        return endpoint

    def cases(
        self,
        fleet: Fleet,
        contenders: Sequence[Contender],
        backend: Endpoint,
        turn: Callable[[Endpoint], Sample],
        who: Who = "everyone",
    ) -> list[Case]:
        """A case for each wanted contender, all of them started, to be kept running side by side."""
        found = []
        for contender in contenders:
            if not self.options.wants(contender.key, who):
                continue
            row = Row(contender.key, contender.name, skipped=contender.missing(fleet))
            case = Case(row, None, turns=self.turns_of(contender))
            found.append(case)
            if row.skipped:
                continue
            self.note_version(contender)
            before = fleet.count
            try:
                case.endpoint = self.start(fleet, contender, backend)
                case.turn = partial(turn, case.endpoint)
            except BenchError as error:
                self.fail(row, error)
                fleet.stop_from(before)
        return found

    def in_states(
        self,
        cases: Sequence[Case],
        states: Mapping[str, str],
        turn: Callable[[str, Endpoint], Sample],
        *,
        nearest: Sequence[str] = (),
    ) -> list[Case]:
        """Every case once in each state, with KEY:STATE as its row's key.

        states: the key of each and its name in the table. turn: takes a sample in a state. nearest: states in which
        others take part only where the command line names them.
        """
        found = []
        for case in cases:
            for state, name in states.items():
                row = Row(f"{case.row.key}:{state}", f"{case.row.name}, {name}", {}, case.row.skipped, case.row.failed)
                if state not in nearest or self.options.wants(row.key, "nearest"):
                    own = partial(turn, state, case.endpoint) if case.endpoint else None
                    found.append(Case(row, own, turns=case.turns))
        return found

    def turns_of(self, contender: Contender) -> int | None:
        """For `Case.turns`."""
        return self.options.few if contender.brief else None

    def note_version(self, contender: Contender) -> None:
        if contender.key not in self.versions and (found := contender.version()):
            self.versions[contender.key] = found

    def fail(self, row: Row, error: Exception) -> None:
        row.failed = str(error)
        self.failures.append(f"{row.name}: {error}")
        self.say(f"  {row.name}: FAILED: {error}")

    def take_turns(self, title: str, cases: Sequence[Case], *, repeat: int | None = None) -> list[Row]:
        """Every case in turn, as often as the options say or `repeat`; one that fails is left out from then on."""
        repeat = repeat or self.options.repeat
        turns = [min(repeat, case.turns or repeat) if case.turn and not case.row.failed else 0 for case in cases]
        self.progress.planned(sum(turns))
        for number in range(1, repeat + 1):
            for case, most in zip(cases, turns, strict=True):
                if case.turn is None or case.row.failed or number > most:
                    continue
                self.progress.turn(title, case.row.name, number, most)
                try:
                    sample = case.turn()
                except BenchError as error:
                    self.fail(case.row, error)
                    continue
                case.row.add(sample)
                rate = sample.get("rate")
                told = "" if rate is None else f": {rate:,.0f}"
                self.progress.turn_ended(title, case.row.name, number, most, told)
        return [case.row for case in cases]


def start_small_backend(fleet: Fleet) -> tuple[Endpoint, str]:
    """The service behind small requests, and its name: nginx, or the bench's own where there is none."""
    if find_nginx():
        endpoint = start_nginx_service(fleet)
        wait_until_answering(endpoint.port, "nginx service", fleet.check)
        return endpoint, "nginx"
    return start_bulk_backend(fleet), "bench service"


def start_bulk_backend(fleet: Fleet, *, segment: int = 0) -> Endpoint:
    """The service behind bulk. segment: the most bytes of a TCP segment, 0 for what loopback has."""
    port = free_port()
    service = fleet.spawn("bench service", [sys.executable, "-m", "bench.services.service", str(port), str(segment)])
    wait_until_answering(port, "bench service", fleet.check)
    return Endpoint(port, {"service": service.pid})


class CpuMeter:
    """CPU time of an endpoint's processes from here on."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._pids = endpoint.pids
        self._before = {role: cpu_ns(pid) for role, pid in self._pids.items()}

    def used(self, unit: float) -> Sample:
        """Nanoseconds of each role divided by `unit`, as ``cpu.ROLE``."""
        sample: Sample = {}
        for role, before in self._before.items():
            after = cpu_ns(self._pids[role])
            if before is not None and after is not None:
                sample[f"cpu.{role}"] = (after - before) / unit
        return sample


def peaks(endpoint: Endpoint) -> Sample:
    """Peak memory of each role so far, in MiB, as ``peak.ROLE``."""
    return {f"peak.{role}": mib(memory_bytes(pid, "VmHWM")) for role, pid in endpoint.pids.items()}


def mib(count: int | None) -> float | None:
    return None if count is None else count / MIB
