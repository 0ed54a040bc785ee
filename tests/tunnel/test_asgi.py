"""The agent as an ASGI 3 server: scope, events, errors, lifespan."""

from __future__ import annotations

import asyncio
import enum
from http import HTTPStatus
from types import MappingProxyType

import pytest

import backstream
from backstream._asgi import AsgiService
from tests.rig import (
    LIMIT,
    Message,
    answer,
    begin,
    chunked,
    end,
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

ADDED = (b"host", b"x-backstream-client-id", b"via", b"forwarded", b"x-request-id")
"""Fields that the requests here have beside those that a test gives them."""


class Capture:
    """Keeps the scope of every request."""

    def __init__(self) -> None:
        self.scopes: list[dict] = []

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        self.scopes.append(scope)
        await answer(send)


async def scope_of(data: bytes) -> dict:
    """The scope that a request's bytes become."""
    app = Capture()
    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(data)
        assert (await wire.answer()).status == 200
    (scope,) = app.scopes
    return scope


# --- scope ---


async def test_the_scope_is_the_one_that_asgi_names() -> None:
    app = Capture()
    async with tunnel(app) as pair, await pair.open() as wire:
        address = wire.sock.getsockname()
        await wire.send(request("/a/b?c=d"))
        await wire.answer()
    (scope,) = app.scopes
    assert [name for name, _ in scope["headers"][2:]] == [b"via", b"forwarded", b"x-request-id"]
    assert scope.pop("headers")[:2] == [(b"host", b"service.example"), (b"x-backstream-client-id", b"svc")]
    assert scope.pop("asgi")["version"] == "3.0"
    assert scope == {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a/b",
        "raw_path": b"/a/b",
        "query_string": b"c=d",
        "root_path": "",
        "client": address,
        "server": ("service.example", 80),
        "state": {},
        "extensions": {"backstream": {"time_left": pair.proxy.settings.request_timeout}},
    }


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        ("/", "/", b"/", b""),
        ("/?", "/", b"/", b""),
        ("//a//", "//a//", b"//a//", b""),
        ("/a%20b/%E2%82%AC", "/a b/€", b"/a%20b/%E2%82%AC", b""),
        ("/a%2Fb%3fc", "/a/b?c", b"/a%2Fb%3fc", b""),
        ("/../x/./y", "/../x/./y", b"/../x/./y", b""),
        ("/%", "/%", b"/%", b""),
        ("/%ff", "/\ufffd", b"/%ff", b""),
        ("/a?b=%20&c=d?e", "/a", b"/a", b"b=%20&c=d?e"),
        ("/a?q=%E2%82%AC+1", "/a", b"/a", b"q=%E2%82%AC+1"),
        ("http://other.example/p?q", "/p", b"/p", b"q"),
    ],
)
async def test_path_is_decoded_and_raw_path_and_query_are_as_sent(target, path, raw_path, query) -> None:
    scope = await scope_of(request(target))
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (path, raw_path, query)


async def test_repeated_headers_keep_their_number_order_and_bytes() -> None:
    lines = ["X-A: 1", "Cookie: a=b", "x-a: 2", "X-B:   caf\xe9 \t", "cookie: c=d", "X-A:", "x-a: 1"]
    scope = await scope_of(request(lines=lines))
    assert [pair for pair in scope["headers"] if pair[0] not in ADDED] == [
        (b"x-a", b"1"),
        (b"cookie", b"a=b"),
        (b"x-a", b"2"),
        (b"x-b", b"caf\xe9"),
        (b"cookie", b"c=d"),
        (b"x-a", b""),
        (b"x-a", b"1"),
    ]


async def test_http_1_0_is_named_as_such() -> None:
    assert (await scope_of(request(version="1.0")))["http_version"] == "1.0"


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PROPFIND", "M-SEARCH", "QUERY"])
async def test_methods_are_passed_as_they_are(method: str) -> None:
    assert (await scope_of(request(method=method)))["method"] == method


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (request(method="POST", body=b"12345"), [(b"content-length", b"5")]),
        (request(method="POST", body=b""), [(b"content-length", b"0")]),
        (
            request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"12345"),
            [(b"transfer-encoding", b"chunked")],
        ),
        (request(method="POST"), []),
    ],
)
async def test_the_bodys_framing_is_among_the_headers(body: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    scope = await scope_of(body)
    framing = (b"content-length", b"transfer-encoding")
    assert [pair for pair in scope["headers"] if pair[0] in framing] == fields


@pytest.mark.parametrize(
    ("host", "server"),
    [
        ("service.example:8443", ("service.example", 8443)),
        ("[::1]:9000", ("::1", 9000)),
        ("[::1]", ("::1", 80)),
        ("", None),
    ],
)
async def test_the_server_is_what_host_says(host: str, server) -> None:
    data = request().replace(b"Host: service.example", f"Host: {host}".encode())
    assert (await scope_of(data))["server"] == server


async def test_root_path_stands_before_the_path() -> None:
    app = Capture()

    class Mounted(backstream.Agent):
        def _make_service(self):
            return AsgiService(app, root_path="/mount/")

    async with tunnel(agents=0) as pair, make_agent(pair.proxy, app, kind=Mounted):
        await pair.connected()
        assert (await pair.get("/a%20b?c")).status == 200
    (scope,) = app.scopes
    assert scope["root_path"] == "/mount"
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == ("/mount/a b", b"/mount/a%20b", b"c")


async def test_requests_in_turn_each_have_the_scope_of_their_own_host_and_version() -> None:
    app = Capture()
    first, second, third = "Host: one.example:81", "Host: two.example", "Host:"
    async with tunnel(app) as pair, await pair.open() as wire:
        for host in (first, second, first, first, third, second):
            await wire.send(request().replace(b"Host: service.example", host.encode()))
            assert (await wire.answer()).status == 200
        await wire.send(request().replace(b"HTTP/1.1", b"HTTP/1.0"))
        await wire.answer()
    assert [(scope["http_version"], scope["server"], dict(scope["headers"]).get(b"host")) for scope in app.scopes] == [
        ("1.1", ("one.example", 81), b"one.example:81"),
        ("1.1", ("two.example", 80), b"two.example"),
        ("1.1", ("one.example", 81), b"one.example:81"),
        ("1.1", ("one.example", 81), b"one.example:81"),
        ("1.1", None, None),
        ("1.1", ("two.example", 80), b"two.example"),
        ("1.0", ("service.example", 80), b"service.example"),
    ]


async def test_a_scope_belongs_to_its_request_alone() -> None:
    seen = []

    @http_only
    async def app(scope, receive, send):
        seen.append((scope.get("mine"), scope["headers"].count((b"x-mine", b"1")), dict(scope["state"])))
        scope["mine"] = scope["state"]["mine"] = True
        scope["headers"].append((b"x-mine", b"1"))
        await answer(send)

    async with tunnel(app) as pair, await pair.open() as wire:
        for _ in range(2):
            assert (await wire.get()).status == 200
    assert seen == [(None, 0, {})] * 2


# --- lifespan ---


class Lifespan:
    """An application that goes through its life as `startup` and `shutdown` say."""

    def __init__(self, startup="complete", shutdown="complete") -> None:
        self.startup = startup
        self.shutdown = shutdown
        self.seen: list[str] = []

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            self.seen.append(f"http {scope['state'].get('shared')}")
            scope["state"]["shared"] = "changed"
            await answer(send)
            return
        assert scope["type"] == "lifespan" and scope["asgi"]["version"] == "3.0"
        scope["state"]["shared"] = "pool"
        for phase, verdict in (("startup", self.startup), ("shutdown", self.shutdown)):
            event = await receive()
            assert event == {"type": f"lifespan.{phase}"}
            self.seen.append(phase)
            if isinstance(verdict, Exception):
                raise verdict
            if verdict == "failed":
                await send({"type": f"lifespan.{phase}.failed", "message": "in so many words"})
                return
            await send({"type": f"lifespan.{phase}.complete"})


async def test_lifespan_runs_around_everything_and_its_state_reaches_each_request() -> None:
    app = Lifespan()
    async with tunnel(app) as pair:
        assert app.seen == ["startup"]
        for _ in range(2):
            assert (await pair.get()).status == 200
        # What a request puts into its state, the next one does not see.
        assert app.seen == ["startup", "http pool", "http pool"]
    assert app.seen[-1] == "shutdown"


async def test_an_application_without_lifespan_is_served() -> None:
    async def app(scope, receive, send):
        assert scope["type"] == "http", "lifespan is not known here"
        await answer(send)

    async with tunnel(app) as pair:
        assert (await pair.get()).status == 200


async def test_a_start_up_that_fails_ends_the_start_in_one_error() -> None:
    async with tunnel(agents=0) as pair:
        agent = make_agent(pair.proxy, Lifespan(startup="failed"))
        with pytest.raises(backstream.ConfigurationError, match="failed to start: in so many words"):
            await agent.start()
        await agent.close()
        assert len(pair.proxy.agents) == 0


async def test_a_start_up_that_fails_is_no_failing_shutdown(caplog) -> None:
    async def app(scope, receive, send):
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})
        raise RuntimeError("no database")  # as Starlette does

    async with tunnel(agents=0) as pair:
        agent = make_agent(pair.proxy, app)
        with pytest.raises(backstream.ConfigurationError, match="failed to start: no database"):
            await agent.start()
        await agent.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_application_that_never_says_that_it_started_is_served_once_it_returns() -> None:
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            return
        await answer(send)

    async with tunnel(app) as pair:
        assert (await pair.get()).status == 200


@pytest.mark.parametrize("verdict", ["failed", RuntimeError("on purpose")])
async def test_a_shutdown_that_fails_is_logged_and_ends_all_the_same(verdict, caplog) -> None:
    async with tunnel(Lifespan(shutdown=verdict)) as pair:
        assert (await pair.get()).status == 200
    assert "the application's shutdown failed" in caplog.text


async def test_an_agent_that_stops_cancels_what_still_runs() -> None:
    cancelled = asyncio.Event()
    entered = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        try:
            entered.set()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with tunnel(app, proxy={"agent_wait": 0.0}) as pair, await pair.open() as wire:
        await wire.send(request())
        await asyncio.wait_for(entered.wait(), LIMIT)
        await pair.agents[0].close()
        assert cancelled.is_set()
        assert (await wire.answer()).status == 503


# --- what an application may do wrong ---


@http_only
async def erring_app(scope, receive, send):
    path = scope["path"]
    if path == "/raise":
        raise RuntimeError("before the head")
    if path == "/return":
        return
    if path == "/raise-after-start":
        await begin(send)
        raise RuntimeError("after http.response.start, before it left")
    if path == "/raise-after-head":
        await begin(send)
        await more(send, b"begun")
        raise RuntimeError("after the head")
    if path == "/return-after-head":
        await begin(send)
        await more(send, b"begun")
        return
    if path == "/raise-after-all":
        await answer(send, b"whole")
        raise RuntimeError("after the response")
    if path == "/body-first":
        await end(send, b"no head")
    if path == "/two-starts":
        await begin(send)
        await begin(send)
    if path == "/unknown":
        await send({"type": "http.response.unheard-of"})
    if path == "/status":
        await answer(send, status=99)
    if path == "/interim":
        await answer(send, status=101)
    if path == "/name":
        await answer(send, headers=[(b"x y", b"1")])
    if path == "/value":
        await answer(send, headers=[(b"x-a", b"1\r\nx-b: 2")])
    if path == "/text":
        await answer(send, headers=[("x-a", "1")])
    if path == "/lengths":
        await answer(send, headers=[(b"content-length", b"2"), (b"content-length", b"3")])
    if path == "/no-length":
        await answer(send, headers=[(b"content-length", b"two")])
    if path == "/huge-head":
        await answer(send, headers=[(b"x-%d" % i, b"v" * 60_000) for i in range(3)])
    if path == "/too-long":
        await begin(send, [(b"content-length", b"2")])
        await end(send, b"three")
    if path == "/too-short":
        await begin(send, [(b"content-length", b"10")])
        await end(send, b"three")
    if path == "/after-end":
        await answer(send, b"whole")
        await end(send, b"and more")
    if path == "/":
        await answer(send)


BEFORE_THE_HEAD = (
    "/raise",
    "/return",
    "/raise-after-start",
    "/body-first",
    "/two-starts",
    "/unknown",
    "/status",
    "/interim",
    "/name",
    "/value",
    "/text",
    "/lengths",
    "/no-length",
)


@pytest.mark.parametrize("path", BEFORE_THE_HEAD)
async def test_an_error_before_the_head_is_500_and_logged(path: str, caplog) -> None:
    async with tunnel(erring_app) as pair, await pair.open() as wire:
        got = await wire.get(path)
        assert got.status == 500 and got.body == b"Internal Server Error\n"
        # Neither the session nor the client's connection suffers.
        assert (await wire.get()).status == 200
        assert len(pair.proxy.agents) == 1
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert path in record.getMessage()
    if path != "/return":
        assert record.exc_info


async def test_a_head_that_is_too_large_is_502_and_logged(caplog) -> None:
    async with tunnel(erring_app) as pair, await pair.open() as wire:
        got = await wire.get("/huge-head")
        assert got.status == 502 and b"error=http_response_header_section_size" in got.get("proxy-status")
        assert (await wire.get()).status == 200
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "/huge-head" in record.getMessage()


@pytest.mark.parametrize("path", ["/raise-after-head", "/return-after-head", "/too-long", "/too-short"])
async def test_an_error_after_the_head_is_a_visible_cut_and_logged(path: str, caplog) -> None:
    async with tunnel(erring_app) as pair, await pair.open() as wire:
        got = await wire.get(path)
        assert got.status == 200 and not got.complete
        assert await wire.rest() == (b"", "fin")
        assert (await pair.get()).status == 200
        assert len(pair.proxy.agents) == 1
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert path in record.getMessage()


@pytest.mark.parametrize("path", ["/raise-after-all", "/after-end"])
async def test_an_error_after_the_response_changes_nothing_for_the_client(path: str, caplog) -> None:
    async with tunnel(erring_app) as pair, await pair.open() as wire:
        got = await wire.get(path)
        assert got.status == 200 and got.body == b"whole" and got.complete
        assert (await wire.get()).status == 200
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert path in record.getMessage() and record.exc_info


async def test_an_error_leaves_the_applications_other_requests_alone() -> None:
    go_on = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/steady":
            await begin(send)
            await more(send, b"begun")
            await go_on.wait()
            await end(send, b"ended")
        else:
            raise RuntimeError("on purpose")

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request("/steady"))
        await wire.until(b"begun\r\n")
        for _ in range(20):
            assert (await pair.get()).status == 500
        go_on.set()
        assert await wire.chunk() == b"ended" and await wire.chunk() == b""


class Own(BaseException):
    pass


ENDS = {
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "GeneratorExit": GeneratorExit(),
    "one of its own": Own(),
    "a group": BaseExceptionGroup("two", [Own(), asyncio.CancelledError()]),
}


@pytest.mark.parametrize("kind", ENDS)
async def test_what_would_end_a_program_ends_the_request_alone(kind: str, caplog) -> None:
    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/":
            await answer(send)
            return
        if scope["path"] == "/begun":
            await begin(send)
            await more(send, b"begun")
        raise ENDS[kind]

    async with tunnel(app) as pair:
        got = await pair.get("/raise")
        assert got.status == 500 and got.body == b"Internal Server Error\n"
        got = await pair.get("/begun")
        assert (got.status, got.complete) == (200, False)
        assert (await pair.get("/")).status == 200
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert ["/raise" in errors[0].getMessage(), "/begun" in errors[1].getMessage(), len(errors)] == [True, True, 2]
    assert all(record.exc_info for record in errors)


@pytest.mark.parametrize("change", ["no headers", "headers of another kind", "no path", "nothing"])
async def test_an_application_that_changed_its_scope_may_fail_like_any_other(change: str, caplog) -> None:
    @http_only
    async def app(scope, receive, send):
        begun = scope["path"] == "/begun"
        if change == "no headers":
            scope["headers"] = None
        elif change == "headers of another kind":
            scope["headers"] = {"x-request-id": "1"}
        elif change == "no path":
            del scope["path"]
        else:
            scope.clear()
        if begun:
            await begin(send)
            await more(send, b"begun")
        raise RuntimeError("on purpose")

    async with tunnel(app) as pair:
        assert (await pair.get("/raise")).status == 500
        got = await pair.get("/begun")
        assert (got.status, got.complete) == (200, False)
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [record.getMessage().partition(":")[0] for record in errors] == ["the application failed"] * 2
    assert all(record.exc_info for record in errors)


async def test_a_cancelled_application_is_a_502() -> None:
    @http_only
    async def app(scope, receive, send):
        asyncio.current_task().cancel()
        await asyncio.sleep(0)

    async with tunnel(app) as pair, await pair.open() as wire:
        got = await wire.get()
        assert got.status == 502 and b"leg=service" in got.get("proxy-status")
        assert (await wire.get()).status == 502


# --- events ---


async def test_receive_says_disconnect_after_the_response_is_complete() -> None:
    events = asyncio.Queue()

    @http_only
    async def app(scope, receive, send):
        await answer(send, await read_body(receive))
        events.put_nowait((await receive())["type"])

    async with tunnel(app) as pair:
        assert (await pair.get(method="POST", body=b"echo")).body == b"echo"
        assert await asyncio.wait_for(events.get(), LIMIT) == "http.disconnect"


async def test_receive_waits_for_the_clients_end_once_the_body_is_read() -> None:
    states: list[str] = []
    gone = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        assert await read_body(receive) == b"body"
        task = asyncio.ensure_future(receive())
        await asyncio.sleep(0)
        states.append("waits" if not task.done() else "returned")
        await begin(send)
        await more(send, b"begun")
        states.append((await task)["type"])
        gone.set()

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", body=b"body"))
        await wire.until(b"begun")
        assert states == ["waits"]
        wire.close()
        await asyncio.wait_for(gone.wait(), LIMIT)
    assert states == ["waits", "http.disconnect"]


BODILESS = [("HEAD", 200), ("GET", 204), ("GET", 304)]


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"5000")]])
@pytest.mark.parametrize(("method", "status"), BODILESS)
async def test_a_response_without_a_body_is_complete_with_its_head(method: str, status: int, headers) -> None:
    go_on, went_on = asyncio.Event(), asyncio.Event()
    events: list[str] = []

    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/":
            await answer(send)
            return
        await begin(send, headers, status)
        await more(send, b"one")
        await go_on.wait()
        events.extend([(await receive())["type"] for _ in range(2)])
        await more(send, b"two")
        await end(send, b"three")
        # What frameworks run in the background of a response.
        await asyncio.sleep(0)
        went_on.set()

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request("/slow", method=method))
        assert (await wire.answer(method)).status == status
        assert (await wire.get()).body == b"ok"
        # The client has all, but the work goes on.
        assert pair.counts()["accepted"] == 1
        go_on.set()
        await asyncio.wait_for(went_on.wait(), LIMIT)
    assert events == ["http.request", "http.disconnect"]


@pytest.mark.parametrize(
    ("method", "status", "size", "pause"),
    [("HEAD", 200, 65536, 0), ("GET", 204, 65536, 0), ("GET", 304, 65536, 0), ("HEAD", 200, 1, 0.05)],
)
async def test_a_body_without_end_that_the_response_does_not_have_holds_nobody_up(
    method: str, status: int, size: int, pause: float
) -> None:
    ended = asyncio.Event()
    sent = 0

    @http_only
    async def app(scope, receive, send):
        nonlocal sent
        if scope["path"] == "/":
            await answer(send)
            return
        await begin(send, status=status)
        try:
            while sent < 100_000:
                await more(send, b"x" * size)
                sent += 1
                if pause:
                    await asyncio.sleep(pause)
        except OSError:
            ended.set()
            raise

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request("/endless", method=method))
        assert (await wire.answer(method)).status == status
        assert (await wire.get()).body == b"ok"
        # It is told as if its client had gone, after a MiB or 5 s.
        await asyncio.wait_for(ended.wait(), LIMIT)
        assert sent <= (100 if pause else 16)


@pytest.mark.parametrize("path", ["/raise", "/return", "/cancel", "/trailers"])
@pytest.mark.parametrize(("method", "status"), BODILESS)
async def test_an_error_behind_a_head_that_is_all_of_the_response_is_only_logged(
    method: str, status: int, path: str, caplog
) -> None:
    go_on = asyncio.Event()

    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/":
            await answer(send)
            return
        start = {"type": "http.response.start", "status": status, "headers": []}
        await send(start | {"trailers": path == "/trailers"})
        await more(send, b"begun")
        await go_on.wait()
        if path == "/raise":
            raise RuntimeError("on purpose")
        if path == "/cancel":
            asyncio.current_task().cancel()
            await asyncio.sleep(0)
        if path == "/trailers":
            await end(send)
            await send({"type": "http.response.trailers", "headers": [(b"x y", b"1")]})

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request(path, method=method))
        assert (await wire.answer(method)).status == status
        assert (await wire.get()).status == 200
        go_on.set()
        await pair.settled()
        assert (await wire.get()).status == 200
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert [path in message for message in errors] == ([True] if path == "/raise" else [])


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("POST", 204), ("POST", 304)])
async def test_a_request_comes_whole_behind_a_head_that_is_all_of_the_response(method: str, status: int) -> None:
    received = asyncio.Event()
    bodies: list[bytes | None] = []
    events: list[str] = []

    @http_only
    async def app(scope, receive, send):
        if scope["path"] == "/":
            await answer(send)
            return
        await begin(send, status=status)
        await more(send, b"begun")
        bodies.append(await read_body(receive))
        events.append((await receive())["type"])
        received.set()

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request("/upload", method=method, lines=["Content-Length: 10"]) + b"hello")
        assert (await wire.head()).status == status
        await wire.send(b"world")
        await asyncio.wait_for(received.wait(), LIMIT)
        await pair.settled()
    assert (bodies, events) == ([b"helloworld"], ["http.disconnect"])


async def test_a_response_is_the_one_that_was_sent_whatever_becomes_of_its_messages() -> None:
    @http_only
    async def app(scope, receive, send):
        headers = [(b"x-a", b"1")]
        start = {"type": "http.response.start", "status": 200, "headers": headers}
        await send(start)
        headers[0] = (b"x-a", b"2")
        headers.append((b"x-late", b"1"))
        start["status"] = 500
        start["headers"] = None
        if scope["path"] == "/later":
            await asyncio.sleep(0.01)
        await end(send, b"ok")

    async with tunnel(app) as pair:
        for path in ("/at-once", "/later"):
            got = await pair.get(path)
            assert (got.status, got.body, got.get("x-a"), got.get("x-late")) == (200, b"ok", b"1", None)


@pytest.mark.parametrize("body", [5, True, [1, 2], "text", None, 0])
async def test_a_body_that_is_no_bytes_is_the_applications_error(body, caplog) -> None:
    @http_only
    async def app(scope, receive, send):
        await begin(send)
        await end(send, body)

    async with tunnel(app) as pair:
        assert (await pair.get()).status == 500
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.exc_info[0] is TypeError


class Kind(str, enum.Enum):  # noqa: UP042  whose str() is not its value
    START = "http.response.start"
    BODY = "http.response.body"


class Text(bytes):
    pass


async def test_strings_and_bytes_may_be_of_types_derived_from_them() -> None:
    @http_only
    async def app(scope, receive, send):
        headers = [(Text(b"X-Upper"), Text(b"1")), (b"x-lower", Text(b"2 ")), (Text(b"content-length"), b"3")]
        if scope["path"] == "/held":
            del headers[2]
        await send({"type": Kind.START, "status": HTTPStatus.ACCEPTED, "headers": headers})
        await send(MappingProxyType({"type": Kind.BODY, "body": Text(b"two")}))

    async with tunnel(app) as pair:
        for path in ("/", "/held"):
            got = await pair.get(path)
            assert (got.status, got.body, got.get("content-length")) == (202, b"two", b"3")
            assert (got.get("x-upper"), got.get("x-lower")) == (b"1", b"2")


async def test_bodies_may_be_bytearrays_and_memoryviews_and_headers_any_iterable() -> None:
    @http_only
    async def app(scope, receive, send):
        headers = ((name, b"1") for name in (b"X-Upper", b"x-lower"))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytearray(b"one "), "more_body": True})
        await send({"type": "http.response.body", "body": memoryview(b"two"), "more_body": False})

    async with tunnel(app) as pair:
        got = await pair.get()
        assert got.body == b"one two" and got.get("x-upper") == b"1" and got.get("x-lower") == b"1"


async def test_responses_without_headers_or_body_keys_are_complete() -> None:
    @http_only
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 202})
        await send({"type": "http.response.body"})

    async with tunnel(app) as pair:
        got: Message = await pair.get()
        assert got.status == 202 and got.get("content-length") == b"0"


async def test_repeated_response_headers_keep_their_order_and_hop_by_hop_ones_do_not_travel() -> None:
    @http_only
    async def app(scope, receive, send):
        headers = [
            (b"Set-Cookie", b"a=1"),
            (b"connection", b"keep-alive, X-B"),
            (b"te", b"trailers"),
            (b"x-a", b"1"),
            (b"x-b", b"2"),
            (b"transfer-encoding", b"chunked"),
            (b"set-cookie", b"b=2"),
            (b"keep-alive", b"timeout=5"),
        ]
        await answer(send, headers=headers)

    async with tunnel(app) as pair:
        got = await pair.get()
        assert got.all("set-cookie") == [b"a=1", b"b=2"] and got.get("x-a") == b"1"
        assert [got.get(name) for name in ("connection", "keep-alive", "te", "x-b")] == [None] * 4
        assert got.get("transfer-encoding") is None and got.get("content-length") == b"2"


async def test_send_waits_for_room_and_goes_on_with_it() -> None:
    """Exact back-pressure: the application's lead is the window, the stage and what the sockets hold."""
    sent = 0
    settings = backstream.SessionSettings(initial_window=16384, max_window=16384)

    @http_only
    async def app(scope, receive, send):
        nonlocal sent
        await begin(send)
        while sent < 4 << 20:
            await more(send, b"c" * 4096)
            sent += 4096
        await end(send)

    async with (
        tunnel(app, proxy={"session": settings}, session=settings) as pair,
        await pair.open(receive_buffer=4096) as wire,
    ):
        await wire.send(request())
        await wire.head()
        read = 0
        leads = []
        while piece := await wire.chunk():
            read += len(piece)
            leads.append(sent - read)
        assert read == sent == 4 << 20
        # The kernel's buffers between the proxy and the client can't be known; the application never ran to its end.
        assert max(leads) < 3.5 * (1 << 20)


async def test_receive_gives_what_came_and_waits_for_more() -> None:
    """Bytes that the application has not taken are not granted again, so the client cannot run ahead by more."""
    settings = backstream.SessionSettings(initial_window=16384, max_window=16384)
    go_on = asyncio.Event()
    entered = asyncio.Event()
    sizes: list[int] = []

    @http_only
    async def app(scope, receive, send):
        entered.set()
        await go_on.wait()
        while True:
            event = await receive()
            sizes.append(len(event["body"]))
            if not event["more_body"]:
                break
        await answer(send)

    async with tunnel(app, proxy={"session": settings}, session=settings) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Content-Length: 100000"]))
        await asyncio.wait_for(entered.wait(), LIMIT)
        await wire.send(b"u" * 100_000)
        session = pair.agents[0].sessions[0].session
        await until(lambda: session.stream_count == 1)
        go_on.set()
        assert (await wire.answer()).status == 200
    assert sum(sizes) == 100_000 and max(sizes) <= 16384


# --- the proxy beside it ---


async def test_many_agents_serve_one_application_each_with_its_own_lifespan() -> None:
    apps = [Lifespan() for _ in range(3)]
    async with backstream.Proxy(proxy_settings()) as proxy:
        agents = [make_agent(proxy, app, client_id=str(i)) for i, app in enumerate(apps)]
        for agent in agents:
            await agent.start()
            await agent.wait_connected()
        for agent in agents:
            await agent.close()
    assert [app.seen for app in apps] == [["startup", "shutdown"]] * 3


async def test_an_app_or_an_upstream_or_a_handler_but_exactly_one() -> None:
    settings = backstream.AgentSettings(client_id="a", upstream="http://127.0.0.1:1")
    with pytest.raises(backstream.ConfigurationError, match="exactly one thing"):
        backstream.Agent(settings, app=ok_app)
    with pytest.raises(backstream.ConfigurationError, match="exactly one thing"):
        backstream.Agent(backstream.AgentSettings(client_id="a"))
