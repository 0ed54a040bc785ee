"""A service that is one function: `Agent(settings, function=...)`."""

from __future__ import annotations

import asyncio

import pytest

import backstream
from backstream.errors import ErrorCode
from backstream.functions import ClientDisconnected, Request, Response
from tests.rig import ID, LIMIT, Echo, Leaks, Tunnel, chunked, make_agent, request, tunnel, until


class Serve:
    """A tunnel whose agent serves a function."""

    def __init__(self, function, **settings):
        self.function = function
        self.settings = settings

    async def __aenter__(self) -> Tunnel:
        self.context = tunnel(agents=0, proxy={"request_timeout": LIMIT})
        pair = await self.context.__aenter__()
        settings = backstream.AgentSettings(
            proxy_url="ws://{}:{}/ws".format(*pair.address), client_id=ID, **self.settings
        )
        self.agent = backstream.Agent(settings, function=self.function)
        pair.agents.append(self.agent)
        await self.agent.start()
        await self.agent.wait_connected()
        await pair.connected()
        return pair

    async def __aexit__(self, *error):
        await self.context.__aexit__(*error)


async def test_a_function_gets_a_request_and_returns_a_response() -> None:
    seen: list[Request] = []

    async def serve(request: Request) -> Response:
        seen.append(request)
        return Response(b"hello", status=201, headers={"Content-Type": "text/plain"})

    async with Serve(serve, root_path="/shop") as pair, await pair.open() as wire:
        await wire.send(request("/caf%C3%A9?q=a%20b", method="POST", lines=["X-A: 1", "X-A: 2"], body=b"body"))
        got = await wire.answer()
        assert (got.status, got.get("content-type"), got.get("content-length")) == (201, b"text/plain", b"5")
        assert got.body == b"hello"
        (made,) = seen
        assert (made.method, made.path, made.raw_path) == ("POST", "/shop/café", b"/shop/caf%C3%A9")
        assert made.query == "q=a%20b"
        assert made.headers["x-A"] == "1, 2" and made.headers.get_all("X-a") == ["1", "2"]
        assert made.headers.get("absent") is None and "HOST" in made.headers and made.headers["content-length"] == "4"
        assert len(made.headers) == len(list(made.headers)) and "x-a" in list(made.headers)
        assert made.client == wire.sock.getsockname()
        assert made.time_left is not None and 0 < made.time_left <= LIMIT
        assert repr(made) == "<Request POST /shop/café>"


async def test_the_body_is_read_whole_or_in_pieces() -> None:
    async def serve(request: Request) -> Response:
        if request.path == "/whole":
            body = await request.body()
            assert await request.body() == b""
            return Response(b"%d" % len(body))
        total = 0
        async for piece in request:
            total += len(piece)
        return Response(b"%d" % total)

    async with Serve(serve) as pair:
        for path in ("/whole", "/pieces"):
            for body in (None, b"", b"x" * 1_000_000):
                got = await pair.get(path, method="POST" if body is not None else "GET", body=body)
                assert got.body == b"%d" % len(body or b"")


async def test_a_body_that_is_too_large_is_413_or_what_the_function_says() -> None:
    async def serve(request: Request) -> Response:
        try:
            return Response(await request.body(max_size=10))
        except backstream.StreamError as error:
            assert error.code == ErrorCode.TOO_LARGE
            if request.path == "/own":
                return Response(b"own", status=422)
            raise

    async with Serve(serve) as pair:
        assert (await pair.get(method="POST", body=b"x" * 10)).body == b"x" * 10
        got = await pair.get(method="POST", body=b"x" * 11)
        assert (got.status, got.body) == (413, b"the request's body is larger than 10 bytes\n")
        assert (await pair.get("/own", method="POST", body=b"x" * 11)).status == 422


async def test_a_response_streams_while_the_request_does() -> None:
    async def serve(request: Request) -> Response:
        return Response(aiter(request))

    async with Serve(serve) as pair, await pair.open() as wire:
        running = await Echo.begin(wire)
        for _ in range(5):
            await running.goes_on()
        await running.finish()


async def test_headers_may_come_more_than_once() -> None:
    async def serve(request: Request) -> Response:
        return Response(headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])

    async with Serve(serve) as pair:
        got = await pair.get()
        assert (got.status, got.body, got.all("set-cookie")) == (200, b"", [b"a=1", b"b=2"])


class Endless:
    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self.made = 0

    def __aiter__(self):
        return self

    async def __anext__(self) -> bytes:
        self.made += 1
        return b"x" * 10_000

    async def aclose(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_an_endless_response_is_closed_with_its_client(method) -> None:
    body = Endless()

    async def serve(request: Request) -> Response:
        return Response(body)

    async with Serve(serve) as pair:
        await pair.settled()
        leaks = Leaks()
        async with await pair.open() as wire:
            await wire.send(request(method=method))
            if method == "GET":
                await wire.until(b"xxx")
                wire.close()
            else:
                assert (await wire.answer("HEAD")).status == 200
        await asyncio.wait_for(body.closed.wait(), LIMIT)
        assert method == "GET" or body.made == 0
        await leaks.none()


async def test_reading_raises_when_the_client_leaves() -> None:
    raised = asyncio.Event()

    async def serve(request: Request) -> Response:
        try:
            await request.body()
        except ClientDisconnected:
            raised.set()
            raise
        return Response()

    async with Serve(serve) as pair:
        async with await pair.open() as wire:
            await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"half", end=False))
            await until(lambda: pair.agents[0].requests == 1)
        await asyncio.wait_for(raised.wait(), LIMIT)


async def failing(request: Request) -> Response:
    raise LookupError("on purpose")


async def returning(request: Request):
    return "text"


async def promising(request: Request) -> Response:
    return Response("text")  # type: ignore[arg-type]


async def refusing(request: Request) -> Response:
    return Response(status=99)


@pytest.mark.parametrize("function", [failing, returning, promising, refusing])
async def test_a_function_that_fails_is_a_logged_500(function, caplog) -> None:
    async with Serve(function) as pair:
        assert (await pair.get()).status == 500
    (record,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert record.exc_info is not None


async def test_a_function_is_an_application_too_and_nothing_goes_with_it() -> None:
    async def serve(request: Request) -> Response:
        return Response(b"ok")

    async with tunnel(serve) as pair:
        assert (await pair.get()).body == b"ok"
    settings = backstream.AgentSettings(client_id=ID)
    with pytest.raises(backstream.ConfigurationError, match="exactly one thing"):
        backstream.Agent(settings, app=serve, function=serve)
    assert make_agent("ws://127.0.0.1:1/ws", serve) is not None
