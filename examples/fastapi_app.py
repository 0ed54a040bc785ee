"""A FastAPI application behind the tunnel, with its lifespan.

`pip install fastapi`, start a proxy, run `python examples/fastapi_app.py [PROXY-URL]`, then
`curl -H 'x-backstream-client-id: demo' http://127.0.0.1:8080/items/1`. The command does the same without this file's
last lines: `backstream agent --app fastapi_app:app --app-dir examples --proxy-url … --client-id demo`.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

import backstream


class Item(BaseModel):
    name: str
    price: float


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.items = {1: Item(name="spoon", price=2.5)}
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/items/{number}")
async def read(number: int) -> Item:
    items: dict[int, Item] = app.state.items
    if number not in items:
        raise HTTPException(404, f"there is no item {number}")
    return items[number]


@app.put("/items/{number}", status_code=201)
async def write(number: int, item: Item) -> Item:
    app.state.items[number] = item
    return item


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
