"""routes.py as a bare ASGI application: what runs inside the agent where no upstream is behind it."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from bench.routes import ENDLESS, EVENT_SECONDS, SMALL, event, received

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_BLOCK = bytes(65536)
_TYPE = (b"content-type", b"application/octet-stream")
_received = 0
"""Bytes of all sinks."""


def _start(*fields: tuple[bytes, bytes]) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [_TYPE, *fields]}


def _length(count: int) -> tuple[bytes, bytes]:
    return (b"content-length", b"%d" % count)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The application; needs no lifespan, and says so by raising as the specification allows."""
    if scope["type"] == "websocket":
        await _echo(receive, send)
        return
    if scope["type"] != "http":
        raise RuntimeError(f"scope type {scope['type']} is not supported")
    path: str = scope["path"]
    if path == "/small":
        await send(_start(_length(len(SMALL))))
        await send({"type": "http.response.body", "body": SMALL})
        return
    route, _, count = path.removeprefix("/").partition("/")
    if route == "bytes":
        await send(_start(_length(int(count))))
        await _send_bytes(int(count), send)
    elif route in ("chunked", "endless"):
        await send(_start())
        await _send_bytes(int(count or ENDLESS), send)
    elif route == "events":
        await send(_start())
        left = int(count or ENDLESS)
        while left:
            left -= 1
            await send({"type": "http.response.body", "body": event(), "more_body": True})
            await asyncio.sleep(EVENT_SECONDS * bool(left))
        await send({"type": "http.response.body", "body": b""})
    elif route == "stall":
        await asyncio.sleep(int(count))
    elif route == "sink":
        await _send_text(b"%d" % await _count(receive), send)
    elif route == "received":
        await _send_text(received(_received), send)
    else:
        await send({"type": "http.response.start", "status": 404, "headers": [_length(0)]})
        await send({"type": "http.response.body", "body": b""})


async def _echo(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


async def _send_text(text: bytes, send: Send) -> None:
    await send(_start(_length(len(text))))
    await send({"type": "http.response.body", "body": text})


async def _send_bytes(count: int, send: Send) -> None:
    while count > len(_BLOCK):
        count -= len(_BLOCK)
        await send({"type": "http.response.body", "body": _BLOCK, "more_body": True})
    await send({"type": "http.response.body", "body": _BLOCK[:count]})


async def _count(receive: Receive) -> int:
    global _received
    total = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError(f"client left after {total} bytes")
        size = len(message.get("body", b""))
        total += size
        _received += size
        if not message.get("more_body", False):
            return total
