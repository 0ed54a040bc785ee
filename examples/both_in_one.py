"""Proxy, agent, application and a client in one program, such as a test of one's own.

Run it with `python examples/both_in_one.py`: it makes a request and ends.
"""

import asyncio
import urllib.request
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import backstream

Message = MutableMapping[str, Any]


async def app(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    if scope["type"] != "http":
        raise NotImplementedError("neither lifespan nor WebSockets here")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    for number in range(3):
        await send({"type": "http.response.body", "body": b"line %d\n" % number, "more_body": True})
    await send({"type": "http.response.body"})


def fetch(url: str) -> str:
    request = urllib.request.Request(url, headers={"x-backstream-client-id": "demo"})
    with urllib.request.urlopen(request, timeout=10) as response:
        body: bytes = response.read()
    return body.decode()


async def main() -> None:
    # Port 0: one that is free. `address` is the one that it became.
    async with backstream.Proxy(backstream.ProxySettings(listen="127.0.0.1:0")) as proxy:
        host, port = proxy.address
        settings = backstream.AgentSettings(proxy_url=f"ws://{host}:{port}/ws", client_id="demo")
        async with backstream.Agent(settings, app=app) as agent:
            await agent.wait_connected()
            print(await asyncio.to_thread(fetch, f"http://{host}:{port}/"), end="")


if __name__ == "__main__":
    asyncio.run(main())
