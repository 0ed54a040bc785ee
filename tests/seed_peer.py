"""Peers that behave as the original does, in both roles: written from the schema with protobuf and websockets.

What is the original's way and not ours is kept: one message of the session for a request and one for its answer, bodies
whole, fragments of 4 KiB (1 KiB from the proxy), paths escaped once more by the agent, no answer where something fails.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from types import TracebackType
from typing import Any
from urllib.parse import quote

import websockets
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import ListValue
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request as Handshake
from websockets.http11 import Response as Refusal

from backstream._proto import seed_pb2
from tests.rig import ID, LIMIT, until

Headers = Mapping[str, list[str]]
MAX_MESSAGE = 10 * 2**20
ID_FIELD = "x-backstream-client-id"


@dataclass
class Request:
    """A request as the agent's service sees it."""

    method: str
    path: str
    query: str = ""
    headers: Headers = field(default_factory=dict)
    body: bytes = b""
    message_id: str = ""


@dataclass
class Response:
    status: int = 200
    headers: Headers = field(default_factory=dict)
    body: bytes = b""


class Codec:
    """proto in binary messages, json in text ones."""

    def __init__(self, name: str) -> None:
        self.json = name == "json"

    def encode(self, message: Any) -> bytes:
        return json_format.MessageToJson(message).encode() if self.json else message.SerializeToString()

    def decode(self, kind: type[Any], data: bytes) -> Any:
        if self.json:
            return json_format.Parse(data, kind())
        return kind.FromString(data)


def listed(headers: Headers) -> dict[str, ListValue]:
    result = {}
    for name, values in headers.items():
        result[name] = ListValue()
        result[name].extend(values)
    return result


def plain(headers: Any) -> dict[str, list[str]]:
    return {name: list(values) for name, values in headers.items()}


class Peer:
    """What both roles share: messages out, in fragments, and in."""

    def __init__(self, codec: str, fragment: int) -> None:
        self.codec = Codec(codec)
        self.fragment = fragment
        self.garbage = 0
        self.received: list[Any] = []
        """Every message that could be read, as a `seed_pb2.Message`."""

    async def send(
        self, wire: ClientConnection | ServerConnection, kind: int, data: bytes, message_id: str = ""
    ) -> str:
        message_id = message_id or str(uuid.uuid4())
        await self.send_raw(
            wire, self.codec.encode(seed_pb2.Message(id=message_id, type=kind, data=data)), self.codec.json
        )
        return message_id

    async def send_raw(self, wire: ClientConnection | ServerConnection, data: bytes, text: bool) -> None:
        pieces = [data[at : at + self.fragment] for at in range(0, len(data), self.fragment)]
        if len(pieces) < 2:
            await wire.send(data, text=text)
            return

        async def several() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        await wire.send(several(), text=text)

    def read(self, data: str | bytes) -> Any:
        """The message in `data`, or None: what can't be read is dropped without a word."""
        try:
            message = self.codec.decode(seed_pb2.Message, data.encode() if isinstance(data, str) else data)
        except (DecodeError, json_format.ParseError, UnicodeDecodeError):
            self.garbage += 1
            return None
        self.received.append(message)
        return message


class OriginalAgent(Peer):
    """An agent: `service(request)` gives a Response, or raises for the empty answer of a handler that failed."""

    def __init__(
        self, url: str, service: Callable[[Request], Awaitable[Response]], *, codec: str = "proto", client_id: str = ID
    ) -> None:
        super().__init__(codec, 4096)
        self.url, self.service, self.client_id = url, service, client_id
        self.events: list[Request] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> OriginalAgent:
        async with asyncio.timeout(LIMIT):
            self.wire = await connect(
                self.url,
                additional_headers={ID_FIELD: self.client_id},
                compression=None,
                max_size=MAX_MESSAGE,
                ping_interval=10,
                proxy=None,
            )
        assert self.wire.subprotocol is None
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reader.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(self._reader, *self._tasks, return_exceptions=True)
        await self.wire.close()

    async def _read(self) -> None:
        async for data in self.wire:
            message = self.read(data)
            if message is None:
                continue
            task = asyncio.create_task(self._handle(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _handle(self, message: Any) -> None:
        if message.type == seed_pb2.Message.RESPONSE:
            return
        try:
            event = self.codec.decode(seed_pb2.EventHTTPRequest, message.data)
        except (DecodeError, json_format.ParseError):
            self.garbage += 1
            return
        request = Request(
            event.method,
            # Go's URL.String() of a path that it takes for decoded, read again by http.NewRequest.
            quote(event.rawPath, safe="$&+,/:;=@~"),
            event.rawQuery,
            plain(event.headers),
            event.body,
            message.id,
        )
        if message.type == seed_pb2.Message.NOTIFY:
            self.events.append(request)
            await self.service(request)
            return
        try:
            response = await self.service(request)
            answer = self.codec.encode(
                seed_pb2.EventHTTPResponse(
                    statusCode=response.status, headers=listed(response.headers), body=response.body
                )
            )
        except ZeroDivisionError:  # the panic of these services
            answer = b""
        await self.send(self.wire, seed_pb2.Message.RESPONSE, answer, message.id)

    async def notify(self, data: bytes) -> None:
        await self.send(self.wire, seed_pb2.Message.NOTIFY, data)


class OriginalProxy(Peer):
    """A proxy on a port of its own; `ask` is what a client's request becomes."""

    def __init__(self, *, codec: str = "proto") -> None:
        super().__init__(codec, 1024)
        self.agents: dict[str, ServerConnection] = {}
        self.handshakes: list[Handshake] = []
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self.events: list[bytes] = []

    async def __aenter__(self) -> OriginalProxy:
        self._server = await serve(
            self._accepted,
            "127.0.0.1",
            0,
            process_request=self._judge,
            compression=None,
            max_size=MAX_MESSAGE,
            ping_interval=10,
        )
        port = next(iter(self._server.sockets)).getsockname()[1]
        self.url = f"ws://127.0.0.1:{port}/ws"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        await self._server.wait_closed()

    def _judge(self, wire: ServerConnection, request: Handshake) -> Refusal | None:
        self.handshakes.append(request)
        if not request.headers.get(ID_FIELD):
            return wire.respond(HTTPStatus.BAD_REQUEST, f"header {ID_FIELD} is required\n")
        return None

    async def _accepted(self, wire: ServerConnection) -> None:
        assert wire.request is not None
        client_id = wire.request.headers[ID_FIELD]
        self.agents[client_id] = wire
        try:
            async for data in wire:
                message = self.read(data)
                if message is None:
                    continue
                if message.type == seed_pb2.Message.NOTIFY:
                    self.events.append(message.data)
                waiting = self._waiting.get(message.id)
                if message.type == seed_pb2.Message.RESPONSE and waiting is not None and not waiting.done():
                    waiting.set_result(message.data)
        except websockets.ConnectionClosed:
            pass
        finally:
            if self.agents.get(client_id) is wire:
                del self.agents[client_id]

    async def connected(self, client_id: str = ID) -> ServerConnection:
        await until(lambda: client_id in self.agents, "the agent")
        return self.agents[client_id]

    def event(self, request: Request) -> bytes:
        return self.codec.encode(
            seed_pb2.EventHTTPRequest(
                method=request.method,
                rawPath=request.path,
                rawQuery=request.query,
                headers=listed(request.headers),
                body=request.body,
            )
        )

    async def ask(self, request: Request, *, seconds: float = LIMIT, client_id: str = ID) -> Response:
        """The answer to a request; raises TimeoutError without one."""
        wire = self.agents[client_id]
        message_id = request.message_id or str(uuid.uuid4())
        waiting = self._waiting[message_id] = asyncio.get_running_loop().create_future()
        try:
            await self.send(wire, seed_pb2.Message.REQUEST, self.event(request), message_id)
            async with asyncio.timeout(seconds):
                data = await waiting
        finally:
            del self._waiting[message_id]
        event = self.codec.decode(seed_pb2.EventHTTPResponse, data)
        return Response(event.statusCode, plain(event.headers), event.body)

    async def notify(self, data: bytes, client_id: str = ID) -> None:
        await self.send(self.agents[client_id], seed_pb2.Message.NOTIFY, data)


@asynccontextmanager
async def original_agent(
    proxy: Any, service: Callable[[Request], Awaitable[Response]], *, codec: str = "proto", client_id: str = ID
) -> AsyncIterator[OriginalAgent]:
    """One agent at a proxy of ours, once that has it."""
    before = len(proxy.agents.by_id(client_id.encode()))
    url = "ws://{}:{}/ws".format(*proxy.agent_address)
    async with OriginalAgent(url, service, codec=codec, client_id=client_id) as agent:
        await until(lambda: len(proxy.agents.by_id(client_id.encode())) == before + 1, "the agent")
        yield agent
