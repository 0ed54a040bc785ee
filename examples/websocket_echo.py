"""A WebSocket behind the tunnel: it echoes what it gets, in capitals, until it is told "bye".

`pip install starlette`, start a proxy, run `python examples/websocket_echo.py [PROXY-URL]`, then any WebSocket client
that can set a header: `ws://127.0.0.1:8080/echo` with `x-backstream-client-id: demo`.
"""

import asyncio
import sys

from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

import backstream


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        if text == "bye":
            await websocket.close(1000, "see you")
            return
        await websocket.send_text(text.upper())


app = Starlette(routes=[WebSocketRoute("/echo", echo)])


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
