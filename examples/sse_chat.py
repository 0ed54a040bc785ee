"""A chat that streams its answer token by token as Server-Sent Events, as services of language models do.

`pip install starlette`, start a proxy, run `python examples/sse_chat.py [PROXY-URL]`, then
`curl -N -H 'x-backstream-client-id: demo' -d 'tell me of tunnels' http://127.0.0.1:8080/chat`: each word arrives when
it is made. Leave in the middle, and the program says that it stopped there.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

import backstream


async def tokens(prompt: str) -> AsyncIterator[str]:
    """What a model would say, at its pace."""
    for word in f"You said: {prompt} That is all I know.".split():
        await asyncio.sleep(0.05)
        yield word


async def events(prompt: str) -> AsyncIterator[bytes]:
    said = 0
    try:
        async for token in tokens(prompt):
            yield f"data: {json.dumps({'token': token})}\n\n".encode()
            said += 1
        yield b"data: [DONE]\n\n"
    except (asyncio.CancelledError, GeneratorExit):
        print(f"the client left after {said} tokens", flush=True)
        raise


async def chat(request: Request) -> StreamingResponse:
    prompt = (await request.body()).decode()
    return StreamingResponse(events(prompt), media_type="text/event-stream", headers={"cache-control": "no-cache"})


app = Starlette(routes=[Route("/chat", chat, methods=["POST"])])


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
