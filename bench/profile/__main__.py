"""``python -m bench.profile COMMAND``; see each command's ``--help``."""

import sys
from collections.abc import Iterable
from pathlib import Path

import click

from bench.errors import BenchError
from bench.processes import end_on_signals
from bench.profile import allocations, frames, perf, syscalls, tunnel

CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}

process_option = click.option(
    "--process", type=click.Choice(tunnel.ROLES), default="proxy", help="Which one to look at."
)
load_option = click.option(
    "--load",
    type=click.Choice(tunnel.LOADS),
    default="small",
    help="Small requests on kept connections, or one endless body.",
)
seconds_option = click.option("--seconds", type=click.IntRange(1, 600), default=5, help="How long the load lasts.")
connections_option = click.option(
    "--connections", type=click.IntRange(1, 10_000), default=64, help="Of small requests, in a closed loop."
)


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Where a tunnel's time, allocations, system calls and frames go.

    Each command starts a proxy and an agent of its own, with an ASGI application in the agent. Where a tool is not
    here, it says how to install it, and that it was skipped.
    """
    end_on_signals()


@main.command("perf")
@process_option
@load_option
@seconds_option
@connections_option
@click.option("--top", type=click.IntRange(1, 10_000), default=40, help="How many functions.")
def perf_command(process: str, load: str, seconds: int, connections: int, top: int) -> None:
    """The functions with the largest shares of CPU time, Cython's by name."""
    _unless(perf.missing())
    wanted = perf.Wanted(process=process, load=load, seconds=seconds, connections=connections)
    _print(perf.top(wanted, top))


@main.command("flame")
@process_option
@load_option
@seconds_option
@connections_option
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), default="flame.svg", help="The SVG.")
def flame_command(process: str, load: str, seconds: int, connections: int, output: Path) -> None:
    """A flame graph of CPU time, to be opened in a browser."""
    _unless(perf.missing())
    _unless(perf.missing_inferno())
    wanted = perf.Wanted(process=process, load=load, seconds=seconds, connections=connections)
    _print(perf.flame(wanted, output))


@main.command("allocations")
@click.option("--requests", type=click.IntRange(1, 1_000_000), default=2000, help="One after the other.")
@click.option(
    "--connections", type=click.IntRange(1, 10_000), default=1, help="With more than 1, a second of load on them."
)
@click.option("--top", type=click.IntRange(1, 10_000), default=60, help="How many places.")
@click.option("--places/--no-places", default=True, help="Say where, which needs a build with symbols.")
def allocations_command(requests: int, connections: int, top: int, places: bool) -> None:
    """Allocations for a small request, in the proxy and in the agent."""
    _unless(allocations.missing())
    _print(allocations.report(requests, connections, top, places=places))


@main.command("syscalls")
@load_option
@seconds_option
@connections_option
@click.option("--tool", type=click.Choice(("perf", "strace")), help="What counts. [default: perf, if it may]")
def syscalls_command(load: str, seconds: int, connections: int, tool: str | None) -> None:
    """System calls for a request or a MiB, of the proxy and of the agent."""
    tool = tool or syscalls.tool()
    if tool is None:
        _unless(syscalls.INSTALL)
    else:
        _print(syscalls.report(tool, load, seconds, connections))


@main.command("frames")
@load_option
@seconds_option
@connections_option
def frames_command(load: str, seconds: int, connections: int) -> None:
    """Frames and WebSocket messages for a request or a MiB."""
    _print(frames.report(load, seconds, connections))


def _unless(reason: str | None) -> None:
    if reason:
        click.echo(f"skipped: {reason}")
        sys.exit(0)


def _print(lines: Iterable[str]) -> None:
    try:
        for line in lines:
            click.echo(line)
    except BenchError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main(prog_name="python -m bench.profile")
