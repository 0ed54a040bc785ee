"""The application of the interop tests, in FastAPI."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response, WebSocket, WebSocketDisconnect, WebSocketException
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect

from tests.interop.probe import Probe


def build(probe: Probe) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        probe.started = True
        yield {"from_lifespan": "ready"}
        probe.stopped = True

    app = FastAPI(lifespan=lifespan)

    @app.get("/json/{name}")
    async def json(
        name: str, q: str, x_a: Annotated[str, Header()], request: Request, response: Response
    ) -> dict[str, str]:
        response.headers["x-state"] = request.state.from_lifespan
        response.headers["x-url"] = str(request.url)
        return {"name": name, "q": q, "x": x_a}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            for number in range(3):
                await probe.step()
                yield b"line %d\n" % number

        return StreamingResponse(lines())

    @app.post("/upload")
    async def upload(request: Request) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        async for piece in request.stream():
            digest.update(piece)
            size += len(piece)
        return {"size": size, "sha256": digest.hexdigest()}

    @app.get("/endless")
    async def endless() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"more\n" * 1000
            finally:
                probe.left.set()

        return StreamingResponse(lines())

    @app.get("/wait")
    async def wait(request: Request) -> None:
        probe.entered.set()
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        probe.left.set()

    @app.post("/broken-upload")
    async def broken_upload(request: Request) -> None:
        probe.entered.set()
        try:
            await request.body()
        except ClientDisconnect:
            probe.left.set()
            raise

    @app.websocket("/socket/{name}")
    async def socket(websocket: WebSocket, name: str) -> None:
        await websocket.accept("chat", [(b"x-name", name.encode())])
        try:
            while True:
                message = await websocket.receive()
                if message.get("text") == "bye":
                    await websocket.close(4001, "see you")
                    return
                if message["type"] == "websocket.disconnect":
                    raise WebSocketDisconnect(message["code"])
                if message.get("text") is not None:
                    await websocket.send_text(message["text"])
                else:
                    await websocket.send_bytes(message["bytes"])
        except WebSocketDisconnect as gone:
            probe.close_code = gone.code
            probe.left.set()

    @app.websocket("/refused-socket")
    async def refused_socket(websocket: WebSocket) -> None:
        raise WebSocketException(1008, "refused")

    @app.websocket("/denied-socket")
    async def denied_socket(websocket: WebSocket) -> None:
        await websocket.send_denial_response(JSONResponse({"why": "denied"}, status_code=402))

    @app.websocket("/failing-socket")
    async def failing_socket(websocket: WebSocket) -> None:
        await websocket.accept()
        raise ValueError("on purpose")

    return app
