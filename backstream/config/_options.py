"""What a setting's field says to the command line besides its type (`Option`), and the checks of its value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final, NamedTuple

from backstream.config._addresses import parse_address, parse_network
from backstream.config._text import shown
from backstream.config._units import format_duration, format_size
from backstream.errors import ConfigurationError

MAX_SECONDS: Final = 10 * 366 * 86400.0
"""No limit is longer than ten years; more is a slip of the unit."""
MAX_COUNT: Final = 2**31 - 1
MAX_SIZE: Final = 2**50
"""More than any machine's memory."""


class Option(NamedTuple):
    """How one setting looks on the command line, and which values it takes."""

    kind: str
    """duration, size, count, address, network, switch or text"""
    help: str
    section: str
    """The heading under which `--help` lists it."""
    least: float = 0
    most: float = math.inf
    above_zero: bool = False
    """The value is a time that must be more than 0."""
    off: str = ""
    """What 0 means, where it has a meaning of its own ("no limit")."""
    metavar: str = ""
    """What stands for the value in `--help`, where the kind does not say enough."""
    many: bool = False
    """The value is a tuple: a flag that may be given again, an array in TOML, one text in the environment."""
    separator: str = ","
    """What stands between the values in the environment."""
    choices: tuple[str, ...] = ()
    """The texts that it may be, where not every one will do."""


LISTEN: Final = "Where to listen"
ROUTES: Final = "Routes"
FORWARDING: Final = "Who asked"
CONNECT: Final = "Connection to the proxy"
SERVICE: Final = "What to serve"
TLS: Final = "TLS"
TIMES: Final = "Time limits"
LIMITS: Final = "Limits"
SESSIONS: Final = "Sessions"
LOGS: Final = "Logs"


def option(kind: str, section: str, text: str, **rest: Any) -> Mapping[str, Option]:
    """The metadata of a setting's field; what it may be is bounded even where `rest` does not say so."""
    if kind == "duration":
        rest.setdefault("most", MAX_SECONDS)
    elif kind == "count":
        rest.setdefault("most", MAX_COUNT)
        rest.setdefault("least", 1)
    elif kind == "size":
        rest.setdefault("most", MAX_SIZE)
    return {"option": Option(kind, text, section, **rest)}


def check(settings: object) -> None:
    """Hold every field that has an `Option` to it."""
    for item in fields(settings):  # type: ignore[arg-type]
        option: Option | None = item.metadata.get("option")
        if option is None:
            continue
        value = getattr(settings, item.name)
        if value is None and "None" in str(item.type):
            continue
        if not option.many:
            check_value(item.name, option, value)
        elif isinstance(value, tuple):
            for each in value:
                check_value(item.name, option, each)
        else:
            raise ConfigurationError(f"{item.name} must be a tuple, not {value!r}")


def check_value(name: str, option: Option, value: object) -> None:
    """Raise ConfigurationError, naming the setting `name`, unless `value` is one that `option` allows."""
    kind = option.kind
    if kind == "switch":
        if not isinstance(value, bool):
            raise ConfigurationError(f"{name} must be true or false, not {value!r}")
    elif kind in ("text", "address", "network"):
        if not isinstance(value, str):
            raise ConfigurationError(f"{name} must be a string, not {value!r}")
        if option.choices and value not in option.choices:
            raise ConfigurationError(f"{name} must be one of {', '.join(option.choices)}, not {shown(value)}")
        if kind != "text":
            try:
                parse_address(value) if kind == "address" else parse_network(value)
            except ConfigurationError as error:
                raise ConfigurationError(f"{name}: {error}") from None
    elif isinstance(value, bool) or not isinstance(value, (int, float) if kind == "duration" else int):
        raise ConfigurationError(f"{name} must be a number, not {value!r}")
    elif kind == "duration":
        if not math.isfinite(value):
            raise ConfigurationError(f"{name} must be a finite number of seconds, not {value!r}")
        if value < option.least or (option.above_zero and value <= 0):
            least = "more than 0" if option.above_zero else f"at least {format_duration(option.least)}"
            raise ConfigurationError(f"{name} must be {least}, not {format_duration(value)}")
        if value > option.most:
            raise ConfigurationError(f"{name} must be at most {format_duration(option.most)}, not {value:g} s")
    elif not option.least <= value <= option.most:
        write = format_size if kind == "size" else str
        least = write(int(option.least))
        if value < option.least and option.most in (MAX_COUNT, MAX_SIZE):
            raise ConfigurationError(f"{name} must be at least {least}, not {value}")
        raise ConfigurationError(f"{name} must be from {least} to {write(int(option.most))}, not {value}")


def check_pair(settings: object, one: str, other: str) -> None:
    for given, missing in ((one, other), (other, one)):
        if getattr(settings, given) is not None and getattr(settings, missing) is None:
            raise ConfigurationError(f"{given} needs {missing} too: a certificate works with its key only")
