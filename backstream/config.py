"""What can be set, in three frozen dataclasses, and how the text of a flag becomes a value.

Sizes are bytes and times are seconds, everywhere. A setting is written down once, here: its name, type,
default, the reason for the default (its docstring) and, in the field's metadata, what the command line needs
(`Option`). A value that cannot work raises `ConfigurationError` when the object is made, in one line that
names the setting.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from backstream.errors import ConfigurationError

__all__ = [
    "AgentSettings",
    "Option",
    "ProxySettings",
    "ProxyUrl",
    "Route",
    "SessionSettings",
    "Upstream",
    "Via",
    "check_value",
    "format_duration",
    "format_size",
    "parse_address",
    "parse_duration",
    "parse_header",
    "parse_host_route",
    "parse_network",
    "parse_path_route",
    "parse_proxy_url",
    "parse_size",
    "parse_upstream",
    "parse_via",
]

KiB: Final = 1024
MiB: Final = 1024 * KiB

MAX_WINDOW: Final = 2**31 - 1
"""The largest credit that a WINDOW frame can carry."""
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
    """The value is a tuple: a flag that may be given again, an array in TOML, commas in the environment."""
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


def _option(kind: str, section: str, text: str, **rest: Any) -> Mapping[str, Option]:
    if kind == "duration":
        rest.setdefault("most", MAX_SECONDS)
    elif kind == "count":
        rest.setdefault("most", MAX_COUNT)
        rest.setdefault("least", 1)
    elif kind == "size":
        rest.setdefault("most", MAX_SIZE)
    return {"option": Option(kind, text, section, **rest)}


# --- text to values -----------------------------------------------------------------------------------------

_UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # micro sign
    "\u03bcs": 10**3,  # Greek letter mu
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_TERM: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_MAX_NANOSECONDS: Final = 2**63 - 1


def _bad_duration(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{_shown(text)} is not a duration: {why} (write it like 1h2m3.5s, 300ms or 0)")


def parse_duration(text: str) -> float:
    """The seconds that a Go duration says: `1h2m3.5s`, `300ms`, `-1s`, `0`.

    The grammar is that of Go's `time.ParseDuration`, its limits too: 64 bits of nanoseconds, about 292 years,
    and what is below one nanosecond is cut off. Raises ConfigurationError for anything else.
    """
    rest = text[1:] if text[:1] in ("+", "-") else text
    negative = text.startswith("-")
    if rest == "0":
        return 0.0
    if not rest:
        raise _bad_duration(text, "there is no number")
    total = 0
    position = 0
    while position < len(rest):
        match = _TERM.match(rest, position)
        assert match is not None  # every part of the pattern is optional
        whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
        if not whole and not fraction:
            raise _bad_duration(text, "a number is missing")
        if not unit:
            raise _bad_duration(text, "a unit is missing (ns, us, ms, s, m, h)")
        scale = _UNITS.get(unit)
        if scale is None:
            raise _bad_duration(text, f"unknown unit {_shown(unit)}")
        # The text may come from a request: never make a number out of more digits than can matter.
        digits = whole.lstrip("0")
        if len(digits) > 19:
            raise _bad_duration(text, "it is too long")
        fraction = fraction[:40]
        total += int(digits or "0") * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
        if total > _MAX_NANOSECONDS + negative:
            raise _bad_duration(text, "it is too long")
        position = match.end()
    return (-total if negative else total) / 10**9


def format_duration(seconds: float) -> str:
    """`seconds` as a Go duration, in the usual short form that `parse_duration` reads back."""
    nanoseconds = round(abs(seconds) * 10**9)
    if not nanoseconds:
        return "0"
    sign = "-" if seconds < 0 else ""
    if nanoseconds < 10**9:
        for unit, scale in (("ms", 10**6), ("us", 10**3)):
            if nanoseconds % scale == 0:
                return f"{sign}{nanoseconds // scale}{unit}"
        return f"{sign}{nanoseconds}ns"
    minutes, left = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    whole, part = divmod(left, 10**9)
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if minutes else ""
    if left:
        text += f"{whole}.{part:09d}".rstrip("0").rstrip(".") + "s"
    return sign + text


_SIZE: Final = re.compile(r"([0-9]{1,19})\s*(B|KiB|MiB|GiB|TiB)?", re.IGNORECASE | re.ASCII)
_SIZES: Final = {"b": 1, "kib": KiB, "mib": MiB, "gib": 1024 * MiB, "tib": 1024 * 1024 * MiB}


def parse_size(text: str) -> int:
    """The bytes that a size says: `65536`, `64KiB`, `16 MiB`. Raises ConfigurationError for anything else."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{_shown(text)} is not a size (write it like 65536, 64KiB or 16MiB)")
    return int(match.group(1)) * _SIZES[(match.group(2) or "b").lower()]


def format_size(size: int) -> str:
    """`size` in bytes as `parse_size` reads it, in the largest unit that divides it."""
    for unit, scale in (("GiB", 1024 * MiB), ("MiB", MiB), ("KiB", KiB)):
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return str(size)


_HANDSHAKE_FIELDS: Final = frozenset(
    ("connection", "content-length", "host", "transfer-encoding", "upgrade", "x-backstream-client-id")
)
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}", re.ASCII)
_NEVER_UPGRADED: Final = frozenset({"h2c", "h2", "http", "tls"})

# RFC 1035 §2.3.4: a look-up raises no OSError for labels that are empty or longer.
_HOST: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[::1]:80` (an IPv6 address needs its brackets) or `:8080`.

    An empty host means every interface, port 0 one that the system chooses. Raises ConfigurationError for
    anything else.
    """
    host, colon, number = text.rpartition(":")
    if not colon or (not host and text != f":{number}"):
        raise ConfigurationError(f"{_shown(text)} is not an address (write HOST:PORT, [IPV6]:PORT or :PORT)")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigurationError(f"{_shown(text)} has no valid IPv6 address in its brackets") from None
    elif ":" in host:
        raise ConfigurationError(f"{_shown(text)} needs brackets around its IPv6 address: [::1]:8080")
    elif host and not _HOST.fullmatch(host):
        raise ConfigurationError(f"{_shown(text)} has no valid host name")
    return host, _port(text, number)


def _port(text: str, number: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", number) or int(number) > 65535:
        raise ConfigurationError(f"{_shown(text)} has no valid port: it must be a number from 0 to 65535")
    return int(number)


def parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The network that `10.0.0.0/8`, `2001:db8::/32` or a single address says. Raises ConfigurationError for others."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        hint = ": it has bits set behind its prefix" if "host bits" in str(error) else ""
        raise ConfigurationError(
            f"{_shown(text)} is not a network{hint} (write it like 10.0.0.0/8, 2001:db8::/32 or 192.0.2.1)"
        ) from None


ID_PLACE: Final = "{id}"
_LABELS: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PREFIX: Final = re.compile(r"/([A-Za-z0-9._~!$&'()*+;:@%-]+/)*")


class Route(NamedTuple):
    """Where requests for one id, or for many, come to."""

    place: str
    """The host; the path's prefix, with its last slash. The domain or prefix before the id where that is None."""
    client_id: str | None
    """None: the host's first label, or the path's next segment, is the id."""


def parse_host_route(text: str) -> Route:
    """What `{id}.tunnel.example` or `www.example=ID` says. Raises ConfigurationError for anything else."""
    host, equals, client_id = text.partition("=")
    host = host.lower()
    if not equals and host.startswith(ID_PLACE + "."):
        host = host.removeprefix(ID_PLACE + ".")
    elif not equals:
        raise ConfigurationError(f"{_shown(text)} is not a host route (write {{id}}.tunnel.example or www.example=ID)")
    if len(host) > 253 or not _LABELS.fullmatch(host):
        raise ConfigurationError(f"{_shown(text)} has no valid host name (neither a port nor a * belongs there)")
    return Route(host, _route_id(text, client_id) if equals else None)


def parse_path_route(text: str) -> Route:
    """What `/t/{id}/` or `/shop/=ID` says. Raises ConfigurationError for anything else."""
    prefix, equals, client_id = text.partition("=")
    if not equals and prefix.endswith(f"/{ID_PLACE}/"):
        prefix = prefix.removesuffix(f"{ID_PLACE}/")
    elif not equals or prefix == "/":
        raise ConfigurationError(f"{_shown(text)} is not a path route (write /t/{{id}}/ or /shop/=ID)")
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(f"{_shown(text)} has no valid path that begins and ends with a slash")
    return Route(prefix, _route_id(text, client_id) if equals else None)


def _route_id(text: str, client_id: str) -> str:
    if not _is_client_id(client_id):
        raise ConfigurationError(f"{_shown(text)} has no valid id: it must be {CLIENT_IDS}")
    return client_id


CLIENT_IDS: Final = "1 to 128 visible ASCII characters"


def _is_client_id(text: str) -> bool:
    return 0 < len(text) <= 128 and _is_token_text(text) and " " not in text


class Upstream(NamedTuple):
    """Where a service is reached over HTTP: by host and port, or by the path of a Unix socket."""

    host: str
    port: int
    path: str | None
    tls: bool = False


def parse_upstream(text: str) -> Upstream:
    """What `http://host:port`, `https://host:port` (80 or 443 unless it is named) or `unix:/path` says.

    Raises ConfigurationError for anything else.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or "\0" in path:
            raise ConfigurationError(f"{_shown(text)} must name a socket by its full path: unix:/run/service.sock")
        return Upstream("localhost", 80, path)
    parts = _split_url(text, ("http", "https"), "http://HOST:PORT, https://HOST:PORT or unix:/PATH")
    if parts.path not in ("", "/") or parts.query:
        raise ConfigurationError(f"{_shown(text)} must end after its port: targets are forwarded as they come")
    tls = parts.scheme == "https"
    host, port = _url_address(text, parts, 443 if tls else 80)
    if port == 0:
        raise ConfigurationError(f"{_shown(text)} has no valid port: it must be a number from 1 to 65535")
    return Upstream(host, port, None, tls)


class ProxyUrl(NamedTuple):
    """Where an agent dials."""

    tls: bool
    host: str
    port: int
    authority: str
    """host[:port] as written, for the Host field."""
    path: str
    """The path and query."""


def parse_proxy_url(text: str) -> ProxyUrl:
    """What `ws://host:port/path` or `wss://…` says (80 or 443 unless the port is named; the path `/` unless it is).

    Raises ConfigurationError for anything else.
    """
    parts = _split_url(text, ("ws", "wss"), "ws://HOST:PORT/PATH")
    tls = parts.scheme == "wss"
    host, port = _url_address(text, parts, 443 if tls else 80)
    if port == 0:
        raise ConfigurationError(f"{_shown(text)} has no valid port")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return ProxyUrl(tls, host, port, parts.netloc, path)


DIRECT: Final = "direct"
_VIA_SHAPE: Final = "http://[USER:PASSWORD@]HOST:PORT, socks5://… or socks5h://…"


class Via(NamedTuple):
    """A forward proxy; as text it has no password."""

    scheme: str
    host: str
    port: int
    user: str
    """Percent-encoded, as the password is; empty for none."""
    password: str

    def __str__(self) -> str:
        return f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_via(text: str) -> Via:
    """What `http://user:password@host:port`, `socks5://…` or `socks5h://…` says (3128 or 1080 unless it is named).

    Raises ConfigurationError for anything else, without a word of what stands before the host.
    """
    scheme, separator, rest = text.partition("://")
    credentials, at, address = rest.rpartition("@")
    scheme = scheme.lower()
    if not separator or scheme not in ("http", "socks5", "socks5h"):
        raise ConfigurationError(f"a forward proxy is named like {_VIA_SHAPE}")
    bare = f"{scheme}://{address.removesuffix('/')}"
    parts = _split_url(bare, (scheme,), _VIA_SHAPE)
    if parts.path or parts.query:
        raise ConfigurationError(f"{_shown(bare)} must end after its port")
    host, port = _url_address(bare, parts, 3128 if scheme == "http" else 1080)
    user, _, password = credentials.partition(":")
    if at and (not user or not credentials.isascii() or not credentials.isprintable() or " " in credentials):
        raise ConfigurationError(
            "the user name and password of a forward proxy are written USER:PASSWORD, percent-encoded"
        )
    return Via(scheme, host, port, user, password)


def _split_url(text: str, schemes: tuple[str, ...], shape: str) -> SplitResult:
    # urlsplit silently drops tabs and line ends; look before it does.
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(f"{_shown(text)} is not a URL (write {shape})")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ConfigurationError(f"{_shown(text)} is not a URL (write {shape})") from None
    if parts.scheme not in schemes or not parts.netloc:
        raise ConfigurationError(f"{_shown(text)} is not a URL of the form {shape}")
    if "@" in parts.netloc:
        # Not repeated in the message: it ends in logs, and there may be a password in it.
        raise ConfigurationError(f"a URL of the form {shape} must not have a user name or password in it")
    if "#" in text:
        raise ConfigurationError(f"{_shown(text)} must not have a fragment (#)")
    return parts


def _url_address(text: str, parts: SplitResult, default_port: int) -> tuple[str, int]:
    netloc = parts.netloc
    if netloc.endswith(":") or not re.search(r":[0-9]+\Z", netloc):
        netloc = f"{netloc.removesuffix(':')}:{default_port}"
    try:
        host, port = parse_address(netloc)
    except ConfigurationError:
        raise ConfigurationError(f"{_shown(text)} has no valid host and port") from None
    if not host:
        raise ConfigurationError(f"{_shown(text)} names no host")
    return host, port


def _shown(text: str) -> str:
    """`text` in quotes for a message of one line, not longer than is useful."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


# --- checks -------------------------------------------------------------------------------------------------


def _check(settings: object) -> None:
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
            raise ConfigurationError(f"{name} must be one of {', '.join(option.choices)}, not {_shown(value)}")
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


def _check_session(session: object) -> None:
    if not isinstance(session, SessionSettings):
        raise ConfigurationError(f"session must be a SessionSettings, not {session!r}")


def _check_pair(settings: object, one: str, other: str) -> None:
    for given, missing in ((one, other), (other, one)):
        if getattr(settings, given) is not None and getattr(settings, missing) is None:
            raise ConfigurationError(f"{given} needs {missing} too: a certificate works with its key only")


def _check_routes(name: str, texts: tuple[str, ...], parse: Callable[[str], Route]) -> None:
    places: dict[tuple[str, bool], str | None] = {}
    for text in texts:
        try:
            route = parse(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}: {error}") from None
        place = (route.place, route.client_id is None)
        if places.setdefault(place, route.client_id) != route.client_id:
            raise ConfigurationError(f"{name}: {_shown(text)} names another id for the same place")


def parse_header(text: str) -> tuple[str, str]:
    """Name and value of a field of an agent's handshake, written `NAME: VALUE`. Raises ConfigurationError."""
    name, colon, value = text.partition(":")
    value = value.strip(" ")
    # What is wrong with it is not shown: it may hold a secret.
    if not colon or not _TOKEN.fullmatch(name) or not _is_token_text(value):
        raise ConfigurationError("header must be like 'NAME: VALUE', in visible ASCII")
    if name.lower() in _HANDSHAKE_FIELDS or name.lower().startswith("sec-websocket-"):
        raise ConfigurationError(f"header must not name {name}: the handshake has its own")
    return name, value


def _is_token_text(text: str) -> bool:
    """Whether `text` can be a header's value as it is: visible ASCII, blanks only inside."""
    return text.isascii() and text.isprintable() and text == text.strip(" ")


# --- settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What holds inside one session, the WebSocket between an agent and a proxy; the same on both sides."""

    initial_window: int = field(
        default=64 * KiB,
        metadata=_option(
            "size",
            SESSIONS,
            "Bytes of a new stream's body that the peer may send before they are read.",
            least=1,
            most=MAX_WINDOW,
        ),
    )
    """Bytes of credit per stream and direction at its start. Small enough that a thousand stalled streams
    cost 64 MiB, large enough that most bodies fit at once."""

    max_window: int = field(
        default=16 * MiB,
        metadata=_option("size", SESSIONS, "How far the window of a fast stream may grow.", least=1, most=MAX_WINDOW),
    )
    """Bytes. 16 MiB fill 1 Gbit/s at a round trip of 130 ms."""

    upgraded_max_window: int = field(
        default=MiB,
        metadata=_option(
            "size", SESSIONS, "How far the window of an upgraded stream may grow.", least=1, most=MAX_WINDOW
        ),
    )
    """Bytes. Upgraded streams (WebSockets) are many, long-lived and seldom bulk."""

    window_budget: int = field(
        default=256 * MiB,
        metadata=_option("size", SESSIONS, "Memory that all grown windows of this process share."),
    )
    """Bytes. When it is spent, streams stay at `initial_window`; 0 lets none grow."""

    max_frame_size: int = field(
        default=64 * KiB,
        metadata=_option(
            "size", SESSIONS, "Largest DATA frame that the peer may send.", least=16 * KiB, most=128 * KiB
        ),
    )
    """Bytes of payload, 16 to 128 KiB. Larger frames cost fewer calls, smaller ones hold up neighbours
    less."""

    max_streams: int = field(
        default=1000,
        metadata=_option("count", SESSIONS, "Requests that may be open at once on one session."),
    )
    """Streams. An agent takes no more; a proxy opens no more, whatever its agents would take."""

    ping_interval: float = field(
        default=10.0,
        metadata=_option("duration", SESSIONS, "How often the peer is pinged.", above_zero=True),
    )
    """Seconds. Often enough to keep NAT and firewall entries alive (the shortest usual ones last 30 s)."""

    ping_timeout: float = field(
        default=21.0,
        metadata=_option("duration", SESSIONS, "Silence after which the peer counts as dead.", above_zero=True),
    )
    """Seconds without a byte, more than `ping_interval`. Two pings and a little may be lost."""

    hello_timeout: float = field(
        default=5.0,
        metadata=_option("duration", SESSIONS, "How long to wait for the peer's first frame (HELLO).", above_zero=True),
    )
    """Seconds. The frame follows the handshake directly; a peer that takes longer is none."""

    message_timeout: float = field(
        default=10.0,
        metadata=_option(
            "duration", SESSIONS, "How long to wait for the rest of a fragmented message.", above_zero=True
        ),
    )
    """Seconds from a WebSocket message's first fragment to its last, so that nobody holds 256 KiB for
    ever."""

    wire: str = field(
        default="auto",
        metadata=_option(
            "text",
            SESSIONS,
            "What to speak: auto is the native wire where the peer takes it, else that of the original.",
            metavar="auto|native|seed",
            choices=("auto", "native", "seed"),
        ),
    )
    """A proxy on auto takes agents of both kinds on one port; an agent falls back. `native` refuses the seed wire,
    which is the original implementation's, `seed` speaks nothing else."""

    seed_codec: str = field(
        default="proto",
        metadata=_option(
            "text",
            SESSIONS,
            "Encoding on the seed wire until the peer has spoken; it is followed from then on.",
            metavar="proto|json",
            choices=("proto", "json"),
        ),
    )
    """Nothing in the handshake tells it, and the proxy speaks first, so it has to know what its agents are set to."""

    seed_max_message: int = field(
        default=10 * MiB,
        metadata=_option(
            "size",
            SESSIONS,
            "Largest message on the seed wire, which holds a whole body.",
            least=64 * KiB,
            most=10 * MiB,
        ),
    )
    """Bytes. Peers of the original take 10 MiB; in JSON a body takes up 16/9 of its size."""

    seed_budget: int = field(
        default=256 * MiB,
        metadata=_option(
            "size",
            SESSIONS,
            "Memory that all bodies on the seed wire share, beyond 64KiB each.",
            least=256 * KiB,
        ),
    )
    """Bytes, at least four times `seed_max_message`: one session gets at most a quarter while others hold some."""

    def __post_init__(self) -> None:
        _check(self)
        if self.seed_budget < 4 * self.seed_max_message:
            raise ConfigurationError(
                f"seed_budget ({format_size(self.seed_budget)}) must be at least four times seed_max_message "
                f"({format_size(self.seed_max_message)})"
            )
        if self.initial_window > self.max_window:
            raise ConfigurationError(
                f"initial_window ({format_size(self.initial_window)}) must not be more than max_window "
                f"({format_size(self.max_window)})"
            )
        if self.ping_timeout <= self.ping_interval:
            raise ConfigurationError(
                f"ping_timeout ({format_duration(self.ping_timeout)}) must be more than ping_interval "
                f"({format_duration(self.ping_interval)})"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """What a `Proxy` is started with."""

    listen: str = field(
        default="127.0.0.1:8080",
        metadata=_option("address", LISTEN, "Address for clients, and for agents unless --agent-listen is given."),
    )
    """`HOST:PORT`; an empty host means every interface, port 0 a free port. Loopback by default, since agents
    are not authenticated yet: whoever reaches the port can hold any id."""

    agent_listen: str | None = field(
        default=None,
        metadata=_option("address", LISTEN, "Address for agents alone, to keep it out of clients' reach."),
    )
    """`HOST:PORT`, or None: agents and clients share `listen`."""

    agent_path: str = field(
        default="/ws",
        metadata=_option("text", LISTEN, "Path on which agents connect.", metavar="PATH"),
    )
    """Where an Upgrade to WebSocket makes an agent; other requests to it are ordinary ones."""

    tls_cert: str | None = field(
        default=None,
        metadata=_option(
            "text",
            TLS,
            "Speak TLS: this certificate (PEM), followed by those up to its CA. SIGHUP reads the files again.",
            metavar="FILE",
        ),
    )
    """Path of a PEM file, or None: plain TCP. It holds for both listeners; they speak TLS 1.2 and newer.
    `Proxy.reload_tls` reads the files again."""

    tls_key: str | None = field(
        default=None,
        metadata=_option("text", TLS, "The private key of --tls-cert (PEM, without a passphrase).", metavar="FILE"),
    )
    """Path of a PEM file; together with `tls_cert`, or neither."""

    tls_client_ca: str | None = field(
        default=None,
        metadata=_option(
            "text",
            TLS,
            "Mutual TLS: who connects needs a certificate from a CA in this file (PEM). With --agent-listen agents "
            "need one, and clients do not.",
            metavar="FILE",
        ),
    )
    """Path of a PEM file with the CAs whose certificates are accepted, or None: nobody is asked for one. It
    holds for the listener that agents come to: `agent_listen`, or `listen` when that is shared, and then for
    clients as well. A certificate says that its holder may connect, not which client id it may hold: that is
    for `authorize`, which sees it."""
    reuse_port: bool = field(
        default=False,
        metadata=_option("switch", LISTEN, "Let several processes listen on the port (SO_REUSEPORT)."),
    )
    """For a restart without a supervisor that keeps the socket: the new process starts before the old one ends."""

    upgrade: tuple[str, ...] = field(
        default=("websocket",),
        metadata=_option(
            "text",
            LISTEN,
            "A protocol that clients may switch to by an Upgrade; may be repeated.",
            metavar="NAME",
            many=True,
        ),
    )
    """Names of protocols (RFC 9110 §7.8), compared without case; none: no Upgrade is taken. An Upgrade to anything
    else is ignored and the request served as HTTP/1.1. h2c, HTTP and TLS are never taken: they would carry requests
    past the proxy's rules."""

    request_timeout: float = field(
        default=3.0,
        metadata=_option(
            "duration",
            TIMES,
            "Longest wait for a response to begin, from the request's end. A request may name its own in "
            "x-backstream-request-timeout.",
            off="no limit",
        ),
    )
    """Seconds, 0 for no limit. The original's default; how long a body takes is never limited as a whole."""

    max_request_timeout: float = field(
        default=0.0,
        metadata=_option("duration", TIMES, "The most that a request may name for itself.", off="no cap"),
    )
    """Seconds, 0 for no cap. It caps `request_timeout` too, and turns "no limit" into itself."""

    idle_timeout: float = field(
        default=300.0,
        metadata=_option("duration", TIMES, "Longest pause between bytes of a body.", above_zero=True),
    )
    """Seconds. Never a total limit: a stream may live for days as long as it moves."""

    agent_wait: float = field(
        default=2.0,
        metadata=_option(
            "duration",
            TIMES,
            "How long a request waits for an agent that is away for the moment; never longer than its own time limit.",
            off="no wait",
        ),
    )
    """Seconds, 0 for no wait. An agent that restarts, or whose network blinks, is back within them. It holds for
    ids that an agent held within the last day, and for any id in the first 10 s after the proxy's start."""

    max_retries: int = field(
        default=3,
        metadata=_option(
            "count",
            LIMITS,
            "How often a request may be sent again, where nothing can have come of it.",
            least=0,
            most=64,
            off="no retries",
        ),
    )
    """Times, over all agents of an id; 0 for none. Sent again is what an agent refused or did not take before it left
    (any method, while all of the body that was sent is still at hand), and once what was on a session that was lost
    without a word, if it is idempotent and has no body."""

    header_timeout: float = field(
        default=10.0,
        metadata=_option("duration", TIMES, "How long a client may take to send a request's head.", above_zero=True),
    )
    """Seconds from a head's first byte (or the connection's start) to its last, against clients that
    trickle."""

    keepalive_timeout: float = field(
        default=75.0,
        metadata=_option(
            "duration",
            TIMES,
            "How long a client's connection may stay idle between requests.",
            above_zero=True,
        ),
    )
    """Seconds between two requests on a connection. Longer than the 60 s that load balancers usually keep
    theirs, so that they close first and none of their requests meets a closing connection."""

    drain_timeout: float = field(
        default=30.0,
        metadata=_option("duration", TIMES, "How long running requests may go on after SIGTERM or Ctrl-C."),
    )
    """Seconds. As long as orchestrators usually wait before they kill."""

    drain_idle_timeout: float = field(
        default=3.0,
        metadata=_option(
            "duration", TIMES, "How long a client's idle connection may still bring a request after SIGTERM or Ctrl-C."
        ),
    )
    """Seconds. Cut at once, a connection might be cut just as a request comes; its next answer says that it closes."""

    max_connections: int = field(
        default=10_000,
        metadata=_option("count", LIMITS, "Client connections open at once."),
    )
    """Each may hold 64 KiB and its transport's buffer."""

    max_connections_per_address: int = field(
        default=0,
        metadata=_option("count", LIMITS, "Client connections open at once from one address.", least=0, off="no limit"),
    )
    """0 for no limit, since many clients may stand behind one address."""

    max_aborts_per_address: int = field(
        default=100,
        metadata=_option(
            "count",
            LIMITS,
            "Requests that one client address may give up per second, over ten seconds; beyond it 429.",
            least=0,
            off="no limit",
        ),
    )
    """Per second. To open and to abort costs a client nothing and the service much (CVE-2023-44487)."""

    max_waiting: int = field(
        default=10_000,
        metadata=_option("count", LIMITS, "Requests that may wait for an agent at once."),
    )
    """Further ones get 503 at once. Each holds its client's connection and at most 64 KiB of its body."""

    max_agents: int = field(
        default=20_000,
        metadata=_option("count", LIMITS, "Agents connected at once."),
    )
    """Sessions over all ids."""

    max_agents_per_id: int = field(
        default=64,
        metadata=_option("count", LIMITS, "Agents that may share one client id."),
    )
    """Requests for an id are spread over its agents."""

    max_head_size: int = field(
        default=64 * KiB,
        metadata=_option("size", LIMITS, "Largest head of a request; beyond it 431.", least=1 * KiB, most=128 * KiB),
    )
    """Bytes of request line and fields. A head must fit into one frame of 128 KiB."""

    max_target_size: int = field(
        default=16 * KiB,
        metadata=_option("size", LIMITS, "Longest target (path and query); beyond it 414.", least=1, most=128 * KiB),
    )
    """Bytes."""

    max_fields: int = field(
        default=200,
        metadata=_option("count", LIMITS, "Header fields of a request; beyond it 431.", most=4000),
    )
    """Fields; what is cheap to send must not be dear to read."""

    max_trailers_size: int = field(
        default=16 * KiB,
        metadata=_option("size", LIMITS, "Largest trailers of a request.", least=0, most=128 * KiB),
    )
    """Bytes."""

    max_extensions_size: int = field(
        default=16 * KiB,
        metadata=_option("size", LIMITS, "Largest sum of chunk extensions in a body; beyond it 400.", least=0),
    )
    """Bytes. Nobody uses them, and they cost as much to read as a body (CVE-2023-39326)."""

    max_body_size: int = field(
        default=0,
        metadata=_option("size", LIMITS, "Largest body of a request; beyond it 413.", off="no limit"),
    )
    """Bytes, 0 for no limit: a body is never held, so its size costs the proxy nothing."""

    min_head_rate: int = field(
        default=240,
        metadata=_option(
            "size",
            LIMITS,
            "Fewest bytes per second in which a request's head may come, from its 5th second on; below it 408.",
            off="no minimum",
        ),
    )
    """Bytes per second, 0 for no minimum. Against clients that send a byte now and then to hold a connection."""

    min_body_rate: int = field(
        default=0,
        metadata=_option(
            "size",
            LIMITS,
            "Fewest bytes per second in which a request's body may come, from its 5th second on; below it 408.",
            off="no minimum",
        ),
    )
    """Bytes per second, 0 for no minimum: a body that a person types is as good as any. Time in which the proxy
    itself did not read does not count."""

    min_read_rate: int = field(
        default=240,
        metadata=_option(
            "size",
            LIMITS,
            "Fewest bytes per second that a client takes of what waits for it, from the 5th second on, "
            "where others need its place.",
            off="no minimum",
        ),
    )
    """Bytes per second, 0 for no minimum. Where every agent of an id has all its streams, a new request takes the place
    of a client below it, the one that has let its bytes wait longest; while there is room, nobody is cut off. Time in
    which nothing waits for the client does not count."""

    route_host: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "text",
            ROUTES,
            "Requests without an id whose Host is like this: {id}.tunnel.example, or www.example=ID.",
            metavar="ROUTE",
            many=True,
        ),
    )
    """`{id}.domain`: the first label, in lower case, is the client id; `host=ID`: that id. Only for requests without
    the field `x-backstream-client-id`; an exact host comes before a domain."""

    route_path: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "text",
            ROUTES,
            "Requests without an id whose path begins like this: /t/{id}/, or /shop/=ID. It is taken off the path.",
            metavar="ROUTE",
            many=True,
        ),
    )
    """`/prefix/{id}/` or `/prefix/=ID`; after the hosts, the longest prefix first. What is taken off the path is the
    ASGI application's `root_path`, and `X-Forwarded-Prefix` for an upstream."""

    default_id: str | None = field(
        default=None,
        metadata=_option("text", ROUTES, "The id of requests that name none in any other way.", metavar="ID"),
    )
    """A client id, or None: such requests get 400."""

    client_id_optional: bool = field(
        default=False,
        metadata=_option("switch", ROUTES, "Take agents without an id; requests that name none go to them."),
    )
    """Agents and requests without the field `x-backstream-client-id`, or with an empty one, meet under the id "".
    Routes and `default_id` come before it. Whoever reaches the agents' port can then get the requests of all clients
    that name no id."""

    x_forwarded: bool = field(
        default=False,
        metadata=_option("switch", FORWARDING, "Say who asked in X-Forwarded-For, -Proto and -Host, too."),
    )
    """Beside `Forwarded` (RFC 7239), for services that know only the older fields. Proxies in `trust_forwarded` are
    then believed what they say in those, instead of in `Forwarded`."""

    trust_forwarded: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "network",
            FORWARDING,
            "Proxies in this network say who asked them; what others say is replaced.",
            metavar="CIDR",
            many=True,
        ),
    )
    """Networks of proxies before this one that write `Forwarded` (or, with `x_forwarded`, X-Forwarded-For) themselves
    and do not just pass on what a client sent in it."""

    proxy_protocol: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "network",
            FORWARDING,
            "Connections from this network begin with a PROXY header (version 1 or 2).",
            metavar="CIDR",
            many=True,
        ),
    )
    """Networks of load balancers that speak the PROXY protocol; a connection of theirs without it is closed."""

    via_name: str | None = field(
        default=None,
        metadata=_option(
            "text", FORWARDING, "This proxy's name in Via.  [default: backstream-, and a random part]", metavar="NAME"
        ),
    )
    """A token; requests that come with it in their Via are loops and get 508. None makes one for each process. Give the
    same name only to proxies that may not stand behind one another."""

    trace: bool = field(
        default=False,
        metadata=_option("switch", LIMITS, "Pass TRACE on."),
    )
    """TRACE shows a client what arrived of its request; without it, 405."""

    access_log: bool = field(
        default=False,
        metadata=_option("switch", LOGS, "Log one line per request."),
    )
    """To the logger `backstream.access`."""

    backlog: int = field(
        default=4096,
        metadata=_option("count", LIMITS, "Connections that may wait to be accepted."),
    )
    """The system caps it too (net.core.somaxconn)."""

    seed_codec_of: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "text",
            SESSIONS,
            "The seed wire's encoding for the agents of one id, as ID=proto or ID=json.",
            metavar="ID=CODEC",
            many=True,
        ),
    )
    """`ID=CODEC` each, instead of `seed_codec`."""

    session: SessionSettings = field(default_factory=SessionSettings)
    """What holds inside each agent's session."""

    def __post_init__(self) -> None:
        _check(self)
        _check_session(self.session)
        for text in self.seed_codec_of:
            client_id, equals, codec = text.rpartition("=")
            if not equals or not client_id or codec not in ("proto", "json"):
                raise ConfigurationError(f"seed_codec_of must be like ID=proto or ID=json, not {_shown(text)}")
        for name in self.upgrade:
            if not _TOKEN.fullmatch(name) or name.lower() in _NEVER_UPGRADED:
                raise ConfigurationError(f"upgrade must name protocols such as websocket, never {_shown(name)}")
        path = self.agent_path
        if not path.startswith("/") or not _is_token_text(path) or any(char in path for char in " ?#"):
            raise ConfigurationError(f"agent_path must be a path like /ws, not {_shown(path)}")
        _check_pair(self, "tls_cert", "tls_key")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigurationError("tls_client_ca needs tls_cert and tls_key: client certificates are a part of TLS")
        if self.proxy_protocol and self.tls_cert is not None:
            raise ConfigurationError("proxy_protocol does not go with tls_cert yet: its header comes before TLS begins")
        if self.agent_listen is not None and self.agent_listen == self.listen and parse_address(self.listen)[1]:
            raise ConfigurationError("agent_listen must differ from listen; leave it out to share the port")
        _check_routes("route_host", self.route_host, parse_host_route)
        _check_routes("route_path", self.route_path, parse_path_route)
        if self.default_id is not None and not _is_client_id(self.default_id):
            raise ConfigurationError(f"default_id must be {CLIENT_IDS}, not {_shown(self.default_id)}")
        if self.via_name is not None and not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", self.via_name):
            raise ConfigurationError(f"via_name must be a name like edge-1, not {_shown(self.via_name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What an `Agent` is started with."""

    proxy_url: str = field(
        default="ws://127.0.0.1:8080/ws",
        metadata=_option("text", CONNECT, "The proxy: ws://HOST:PORT/PATH, or wss:// for TLS.", metavar="URL"),
    )
    """`ws://` or `wss://`; the path is the proxy's `agent_path`. With `wss://` the proxy's certificate is
    verified, its host name too; nothing switches that off."""

    via: str | None = field(
        default=None,
        metadata=_option(
            "text",
            CONNECT,
            "A forward proxy on the way: http://HOST:PORT, socks5://… or socks5h://…, or direct.  "
            "[default: HTTPS_PROXY and its kin]",
            metavar="URL",
        ),
    )
    """`http://user:password@host:port` (CONNECT), `socks5://…` (names are looked up here) or `socks5h://…` (there);
    `direct` for none. None takes `HTTPS_PROXY` (for wss://), `HTTP_PROXY` (for ws://), else `ALL_PROXY`, and heeds
    `NO_PROXY`. A command line is seen by others: give a password by the variable or the file."""

    header: tuple[str, ...] = field(
        default=(),
        metadata=_option(
            "text",
            CONNECT,
            "A field of the handshake, such as a token that the proxy asks for; may be repeated.",
            metavar="'NAME: VALUE'",
            many=True,
        ),
    )
    """What the proxy's `authorize` finds in `Handshake.fields`. A command line is seen by others: give a secret by the
    variable or the file."""

    client_id: str | None = field(
        metadata=_option("text", CONNECT, "The id under which clients reach this agent.", metavar="ID"),
    )
    """Clients name it in `x-backstream-client-id`. Several agents may share one: requests are spread over
    them. None: it has no id, for a proxy with `client_id_optional`."""

    app: str | None = field(
        default=None,
        metadata=_option(
            "text",
            SERVICE,
            "An ASGI 3 or WSGI application, as module:attribute, run in this process.",
            metavar="MODULE:ATTR",
        ),
    )
    """`module:attribute`; not together with `upstream`."""

    factory: bool = field(
        default=False,
        metadata=_option("switch", SERVICE, "--app is a function without arguments that makes the application."),
    )
    """Called once, when the agent starts."""

    interface: str = field(
        default="auto",
        metadata=_option(
            "text",
            SERVICE,
            "What the application is; auto tells by its arguments.",
            metavar="auto|asgi3|wsgi|function",
            choices=("auto", "asgi3", "wsgi", "function"),
        ),
    )
    """`function`: `async def serve(request) -> Response`. `auto` takes a coroutine function of one argument for that,
    what takes two arguments and not three for WSGI, and everything else for ASGI 3."""

    lifespan: str = field(
        default="auto",
        metadata=_option(
            "text",
            SERVICE,
            "Run an ASGI application's start-up and shutdown; auto does where it knows of them.",
            metavar="auto|on|off",
            choices=("auto", "on", "off"),
        ),
    )
    """`on` makes an exception at start-up an error; with `auto` the application is served without."""

    root_path: str = field(
        default="",
        metadata=_option(
            "text", SERVICE, "The path under which the application is mounted for its clients.", metavar="PATH"
        ),
    )
    """`/shop`: ASGI's `root_path`, WSGI's `SCRIPT_NAME`; requests come without it."""

    wsgi_threads: int = field(
        default=32,
        metadata=_option("count", LIMITS, "Requests that a WSGI application serves at once.", most=10_000),
    )
    """Threads, started as they are needed; further requests wait. A slow client holds its thread."""

    upstream: str | None = field(
        default=None,
        metadata=_option(
            "text",
            SERVICE,
            "A service to forward to: http://HOST:PORT, https://HOST:PORT or unix:/PATH.",
            metavar="URL",
        ),
    )
    """`http://host:port`, `https://host:port` or `unix:/path`; not together with `app`. With `https://` the
    upstream's certificate is verified, its host name too."""

    ca: str | None = field(
        default=None,
        metadata=_option(
            "text", TLS, "CAs to trust for the proxy (PEM), instead of the system's; for wss://.", metavar="FILE"
        ),
    )
    """Path of a PEM file with trust anchors, or None: the system's."""

    client_cert: str | None = field(
        default=None,
        metadata=_option(
            "text", TLS, "The agent's own certificate (PEM), for a proxy that asks for one.", metavar="FILE"
        ),
    )
    """Path of a PEM file, followed by the certificates up to its CA. This file, `client_key` and `ca` are read
    again before the agent dials when they have changed."""

    client_key: str | None = field(
        default=None,
        metadata=_option("text", TLS, "The private key of --client-cert (PEM, without a passphrase).", metavar="FILE"),
    )
    """Path of a PEM file; together with `client_cert`, or neither."""

    upstream_ca: str | None = field(
        default=None,
        metadata=_option(
            "text", TLS, "CAs to trust for an https:// upstream (PEM), instead of the system's.", metavar="FILE"
        ),
    )
    """Path of a PEM file with trust anchors, or None: the system's."""

    time_left_header: bool = field(
        default=False,
        metadata=_option(
            "switch", SERVICE, "Tell the upstream in X-Backstream-Time-Left how long the proxy waits for its answer."
        ),
    )
    """`X-Backstream-Time-Left: 2750ms`, a Go duration as `x-backstream-request-timeout` takes it: what is left for the
    response's head from the request's end. Absent where there is no limit. ASGI applications find it in their scope."""

    connect_timeout: float = field(
        default=5.0,
        metadata=_option(
            "duration", TIMES, "How long connecting may take, to the proxy or the upstream.", above_zero=True
        ),
    )
    """Seconds for name look-up, TCP, TLS and, towards the proxy, the WebSocket handshake."""

    drain_timeout: float = field(
        default=30.0,
        metadata=_option("duration", TIMES, "How long running requests may go on after SIGTERM or Ctrl-C."),
    )
    """Seconds. As long as orchestrators usually wait before they kill."""

    request_timeout: float = field(
        default=300.0,
        metadata=_option(
            "duration",
            TIMES,
            "Longest wait for the service's response to begin, where the proxy names no limit.",
            off="no limit",
        ),
    )
    """Seconds from the request's end to the response's head, 0 for no limit. What the proxy or the client's
    `x-backstream-request-timeout` leaves comes before it; the agent holds the service to that too. On the seed wire,
    where nobody tells the agent that a client has gone, it counts to the end of the answer."""

    reconnect_min: float = field(
        default=0.1,
        metadata=_option(
            "duration",
            CONNECT,
            "Upper bound of the first pause before reconnecting; it doubles with each failure.",
            above_zero=True,
        ),
    )
    """Seconds; doubles with each failure, and each pause is a random part of it, so that agents don't come in
    step."""

    reconnect_max: float = field(
        default=3.0,
        metadata=_option("duration", CONNECT, "Longest pause while the proxy is unreachable.", above_zero=True),
    )
    """Seconds. Short: a restarted proxy should have its agents back at once."""

    refused_max: float = field(
        default=30.0,
        metadata=_option("duration", CONNECT, "Longest pause while the proxy refuses this agent.", above_zero=True),
    )
    """Seconds after a 4xx, close code 1008 or a failure of TLS (a certificate that is not trusted, has expired
    or is for another name; a port without TLS): somebody has to mend something first."""

    upstream_connections: int = field(
        default=512,
        metadata=_option("count", LIMITS, "Connections to the upstream open at once."),
    )
    """The pool's size; further requests wait for a free connection."""

    upstream_idle_timeout: float = field(
        default=4.0,
        metadata=_option("duration", TIMES, "How long an unused upstream connection is kept.", above_zero=True),
    )
    """Seconds. Shorter than servers keep theirs (5 s is common), so that few requests meet a closing one."""

    idle_timeout: float = field(
        default=300.0,
        metadata=_option("duration", TIMES, "Longest pause between bytes of a body.", above_zero=True),
    )
    """Seconds, towards the upstream; the proxy's setting of that name watches the clients."""

    websocket_ping_interval: float = field(
        default=20.0,
        metadata=_option(
            "duration", TIMES, "How long an application's WebSocket may be silent before it is pinged.", off="no pings"
        ),
    )
    """Seconds, 0 for no pings. Below the 30 to 60 s after which NAT entries and load balancers forget a connection."""

    websocket_ping_timeout: float = field(
        default=20.0,
        metadata=_option(
            "duration",
            TIMES,
            "How long the client of an application's WebSocket may take to answer a ping or a close.",
            above_zero=True,
        ),
    )
    """Seconds without any sign of life: a byte from the client, or one that it took."""

    websocket_max_message: int = field(
        default=16 * MiB,
        metadata=_option(
            "size", LIMITS, "Largest message on an application's WebSocket; beyond it close code 1009.", least=1
        ),
    )
    """Bytes, over all of a message's fragments: it is handed to the application whole. Upstreams have limits of their
    own."""

    max_response_head: int = field(
        default=128 * KiB,
        metadata=_option(
            "size",
            LIMITS,
            "Largest head of an upstream's response; beyond it 502.",
            least=1 * KiB,
            most=128 * KiB,
        ),
    )
    """Bytes. A head must fit into one frame of 128 KiB."""

    session: SessionSettings = field(default_factory=SessionSettings)
    """What holds inside the session with the proxy."""

    def __post_init__(self) -> None:
        _check(self)
        _check_session(self.session)
        try:
            secure = parse_proxy_url(self.proxy_url).tls
        except ConfigurationError as error:
            raise ConfigurationError(f"proxy_url: {error}") from None
        if self.via is not None and self.via != DIRECT:
            try:
                parse_via(self.via)
            except ConfigurationError as error:
                raise ConfigurationError(f"via: {error}") from None
        for text in self.header:
            parse_header(text)
        if self.client_id is not None and not _is_client_id(self.client_id):
            raise ConfigurationError(f"client_id must be {CLIENT_IDS}, not {_shown(self.client_id)}")
        if self.app is not None and self.upstream is not None:
            raise ConfigurationError("app and upstream exclude each other: an agent serves one service")
        if self.factory and self.app is None:
            raise ConfigurationError("factory needs an application (app): it says how that is made")
        if self.root_path and (
            not re.fullmatch(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)+", self.root_path)
            or any(part in (".", "..") for part in self.root_path.split("/"))
        ):
            raise ConfigurationError(f"root_path must be a path like /shop, not {_shown(self.root_path)}")
        if self.app is not None and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", self.app):
            raise ConfigurationError(f"app must be module:attribute (such as main:app), not {_shown(self.app)}")
        upstream_secure = False
        if self.upstream is not None:
            try:
                upstream_secure = parse_upstream(self.upstream).tls
            except ConfigurationError as error:
                raise ConfigurationError(f"upstream: {error}") from None
        _check_pair(self, "client_cert", "client_key")
        for name in ("ca", "client_cert"):
            # Silence would let somebody believe that the connection is protected.
            if getattr(self, name) is not None and not secure:
                raise ConfigurationError(f"{name} needs a proxy_url that begins with wss://")
        if self.upstream_ca is not None and not upstream_secure:
            raise ConfigurationError("upstream_ca needs an upstream that begins with https://")
        if self.reconnect_min > self.reconnect_max:
            raise ConfigurationError(
                f"reconnect_min ({format_duration(self.reconnect_min)}) must not be more than reconnect_max "
                f"({format_duration(self.reconnect_max)})"
            )
