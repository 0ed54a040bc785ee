"""A pytest plugin: a proxy and an agent for an application under test, and an httpx client that goes through both.

They run in a thread with an event loop of its own, so that synchronous tests and those of any asynchronous plugin can
use them. Proxy and client are on 127.0.0.1, on ports that the system chooses.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest

if TYPE_CHECKING:
    import httpx

    from backstream import Agent, Proxy

__all__ = ["MakeTunnel", "Tunnel", "backstream_app", "backstream_client", "backstream_tunnel"]

SECONDS: Final = 20.0
"""How long the agent may take to connect, and a request to be answered."""


class Tunnel:
    """A proxy, an agent and the application that it serves.

    app: an ASGI or WSGI application or a function; as text an upstream's URL, or module:attribute.
    client_id: the id that the agent holds.
    proxy: members of `ProxySettings`.
    settings: members of `AgentSettings`.
    """

    def __init__(
        self, app: Any, *, client_id: str = "test", proxy: Mapping[str, Any] | None = None, **settings: Any
    ) -> None:
        self.client_id = client_id
        """The id that the agent holds."""
        self._app = app
        self._proxy_settings: dict[str, Any] = {"listen": "127.0.0.1:0", "request_timeout": SECONDS} | dict(proxy or {})
        self._agent_settings = settings
        self._started: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._client: httpx.Client | None = None
        self._thread = threading.Thread(target=self._run, name="backstream tunnel", daemon=True)
        self._thread.start()
        try:
            self._loop = self._started.result()
        except BaseException:
            self._thread.join(SECONDS)
            raise

    proxy: Proxy
    """Belongs to the thread of the tunnel."""
    agent: Agent
    """Belongs to the thread of the tunnel."""
    url: str
    """The proxy's, such as `http://127.0.0.1:40123`."""

    @property
    def headers(self) -> dict[str, str]:
        """What a request of one's own needs to reach the agent."""
        return {"x-backstream-client-id": self.client_id}

    @property
    def client(self) -> httpx.Client:
        """An `httpx.Client` for paths such as `/items`; it is closed with the tunnel."""
        if self._client is None:
            import httpx

            self._client = httpx.Client(base_url=self.url, headers=self.headers, timeout=SECONDS, trust_env=False)
        return self._client

    def async_client(self) -> httpx.AsyncClient:
        """A new `httpx.AsyncClient`, which is the caller's to close."""
        import httpx

        return httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=SECONDS, trust_env=False)

    def close(self) -> None:
        """Ends agent and proxy at once."""
        if self._client is not None:
            self._client.close()
        try:
            self._loop.call_soon_threadsafe(self._stop.set)
        except RuntimeError:
            pass  # it is closed already
        self._thread.join(SECONDS)

    def __enter__(self) -> Tunnel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        import uvloop

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        import backstream

        self._stop = asyncio.Event()
        given: dict[str, Any] = dict(self._agent_settings)
        app = self._app
        if isinstance(app, str):
            given["upstream" if "://" in app or app.startswith("unix:") else "app"] = app
            app = None
        async with backstream.Proxy(backstream.ProxySettings(**self._proxy_settings)) as self.proxy:
            host, port = self.proxy.address
            self.url = f"http://{host}:{port}"
            agents_host, agents_port = self.proxy.agent_address
            given = {
                "proxy_url": f"ws://{agents_host}:{agents_port}{self.proxy.settings.agent_path}",
                "client_id": self.client_id,
                "via": "direct",
            } | given
            async with backstream.Agent(backstream.AgentSettings(**given), app) as self.agent:
                async with asyncio.timeout(SECONDS):
                    await self.agent.wait_connected()
                self._started.set_result(asyncio.get_running_loop())
                await self._stop.wait()


class MakeTunnel(Protocol):
    """What the fixture `backstream_tunnel` gives: makes a `Tunnel` from the same arguments."""

    def __call__(
        self, app: Any, *, client_id: str = "test", proxy: Mapping[str, Any] | None = None, **settings: Any
    ) -> Tunnel: ...


@pytest.fixture
def backstream_tunnel() -> Iterator[MakeTunnel]:
    """Makes tunnels: `backstream_tunnel(app)` is a `Tunnel`, closed at the test's end."""
    tunnels: list[Tunnel] = []

    def make(app: Any, *, client_id: str = "test", proxy: Mapping[str, Any] | None = None, **settings: Any) -> Tunnel:
        tunnels.append(Tunnel(app, client_id=client_id, proxy=proxy, **settings))
        return tunnels[-1]

    yield make
    for tunnel in reversed(tunnels):
        tunnel.close()


@pytest.fixture
def backstream_app() -> Any:
    """The application that `backstream_client` is a client of; to be overridden."""
    pytest.fail("write a fixture backstream_app that returns the application under test", pytrace=False)


@pytest.fixture
def backstream_client(backstream_tunnel: MakeTunnel, backstream_app: Any) -> httpx.Client:
    """An `httpx.Client` whose requests reach `backstream_app` through a proxy and an agent."""
    return backstream_tunnel(backstream_app).client
