"""WebSockets through the tunnel: two clients, two servers behind `--upstream`, and applications in the agent."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import aiohttp.web
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from tests.interop.probe import Probe
from tests.rig import Leaks, Tunnel, tunnel, until

MIB = 1024 * 1024
SOCKETS = ["starlette", "fastapi", "litestar", "quart"]
DENIALS = ["starlette", "fastapi", "quart"]


# --- echo, four ways ---


def websocket_app(serve: Callable[[Any, Any, Any], Awaitable[None]]) -> Any:
    """An application that takes `websocket.connect`, then does what `serve` does."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket":
            raise NotImplementedError
        assert await receive() == {"type": "websocket.connect"}
        await serve(scope, receive, send)

    return app


@websocket_app
async def echo_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "websocket.accept", "subprotocol": "chat" if "chat" in scope["subprotocols"] else None})
    while (event := await receive())["type"] == "websocket.receive":
        if event.get("text") == "bye":
            await send({"type": "websocket.close", "code": 4001, "reason": "see you"})
            return
        await send({**event, "type": "websocket.send"})


@asynccontextmanager
async def behind_asgi() -> AsyncIterator[Tunnel]:
    async with tunnel(echo_app) as pair:
        yield pair


async def echo_handler(connection: websockets.ServerConnection) -> None:
    try:
        async for message in connection:
            if message == "bye":
                await connection.close(4001, "see you")
                return
            await connection.send(message)
    except websockets.ConnectionClosed:
        pass


@asynccontextmanager
async def behind_websockets() -> AsyncIterator[Tunnel]:
    def select(connection: websockets.ServerConnection, offered: Sequence[Any]) -> Any:
        return "chat" if "chat" in offered else None

    async with websockets.serve(echo_handler, "127.0.0.1", 0, max_size=16 * MIB, select_subprotocol=select) as server:
        port = server.sockets[0].getsockname()[1]
        async with tunnel(upstream=f"http://127.0.0.1:{port}") as pair:
            yield pair


@asynccontextmanager
async def behind_aiohttp() -> AsyncIterator[Tunnel]:
    async def handler(request: aiohttp.web.Request) -> aiohttp.web.WebSocketResponse:
        socket = aiohttp.web.WebSocketResponse(protocols=["chat"], max_msg_size=16 * MIB)
        await socket.prepare(request)
        async for message in socket:
            if message.data == "bye":
                await socket.close(code=4001, message=b"see you")
            elif message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data)
            else:
                await socket.send_bytes(message.data)
        return socket

    app = aiohttp.web.Application()
    app.router.add_get("/{tail:.*}", handler)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    try:
        site = aiohttp.web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with tunnel(upstream=f"http://127.0.0.1:{port}") as pair:
            yield pair
    finally:
        await runner.cleanup()


SERVERS = {"asgi": behind_asgi, "websockets": behind_websockets, "aiohttp": behind_aiohttp}
Served = Callable[[], Any]


@pytest.fixture(params=list(SERVERS))
def served(request: pytest.FixtureRequest) -> Served:
    found: Served = SERVERS[request.param]
    return found


def connect(pair: Tunnel, path: str = "/", **options: Any) -> Any:
    url = "ws://{}:{}{}".format(*pair.address, path)
    return websockets.connect(url, additional_headers=pair.headers, max_size=None, proxy=None, **options)


async def echoes(client: ClientConnection, *messages: str | bytes) -> None:
    async with asyncio.timeout(20):
        for message in messages:
            await client.send(message)
            assert await client.recv() == message


# --- messages ---


async def test_text_and_binary_come_back(served: Served) -> None:
    async with served() as pair, connect(pair) as client:
        await echoes(
            client, "", "hello", "grüße ☃ 𝄞", b"", b"\x00\xff", bytes(range(256)) * 100, "a" * 125, "a" * 65536
        )


async def test_messages_of_megabytes_come_back(served: Served) -> None:
    async with served() as pair, connect(pair, compression=None) as client:
        await echoes(client, "é" * MIB, bytes(range(256)) * (15 * MIB // 256))


async def test_a_fragmented_message_comes_back_whole(served: Served) -> None:
    async with served() as pair, connect(pair, compression=None) as client:
        pieces = ["ein", "", "e Nachri", "cht, ü"]
        await client.send(pieces)
        assert await client.recv() == "".join(pieces)
        await client.send(bytes([number]) for number in range(256))
        assert await client.recv() == bytes(range(256))


async def test_ten_thousand_small_messages_keep_their_order(served: Served) -> None:
    count = 10_000
    async with served() as pair, connect(pair, compression=None) as client:

        async def send() -> None:
            for number in range(count):
                await client.send(str(number))

        sending = asyncio.create_task(send())
        async with asyncio.timeout(40):
            for number in range(count):
                assert await client.recv() == str(number)
        await sending


async def test_pings_are_answered(served: Served) -> None:
    async with served() as pair, connect(pair) as client, asyncio.timeout(10):
        assert await (await client.ping(b"payload")) >= 0
        await echoes(client, "after")


async def test_the_subprotocol_is_the_servers_choice(served: Served) -> None:
    async with served() as pair:
        async with connect(pair, subprotocols=["other", "chat"]) as client:
            assert client.subprotocol == "chat"
        async with connect(pair) as client:
            assert client.subprotocol is None


async def test_aiohttps_client_is_served(served: Served) -> None:
    async with served() as pair, aiohttp.ClientSession() as session:
        url = "http://{}:{}/".format(*pair.address)
        async with session.ws_connect(url, headers=pair.headers, protocols=["chat"], compress=15) as client:
            assert client.protocol == "chat"
            await client.ping(b"x")
            await client.send_str("text")
            assert await client.receive_str(timeout=10) == "text"
            await client.send_bytes(b"\x00" * MIB)
            assert await client.receive_bytes(timeout=10) == b"\x00" * MIB
            await client.send_str("bye")
            closing = await client.receive(timeout=10)
            assert (closing.type, closing.data, closing.extra) == (aiohttp.WSMsgType.CLOSE, 4001, "see you")


# --- ends ---


async def test_the_servers_close_code_and_reason_reach_the_client(served: Served) -> None:
    async with served() as pair, connect(pair) as client, asyncio.timeout(10):
        await client.send("bye")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.recv()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "see you")


async def test_the_clients_close_is_answered(served: Served) -> None:
    async with served() as pair:
        client = await connect(pair)
        async with asyncio.timeout(10):
            await client.close(4444, "enough")
        assert client.protocol.close_rcvd is not None
        # aiohttp answers every close with 1000.
        assert client.protocol.close_rcvd.code == (1000 if served is behind_aiohttp else 4444)
        await until(lambda: pair.proxy.connection_count == 0)


async def test_nothing_is_left_of_a_hundred_sockets_however_they_end(served: Served) -> None:
    async with served() as pair:
        async with connect(pair) as client:
            await echoes(client, "warm")
        await pair.settled()
        await until(lambda: pair.proxy.connection_count == 0)
        leaks = Leaks()
        clients = await asyncio.gather(*(connect(pair, open_timeout=20) for _ in range(99)))
        await asyncio.gather(*(echoes(client, "x") for client in clients))
        for number, client in enumerate(clients):
            if number % 3 == 0:
                client.transport.abort()
            elif number % 3 == 1:
                await client.close()
            else:
                await client.send("bye")
                with pytest.raises(websockets.ConnectionClosed):
                    await client.recv()
        await asyncio.gather(*(client.wait_closed() for client in clients))
        clients.clear()
        del client
        await pair.settled()
        await leaks.none()


# --- back-pressure ---


async def test_a_client_that_does_not_read_stops_the_server(served: Served) -> None:
    """The echo goes on only as far as the windows and buffers in between hold."""
    block = bytes(64 * 1024)
    async with served() as pair, connect(pair, compression=None, max_queue=1, ping_interval=None) as client:
        sent = 0

        async def send() -> None:
            nonlocal sent
            for _ in range(1024):
                await client.send(block)
                sent += 1

        sending = asyncio.create_task(send())
        stalled = -1
        while stalled != sent:
            stalled = sent
            await asyncio.sleep(0.3)  # as long as it moves it is not stalled
        assert sent < 1024, "64 MiB that nobody reads were taken"
        async with asyncio.timeout(30):
            for _ in range(1024):
                assert await client.recv() == block
            await sending


# --- frameworks ---


@asynccontextmanager
async def framework(name: str, probe: Probe) -> AsyncIterator[Tunnel]:
    app = importlib.import_module(f"tests.interop.frameworks.{name}_app").build(probe)
    async with tunnel(app) as pair:
        yield pair


@pytest.mark.parametrize("name", SOCKETS)
async def test_a_frameworks_socket_talks(name: str) -> None:
    async with (
        framework(name, Probe()) as pair,
        connect(pair, "/socket/some", subprotocols=["chat"]) as client,
        asyncio.timeout(20),
    ):
        assert client.subprotocol == "chat"
        assert client.response is not None
        assert client.response.headers["x-name"] == "some"
        await echoes(client, "text", "é" * 1000, b"\x00\x01", b"b" * MIB)
        await client.send("bye")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await client.recv()
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4001, "see you")


@pytest.mark.parametrize("name", SOCKETS)
@pytest.mark.parametrize("abrupt", [False, True], ids=["close", "abort"])
async def test_a_framework_learns_that_its_client_went(name: str, abrupt: bool) -> None:
    probe = Probe()
    async with framework(name, probe) as pair:
        client = await connect(pair, "/socket/some", subprotocols=["chat"])
        await echoes(client, "text")
        if abrupt:
            client.transport.abort()
        else:
            await client.close(4002)
        async with asyncio.timeout(10):
            await probe.left.wait()
        assert probe.close_code in (1006 if abrupt else 4002, None if name == "quart" else 0)


@pytest.mark.parametrize("name", SOCKETS)
async def test_a_frameworks_refusal_is_403(name: str) -> None:
    async with framework(name, Probe()) as pair:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(pair, "/refused-socket")
        assert refused.value.response.status_code == 403


@pytest.mark.parametrize("name", DENIALS)
async def test_a_frameworks_denial_is_its_own_response(name: str) -> None:
    async with framework(name, Probe()) as pair:
        with pytest.raises(websockets.InvalidStatus) as denied:
            await connect(pair, "/denied-socket")
        response = denied.value.response
        assert response.status_code == 402
        assert response.headers["content-type"] == "application/json"
        assert b"denied" in (response.body or b"")


@pytest.mark.parametrize(
    ("name", "code"), {"starlette": 1011, "fastapi": 1011, "litestar": 4500, "quart": 1000}.items()
)
async def test_a_failing_socket_is_closed_as_its_framework_has_it(name: str, code: int) -> None:
    """Litestar and Quart catch what is raised, and close by themselves."""
    async with framework(name, Probe()) as pair:
        async with connect(pair, "/failing-socket") as client, asyncio.timeout(10):
            with pytest.raises(websockets.ConnectionClosed) as closed:
                await client.recv()
        assert closed.value.rcvd.code == code


@pytest.mark.parametrize("name", SOCKETS)
async def test_a_path_without_a_socket_is_no_handshake(name: str) -> None:
    async with framework(name, Probe()) as pair:
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(pair, "/nowhere")
        assert refused.value.response.status_code in (403, 404)
