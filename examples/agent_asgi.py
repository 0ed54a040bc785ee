"""An agent that serves an ASGI application of the same program; `app` may be a framework's just as well.

Run it with `python examples/agent_asgi.py [PROXY-URL]` while a proxy listens, then
`curl -H 'x-backstream-client-id: demo' http://127.0.0.1:8080/some/path`.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import backstream

Message = MutableMapping[str, Any]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    if scope["type"] != "http":
        raise NotImplementedError("neither lifespan nor WebSockets here")
    body = f"{scope['method']} {scope['path']} reached the application\n".encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


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
