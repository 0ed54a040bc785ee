"""Uploads that are never held as a whole, and their progress as Server-Sent Events beside them.

`pip install starlette`, start a proxy, run `python examples/upload_progress.py [PROXY-URL]`, then watch
`curl -N -H 'x-backstream-client-id: demo' http://127.0.0.1:8080/progress/big` while
`curl -T big.iso -H 'x-backstream-client-id: demo' http://127.0.0.1:8080/files/big` runs. The file's bytes come no
faster than this program takes them.
"""

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

import backstream


class Upload:
    def __init__(self) -> None:
        self.received = 0
        self.done = False
        self.changed = asyncio.Event()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


uploads: dict[str, Upload] = {}


async def put(request: Request) -> JSONResponse:
    upload = uploads.setdefault(request.path_params["name"], Upload())
    digest = hashlib.sha256()
    async for chunk in request.stream():
        digest.update(chunk)
        upload.received += len(chunk)
        upload.tell()
    upload.done = True
    upload.tell()
    return JSONResponse({"bytes": upload.received, "sha256": digest.hexdigest()}, status_code=201)


async def progress(request: Request) -> StreamingResponse:
    name = request.path_params["name"]
    upload = uploads.setdefault(name, Upload())

    async def events() -> AsyncIterator[bytes]:
        while not upload.done:
            yield b"data: %d\n\n" % upload.received
            await upload.changed.wait()
        yield b"data: %d\n\nevent: done\ndata:\n\n" % upload.received
        del uploads[name]

    return StreamingResponse(events(), media_type="text/event-stream")


app = Starlette(routes=[Route("/files/{name}", put, methods=["PUT"]), Route("/progress/{name}", progress)])


async def main(proxy_url: str) -> None:
    settings = backstream.AgentSettings(proxy_url=proxy_url, client_id="demo")
    async with backstream.Agent(settings, app=app) as agent:
        await agent.wait_connected()
        print("connected", flush=True)
        await agent.wait_closed()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8080/ws"))
    except KeyboardInterrupt:
        pass
