"""The command line of the bench: ``python -m bench --help``."""

import sys
from collections.abc import Callable
from pathlib import Path

import click

from bench import soak as soaking
from bench.contenders import binaries, require_keys
from bench.context import Context, Options
from bench.errors import BenchError
from bench.processes import end_on_signals
from bench.report import compare as comparing
from bench.report import markdown, plots, readme, targets
from bench.report.results import Results
from bench.report.table import Section, render
from bench.routes import MIB
from bench.run import run as measure
from bench.scenarios import (
    agents,
    bulk,
    connections,
    idle,
    memory,
    mixed,
    rate,
    recovery,
    small,
    sse,
    stalled,
    tls,
    wan,
    websocket,
    wire,
)

MEASUREMENTS: dict[str, Callable[[Context], list[Section]]] = {
    "small": small.run,
    "rate": rate.run,
    "bulk": bulk.run,
    "mixed": mixed.run,
    "websocket": websocket.run,
    "sse": sse.run,
    "agents": agents.run,
    "memory": memory.run,
    "stalled": stalled.run,
    "idle": idle.run,
    "tls": tls.run,
    "connections": connections.run,
    "wire": wire.run,
    "recovery": recovery.run,
    "wan": wan.run,
}
TABLE = ("small", "bulk", "mixed", "agents", "memory", "tls", "wire")
"""What a run does unless asked for more: a table of what decides most, in ten minutes with all contenders."""
QUICK = ("small", "bulk", "mixed", "websocket", "tls")
"""What a quick run does unless asked for more."""
DIRECTORY = "bench-report"

_WORSE, _REFUSED = 1, 2
_FORMATS = click.Choice(["svg", "png"])


class _Default(click.Group):
    """A group whose command is `run` where none is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("--help", "-h")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """Those of every command that measures."""
    for option in reversed(
        [
            click.option(
                "--only",
                multiple=True,
                type=click.Choice(list(MEASUREMENTS)),
                metavar="NAME",
                help=f"One measurement, may be repeated: {', '.join(MEASUREMENTS)}.",
            ),
            click.option(
                "--contender",
                multiple=True,
                metavar="PART|NAME=PATH",
                help="Only contenders whose key has this part (direct, nginx, backstream-app, …), or where a binary is "
                "(frps=/opt/frp/frps); may be repeated.",
            ),
            click.option(
                "--repeat", type=click.IntRange(1), metavar="N", help="Turns of each contender (3; quick: 1)."
            ),
            click.option("--duration", type=click.IntRange(1), metavar="S", help="Seconds of each turn (2; quick: 1)."),
            click.option(
                "--bulk", type=click.IntRange(1), metavar="MIB", help="MiB of each bulk stream (256; quick: 64)."
            ),
            click.option(
                "--pin",
                is_flag=True,
                help="Give clients, services and contenders CPUs of their own: from 4 CPUs on; with fewer nothing is "
                "pinned, and the run says so.",
            ),
            click.option(
                "--json",
                "json_file",
                type=click.Path(dir_okay=False, path_type=Path),
                metavar="FILE",
                help="Write every sample there, with the machine and all versions.",
            ),
            click.option(
                "--report",
                "directory",
                is_flag=False,
                flag_value=DIRECTORY,
                type=click.Path(file_okay=False, path_type=Path),
                metavar="[DIR]",
                help=f"Write report.md, its plots and results.json there ({DIRECTORY}).",
            ),
        ]
    ):
        command = option(command)
    return command


@click.group(cls=_Default, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure backstream on loopback, everything beside its yardstick in the same run.

    Without a command it is `run`: its options work without its name.
    """
    end_on_signals()


def _all_option(names: tuple[str, ...]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option("--all", "everything", is_flag=True, help=f"Every measurement, not only {', '.join(names)}.")


@main.command(short_help="Measure what decides most, in ten minutes.")
@_options
@_all_option(TABLE)
@click.option("--quick", is_flag=True, help="The same as the command quick.")
def run(quick: bool, everything: bool, only: tuple[str, ...], **settings: object) -> None:
    """Measure what decides most, in ten minutes, and print its tables and the project's targets against them.

    With --all, everything, in up to 30 minutes. The exit status is 1 if something failed; a missed target or a skipped
    contender is no failure.
    """
    names = only or (tuple(MEASUREMENTS) if everything else QUICK if quick else TABLE)
    _measure(names, quick=quick, **settings)  # type: ignore[arg-type]


@main.command(short_help="A smoke run in under a minute.")
@_options
@_all_option(QUICK)
def quick(everything: bool, only: tuple[str, ...], **settings: object) -> None:
    """A smoke run in under a minute: one short turn each, whose numbers mean little.

    Only the contenders nearest to backstream take part, unless --contender names others.
    """
    names = only or (tuple(MEASUREMENTS) if everything else QUICK)
    _measure(names, quick=True, **settings)  # type: ignore[arg-type]


@main.command(short_help="Hold two runs against each other, for CI.")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 100),
    default=10.0,
    show_default=True,
    metavar="PERCENT",
    help="What a number may be worse by, on top of the spread.",
)
@click.option("--force", is_flag=True, help="Compare runs of different machines or settings too.")
def compare(before: Path, after: Path, tolerance: float, force: bool) -> None:
    """Compare results that --json wrote: BEFORE and AFTER.

    Prints what got slower or faster by more than the spread of its turns and the tolerance. The exit status is 0 if
    nothing of backstream got worse, 1 if something did, 2 if the runs can't be compared.
    """
    try:
        found = comparing.compare(Results.read(before), Results.read(after), tolerance=tolerance / 100, force=force)
    except BenchError as error:
        raise _Refused(str(error)) from None
    click.echo(found.render(tolerance / 100))
    sys.exit(_WORSE if found.worse else 0)


@main.command(short_help="Make a report of results anew.")
@click.argument("results", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(DIRECTORY),
    show_default=True,
    metavar="DIR",
    help="Where to write it.",
)
@click.option("--format", "suffix", type=_FORMATS, default="svg", show_default=True, help="Of the plots.")
@click.option("--readme", "as_readme", is_flag=True, help="Print the README's table of figures instead.")
def report(results: Path, out: Path, suffix: str, as_readme: bool) -> None:
    """Make report.md and its plots of RESULTS, a file that --json wrote."""
    try:
        found = Results.read(results)
        if as_readme:
            click.echo(readme.snippet(found), nl=False)
        else:
            click.echo(markdown.write(found, out, plots.matplotlib_plotter(suffix)))
    except BenchError as error:
        raise _Refused(str(error)) from None


@main.command(short_help="Random traffic, aborts, stalls and kills; then nothing may be left.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="How long.")
@click.option("--seed", type=int, help="Of what is random; a new one unless given.")
@click.option("--kill-proxy", is_flag=True, help=f"Kill the proxy too, every {soaking.PROXY_KILL_EVERY:g} s.")
def soak(seconds: float, seed: int | None, kill_proxy: bool) -> None:
    """Random traffic, aborts, stalls and kills for a while; then nothing may be left.

    It measures nothing. The exit status is 1, with a line for each reason, if an answer was wrong or missing, or a
    process holds more than in the beginning.
    """
    sys.exit(soaking.main(seconds, seed, kill_proxy=kill_proxy))


def _measure(
    names: tuple[str, ...],
    *,
    quick: bool,
    contender: tuple[str, ...],
    repeat: int | None,
    duration: int | None,
    bulk: int | None,
    pin: bool,
    json_file: Path | None,
    directory: Path | None,
) -> None:
    # What can't work is refused now, not after twenty minutes.
    if json_file is not None and not json_file.parent.is_dir():
        raise click.BadParameter(f"there is no directory {json_file.parent}", param_hint="--json")
    try:
        plotter = plots.matplotlib_plotter("svg") if directory is not None else plots.no_plots
        only_contenders = binaries.take(list(contender))
        require_keys(only_contenders)
    except BenchError as error:
        raise _Refused(str(error)) from None
    options = Options.for_run(
        quick=quick,
        duration=duration,
        repeat=repeat,
        contenders=only_contenders,
        bulk_bytes=bulk * MIB if bulk is not None else None,
        pin=pin,
    )
    results = measure({name: MEASUREMENTS[name] for name in MEASUREMENTS if name in names}, options)
    if not results.sections and not results.failures:
        raise _Refused("nothing was measured: no contender that was asked for takes part, or what it needs is not here")
    print(f"\n{render(results.sections)}\n\n{targets.render(results.by_key)}\n\n{results.seconds:.0f} s in all")
    for failure in results.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    if json_file is not None:
        json_file.write_text(results.to_json())
    if directory is not None:
        print(markdown.write(results, directory, plotter))
    sys.exit(1 if results.failures else 0)


class _Refused(click.ClickException):
    """What can't be done with what was given."""

    exit_code = _REFUSED


if __name__ == "__main__":
    main(prog_name="python -m bench")
