"""What the tests of the seed wire share; the peers themselves are in tests/seed_peer.py."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import backstream
from backstream._proto import seed_pb2
from tests import rig
from tests.rig import ID, until
from tests.seed_peer import OriginalProxy, Request, Response

CODECS = ["proto", "json"]
HANDSHAKE = [
    "Connection: upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
]
RESPONSE = seed_pb2.Message.RESPONSE
REQUEST = seed_pb2.Message.REQUEST


async def echo(asked: Request) -> Response:
    """The service that the captures were taken from, more or less."""
    if asked.path == "/panic":
        return Response(1 // 0)
    headers = {"X-Method": [asked.method], "X-Path": [asked.path], "X-Query": [asked.query]}
    return Response(200, {**headers, "Set-Cookie": ["a=1", "b=2"]}, asked.body)


def session(**settings: Any) -> backstream.SessionSettings:
    return backstream.SessionSettings(**settings)


@asynccontextmanager
async def agent_of_ours(
    proxy: OriginalProxy, app: Any = rig.echo_app, *, handler: Any = None, on_notify: Any = None, **settings: Any
) -> AsyncIterator[backstream.Agent]:
    quick = {"reconnect_min": 0.02, "reconnect_max": 0.2, "refused_max": 0.2}
    made = backstream.AgentSettings(proxy_url=proxy.url, client_id=ID, **{**quick, **settings})
    async with backstream.Agent(made, app=None if handler else app, handler=handler, on_notify=on_notify) as agent:
        await proxy.connected()
        await agent.wait_connected()
        yield agent
        await until(lambda: not any(link.session.accepted for link in agent.sessions), "no request left")


def agents(*codecs: str) -> dict[str, Any]:
    """Settings of a proxy whose agents of the test's id speak that encoding."""
    return {"seed_codec_of": tuple(f"{ID}={codec}" for codec in codecs)}
