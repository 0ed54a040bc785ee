"""backstream, three ways: the service inside the agent (ASGI, or a bare handler), and an upstream behind it.

Each is two processes, ``backstream proxy`` and an agent, on this machine's loopback.
"""

import subprocess
import sys
from functools import cache

from bench.certificate import Certificate
from bench.contenders import Contender, Endpoint, binaries
from bench.errors import BenchError
from bench.net import free_port
from bench.processes import Fleet
from bench.routes import CLIENT_ID

_BARE = [sys.executable, "-m", "bench.services.bare_agent"]

INSTALL = "no backstream command that works found; install it: pip install ."


@cache
def command() -> str | None:
    """The installed command, this environment's first; None if there is none that runs."""
    found = binaries.find("backstream")
    if found is None:
        return None
    try:
        result = subprocess.run([found, "--version"], capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found if result.returncode == 0 else None


def start_proxy(fleet: Fleet, *flags: str, port: int = 0, tls: Certificate | None = None) -> Endpoint:
    """``backstream proxy`` alone, as agents' meeting point; on a free port unless one is given."""
    binary = command()
    assert binary is not None
    port = port or free_port()
    argv = [binary, "proxy", "--listen", f"127.0.0.1:{port}", *flags]
    if tls is not None:
        argv += ["--tls-cert", tls.cert, "--tls-key", tls.key]
    return Endpoint(port, {"proxy": fleet.spawn("backstream proxy", argv).pid}, tls.cert if tls is not None else "")


def start_agent(fleet: Fleet, proxy: Endpoint, *flags: str) -> Endpoint:
    """``backstream agent`` under the benches' client id; `flags` say what it serves."""
    binary = command()
    assert binary is not None
    url = f"{'wss' if proxy.ca else 'ws'}://127.0.0.1:{proxy.port}/ws"
    argv = [binary, "agent", "--proxy-url", url, "--client-id", CLIENT_ID, *flags]
    argv += ["--ca", proxy.ca] if proxy.ca else []
    return Endpoint(proxy.port, {**proxy.pids, "agent": fleet.spawn("backstream agent", argv).pid}, proxy.ca)


class _Backstream(Contender):
    install = "pip install ."

    def __init__(self, *, tls: Certificate | None = None) -> None:
        self._tls = tls

    def missing(self, fleet: Fleet) -> str | None:
        return None if command() else INSTALL

    def version(self) -> str | None:
        return binaries.version("backstream", "--version")


class BackstreamApp(_Backstream):
    """An ASGI application in the agent's process (bench/services/app.py)."""

    key = "backstream-app"
    name = "backstream, ASGI app"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        return start_agent(fleet, start_proxy(fleet, tls=self._tls), "--app", "bench.services.app:app")


class BackstreamSeed(_Backstream):
    """The same application, proxy and agent speaking the original's wire."""

    key = "backstream-seed"
    name = "backstream, ASGI app, seed wire"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        return start_agent(fleet, start_proxy(fleet, "--wire", "seed"), "--app", "bench.services.app:app")


class BackstreamUpstream(_Backstream):
    """The agent forwards to the backend over HTTP/1.1."""

    key = "backstream-upstream"
    name = "backstream, upstream"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        upstream = ["--upstream", f"{'https' if backend.ca else 'http'}://127.0.0.1:{backend.port}"]
        upstream += ["--upstream-ca", backend.ca] if backend.ca else []
        agent = start_agent(fleet, start_proxy(fleet, tls=self._tls), *upstream)
        return Endpoint(agent.port, {**agent.pids, **backend.pids}, agent.ca)


class BackstreamBare(_Backstream):
    """A bare handler of the library in the agent's process (bench/services/bare_agent.py): no ASGI, no tasks."""

    key = "backstream-bare"
    name = "backstream, bare handler"

    def missing(self, fleet: Fleet) -> str | None:
        if reason := super().missing(fleet):
            return reason
        if binaries.is_given("backstream"):
            # It is this environment's library that would be measured.
            return "another backstream was given, whose library is not this one"
        try:
            fleet.run("bare handler", [*_BARE, "--check"], timeout=20)
        except BenchError as error:
            return str(error)
        return None

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        proxy = start_proxy(fleet)
        url = f"ws://127.0.0.1:{proxy.port}/ws"
        agent = fleet.spawn("bare agent", [*_BARE, url])
        return Endpoint(proxy.port, {**proxy.pids, "agent": agent.pid})
