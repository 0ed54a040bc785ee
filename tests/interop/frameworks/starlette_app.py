"""The application of the interop tests, in Starlette."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from tests.interop.probe import Probe


def build(probe: Probe) -> Any:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        probe.started = True
        yield {"from_lifespan": "ready"}
        probe.stopped = True

    async def json(request: Request) -> JSONResponse:
        return JSONResponse(
            {"name": request.path_params["name"], "q": request.query_params["q"], "x": request.headers["x-a"]},
            headers={"x-state": request.state.from_lifespan, "x-url": str(request.url)},
        )

    async def stream(request: Request) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            for number in range(3):
                await probe.step()
                yield b"line %d\n" % number

        return StreamingResponse(lines())

    async def upload(request: Request) -> JSONResponse:
        digest, size = hashlib.sha256(), 0
        async for piece in request.stream():
            digest.update(piece)
            size += len(piece)
        return JSONResponse({"size": size, "sha256": digest.hexdigest()})

    async def endless(request: Request) -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"more\n" * 1000
            finally:
                probe.left.set()

        return StreamingResponse(lines())

    async def wait(request: Request) -> JSONResponse:
        probe.entered.set()
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        probe.left.set()
        return JSONResponse(None)

    async def broken_upload(request: Request) -> JSONResponse:
        probe.entered.set()
        try:
            await request.body()
        except ClientDisconnect:
            probe.left.set()
            raise
        return JSONResponse(None)

    async def socket(websocket: WebSocket) -> None:
        await websocket.accept("chat", [(b"x-name", websocket.path_params["name"].encode())])
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                probe.close_code = message["code"]
                probe.left.set()
                return
            if message.get("text") == "bye":
                await websocket.close(4001, "see you")
                return
            if message.get("text") is not None:
                await websocket.send_text(message["text"])
            else:
                await websocket.send_bytes(message["bytes"])

    async def refused_socket(websocket: WebSocket) -> None:
        await websocket.close()

    async def denied_socket(websocket: WebSocket) -> None:
        await websocket.send_denial_response(JSONResponse({"why": "denied"}, status_code=402))

    async def failing_socket(websocket: WebSocket) -> None:
        await websocket.accept()
        raise ValueError("on purpose")

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/json/{name}", json),
            Route("/stream", stream),
            Route("/upload", upload, methods=["POST"]),
            Route("/endless", endless),
            Route("/wait", wait),
            Route("/broken-upload", broken_upload, methods=["POST"]),
            WebSocketRoute("/socket/{name}", socket),
            WebSocketRoute("/refused-socket", refused_socket),
            WebSocketRoute("/denied-socket", denied_socket),
            WebSocketRoute("/failing-socket", failing_socket),
        ],
    )
