"""The proxy as an ASGI application: alone under uvicorn and mounted in FastAPI beside other routes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import fastapi
import httpx
import hypercorn.asyncio
import hypercorn.config
import pytest
import uvicorn
import websockets
from starlette.middleware.base import BaseHTTPMiddleware

import backstream
from backstream import streams
from backstream._message_codec import pack_frame
from backstream.asgi import ProxyApp
from backstream.httpx import Transport
from tests.rig import (
    ID,
    LIMIT,
    QUICK,
    Echo,
    Leaks,
    Wire,
    answer,
    begin,
    chunked,
    echo_app,
    end,
    free_port,
    http_only,
    make_agent,
    more,
    ok_app,
    proxy_settings,
    read_body,
    request,
    tunnel,
    until,
)
from tests.session.wire import greeting

MEBIBYTE = 1024 * 1024
GET_AGENT = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
]


class Server(uvicorn.Server):
    """uvicorn in the test's own loop."""

    @contextlib.contextmanager
    def capture_signals(self):
        yield


class Served:
    """A `ProxyApp` that is served, and its agents."""

    def __init__(self, proxy: ProxyApp, port: int, mount: str) -> None:
        self.proxy = proxy
        self.port = port
        self.mount = mount
        self.agents: list[backstream.Agent] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{self.mount}"

    async def open(self, **options: Any) -> Wire:
        return await Wire.connect(("127.0.0.1", self.port), **options)

    async def get(self, target: str = "/", **fields: Any) -> Any:
        async with await self.open() as wire:
            await wire.send(request(self.mount + target, **fields))
            return await wire.answer(fields.get("method", "GET"))

    def client(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers={"x-backstream-client-id": ID}, **options)

    async def agent(self, app: Any = None, **settings: Any) -> backstream.Agent:
        before = len(self.proxy.agents.by_id(ID))
        agent = make_agent(f"ws://127.0.0.1:{self.port}{self.mount}/ws", app, **settings)
        self.agents.append(agent)
        await agent.start()
        async with asyncio.timeout(LIMIT):
            await agent.wait_connected()
        await until(lambda: len(self.proxy.agents.by_id(ID)) == before + 1)
        return agent

    async def settled(self) -> None:
        """Waits until no request goes on and no stream is left."""
        await until(
            lambda: (
                self.proxy.connection_count == self.proxy.window_bytes == 0
                and not any(link.stream_count for link in self.proxy.agents)
            )
        )


@asynccontextmanager
async def served(
    app: Any = None,
    *,
    around: Callable[[ProxyApp], Any] = lambda proxy: proxy,
    mount: str = "",
    proxy: Any = None,
    authorize: Any = None,
    server: Any = None,
    agents: int = 1,
    **agent: Any,
) -> AsyncIterator[Served]:
    """around: makes the application that is served of the ProxyApp."""
    made = ProxyApp(proxy_settings(**(proxy or {})), authorize=authorize)
    config = uvicorn.Config(
        around(made), port=0, ws="websockets-sansio", log_config=None, lifespan="on", **(server or {})
    )
    uvicorn_server = Server(config)
    task = asyncio.create_task(uvicorn_server.serve())
    await until(lambda: uvicorn_server.started or task.done())
    port = uvicorn_server.servers[0].sockets[0].getsockname()[1]
    pair = Served(made, port, mount)
    try:
        for _ in range(agents):
            await pair.agent(app, **agent)
        yield pair
        await pair.settled()
    finally:
        for each in pair.agents:
            await each.close()
        uvicorn_server.should_exit = True
        async with asyncio.timeout(LIMIT):
            await task


# --- what a client gets is what the server gives ---


@http_only
async def odd_app(scope, receive, send) -> None:
    path = scope["path"]
    if path == "/silent":
        while (await receive())["type"] != "http.disconnect":
            pass
    elif path == "/204":
        await answer(send, b"", 204)
    elif path == "/304":
        await answer(send, b"", 304, [(b"etag", b'"1"')])
    elif path == "/many":
        await answer(send, b"ok", 200, [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-odd", b"\xe9")])
    elif path == "/fails":
        raise SystemError
    elif path == "/chunked":
        await begin(send)
        await more(send, b"in ")
        await end(send, b"pieces")
    else:
        event = await receive()
        size = len(event["body"])
        while event.get("more_body"):
            event = await receive()
            size += len(event["body"])
        await answer(send, b"%s %s %d" % (scope["method"].encode(), scope["raw_path"], size))


CASES = {
    "good": request("/a%20b?c=d"),
    "HEAD": request(method="HEAD"),
    "POST": request(method="POST", body=b"x" * 1000),
    "chunked request": request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"one", b"two"),
    "HTTP/1.0": request(version="1.0"),
    "204": request("/204"),
    "304": request("/304"),
    "many fields": request("/many"),
    "chunked": request("/chunked"),
    "service fails": request("/fails"),
    "no id": request(client_id=None),
    "two ids": request(lines=["x-backstream-client-id: other"]),
    "a long id": request(client_id="a" * 129),
    "unknown id": request(client_id="nobody"),
    "a bad time-out": request(lines=["x-backstream-request-timeout: soon"]),
    "too late": request("/silent", lines=["x-backstream-request-timeout: 100ms"]),
    "TRACE": request(method="TRACE"),
    "OPTIONS for the proxy": request("/", method="OPTIONS", lines=["Max-Forwards: 0"]),
    "two hosts": request(lines=["Host: b"]),
    "a bad host": request(client_id=None).replace(b"service.example", b"a b"),
    "a target that may not be": request("/a|b\\c"),
    "an expectation": request(method="POST", lines=["Expect: the-impossible"], body=b"x"),
    "too large": request(method="POST", body=b"x" * 5001),
    "too large in chunks": request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"x" * 5001),
    "too many fields": request(lines=[f"x-{number}: y" for number in range(210)]),
    "a loop": request(lines=["Via: 1.1 here"]),
    "JSON preferred": request(client_id="nobody", lines=["Accept: application/json"]),
    "a gzipped transfer": request(method="POST", lines=["Transfer-Encoding: gzip, chunked"]) + chunked(b"x"),
}
SAME = (
    *("content-type", "content-length", "proxy-status", "retry-after", "allow", "via"),
    *("etag", "set-cookie", "x-odd"),
)


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_what_a_client_gets_is_what_the_server_gives(http: str) -> None:
    settings = {"max_body_size": 5000, "via_name": "here", "agent_wait": 0}
    different = {}
    async with (
        tunnel(odd_app, proxy=settings) as own,
        served(odd_app, proxy=settings, server={"http": http}) as mounted,
    ):
        for name, sent in CASES.items():
            method = sent.split(b" ")[0].decode()
            answers = []
            for pair in (own, mounted):
                async with await pair.open() as wire:
                    await wire.send(sent)
                    got = await wire.answer(method)
                    fields = [(field, got.all(field)) for field in SAME]
                    answers.append((got.status, got.body, got.complete, [field for field in fields if field[1]]))
            if answers[0] != answers[1]:
                different[name] = answers
    # What the ASGI server refuses by itself never comes here, and its own words are those of its version.
    by_the_server = {name for name, answers in different.items() if answers[1][0] == 400 and not answers[1][3][2:]}
    assert set(different) - by_the_server == set(), different
    assert len(by_the_server) <= 3, by_the_server


async def test_every_answer_has_an_id_and_one_date() -> None:
    async with served(ok_app) as pair:
        for client_id in (ID, "nobody"):
            got = await pair.get(client_id=client_id)
            assert got.get("x-request-id") and got.get("date")


async def test_the_services_view_of_a_client_is_the_servers() -> None:
    seen: list[dict[str, Any]] = []

    @http_only
    async def app(scope, receive, send) -> None:
        seen.append(scope)
        await answer(send)

    async with served(app, server={"proxy_headers": False}) as pair:
        await pair.get("/x?y=z", lines=["Connection: X-Hop", "X-Hop: 1", "X-Forwarded-For: 1.2.3.4"])
    (scope,) = seen
    headers = dict(scope["headers"])
    assert scope["client"][0] == "127.0.0.1" and scope["path"] == "/x" and scope["query_string"] == b"y=z"
    assert headers[b"forwarded"] == b"for=127.0.0.1;host=service.example;proto=http"
    assert b"x-hop" not in headers and b"x-forwarded-for" not in headers and b"x-request-id" in headers


# --- streaming ---


async def test_both_directions_stream_at_once() -> None:
    async with served(echo_app) as pair, await pair.open() as wire:
        echo = await Echo.begin(wire)
        for _ in range(5):
            await echo.goes_on()
        await echo.finish()


async def test_large_bodies_arrive_whole() -> None:
    body = bytes(range(256)) * 40_000

    @http_only
    async def app(scope, receive, send) -> None:
        await answer(send, await read_body(receive) or b"")

    async with served(app) as pair, pair.client() as client:
        assert (await client.post("/", content=body)).content == body


async def test_a_client_that_does_not_read_holds_the_service_back() -> None:
    sent = 0

    @http_only
    async def app(scope, receive, send) -> None:
        nonlocal sent
        if scope["path"] == "/other":
            return await answer(send)
        await begin(send)
        for _ in range(600):
            await more(send, b"x" * 50_000)
            sent += 1
        await end(send)

    async with served(app) as pair, await pair.open(receive_buffer=4096) as wire:
        await wire.send(request())
        await until(lambda: (connection_of(pair).body.size if pair.proxy.connection_count else 0) >= 65536)
        for _ in range(60):  # whatever is on its way comes before these
            assert (await pair.get("/other")).body == b"ok"
        assert sent < 250, "what the sockets and one window hold"
        message = await wire.head()
        await wire.body(message, to_close=False)
        assert len(message.body) == 30_000_000 and sent == 600


def connection_of(pair: Served) -> Any:
    import gc

    return next(each for each in gc.get_objects() if type(each).__name__ == "AppConnection" and not each.body.finished)


async def test_a_service_that_does_not_read_holds_the_client_back() -> None:
    held: list[tuple[streams.Stream, int]] = []

    class Holding(backstream.Handler):
        def data_received(self, stream: streams.Stream, data: bytes) -> None:
            held.append((stream, len(data)))

        def end_received(self, stream: streams.Stream, trailers: object) -> None:
            streams.respond(stream, backstream.ResponseHead(status=204), True)

    async with served(handler=lambda stream, head, end: Holding()) as pair, await pair.open() as wire:
        sending = asyncio.create_task(wire.send(request(method="POST", body=b"x" * 20 * MEBIBYTE)))
        await until(lambda: sum(size for _, size in held) == 65536)
        assert not sending.done()
        answering = asyncio.create_task(wire.answer())
        while not answering.done():
            for stream, size in held:
                streams.consume(stream, size)
            held.clear()
            await asyncio.sleep(0)
        assert answering.result().status == 204 and sending.done()


async def test_a_body_that_waits_for_100_is_sent_when_the_service_asks_for_it() -> None:
    async with served(echo_app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Expect: 100-continue", "Content-Length: 4"]))
        assert (await wire.head()).status == 100
        await wire.send(b"body")
        assert (await wire.answer()).body == b"body"
    async with served(ok_app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Expect: 100-continue", "Content-Length: 4"]))
        assert (await wire.answer()).status == 200


# --- ends ---


async def test_a_client_that_goes_away_ends_its_stream() -> None:
    gone = asyncio.Event()

    @http_only
    async def app(scope, receive, send) -> None:
        await begin(send)
        await more(send, b"begun")
        while (await receive())["type"] != "http.disconnect":
            pass
        gone.set()

    async with served(app) as pair:
        leaks = Leaks()
        for lines in ((), ("Transfer-Encoding: chunked",)):
            gone.clear()
            async with await pair.open() as wire:
                await wire.send(request(method="POST", lines=lines))
                assert await wire.head() and await wire.chunk() == b"begun"
            async with asyncio.timeout(LIMIT):
                await gone.wait()
        await pair.settled()
        await leaks.none()


async def cut_app(scope, receive, send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError
    await begin(send, [(b"content-length", b"100")] if scope["path"] == "/sized" else [])
    await more(send, b"begun")
    await receive()
    while cut_app.waiting:  # type: ignore[attr-defined]
        await asyncio.sleep(0.005)
    raise SystemError


def with_middleware(proxy: ProxyApp) -> Any:
    """Behind one of Starlette's: it ends a response whose application raised as if it were whole, where no length says
    that it is not."""

    async def passing(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    app = fastapi.FastAPI(lifespan=lifespan_of(proxy))
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    app.mount("/", proxy)
    return app


def lifespan_of(proxy: ProxyApp) -> Any:
    @asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        async with proxy:
            yield

    return lifespan


@pytest.mark.parametrize(
    ("target", "around"),
    [("/chunked", lambda proxy: proxy), ("/sized", lambda proxy: proxy), ("/sized", with_middleware)],
    ids=["chunked", "sized", "sized behind a middleware"],
)
async def test_a_response_that_breaks_off_never_looks_whole(target: str, around: Any) -> None:
    cut_app.waiting = True  # type: ignore[attr-defined]
    async with served(cut_app, around=around) as pair, await pair.open() as wire:
        await wire.send(request(target))
        message = await wire.head()
        assert message.status == 200
        await wire.until(b"begun")
        cut_app.waiting = False  # type: ignore[attr-defined]
        rest, _ = await wire.rest()
        assert b"0\r\n\r\n" not in rest and len(rest) < 95


async def test_more_requests_than_the_proxy_takes_are_told_so() -> None:
    async with served(echo_app, proxy={"max_connections": 1}) as pair, await pair.open() as wire:
        echo = await Echo.begin(wire)
        got = await pair.get()
        assert got.status == 503 and b"all the connections" in got.body
        await echo.finish()


# --- mounted ---


def in_fastapi(proxy: ProxyApp) -> fastapi.FastAPI:
    app = fastapi.FastAPI(lifespan=lifespan_of(proxy))

    @app.get("/own")
    async def own() -> dict[str, int]:
        return {"agents": len(proxy.agents)}

    app.mount("/tunnel", proxy)
    return app


async def test_it_stands_beside_other_routes_and_names_its_mount_as_the_prefix() -> None:
    seen: list[dict[str, Any]] = []

    @http_only
    async def app(scope, receive, send) -> None:
        seen.append(scope)
        await answer(send)

    async with served(app, around=in_fastapi, mount="/tunnel") as pair:
        assert (await pair.get("/a%2Fb/c?d")).body == b"ok"
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{pair.port}/own")).json() == {"agents": 1}
    (scope,) = seen
    assert scope["root_path"] == "/tunnel" and scope["raw_path"].removeprefix(b"/tunnel") == b"/a%2Fb/c"
    assert scope["query_string"] == b"d"


async def test_a_path_route_adds_to_the_mounts_prefix() -> None:
    seen: list[dict[str, Any]] = []

    @http_only
    async def app(scope, receive, send) -> None:
        seen.append(scope)
        await answer(send)

    async with served(app, around=in_fastapi, mount="/tunnel", proxy={"route_path": ("/t/{id}/",)}) as pair:
        assert (await pair.get(f"/t/{ID}/x", client_id=None)).status == 200
    assert seen[0]["root_path"] == f"/tunnel/t/{ID}"


async def test_the_program_calls_agents_of_a_mounted_proxy() -> None:
    async with served(ok_app, around=in_fastapi, mount="/tunnel") as pair:
        response = await pair.proxy.request(ID, "GET", "/")
        assert await response.aread() == b"ok"
        async with httpx.AsyncClient(transport=Transport(pair.proxy, ID), base_url="http://shop.example") as client:
            assert (await client.get("/")).text == "ok"


# --- agents ---


async def test_agents_are_seen_with_their_address_and_bytes() -> None:
    async with served(echo_app) as pair:
        (agent,) = pair.proxy.agents
        before = agent.bytes_sent, agent.bytes_received
        assert agent.address is not None and agent.address[0] == "127.0.0.1"
        await pair.get(method="POST", body=b"x" * 100_000)
        assert agent.bytes_sent - before[0] > 100_000 and agent.bytes_received - before[1] > 100_000


async def test_an_agent_that_is_not_wanted_is_told_why() -> None:
    async with served(authorize=lambda handshake: False, agents=0) as pair:
        protocol = "Sec-WebSocket-Protocol: backstream.v1"
        for target, lines, client_id, status in (
            ("/ws", [protocol], ID, 403),
            ("/ws", [protocol], None, 400),
            ("/ws", [], ID, 501),
            ("/elsewhere", [protocol], ID, 404),
            ("/elsewhere", [], ID, 501),
        ):
            got = await pair.get(target, lines=[*GET_AGENT, *lines], client_id=client_id)
            assert got.status == status and b"proxy-status" in dict(got.fields), got


async def test_an_agent_that_breaks_the_rules_is_closed_with_the_right_code() -> None:
    async with served(agents=0, proxy={"session": QUICK}) as pair:
        url = f"ws://127.0.0.1:{pair.port}/ws"
        options: Any = {
            "subprotocols": [websockets.Subprotocol("backstream.v1")],
            "additional_headers": {"x-backstream-client-id": ID},
            "compression": None,
        }
        for message, code in (
            ("text", 1003),
            (b"x" * 262_145, 1009),
            (b"\0\0\0\0\0\0\0\0\0", 1002),
            (None, 1002),  # no HELLO within its time
        ):
            async with websockets.connect(url, **options) as socket:
                if message is not None:
                    await socket.send(message)
                with pytest.raises(websockets.ConnectionClosed):
                    while True:
                        await asyncio.wait_for(socket.recv(), LIMIT)
                assert socket.close_code == code
        await until(lambda: len(pair.proxy.agents) == 0)


async def test_an_agent_that_does_not_read_is_congested_and_then_cut_off() -> None:
    hello = b"\x08\x01\x1a\x10" + b"i" * 16 + b"\x20\x01\x28" + b"\x80\x80\x80\x40" + b"\x38\x0a"  # a window of 128 MiB
    async with (
        served(agents=0, proxy={"session": QUICK, "request_timeout": 2.0}) as pair,
        await pair.open(receive_buffer=4096) as agent,
    ):
        await agent.send(request("/ws", lines=[*GET_AGENT, "Sec-WebSocket-Protocol: backstream.v1"]))
        assert (await agent.head()).status == 101
        payload = pack_frame(6, 0, hello)
        await agent.send(bytes([0x82, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
        await until(lambda: pair.proxy.agents.get(ID) is not None)
        link = pair.proxy.agents.get(ID)
        assert link is not None
        async with await pair.open() as wire:
            sending = asyncio.create_task(wire.send(request(method="POST", body=b"x" * 50 * MEBIBYTE)))
            await until(lambda: link.session.congested)
            assert link.bytes_sent < 20 * MEBIBYTE
            assert (await wire.answer()).status == 502
            sending.cancel()
            await asyncio.wait([sending])
        await until(lambda: len(pair.proxy.agents) == 0)


async def test_an_agent_comes_back_when_its_session_is_lost() -> None:
    async with served(ok_app) as pair:
        (agent,) = pair.proxy.agents
        agent.abort("gone")
        await until(lambda: pair.proxy.agents.get(ID) not in (None, agent))
        assert (await pair.get()).status == 200


async def test_a_drain_lets_requests_finish_and_closes_agents() -> None:
    async with served(echo_app) as pair:
        lines: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def body() -> AsyncIterator[bytes]:
            while (line := await lines.get()) is not None:
                yield line

        async with pair.client() as client:
            lines.put_nowait(b"begun")
            asking = asyncio.create_task(client.post("/", content=body()))
            await until(lambda: pair.proxy.connection_count == 1)
            draining = asyncio.create_task(pair.proxy.drain())
            await until(lambda: pair.proxy.agents.draining)
            lines.put_nowait(b" and finished")
            lines.put_nowait(None)
            assert (await asking).content == b"begun and finished"
            await draining
            assert len(pair.proxy.agents) == 0
            assert (await client.get("/")).status_code == 503


# --- what only other ASGI servers do ---


async def exchange(proxy: ProxyApp, scope: dict[str, Any], *events: dict[str, Any]) -> list[dict[str, Any]]:
    """What the application sends for a request of these events, after which the client waits."""
    sent: list[dict[str, Any]] = []
    coming = list(events)
    base = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": "GET",
        "scheme": "https",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "http_version": "2",
        "client": ("192.0.2.1", 1),
        "headers": [(b"host", b"a"), (b"x-backstream-client-id", ID.encode())],
    }

    async def receive() -> Any:
        if coming:
            return coming.pop(0)
        await asyncio.Event().wait()

    async def send(event: Any) -> None:
        sent.append(event)

    async with asyncio.timeout(LIMIT):
        await proxy(base | scope, receive, send)
    return sent


def agent_scope() -> dict[str, Any]:
    return {
        "type": "websocket",
        "asgi": {"version": "3.0"},
        "scheme": "ws",
        "path": "/ws",
        "raw_path": b"/ws",
        "query_string": b"",
        "root_path": "",
        "client": ("192.0.2.1", 1),
        "headers": [(b"x-backstream-client-id", ID.encode())],
        "subprotocols": ["backstream.v1"],
    }


async def test_an_asgi_server_that_does_not_close_an_agents_websocket_is_not_waited_for() -> None:
    coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    closing = asyncio.Event()

    async def send(event: Any) -> None:
        if event["type"] == "websocket.close":
            closing.set()
            await asyncio.Event().wait()

    async with ProxyApp(proxy_settings(session=QUICK)) as proxy:
        coming.put_nowait({"type": "websocket.connect"})
        coming.put_nowait({"type": "websocket.receive", "bytes": b"no frame"})
        async with asyncio.timeout(5):
            await proxy(agent_scope(), coming.get, send)
        assert closing.is_set() and not len(proxy.agents)


@pytest.mark.parametrize("greets", [False, True])
async def test_an_agent_that_does_not_take_the_first_message_is_cut_off_though_it_says_hello(greets: bool) -> None:
    coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    held = asyncio.Event()

    async def send(event: Any) -> None:
        if event["type"] == "websocket.send":
            held.set()
            await asyncio.Event().wait()

    async with ProxyApp(proxy_settings(session=QUICK)) as proxy:
        coming.put_nowait({"type": "websocket.connect"})
        serving = asyncio.create_task(proxy(agent_scope(), coming.get, send))
        async with asyncio.timeout(LIMIT):
            await held.wait()
            (link,) = proxy.agents
            await until(lambda: link.session.congested)
            if greets:
                coming.put_nowait({"type": "websocket.receive", "bytes": greeting(max_streams=1)})
                await until(lambda: proxy.agents.by_id(ID))
            await serving
        assert not len(proxy.agents)


async def test_a_request_of_http_2_has_a_body_when_one_comes() -> None:
    async with served(odd_app) as pair:
        for events, words in (
            ([{"type": "http.request", "body": b"", "more_body": False}], b"POST / 0"),
            ([{"type": "http.request"}], b"POST / 0"),
            ([{"type": "http.request", "body": b"four", "more_body": False}], b"POST / 4"),
            (
                [
                    {"type": "http.request", "body": b"", "more_body": True},
                    {"type": "http.request", "body": b"four", "more_body": True},
                    {"type": "http.request", "body": b"", "more_body": False},
                ],
                b"POST / 4",
            ),
        ):
            start, *bodies = await exchange(pair.proxy, {"method": "POST"}, *events)
            assert start["status"] == 200 and b"".join(event["body"] for event in bodies) == words
            assert [event["more_body"] for event in bodies][-1] is False


async def test_clients_of_http_2_are_served_under_hypercorn() -> None:
    proxy, port, stopped = ProxyApp(proxy_settings()), free_port(), asyncio.Event()
    config = hypercorn.config.Config()
    config.bind, config.errorlog = [f"127.0.0.1:{port}"], None
    serving = asyncio.create_task(hypercorn.asyncio.serve(proxy, config, shutdown_trigger=stopped.wait))
    pair = Served(proxy, port, "")
    await pair.agent(odd_app)
    async with pair.client(http1=False, http2=True) as client:
        got = await asyncio.gather(client.get("/"), client.post("/", content=b"four"), client.get("/chunked"))
        assert [(each.http_version, each.text) for each in got] == [
            ("HTTP/2", "GET / 0"),
            ("HTTP/2", "POST / 4"),
            ("HTTP/2", "in pieces"),
        ]
    await pair.settled()
    await pair.agents[0].close()
    stopped.set()
    async with asyncio.timeout(LIMIT):
        await serving


async def test_what_would_end_a_line_of_the_head_is_refused() -> None:
    id_field = (b"x-backstream-client-id", ID.encode())
    async with served(ok_app) as pair:
        for scope in (
            {"headers": [(b"host", b"a"), id_field, (b"a", b"b\r\nc: d")]},
            {"headers": [(b"host", b"a"), id_field, (b"a: b\r\nc", b"d")]},
            {"headers": [(b"host", b"a"), id_field, (b"a", b"b\nc: d")]},
            {"headers": [(b"host", b"a"), id_field, (b"a:b", b"c")]},
            {"raw_path": b"/ HTTP/1.1\r\na: b"},
            {"raw_path": b"/a b"},
            {"query_string": b"a\r\nb: c"},
            {"method": "GET / HTTP/1.1\r\na: b\r\n\r\nGET"},
        ):
            start, *_ = await exchange(pair.proxy, {"http_version": "1.1"} | scope)
            assert start["status"] == 400, scope
        assert next(iter(pair.proxy.agents)).served == 0


async def test_trailers_are_sent_where_the_asgi_server_takes_them() -> None:
    @http_only
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"ok"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"42"), (b"host", b"b")]})

    headers = [(b"host", b"a"), (b"x-backstream-client-id", ID.encode()), (b"te", b"trailers")]
    async with served(app) as pair:
        for extensions, trailers in (({"http.response.trailers": {}}, True), ({}, False), (None, False)):
            start, *rest = await exchange(
                pair.proxy, {"extensions": extensions, "headers": headers}, {"type": "http.request"}
            )
            assert start.get("trailers", False) is trailers
            assert (
                [e["headers"] for e in rest if e["type"] == "http.response.trailers"] == [[(b"x-sum", b"42")]]
            ) == trailers


async def test_other_scopes_and_loops_are_not_served() -> None:
    proxy = ProxyApp()
    with pytest.raises(NotImplementedError):
        await proxy({"type": "other"}, None, None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="one event loop"):
        await asyncio.to_thread(asyncio.run, proxy({"type": "http"}, None, None))  # type: ignore[arg-type]
    await proxy.close()


async def test_a_body_that_is_refused_is_logged_with_its_agents_session(caplog) -> None:
    caplog.set_level(logging.INFO, "backstream.access")
    async with served(http_only(hold), proxy={"access_log": True, "max_body_size": 1000}) as pair:
        async with await pair.open() as wire:
            await wire.send(request("/up", method="POST", lines=["Transfer-Encoding: chunked"]))
            await until(lambda: any(link.stream_count for link in pair.proxy.agents), "the request runs")
            await wire.send(b"7d0\r\n" + bytes(2000) + b"\r\n")
            assert (await wire.answer()).status == 413
        (session,) = {link.session_name for link in pair.agents[0].sessions}
    (record,) = (record for record in caplog.records if record.name == "backstream.access")
    assert (record.status, record.id, record.session, record.stream) == (413, ID, session, 1)


async def hold(scope, receive, send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_a_proxy_that_does_not_listen_says_so_where_it_is_asked_for_its_address() -> None:
    for proxy in (ProxyApp(proxy_settings()), backstream.Proxy(proxy_settings(listen="192.0.2.1:1"))):
        with contextlib.suppress(OSError):
            await proxy.start()
        for ask in (lambda proxy=proxy: proxy.address, lambda proxy=proxy: proxy.agent_address):
            with pytest.raises(RuntimeError, match="there is no address before"):
                ask()
        await proxy.close()
