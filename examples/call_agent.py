"""A program that runs a proxy and calls its agents itself, without a socket, streaming in both directions.

Run it with `python examples/call_agent.py`: it brings an agent of its own, makes a request and ends.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import backstream

Message = MutableMapping[str, Any]


async def shout(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Sends every piece of the request's body back in capitals, as it comes."""
    if scope["type"] != "http":
        raise NotImplementedError("neither lifespan nor WebSockets here")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        more = event.get("more_body", False)
        await send({"type": "http.response.body", "body": event["body"].upper(), "more_body": more})


async def words() -> AsyncIterator[bytes]:
    for word in ("one", "two", "three"):
        yield word.encode() + b"\n"
        await asyncio.sleep(0.1)


async def main() -> None:
    async with backstream.Proxy(backstream.ProxySettings(listen="127.0.0.1:0")) as proxy:
        host, port = proxy.address
        settings = backstream.AgentSettings(proxy_url=f"ws://{host}:{port}/ws", client_id="demo")
        events = proxy.events()
        async with backstream.Agent(settings, app=shout):
            event = await anext(events)
            print(f"agent {event.agent.id if event.agent else '?'}: {event.kind}", flush=True)
            async with await proxy.request("demo", "POST", "/shout", content=words(), timeout=10) as response:
                print(response.status, flush=True)
                async for piece in response.aiter_bytes():
                    print(piece.decode(), end="", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
