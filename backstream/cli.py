"""The command `backstream`: flags, environment, TOML file, exit status. The library does the work.

A setting's flag is made from its field in `backstream.config`; nothing about it is written here again. A
value comes from the flag, else from the environment (BACKSTREAM_<FLAG>), else from the command's table in
the file that `--config` names, else it is the field's default. What the user got wrong costs one line on
stderr and exit status 2; what the system refuses (a port in use), one line and status 1. Where the logs are
JSON and have begun, that line is a record of theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import gc
import importlib.metadata
import logging
import os
import re
import resource
import signal
import socket
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import click
import uvloop
from click.core import ParameterSource
from click.shell_completion import get_completion_class

from backstream import _reload as reloader
from backstream import demo, logs
from backstream.agent import Agent
from backstream.config import (
    AgentSettings,
    Option,
    ProxySettings,
    SessionSettings,
    check_value,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_network,
    parse_size,
)
from backstream.config._options import (
    CONNECT,
    FORWARDING,
    LIMITS,
    LISTEN,
    LOGS,
    ROUTES,
    SERVICE,
    SESSIONS,
    TIMES,
    TLS,
)
from backstream.errors import BackstreamError, ConfigurationError
from backstream.proxy import Proxy

__all__ = ["main"]

OTHER: Final = "Other"
SECTIONS: Final = (LISTEN, CONNECT, SERVICE, ROUTES, FORWARDING, TLS, TIMES, LIMITS, SESSIONS, LOGS, OTHER)
METAVARS: Final = {
    "duration": "DURATION",
    "size": "SIZE",
    "count": "N",
    "address": "HOST:PORT",
    "network": "CIDR",
    "text": "TEXT",
}
FIRST_INHERITED: Final = 3
"""The descriptor of the first socket that a supervisor hands over (sd_listen_fds(3))."""
NOT_IN_FILE: Final = frozenset({"config", "help", "once"})
JSON_LOGS: Final = "backstream.json_logs"
"""In `click.Context.meta`: the logs have begun, and are JSON."""
KUBERNETES: Final = re.compile(
    r"BACKSTREAM_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes sets in every pod where a Service's name begins like our variables do."""
SETTINGS_HELP: Final = """Each flag is also an environment variable (--log-level is BACKSTREAM_LOG_LEVEL)
and a key of the table [{name}] in the TOML file that --config names (log-level = "debug"). The flag wins over
the variable, the variable over the file."""
LISTS_HELP: Final = """Flags marked with "..." may be given again; their variables take commas between the values
(or line ends, where the flag says so), their keys in the file are arrays."""
UNITS_HELP: Final = """A DURATION is written like 300ms, 3s or 1h2m3.5s, a SIZE like 65536, 64KiB or 16MiB."""


class Failure(click.ClickException):
    """Something other than the command line is wrong: one line, exit status 1."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.ctx = click.get_current_context(silent=True)


# --- options from settings --------------------------------------------------------------------------------


if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # generic in stubs, but not in every click that does


class Value(ParamType):
    """The value of a setting: text from a flag or a variable, or whatever TOML made of it."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = option.kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        kind = self.option.kind
        try:
            if isinstance(value, str):
                if kind == "duration":
                    value = parse_duration(value)
                elif kind == "size":
                    value = parse_size(value)
                elif kind == "address":
                    parse_address(value)
                elif kind == "network":
                    parse_network(value)
                elif kind == "count":
                    if not re.fullmatch(r"[0-9]{1,15}", value):
                        raise ConfigurationError(f"{value!r} is not a whole number")
                    value = int(value)
            check_value("it", self.option, value)
        except ConfigurationError as error:
            self.fail(str(error), param, ctx)
        return value

    def split_envvar_value(self, rv: str) -> list[str]:
        """The values of a setting that may have many."""
        return [each for each in (part.strip() for part in rv.split(self.option.separator)) if each]


class SettingOption(click.Option):
    """An option that knows its heading in `--help`, and names its variable when that is what is wrong."""

    def __init__(self, flags: Sequence[str], *, section: str, **rest: Any) -> None:
        super().__init__(flags, **rest)
        self.section = section

    def process_value(self, ctx: click.Context, value: Any) -> Any:
        value = super().process_value(ctx, value)
        # click makes an empty tuple of a list that nobody gave, which is what an empty one is too.
        if self.multiple and ctx.get_parameter_source(self.name or "") is ParameterSource.DEFAULT:
            return None
        return value

    def get_error_hint(self, ctx: click.Context | None) -> str:
        source = ctx.get_parameter_source(self.name) if ctx is not None and self.name is not None else None
        if source is ParameterSource.ENVIRONMENT:
            return f"'{self.envvar}' (environment)"
        return super().get_error_hint(ctx)


class SettingsCommand(click.Command):
    """A command with headings in its `--help`; its errors become those that `main` shows."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        except ConfigurationError as error:
            raise click.UsageError(_as_flags(str(error)), ctx) from None
        except BackstreamError as error:
            raise Failure(str(error)) from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception:
            if not ctx.meta.get(JSON_LOGS):
                raise
            logging.getLogger(f"backstream.{self.name}").exception("ended by an exception")
            return 1

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", OTHER), []).append(record)
        for heading in SECTIONS:
            if heading in sections:
                with formatter.section(heading):
                    formatter.write_dl(sections[heading])


def _environment(name: str) -> str:
    return "BACKSTREAM_" + name.upper()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _option(name: str, section: str, help: str, **rest: Any) -> SettingOption:
    return SettingOption(
        [rest.pop("flags", _flag(name)), name], section=section, help=help, envvar=_environment(name), **rest
    )


def _settings_fields(settings: type) -> Iterator[Field[Any]]:
    """The fields of `settings` and of its `session` that have a flag."""
    for item in fields(settings):
        if "option" in item.metadata:
            yield item
        elif item.name == "session":
            yield from _settings_fields(SessionSettings)


def _as_flags(message: str) -> str:
    """`message` of a ConfigurationError with the settings that it names written as flags."""
    names = {item.name for kind in (ProxySettings, AgentSettings) for item in _settings_fields(kind)}

    def flag(match: re.Match[str]) -> str:
        word = match.group()
        # A name of one word is an ordinary word elsewhere than at the beginning.
        return _flag(word) if word in names and ("_" in word or not match.start()) else word

    return re.sub(r"[a-z_]+", flag, message)


def _shown_default(option: Option, default: Any) -> str:
    if option.kind == "duration":
        text = format_duration(default)
    elif option.kind == "size":
        text = format_size(default)
    elif option.many:
        text = ", ".join(default)
    else:
        text = str(default)
    return f"{text}, {option.off}" if option.off and not default else text


def _settings_options(settings: type) -> list[click.Parameter]:
    """A click option for every setting; its value is None where nobody gave one."""
    options: list[click.Parameter] = []
    for item in _settings_fields(settings):
        option: Option = item.metadata["option"]
        if option.kind == "switch":
            flag = _flag(item.name)
            flags = f"{flag}/--no-{flag[2:]}"
            options.append(_option(item.name, option.section, option.help, flags=flags, type=bool, default=None))
            continue
        text = option.help
        required = item.default is MISSING and item.default_factory is MISSING
        if option.off and item.default:
            text += f" 0: {option.off}."
        if not required and item.default not in (None, (), ""):
            text += f"  [default: {_shown_default(option, item.default)}]"
        metavar = option.metavar or METAVARS[option.kind]
        rest: dict[str, Any] = {"type": Value(option), "metavar": metavar, "required": required}
        if option.many:
            rest |= {"metavar": f"{metavar}...", "multiple": True}
        options.append(_option(item.name, option.section, text, **rest))
    return options


def _common_options(level: str = "info") -> list[click.Parameter]:
    return [
        _option(
            "log_format",
            LOGS,
            "human is for reading, json one object per line; auto: human on a terminal.  [default: auto]",
            type=click.Choice(logs.FORMATS),
            default="auto",
        ),
        _option(
            "log_level",
            LOGS,
            f"Least severity that is logged.  [default: {level}]",
            type=click.Choice(logs.LEVELS),
            default=level,
        ),
        _option(
            "config",
            OTHER,
            "Read settings from this TOML file.",
            type=click.Path(path_type=Path),
            metavar="FILE",
            is_eager=True,
            expose_value=False,
            callback=_read_config,
        ),
    ]


# --- the TOML file ----------------------------------------------------------------------------------------


def _read_config(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """Make the command's table in the file the defaults of its options."""
    if path is None:
        return
    try:
        tables = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}", ctx) from None
    except ValueError as error:
        raise click.UsageError(f"{path} is not TOML: {error}", ctx) from None
    for name, table in tables.items():
        command = cli.commands.get(name)
        if command is None:
            known = ", ".join(f"[{known}]" for known in cli.commands)
            raise click.UsageError(f"{path}: {name!r} is not one of the tables {known}", ctx)
        if not isinstance(table, dict):
            raise click.UsageError(f"{path}: {name!r} must be a table: [{name}]", ctx)
        keys = {
            str(option.name).replace("_", "-"): option for option in command.params if option.name not in NOT_IN_FILE
        }
        for key in table:
            if key not in keys:
                near = difflib.get_close_matches(key.replace("_", "-"), keys, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                raise click.UsageError(f"{path}: unknown key {key!r} in [{name}]{hint}", ctx)
        if command is ctx.command:
            ctx.default_map = {
                keys[key].name: _file_value(ctx, f"{path}: {key} in [{name}]", keys[key], value)
                for key, value in table.items()
            }


def _file_value(ctx: click.Context, where: str, option: click.Parameter, value: object) -> Any:
    """`value` as the option takes it; checked here so that the message names the file."""
    if isinstance(option.type, click.types.BoolParamType) and not isinstance(value, bool):
        raise click.UsageError(f"{where}: it must be true or false", ctx)
    if isinstance(option.type, (click.Path, click.Choice)) and not isinstance(value, str):
        raise click.UsageError(f"{where}: it must be a string", ctx)
    many = isinstance(option, click.Option) and option.multiple
    if many and not isinstance(value, list):
        raise click.UsageError(f"{where}: it must be an array", ctx)
    try:
        if many:
            return [option.type.convert(each, option, ctx) for each in cast(list[Any], value)]
        return option.type.convert(value, option, ctx)
    except click.BadParameter as error:
        raise click.UsageError(f"{where}: {error.message}", ctx) from None


# --- running ----------------------------------------------------------------------------------------------


class Service(Protocol):
    """What `_serve` runs: the life-cycle that Proxy, Agent and Demo share."""

    async def start(self) -> None: ...
    async def drain(self) -> None: ...
    async def close(self) -> None: ...
    async def wait_closed(self) -> None: ...


def _settings(kind: type, values: Mapping[str, Any]) -> Any:
    """A settings object from those `values` that somebody gave; its own defaults for the rest."""
    given = {name: value for name, value in values.items() if value is not None}
    session_names = {item.name for item in fields(SessionSettings)}
    session = SessionSettings(**{name: value for name, value in given.items() if name in session_names})
    return kind(**{name: value for name, value in given.items() if name not in session_names}, session=session)


def _prepare(log_format: logs.LogFormat, log_level: str) -> None:
    json = logs.configure(log_format, log_level)
    context = click.get_current_context(silent=True)
    if context is not None:
        context.meta[JSON_LOGS] = json
        _warn_of_unknown_variables(logging.getLogger(f"backstream.{context.info_name}"))
    # Every client, agent and upstream connection is an open file; soft limits of 1,024 are still usual.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # Not fatal: some systems do not allow it, and the soft limit may do.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _warn_of_unknown_variables(log: logging.Logger) -> None:
    """One line for variables that look like ours and are none. They are no mistake for sure: others set some, too."""
    known = [str(param.name).upper() for command in cli.commands.values() for param in command.params if param.envvar]
    prefix, found = _environment(""), []
    for name in sorted(os.environ):
        rest = name.removeprefix(prefix)
        if rest != name and rest not in known and not KUBERNETES.fullmatch(name):
            near = difflib.get_close_matches(rest, known, n=1, cutoff=0.75)
            found.append(f"{name} (did you mean {prefix}{near[0]}?)" if near else name)
    if found:
        log.warning("the environment has variables that nothing here reads: %s", ", ".join(found))


def _has_terminal() -> bool:
    """Whether the process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _run(main: Callable[[], Any]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return cast(int, runner.run(main()))


async def _serve(
    name: str,
    service: Service,
    drain_timeout: float,
    started: Callable[[], None] | None = None,
    on_hangup: Callable[[], object] | None = None,
) -> int:
    """Run `service` until a signal: the first drains it, the second closes it at once.

    SIGHUP calls `on_hangup`; when the terminal that it was started in is gone, it is a signal to end like the others
    (but for nohup). Returns the exit status: 0 after a drain, 128 and the signal's number after a second one, 1 when
    the service stopped by itself.
    """
    log = logging.getLogger(f"backstream.{name}")
    loop = asyncio.get_running_loop()
    first, second = asyncio.Event(), asyncio.Event()
    received = [0]
    ends_with_terminal = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    def on_signal(number: int) -> None:
        if not first.is_set():
            first.set()
            return
        # From here on a further signal ends the process as if nobody handled it.
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(each)
        received[0] = number
        second.set()

    def on_sighup() -> None:
        if ends_with_terminal and not _has_terminal():
            on_signal(signal.SIGHUP)
        elif on_hangup is not None:
            on_hangup()
        else:
            log.info("SIGHUP: there is nothing to read again")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    loop.add_signal_handler(signal.SIGHUP, on_sighup)
    try:
        if not await _unless(first, service.start()):
            return 0
        if started is not None:
            started()
        if not await _unless(first, service.wait_closed()):
            log.info("draining for at most %s; a second signal closes at once", format_duration(drain_timeout))
            if not await _unless(second, service.drain()):
                log.warning("closing at once")
                return 128 + received[0]
            log.info("drained")
            return 0
        log.error("stopped without having been asked to")
        return 1
    finally:
        await service.close()


async def _unless(event: asyncio.Event, work: Any) -> bool:
    """Await `work`; false when `event` came first, `work` is cancelled then. Its exception is raised."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        for each in (task, waiting):
            each.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)


def _cannot_listen(error: OSError, *addresses: str | None, hint: str = "") -> Failure:
    """One line for an address that cannot be bound."""
    known = [address for address in addresses if address is not None]
    # The system's message names the address; the port tells ours apart.
    named = [address for address in known if f", {parse_address(address)[1]})" in str(error)] or known
    why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
    return Failure(f"cannot listen on {' or '.join(named)}: {why[:1].lower()}{why[1:]}{hint}")


def _inherited_sockets() -> list[socket.socket]:
    """The listening sockets that a supervisor hands over (systemd's LISTEN_FDS); none where it did not."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = os.environ.get("LISTEN_FDS", "")
    # They are meant for this process and not for its children.
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        os.environ.pop(name, None)
    if not re.fullmatch(r"[0-9]{1,3}", count):
        raise click.UsageError(f"LISTEN_FDS is {count!r}, which is no number of sockets")
    sockets = []
    for descriptor in range(FIRST_INHERITED, FIRST_INHERITED + int(count)):
        try:
            os.set_inheritable(descriptor, False)
            inherited = socket.socket(fileno=descriptor)
            listens = inherited.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise click.UsageError(f"LISTEN_FDS: descriptor {descriptor} is no socket: {error.strerror}") from None
        if not listens or inherited.family not in (socket.AF_INET, socket.AF_INET6):
            raise click.UsageError(f"LISTEN_FDS: descriptor {descriptor} is no listening TCP socket")
        inherited.setblocking(False)
        sockets.append(inherited)
    return sockets


# --- commands ---------------------------------------------------------------------------------------------


def _proxy(log_format: logs.LogFormat, log_level: str, **values: Any) -> int:
    settings = _settings(ProxySettings, values)
    sockets = _inherited_sockets()
    _prepare(log_format, log_level)
    # What comes and goes here is freed without a collection. With 10,000 agents a full one stops everybody for 100 ms.
    # When agents come, whose objects stay, 10,000 young ones take 2.5 ms and 200,000 take 100 ms: 1,500 take 0.5 ms.
    gc.freeze()
    if sys.version_info < (3, 14):
        gc.set_threshold(300, 5, 13_000)
    else:
        gc.set_threshold(10_000, 20, 100)  # there each collection takes a part of the old ones along

    async def run() -> int:
        try:
            proxy = Proxy(settings, sockets=sockets)
            return await _serve("proxy", proxy, settings.drain_timeout, on_hangup=proxy.reload_tls)
        except OSError as error:
            raise _cannot_listen(error, settings.listen, settings.agent_listen) from None

    return _run(run)


def _agent(
    log_format: logs.LogFormat,
    log_level: str,
    app_dir: str,
    reload: bool | None,
    reload_dir: Sequence[str] | None,
    **values: Any,
) -> int:
    app, upstream = values["app"], values["upstream"]
    if app is None and upstream is None:
        raise click.UsageError("one of --app and --upstream is needed: what should the agent serve?")
    if app is not None and upstream is not None:
        raise click.UsageError("--app and --upstream exclude each other: an agent serves one service")
    settings = _settings(AgentSettings, values)
    if reload_dir and reload is None:
        raise click.UsageError("--reload-dir needs --reload")
    if reload and app is None:
        raise click.UsageError("--reload needs --app: an upstream is another's process")
    _prepare(log_format, log_level)
    if reload:
        return _reload([Path(folder) for folder in reload_dir or (app_dir,)])
    if app is not None:
        sys.path.insert(0, os.path.abspath(app_dir))

    async def run() -> int:
        try:
            agent = Agent(settings)
            return await _serve("agent", agent, settings.drain_timeout, on_hangup=agent.reload_tls)
        except OSError as error:
            raise Failure(str(error)) from None

    return _run(run)


def _reload(folders: Sequence[Path]) -> int:
    """Runs this command without --reload, anew after each change below `folders`."""
    arguments: list[str] = click.get_current_context().obj
    try:
        return reloader.run([*arguments, "--no-reload"], folders)
    except ImportError:
        raise click.UsageError("--reload needs watchfiles: pip install 'backstream[reload]'") from None


def _demo(log_format: logs.LogFormat, log_level: str, listen: str | None, once: bool) -> int:
    _prepare(log_format, log_level)

    # A fixed port can be typed again; a single request takes whichever is free.
    address = listen or ("127.0.0.1:0" if once else "127.0.0.1:8080")

    async def run() -> int:
        service = demo.Demo(address)
        try:
            if not once:
                return await _serve(
                    "demo",
                    service,
                    demo.DRAIN_TIMEOUT,
                    lambda: print(demo.instructions(*service.address), flush=True),
                )
            try:
                await service.start()
                return await demo.once(*service.address)
            finally:
                await service.close()
        except OSError as error:
            raise _cannot_listen(error, address, hint=" (choose another with --listen)") from None

    return _run(run)


def _version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if wanted:
        try:
            number = importlib.metadata.version("backstream")
        except importlib.metadata.PackageNotFoundError:
            number = "(not installed, run from its sources)"
        click.echo(f"backstream {number}")
        ctx.exit()


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Reach HTTP services behind NAT and firewalls.

    An agent beside the service connects out to a proxy that clients can reach, over one WebSocket. Clients
    send plain HTTP to the proxy and name the agent in the header x-backstream-client-id; requests and
    responses stream through in both directions.

    See it work: backstream demo
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def _completion(shell: str) -> int:
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "backstream", "_BACKSTREAM_COMPLETE").source())
    return 0


def _help(name: str, text: str, *, units: bool = True, lists: bool = False) -> str:
    paragraphs = [text, SETTINGS_HELP.format(name=name)]
    if lists:
        paragraphs.append(LISTS_HELP)
    if units:
        paragraphs.append(UNITS_HELP)
    return "\n\n".join(paragraphs)


cli.add_command(
    SettingsCommand(
        "proxy",
        params=[*_settings_options(ProxySettings), *_common_options()],
        callback=_proxy,
        short_help="Take clients' requests and send them to agents.",
        help=_help(
            "proxy",
            "Take clients' requests and send them to the agents that are connected. Clients and agents come "
            "to the same port unless --agent-listen gives the agents one of their own. A supervisor that hands "
            "over its listening sockets (systemd's LISTEN_FDS) decides instead of --listen: the first is for "
            "clients, a second one for agents.\n\n"
            "Agents are not authenticated: whoever reaches their port can take any id. Keep it where only "
            "those come whom you trust, or ask them for certificates (--tls-client-ca).",
            lists=True,
        ),
    )
)
cli.add_command(
    SettingsCommand(
        "agent",
        params=[
            *_settings_options(AgentSettings),
            _option(
                "app_dir",
                SERVICE,
                "Where to look for the module of --app.  [default: the current directory]",
                type=click.Path(exists=True, file_okay=False),
                metavar="DIR",
                default=".",
            ),
            _option(
                "reload",
                SERVICE,
                "Start again whenever a Python file below --reload-dir changes; for development.",
                flags="--reload/--no-reload",
                type=bool,
                default=None,
            ),
            _option(
                "reload_dir",
                SERVICE,
                "Where --reload looks for changes.  [default: --app-dir]",
                type=click.Path(exists=True, file_okay=False),
                metavar="DIR...",
                multiple=True,
            ),
            *_common_options(),
        ],
        callback=_agent,
        short_help="Connect a service to a proxy.",
        help=_help(
            "agent",
            "Connect a service to a proxy, so that clients of the proxy reach it. The service is an ASGI or "
            "WSGI application that runs in this process (--app) or one that is reached over HTTP (--upstream).\n\n"
            "The agent only ever connects out, and comes back by itself when the connection is lost.",
        ),
    )
)
cli.add_command(
    SettingsCommand(
        "demo",
        params=[
            _option(
                "listen",
                LISTEN,
                "Address of the demo's proxy.  [default: 127.0.0.1:8080, with --once a free port]",
                type=Value(Option("address", "", LISTEN)),
                metavar="HOST:PORT",
            ),
            SettingOption(
                ["--once", "once"],
                section=OTHER,
                is_flag=True,
                help="Make one request, show the answer and exit.",
            ),
            *_common_options("warning"),
        ],
        callback=_demo,
        short_help="Try it: a proxy, an agent and a small service in one go.",
        help=_help(
            "demo",
            "Run a proxy, an agent and a small service in this process, and print the curl commands that "
            "send requests through them.",
            units=False,
        ),
    )
)


cli.add_command(
    SettingsCommand(
        "completion",
        params=[click.Argument(["shell"], type=click.Choice(("bash", "zsh", "fish")))],
        callback=_completion,
        short_help="Print what teaches a shell to complete this command.",
        help="Print the script that makes a shell complete commands and flags. Once for each user:\n\n"
        "\b\n"
        "bash: backstream completion bash >> ~/.bashrc\n"
        "zsh:  backstream completion zsh >> ~/.zshrc\n"
        "fish: backstream completion fish > ~/.config/fish/completions/backstream.fish",
    )
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process unless given) and return its exit status."""
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        result = cli.main(given, prog_name="backstream", standalone_mode=False, obj=given)
    except click.ClickException as error:
        context: click.Context | None = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "backstream"
        message = " ".join(error.format_message().split())
        if isinstance(error, click.UsageError):
            message = f"{message.rstrip('.')} (see {where} --help)"
        if context is not None and context.meta.get(JSON_LOGS):
            logging.getLogger(f"backstream.{context.info_name}").error("%s", message)
        else:
            print(f"{where}: {message}", file=sys.stderr)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return result if isinstance(result, int) else 0
