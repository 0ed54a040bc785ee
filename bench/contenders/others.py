"""Whom a scenario has beside nginx and backstream: the one list of them."""

from bench.certificate import Certificate
from bench.contenders import Contender
from bench.contenders.original import Original, OriginalUpstream
from bench.contenders.proxies import Envoy, Haproxy
from bench.contenders.python import AiohttpProxy, HttpxProxy, UvicornBehindNginx, WebsocketsTunnel
from bench.contenders.tunnels import Chisel, Cloudflared, Frp, Rathole, Sish, SshReverse, Tunnel, tunnels


def others(
    nginx: str = "",
    *,
    websockets: bool = False,
    credit: bool = False,
    uploads: bool = False,
    events: bool = False,
) -> list[Contender]:
    """Those that carry bodies of any length and time.

    nginx: what goes into the location of the nginx before uvicorn. websockets: only those that carry WebSockets.
    credit: only those in which one client that does not read stops nobody else. uploads: only those that answer others
    beside endless uploads. events: all of them, set up for Server-Sent Events.
    """
    found = [
        Haproxy(events=events),
        Envoy(),
        *tunnels(),
        AiohttpProxy(),
        UvicornBehindNginx(nginx),
        HttpxProxy(),
        WebsocketsTunnel(),
    ]
    without: list[type[Contender]] = []
    if websockets:
        without.append(HttpxProxy)
    if credit:
        # sish takes in whatever comes.
        without += [WebsocketsTunnel, Sish]
    if uploads:
        # Beside eight of them the next small request through uvicorn waits for longer than the client does, 15 s; the
        # simplest tunnel ends when clients leave bodies behind that have no end.
        without += [UvicornBehindNginx, WebsocketsTunnel]
    return [contender for contender in found if not isinstance(contender, tuple(without))]


def others_for_small() -> list[Contender]:
    """Those that can answer a small request, and what can't be had."""
    return [Original(), OriginalUpstream(), *others(), Cloudflared()]


def across() -> list[Tunnel]:
    """Those whose two ends can be apart: their agent learns one address, and any port that is free serves clients."""
    return [Chisel(), Frp(), Rathole(), SshReverse()]


def encrypted(tls: Certificate) -> list[Contender]:
    """Those with TLS on every leg; the own leg of these tunnels is encrypted, and the client's TLS goes through it."""
    return [Haproxy(tls=tls), Chisel(), Frp(), SshReverse()]
