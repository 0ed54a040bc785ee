"""Where something is reached: addresses and networks, and the URLs of upstreams, proxies and forward proxies."""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from backstream.config._text import shown
from backstream.errors import ConfigurationError

# RFC 1035 §2.3.4: a look-up raises no OSError for labels that are empty or longer.
_HOST: Final = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`, `[::1]:80` (an IPv6 address needs its brackets) or `:8080`.

    An empty host means every interface, port 0 one that the system chooses. Raises ConfigurationError for
    anything else.
    """
    host, colon, number = text.rpartition(":")
    if not colon or (not host and text != f":{number}"):
        raise ConfigurationError(f"{shown(text)} is not an address (write HOST:PORT, [IPV6]:PORT or :PORT)")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ConfigurationError(f"{shown(text)} has no valid IPv6 address in its brackets") from None
    elif ":" in host:
        raise ConfigurationError(f"{shown(text)} needs brackets around its IPv6 address: [::1]:8080")
    elif host and not _HOST.fullmatch(host):
        raise ConfigurationError(f"{shown(text)} has no valid host name")
    return host, _port(text, number)


def _port(text: str, number: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", number) or int(number) > 65535:
        raise ConfigurationError(f"{shown(text)} has no valid port: it must be a number from 0 to 65535")
    return int(number)


def parse_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The network that `10.0.0.0/8`, `2001:db8::/32` or a single address says. Raises ConfigurationError for others."""
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        hint = ": it has bits set behind its prefix" if "host bits" in str(error) else ""
        raise ConfigurationError(
            f"{shown(text)} is not a network{hint} (write it like 10.0.0.0/8, 2001:db8::/32 or 192.0.2.1)"
        ) from None


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
            raise ConfigurationError(f"{shown(text)} must name a socket by its full path: unix:/run/service.sock")
        return Upstream("localhost", 80, path)
    parts = _split_url(text, ("http", "https"), "http://HOST:PORT, https://HOST:PORT or unix:/PATH")
    if parts.path not in ("", "/") or parts.query:
        raise ConfigurationError(f"{shown(text)} must end after its port: targets are forwarded as they come")
    tls = parts.scheme == "https"
    host, port = _url_address(text, parts, 443 if tls else 80)
    if port == 0:
        raise ConfigurationError(f"{shown(text)} has no valid port: it must be a number from 1 to 65535")
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
        raise ConfigurationError(f"{shown(text)} has no valid port")
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
        raise ConfigurationError(f"{shown(bare)} must end after its port")
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
        raise ConfigurationError(f"{shown(text)} is not a URL (write {shape})")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ConfigurationError(f"{shown(text)} is not a URL (write {shape})") from None
    if parts.scheme not in schemes or not parts.netloc:
        raise ConfigurationError(f"{shown(text)} is not a URL of the form {shape}")
    if "@" in parts.netloc:
        # Not repeated in the message: it ends in logs, and there may be a password in it.
        raise ConfigurationError(f"a URL of the form {shape} must not have a user name or password in it")
    if "#" in text:
        raise ConfigurationError(f"{shown(text)} must not have a fragment (#)")
    return parts


def _url_address(text: str, parts: SplitResult, default_port: int) -> tuple[str, int]:
    netloc = parts.netloc
    if netloc.endswith(":") or not re.search(r":[0-9]+\Z", netloc):
        netloc = f"{netloc.removesuffix(':')}:{default_port}"
    try:
        host, port = parse_address(netloc)
    except ConfigurationError:
        raise ConfigurationError(f"{shown(text)} has no valid host and port") from None
    if not host:
        raise ConfigurationError(f"{shown(text)} names no host")
    return host, port
