"""The application of the interop tests, in Quart."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from quart import Quart, Response, request, websocket

from tests.interop.probe import Probe


def build(probe: Probe) -> Any:
    app = Quart(__name__)
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["MAX_CONTENT_LENGTH"] = None

    @app.before_serving
    async def start() -> None:
        probe.started = True

    @app.after_serving
    async def stop() -> None:
        probe.stopped = True

    @app.get("/json/<name>")
    async def json(name: str) -> tuple[dict[str, str], int, dict[str, str]]:
        fields = {"x-state": "ready" if probe.started else "", "x-url": request.url}
        return {"name": name, "q": request.args["q"], "x": request.headers["x-a"]}, 200, fields

    @app.get("/stream")
    async def stream() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            for number in range(3):
                await probe.step()
                yield b"line %d\n" % number

        return Response(lines())

    @app.post("/upload")
    async def upload() -> dict[str, Any]:
        digest, size = hashlib.sha256(), 0
        async for piece in request.body:
            digest.update(piece)
            size += len(piece)
        return {"size": size, "sha256": digest.hexdigest()}

    @app.get("/endless")
    async def endless() -> Response:
        async def lines() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"more\n" * 1000
            finally:
                probe.left.set()

        return Response(lines())

    @app.get("/wait")
    async def wait() -> str:
        probe.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            probe.left.set()
        return ""

    @app.post("/broken-upload")
    async def broken_upload() -> str:
        probe.entered.set()
        try:
            await request.get_data()
        except asyncio.CancelledError:
            probe.left.set()
            raise
        return ""

    @app.websocket("/socket/<name>")
    async def socket(name: str) -> None:
        await websocket.accept(headers={"x-name": name}, subprotocol="chat")
        try:
            while (message := await websocket.receive()) != "bye":
                await websocket.send(message)
        except asyncio.CancelledError:
            # Quart keeps the code to itself.
            probe.left.set()
            raise
        await websocket.close(4001, "see you")

    @app.websocket("/refused-socket")
    async def refused_socket() -> None:
        await websocket.close(1008)

    @app.websocket("/denied-socket")
    async def denied_socket() -> tuple[dict[str, str], int]:
        return {"why": "denied"}, 402

    @app.websocket("/failing-socket")
    async def failing_socket() -> None:
        await websocket.accept()
        raise ValueError("on purpose")

    return app
