"""The original implementation, by a program of ours over its library (bench/contenders/go/original).

Only small requests: it holds every body whole, in one message, and knows neither events nor WebSockets of clients.
"""

from bench.contenders import Endpoint, Program, binaries
from bench.net import free_port, wait_until_listening
from bench.processes import Fleet
from bench.routes import CLIENT_ID


class Original(Program):
    """The agent answers by itself, as backstream's with an application does."""

    key = "original"
    name = "Go original, handler in the agent"
    binaries = ("backstream-original",)
    install = "go -C bench/contenders/go/original install -mod=mod ."

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        return self._start(fleet)

    def _start(self, fleet: Fleet, *flags: str) -> Endpoint:
        port, binary = free_port(), binaries.path_of(self.binaries[0])
        proxy = fleet.spawn("original proxy", [binary, "proxy", "-listen", f"127.0.0.1:{port}"])
        wait_until_listening("127.0.0.1", port, "original proxy", fleet.check)
        argv = [binary, "agent", "-proxy-url", f"ws://127.0.0.1:{port}/ws", "-client-id", CLIENT_ID, *flags]
        return Endpoint(port, {"proxy": proxy.pid, "agent": fleet.spawn("original agent", argv).pid})


class OriginalUpstream(Original):
    """The agent forwards to the backend, by Go's own reverse proxy."""

    key = "original-upstream"
    name = "Go original, upstream"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        endpoint = self._start(fleet, "-upstream", f"http://127.0.0.1:{backend.port}")
        return Endpoint(endpoint.port, {**endpoint.pids, **backend.pids})
