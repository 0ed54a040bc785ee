"""A proxy and an agent in the test's own event loop, with an ASGI application behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest

import backstream

CLIENT_ID = "interop"

Tunnel = Callable[[Any], AbstractAsyncContextManager[httpx.AsyncClient]]


@asynccontextmanager
async def open_tunnel(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client whose requests go through proxy and agent to `app`."""
    async with backstream.Proxy(backstream.ProxySettings(listen="127.0.0.1:0")) as proxy:
        host, port = proxy.address
        settings = backstream.AgentSettings(proxy_url=f"ws://{host}:{port}/ws", client_id=CLIENT_ID)
        async with backstream.Agent(settings, app=app) as agent:
            await agent.wait_connected()
            async with httpx.AsyncClient(
                base_url=f"http://{host}:{port}", headers={"x-backstream-client-id": CLIENT_ID}, timeout=20
            ) as client:
                yield client
            assert [link.session.stream_count for link in agent.sessions] == [0]


@pytest.fixture
def tunnel() -> Tunnel:
    return open_tunnel
