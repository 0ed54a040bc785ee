"""A reverse proxy as one writes it with httpx, on uvicorn: ``python -m bench.services.httpx_proxy PORT BACKEND``.

Bodies are streamed both ways. httpx knows no WebSockets.
"""

import sys
from collections.abc import AsyncIterator

import httpx
import uvicorn

from bench.services.app import Receive, Scope, Send

_OF_A_HOP = {b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"host"}


class Proxy:
    """An ASGI application that sends every request to one service."""

    def __init__(self, backend: int) -> None:
        self._url = httpx.URL(f"http://127.0.0.1:{backend}")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=600)
        self._client = httpx.AsyncClient(limits=limits, timeout=None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"scope type {scope['type']} is not supported")
        fields = [field for field in scope["headers"] if field[0] not in _OF_A_HOP]
        framed = {b"content-length", b"transfer-encoding"} & {name for name, _ in scope["headers"]}
        request = httpx.Request(
            scope["method"],
            self._url.copy_with(raw_path=scope["raw_path"]),
            headers=fields,
            content=_body(receive) if framed else None,
        )
        answer = await self._client.send(request, stream=True)
        try:
            passed = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in _OF_A_HOP]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": passed})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client has left")
        yield message.get("body", b"")
        more = message.get("more_body", False)


if __name__ == "__main__":
    uvicorn.run(
        Proxy(int(sys.argv[2])),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        backlog=4096,
        lifespan="off",
        access_log=False,
        log_level="error",
        timeout_keep_alive=600,
        proxy_headers=False,
    )
