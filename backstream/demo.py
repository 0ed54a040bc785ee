"""`backstream demo`: a proxy, an agent and a service in one process, to see a request take the whole way.

`app` is the service, a plain ASGI 3 application without any framework; `Demo` is the three together; `once`
makes the request itself, with a client of a few lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from backstream.agent import Agent
from backstream.config import AgentSettings, ProxySettings
from backstream.errors import BackstreamError
from backstream.proxy import Proxy

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

CLIENT_ID: Final = "demo"
ONCE_TIMEOUT: Final = 10.0
"""Seconds that `--once` waits for its answer."""
CONNECT_TIMEOUT: Final = 10.0
"""Seconds for the agent to be connected to the proxy of its own process."""
DRAIN_TIMEOUT: Final = 5.0
"""Seconds; a demo is ended by somebody who waits for the prompt."""
TICKS: Final = 10
TICK_SECONDS: Final = 0.5

HELLO: Final = b"""Hello from behind the tunnel!

This page was made by a small ASGI application inside the agent. Your request came
to the proxy, which sent it down the WebSocket that the agent had opened to it.

  GET  /stream   a line twice a second, as it is made
  POST /echo     what you send comes back, while you are still sending it
"""


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The demo's service: `/`, `/stream` and `/echo`."""
    if scope["type"] == "lifespan":
        await _lifespan(receive, send)
    elif scope["type"] == "http":
        page = {"/": _hello, "/stream": _stream, "/echo": _echo}.get(scope["path"], _missing)
        await page(receive, send)
    else:
        raise NotImplementedError(f"the demo does not speak {scope['type']}")


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return


async def _answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _hello(receive: Receive, send: Send) -> None:
    await _answer(send, 200, HELLO)


async def _missing(receive: Receive, send: Send) -> None:
    await _answer(send, 404, b"There is nothing here; try /, /stream or /echo.\n")


async def _stream(receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for tick in range(1, TICKS + 1):
        await send({"type": "http.response.body", "body": b"tick %d\n" % tick, "more_body": True})
        if tick < TICKS:
            await asyncio.sleep(TICK_SECONDS)
    await send({"type": "http.response.body"})


async def _echo(receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        more = event.get("more_body", False)
        await send({"type": "http.response.body", "body": event.get("body", b""), "more_body": more})


class Demo:
    """The proxy, the agent and the service, with the life-cycle that a proxy or an agent has alone."""

    def __init__(self, listen: str) -> None:
        self._proxy = Proxy(ProxySettings(listen=listen, drain_timeout=DRAIN_TIMEOUT))
        self._agent: Agent | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that the proxy is really bound to."""
        return self._proxy.address

    async def start(self) -> None:
        """Start the proxy and then the agent, until it is connected.

        Raises OSError when the address is not free and BackstreamError when the agent does not get through.
        """
        await self._proxy.start()
        url = f"ws://{reachable(*self.address)}/ws"
        settings = AgentSettings(proxy_url=url, client_id=CLIENT_ID, drain_timeout=DRAIN_TIMEOUT)
        self._agent = Agent(settings, app=app)
        await self._agent.start()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._agent.wait_connected()
        except TimeoutError:
            raise BackstreamError(f"the agent was not connected within {CONNECT_TIMEOUT:g} s") from None

    async def drain(self) -> None:
        """Let running requests end; the agent goes first, so that it does not look for a new proxy."""
        if self._agent is not None:
            await self._agent.drain()
        await self._proxy.drain()

    async def close(self) -> None:
        """Close at once."""
        if self._agent is not None:
            await self._agent.close()
        await self._proxy.close()

    async def wait_closed(self) -> None:
        """Wait until the proxy is closed."""
        await self._proxy.wait_closed()


def reachable(host: str, port: int) -> str:
    """`host:port` as a client on this machine writes it; listening everywhere is reached on loopback."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def fetch(host: str, port: int, target: str = "/") -> tuple[int, bytes]:
    """Status and body of one GET through the tunnel.

    Raises OSError when there is no connection and BackstreamError when the answer is not a whole one.
    """
    host, _, _ = reachable(host, port).rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), port)
    try:
        head = (
            f"GET {target} HTTP/1.1\r\nHost: {reachable(host.strip('[]'), port)}\r\n"
            f"x-backstream-client-id: {CLIENT_ID}\r\nConnection: close\r\n\r\n"
        )
        writer.write(head.encode())
        answer = await reader.read(-1)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    head_bytes, found, body = answer.partition(b"\r\n\r\n")
    lines = head_bytes.split(b"\r\n")
    start = lines[0].split(b" ", 2)
    if not found or len(start) < 2 or not start[0].startswith(b"HTTP/1.") or not start[1].isdigit():
        raise BackstreamError("the answer is not HTTP")
    fields = dict(line.lower().split(b":", 1) for line in lines[1:] if b":" in line)
    length = fields.get(b"content-length", b"").strip()
    if length and int(length) != len(body):
        raise BackstreamError(f"the answer was cut: {len(body)} of {int(length)} bytes came")
    return int(start[1]), body


def instructions(host: str, port: int) -> str:
    """What to type to send requests through the demo."""
    address = reachable(host, port)
    header = f"-H 'x-backstream-client-id: {CLIENT_ID}'"
    return (
        f"The demo runs: client -> proxy on {address} -> agent {CLIENT_ID!r} -> a small ASGI service.\n"
        "In another terminal, try:\n\n"
        f"  curl {header} http://{address}/\n"
        f"  curl -N {header} http://{address}/stream\n"
        f"  curl {header} --data-binary 'hello' http://{address}/echo\n\n"
        "Ctrl-C ends it."
    )


async def once(host: str, port: int) -> int:
    """Make the first request of `instructions`, show it and its answer, and return the exit status."""
    address = reachable(host, port)
    print(f"$ curl -H 'x-backstream-client-id: {CLIENT_ID}' http://{address}/\n", flush=True)
    try:
        async with asyncio.timeout(ONCE_TIMEOUT):
            status, body = await fetch(host, port)
    except TimeoutError:
        print(f"backstream demo: no answer within {ONCE_TIMEOUT:g} s", file=sys.stderr)
        return 1
    except (OSError, BackstreamError) as error:
        print(f"backstream demo: {error}", file=sys.stderr)
        return 1
    print(body.decode("utf-8", "replace"), end="", flush=True)
    if status != 200:
        print(f"backstream demo: the answer's status is {status}, not 200", file=sys.stderr)
        return 1
    return 0
