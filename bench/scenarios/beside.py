"""What scenarios share that measure the same thing idle, and beside endless bulk streams that go the same way."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from bench.contenders import Contender, Endpoint
from bench.context import Case, Context, Sample, start_bulk_backend
from bench.load import flood
from bench.processes import Fleet
from bench.report.table import Row

STREAMS = 8

Take = Callable[[Fleet, Endpoint, str, int], Sample]
"""Takes a sample at an endpoint, in a state, for so many seconds."""
Further = Callable[[Fleet, Endpoint, Sequence[Case]], list[Case]]
"""More cases, of the fleet, its bulk service, and those that were started."""


def bulk(fleet: Fleet, endpoint: Endpoint, state: str) -> AbstractContextManager[Callable[[], float] | None]:
    """The streams ``down`` or ``up``, under way while the block runs, and what ends them; nothing when ``idle``."""
    return flood(fleet, endpoint.port, state, STREAMS) if state != "idle" else nullcontext()


def measure(
    context: Context,
    key: str,
    contenders: Sequence[Contender],
    states: Mapping[str, str],
    take: Take,
    *,
    nearest: Sequence[str] = (),
    further: Further | None = None,
) -> list[Row]:
    """Every contender in each state, all of them running side by side before one bulk service.

    key: of the section. states, nearest: as `Context.in_states` takes them.
    """
    with context.fleet() as fleet:
        backend = start_bulk_backend(fleet)

        def turn(state: str, endpoint: Endpoint) -> Sample:
            return take(fleet, endpoint, state, context.options.duration)

        started = context.cases(fleet, contenders, backend, partial(turn, "idle"), "tunnels")
        cases = context.in_states(started, states, turn, nearest=nearest)
        if further is not None:
            cases += further(fleet, backend, started)
        return context.take_turns(key, cases)
