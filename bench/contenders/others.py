"""Whom a scenario has beside nginx and backstream: the one list of them."""

from bench.contenders import Contender
from bench.contenders.original import Original, OriginalUpstream
from bench.contenders.proxies import Envoy, Haproxy
from bench.contenders.python import AiohttpProxy, HttpxProxy, UvicornBehindNginx, WebsocketsTunnel
from bench.contenders.tunnels import Cloudflared, Sish, tunnels


def others(nginx: str = "", *, websockets: bool = False, credit: bool = False) -> list[Contender]:
    """Those that carry bodies of any length and time.

    nginx: what goes into the location of the nginx before uvicorn. websockets: only those that carry WebSockets.
    credit: only those in which one client that does not read stops nobody else.
    """
    found = [
        Haproxy(),
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
    return [contender for contender in found if not isinstance(contender, tuple(without))]


def others_for_small() -> list[Contender]:
    """Those that can answer a small request, and what can't be had."""
    return [Original(), OriginalUpstream(), *others(), Cloudflared()]
