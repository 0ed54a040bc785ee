"""The application of the interop tests, in Litestar."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from litestar import Litestar, Request, Response, WebSocket, get, post, websocket
from litestar.exceptions import HTTPException, PermissionDeniedException
from litestar.response import Stream

from tests.interop.probe import Probe


def build(probe: Probe) -> Any:
    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        probe.started = True
        app.state.from_lifespan = "ready"
        yield
        probe.stopped = True

    @get("/json/{name:str}")
    async def json(request: Request) -> Response[dict[str, str]]:
        query = request.query_params
        return Response(
            {"name": request.path_params["name"], "q": query["q"], "x": request.headers["x-a"]},
            headers={"x-state": request.app.state.from_lifespan, "x-url": str(request.url)},
        )

    @get("/stream")
    async def stream() -> Stream:
        async def lines() -> AsyncIterator[bytes]:
            for number in range(3):
                await probe.step()
                yield b"line %d\n" % number

        return Stream(lines())

    @post("/upload", status_code=200)
    async def upload(request: Request) -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        async for piece in request.stream():
            digest.update(piece)
            size += len(piece)
        return {"size": size, "sha256": digest.hexdigest()}

    @get("/endless")
    async def endless() -> Stream:
        async def lines() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"more\n" * 1000
            finally:
                probe.left.set()

        return Stream(lines())

    @get("/wait")
    async def wait(request: Request) -> None:
        probe.entered.set()
        while (await request.receive())["type"] != "http.disconnect":
            await asyncio.sleep(0)
        probe.left.set()

    @post("/broken-upload")
    async def broken_upload(request: Request) -> None:
        probe.entered.set()
        try:
            async for _ in request.stream():
                pass
        except HTTPException:
            probe.left.set()
            raise

    @websocket("/socket/{name:str}")
    async def socket(socket: WebSocket) -> None:
        await socket.accept("chat", {"x-name": socket.path_params["name"]})
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                probe.close_code = message["code"]
                probe.left.set()
                return
            if message.get("text") == "bye":
                await socket.close(4001, "see you")
                return
            if message.get("text") is not None:
                await socket.send_data(message["text"], "text")
            else:
                await socket.send_data(message["bytes"], "binary")

    @websocket("/refused-socket")
    async def refused_socket(socket: WebSocket) -> None:
        raise PermissionDeniedException

    @websocket("/failing-socket")
    async def failing_socket(socket: WebSocket) -> None:
        await socket.accept()
        raise ValueError("on purpose")

    handlers = [json, stream, upload, endless, wait, broken_upload, socket, refused_socket, failing_socket]
    return Litestar(handlers, lifespan=[lifespan], request_max_body_size=None)
