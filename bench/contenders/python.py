"""What one would write in Python instead: a few lines over well-known packages (bench/services/), or uvicorn itself.

All on uvloop, without access log, in one process for each role.
"""

import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec

from bench.contenders import Contender, Endpoint
from bench.contenders.nginx import NginxProxy
from bench.net import free_port, wait_until_listening
from bench.processes import Fleet


class _Python(Contender):
    packages: Sequence[str]
    install = "pip install -e '.[bench]'"
    brief = True

    def missing(self, fleet: Fleet) -> str | None:
        absent = [name for name in self.packages if find_spec(name) is None]
        return f"no {', '.join(absent)} found; install it: {self.install}" if absent else None

    def version(self) -> str | None:
        try:
            return ", ".join(f"{name} {metadata.version(name)}" for name in self.packages)
        except metadata.PackageNotFoundError:
            return None

    def _run(self, fleet: Fleet, module: str, *arguments: str) -> int:
        return fleet.spawn(module.rpartition(".")[2], [sys.executable, "-m", module, *arguments]).pid


class AiohttpProxy(_Python):
    """A reverse proxy over aiohttp's server and client."""

    key = "aiohttp"
    name = "aiohttp reverse proxy"
    packages = ("aiohttp",)

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port = free_port()
        pid = self._run(fleet, "bench.services.aiohttp_proxy", str(port), str(backend.port))
        return Endpoint(port, {"proxy": pid, **backend.pids})


class HttpxProxy(_Python):
    """A reverse proxy over httpx, as an ASGI application on uvicorn."""

    key = "httpx"
    name = "httpx reverse proxy on uvicorn"
    packages = ("httpx", "uvicorn")

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port = free_port()
        pid = self._run(fleet, "bench.services.httpx_proxy", str(port), str(backend.port))
        return Endpoint(port, {"proxy": pid, **backend.pids})


class UvicornBehindNginx(_Python):
    """The same ASGI application that backstream's agent serves, on uvicorn, with nginx before it.

    extra: what goes into nginx's location, as of `NginxProxy`.
    """

    key = "uvicorn"
    name = "nginx, uvicorn with the ASGI app"
    packages = ("uvicorn",)

    def __init__(self, extra: str = "") -> None:
        self._nginx = NginxProxy(extra=extra)

    def missing(self, fleet: Fleet) -> str | None:
        return super().missing(fleet) or self._nginx.missing(fleet)

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        port = free_port()
        arguments = ["bench.services.app:app", "--port", str(port), "--lifespan", "off", "--no-access-log"]
        arguments += ["--log-level", "error", "--backlog", "4096", "--timeout-keep-alive", "600"]
        arguments += ["--no-proxy-headers", "--ws-per-message-deflate", "false"]
        pid = self._run(fleet, "uvicorn", *arguments)
        wait_until_listening("127.0.0.1", port, "uvicorn", fleet.check)
        return self._nginx.start(fleet, Endpoint(port, {"service": pid}))


class WebsocketsTunnel(_Python):
    """All connections in one WebSocket of the package `websockets`."""

    key = "websockets"
    name = "websockets, the simplest tunnel"
    packages = ("websockets",)

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        module = "bench.services.websockets_tunnel"
        port, meeting = free_port(), free_port()
        proxy = self._run(fleet, module, "server", str(port), str(meeting))
        wait_until_listening("127.0.0.1", meeting, "websockets tunnel", fleet.check)
        agent = self._run(fleet, module, "agent", str(backend.port), str(meeting))
        return Endpoint(port, {"proxy": proxy, "agent": agent, **backend.pids}, backend.ca)
