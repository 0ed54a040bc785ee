"""A reverse proxy as one writes it with aiohttp: ``python -m bench.services.aiohttp_proxy PORT BACKEND``.

Bodies are streamed both ways, small ones sent in one piece; WebSockets are passed on message by message.
"""

import asyncio
import sys
from collections.abc import Iterable

import aiohttp
from aiohttp import web

from bench.aio import run

_OF_A_HOP = {"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "host"}
_OF_A_HANDSHAKE = "sec-websocket-"
_SMALL = 1 << 16
_BUFFER = 1 << 18


def _passed(fields: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, value in fields
        if name.lower() not in _OF_A_HOP and not name.lower().startswith(_OF_A_HANDSHAKE)
    ]


class Proxy:
    """All requests go to one service."""

    def __init__(self, session: aiohttp.ClientSession, backend: str) -> None:
        self._session = session
        self._backend = backend

    async def handle(self, request: web.Request) -> web.StreamResponse:
        url = self._backend + request.raw_path
        if request.headers.get("upgrade", "").lower() == "websocket":
            return await self._websocket(request, url)
        body = request.content if request.body_exists else None
        async with self._session.request(
            request.method, url, headers=_passed(request.headers.items()), data=body, allow_redirects=False
        ) as answer:
            fields = _passed(answer.headers.items())
            if answer.content_length is not None and answer.content_length <= _SMALL:
                whole = web.Response(status=answer.status, body=await answer.read())
                whole.headers.extend(field for field in fields if field[0].lower() != "content-length")
                return whole
            response = web.StreamResponse(status=answer.status)
            response.headers.extend(fields)
            await response.prepare(request)
            async for piece in answer.content.iter_any():
                await response.write(piece)
            await response.write_eof()
            return response

    async def _websocket(self, request: web.Request, url: str) -> web.WebSocketResponse:
        client = web.WebSocketResponse(compress=False, max_msg_size=0)
        async with self._session.ws_connect(url, headers=_passed(request.headers.items()), max_msg_size=0) as service:
            await client.prepare(request)
            ways = [asyncio.ensure_future(_pass(client, service)), asyncio.ensure_future(_pass(service, client))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await client.close()
        return client


_WebSocket = web.WebSocketResponse | aiohttp.ClientWebSocketResponse


async def _pass(source: _WebSocket, target: _WebSocket) -> None:
    async for message in source:
        if message.type is aiohttp.WSMsgType.TEXT:
            await target.send_str(message.data)
        elif message.type is aiohttp.WSMsgType.BINARY:
            await target.send_bytes(message.data)


async def serve(port: int, backend: int) -> None:
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=600)
    async with aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=_BUFFER,
        skip_auto_headers=("user-agent", "accept", "accept-encoding", "content-type"),
    ) as session:
        application = web.Application(client_max_size=1 << 60)
        application.router.add_route("*", "/{path:.*}", Proxy(session, f"http://127.0.0.1:{backend}").handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(serve(int(sys.argv[1]), int(sys.argv[2])))
