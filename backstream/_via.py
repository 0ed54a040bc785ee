"""The forward proxy between an agent and its proxy: which one, and a socket through it.

As curl and Go's net/http choose: `HTTPS_PROXY` for `wss://`, `HTTP_PROXY` for `ws://`, else `ALL_PROXY`, in lower case
first; not for what `NO_PROXY` names, and never for this machine itself unless `--via` says so. A password never stands
in a message.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import urllib.request
from urllib.parse import unquote

from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError, ProxyType
from python_socks.async_.asyncio import Proxy as ForwardProxy

from backstream.config import DIRECT, ProxyUrl, Via, parse_via
from backstream.errors import ConfigurationError, ConnectionFailed

__all__ = ["choose_via", "connect_via"]

TYPES = {"http": ProxyType.HTTP, "socks5": ProxyType.SOCKS5, "socks5h": ProxyType.SOCKS5}


def choose_via(setting: str | None, url: ProxyUrl) -> Via | None:
    """The forward proxy for `url`, None to dial directly. Raises ConnectionFailed where the environment's is no URL."""
    if setting is not None:
        return None if setting == DIRECT else parse_via(setting)
    proxies = urllib.request.getproxies_environment()
    text = proxies.get("https" if url.tls else "http") or proxies.get("all")
    if not text or _is_local(url.host) or urllib.request.proxy_bypass_environment(f"{url.host}:{url.port}", proxies):  # type: ignore[attr-defined]
        return None
    try:
        return parse_via(text if "://" in text else f"http://{text}")
    except ConfigurationError as error:
        raise ConnectionFailed(f"the forward proxy that the environment names cannot be used: {error}") from None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


async def connect_via(via: Via, host: str, port: int) -> socket.socket:
    """A connection to `host` through `via`. The caller limits the time. Raises ConnectionFailed."""
    user, password = (unquote(via.user), unquote(via.password)) if via.user else (None, None)
    proxy = ForwardProxy(
        proxy_type=TYPES[via.scheme],
        host=via.host,
        port=via.port,
        username=user,
        password=password,
        rdns=via.scheme != "socks5",
    )
    try:
        # Its own limit would be a minute; the caller's is shorter.
        made: socket.socket = await proxy.connect(host, port, timeout=3600)
    except (ProxyConnectionError, ProxyTimeoutError, OSError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        number = getattr(cause, "errno", None) or 0
        why = os.strerror(number) if number > 0 else getattr(cause, "strerror", None) or str(cause)
        raise ConnectionFailed(f"the forward proxy {via} cannot be reached: {why}") from None
    except ProxyError as error:
        raise ConnectionFailed(f"the forward proxy {via} refused the connection: {error}", refused=True) from None
    return made
