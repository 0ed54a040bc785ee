"""An agent without ASGI: a handler that is called with each event of its stream, and costs no task.

It sends a request's body back while that is still coming, and holds no more of it than the window allows: what the
client does not read is not consumed, so the sender gets no new credit.

Run it with `python examples/agent_handler.py [PROXY-URL]` while a proxy listens, then
`curl -H 'x-backstream-client-id: demo' --data-binary hello http://127.0.0.1:8080/`.
"""

import asyncio
import sys
from collections import deque

import backstream
from backstream import streams


class Echo(backstream.Handler):
    """One request."""

    def __init__(self) -> None:
        self.held: deque[bytes] = deque()
        self.ended = False

    def data_received(self, stream: streams.Stream, data: bytes) -> None:
        self.held.append(data)
        self.writable(stream)

    def end_received(self, stream: streams.Stream, trailers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.ended = True
        self.writable(stream)

    def writable(self, stream: streams.Stream) -> None:
        while self.held and (room := streams.room(stream)) > 0:
            data = self.held.popleft()
            if len(data) > room:
                self.held.appendleft(data[room:])
                data = data[:room]
            streams.write(stream, data)
            streams.consume(stream, len(data))  # now the client's side may send as much again
        if self.ended and not self.held:
            streams.end(stream)

    def reset_received(self, stream: streams.Stream, code: int, message: str) -> None:
        self.held.clear()


def echo(stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler | None:
    """Called for each request; None refuses it."""
    if head.target == b"/refused":
        return None
    fields = ((b"content-type", b"application/octet-stream"),)
    streams.respond(stream, backstream.ResponseHead(status=200, fields=fields, body=backstream.Body.CHUNKED))
    if end:
        streams.end(stream)
    return Echo()


async def main(proxy_url: str) -> None:
    settings = backstream.AgentSettings(proxy_url=proxy_url, client_id="demo")
    async with backstream.Agent(settings, handler=echo) as agent:
        await agent.wait_connected()
        print("connected", flush=True)
        await agent.wait_closed()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "ws://127.0.0.1:8080/ws"))
    except KeyboardInterrupt:
        pass
