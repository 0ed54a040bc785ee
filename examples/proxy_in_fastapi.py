"""A proxy inside a FastAPI application: agents and clients below /tunnel, the application's own routes beside them.

Run it with `uvicorn --app-dir examples --ws websockets-sansio proxy_in_fastapi:app`, then an agent:
`backstream agent --client-id demo --proxy-url ws://127.0.0.1:8000/tunnel/ws …`, and
`curl -H 'x-backstream-client-id: demo' http://127.0.0.1:8000/tunnel/` or `curl http://127.0.0.1:8000/ask/demo`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException

import backstream
from backstream.asgi import ProxyApp

tunnel = ProxyApp(backstream.ProxySettings(request_timeout=10))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # FastAPI does not tell a mounted application of its start and end.
    async with tunnel:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/agents")
async def agents() -> list[dict[str, Any]]:
    return [{"id": agent.id, "since": agent.since, "streams": agent.stream_count} for agent in tunnel.agents]


@app.get("/ask/{client_id}")
async def ask(client_id: str) -> dict[str, Any]:
    """What an agent's service answers to a request of this application's own."""
    try:
        response = await tunnel.request(client_id, "GET", "/")
    except backstream.RequestFailed as error:
        raise HTTPException(error.status, str(error)) from error
    return {"status": response.status, "text": (await response.aread()).decode()}


app.mount("/tunnel", tunnel)
