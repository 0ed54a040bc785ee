"""WSGI applications in the agent (PEP 3333): what they get, what their clients get, and whom a slow one holds up."""

from __future__ import annotations

import asyncio
import threading
import time
from wsgiref.validate import validator

import pytest

import backstream
from tests.rig import LIMIT, Echo, Leaks, chunked, request, tunnel, until

WINDOW = backstream.SessionSettings(initial_window=16384, max_window=16384)


def hello(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello ", b"world"]


class Pieces:
    """A response body that says whether it was closed."""

    def __init__(self, pieces):
        self.pieces = iter(pieces)
        self.closed = threading.Event()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.pieces)

    def close(self):
        assert not self.closed.is_set()
        self.closed.set()


def answering(body, *, status="200 OK", headers=()):
    """An application whose response is `body`."""

    def app(environ, start_response):
        start_response(status, list(headers))
        return body

    return app


def echo(environ, start_response):
    """Sends back what comes, in pieces as they come."""
    start_response("200 OK", [])
    return iter(lambda: environ["wsgi.input"].read1(65536), b"")


async def test_an_application_gets_the_environment_of_pep_3333() -> None:
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return []

    settings = {"root_path": "/shop", "interface": "wsgi"}
    async with tunnel(validator(app), **settings) as pair, await pair.open() as wire:
        lines = ["Content-Type: text/plain", "X-A: 1", "X-A: 2", "Cookie: a=1", "Cookie: b=2", "X_A: 3"]
        await wire.send(request("/caf%C3%A9/x%2Fy?q=a%20b", method="POST", lines=lines, body=b"12345"))
        assert (await wire.answer()).status == 200
        assert seen["REQUEST_METHOD"] == "POST"
        assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == ("/shop", "/café/x/y".encode().decode("latin-1"))
        assert seen["QUERY_STRING"] == "q=a%20b" and seen["REQUEST_URI"] == "/shop/caf%C3%A9/x%2Fy?q=a%20b"
        assert (seen["CONTENT_TYPE"], seen["CONTENT_LENGTH"]) == ("text/plain", "5")
        # A field with an underscore would pass for the one with a hyphen.
        assert (seen["HTTP_X_A"], seen["HTTP_COOKIE"], seen["HTTP_HOST"]) == ("1,2", "a=1; b=2", "service.example")
        assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("service.example", "80")
        assert (seen["SERVER_PROTOCOL"], seen["wsgi.url_scheme"]) == ("HTTP/1.1", "http")
        own = wire.sock.getsockname()
        assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == (own[0], str(own[1]))
        assert 0 < seen["backstream.time_left"] <= LIMIT
        assert seen["wsgi.multithread"] is True and seen["wsgi.run_once"] is False
        assert "HTTP_CONTENT_LENGTH" not in seen and "HTTP_CONTENT_TYPE" not in seen


async def test_the_validator_of_the_standard_library_finds_nothing() -> None:
    def app(environ, start_response):
        size = len(environ["wsgi.input"].read(10**6))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"%d" % size]

    async with tunnel(validator(app), interface="wsgi") as pair:
        assert (await pair.get("/")).body == b"0"
        assert (await pair.get("/", method="POST", body=b"x" * 100_000)).body == b"100000"
        assert (await pair.get("/", method="HEAD")).body == b""
        assert (await pair.get("*", method="OPTIONS")).body == b"0"


async def test_a_body_that_is_known_whole_has_a_length_where_the_application_gives_one() -> None:
    async with tunnel(answering([b"hello"], headers=[("Content-Length", "5")])) as pair:
        got = await pair.get()
        assert (got.get("content-length"), got.body) == (b"5", b"hello")
    async with tunnel(answering([b"hello"])) as pair:
        got = await pair.get()
        assert (got.get("content-length"), got.body) == (b"5", b"hello")
    async with tunnel(hello) as pair:
        got = await pair.get()
        assert (got.get("transfer-encoding"), got.body) == (b"chunked", b"hello world")
    async with tunnel(answering([])) as pair:
        got = await pair.get()
        assert (got.status, got.get("content-length"), got.body) == (200, b"0", b"")


async def test_each_piece_leaves_before_the_next_is_made() -> None:
    go = threading.Semaphore(0)

    def numbers():
        for number in range(3):
            assert go.acquire(timeout=LIMIT)
            yield b""
            yield b"%d" % number

    async with tunnel(answering(numbers())) as pair, await pair.open() as wire:
        await wire.send(request())
        go.release()
        await wire.head()
        for number in range(3):
            assert await wire.chunk() == b"%d" % number
            go.release()
        assert await wire.chunk() == b""


async def test_write_sends_at_once_and_before_the_iterable() -> None:
    go = threading.Event()

    def app(environ, start_response):
        write = start_response("200 OK", [])
        write(b"first")
        assert go.wait(LIMIT)
        return [b"second"]

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request())
        await wire.head()
        assert await wire.chunk() == b"first"
        go.set()
        assert await wire.chunk() == b"second"
        assert await wire.chunk() == b""


async def test_a_body_is_echoed_while_it_comes() -> None:
    async with tunnel(echo) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"first", end=False))
        await wire.head()  # PEP 3333: it leaves with the first piece
        assert await wire.chunk() == b"first"
        running = Echo(wire)
        for _ in range(20):
            await running.goes_on()
        await running.finish()


async def test_lines_and_whole_bodies_are_read_like_a_file() -> None:
    def app(environ, start_response):
        start_response("200 OK", [])
        source = environ["wsgi.input"]
        return [source.readline(), b"|", b"+".join(source.readlines(3)), b"|", source.read(3), b"|", source.read()]

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"one\ntw", b"o\nthree"))
        assert (await wire.answer()).body == b"one\n|two\n|thr|ee"


async def test_what_is_not_read_is_not_sent() -> None:
    go, taken = threading.Event(), []

    def app(environ, start_response):
        assert go.wait(LIMIT)
        start_response("200 OK", [])
        while piece := environ["wsgi.input"].read(10_000):
            taken.append(len(piece))
        return [b"%d" % sum(taken)]

    async with tunnel(app, session=WINDOW) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Content-Length: 50000000"]))
        body = b"x" * 1_000_000
        # The kernel's buffers and one window take something.
        sent = await wire.send_until_full(body)
        assert sent < 20_000_000
        # The loop was free all the while.
        go.set()
        while sent < 50_000_000:
            piece = body[: 50_000_000 - sent]
            await wire.send(piece)
            sent += len(piece)
        assert (await wire.answer()).body == b"50000000"


async def test_a_client_that_does_not_read_holds_up_its_thread_alone() -> None:
    made = []

    def endless():
        while True:
            made.append(1)
            yield b"x" * 65536

    def app(environ, start_response):
        start_response("200 OK", [])
        return endless() if environ["PATH_INFO"] == "/endless" else [b"ok"]

    async with tunnel(app, proxy={"session": WINDOW}, wsgi_threads=2) as pair:
        wire = await pair.open(receive_buffer=4096)
        await wire.send(request("/endless"))
        await wire.head()
        count = -1
        while count != len(made):
            count = len(made)
            assert (await pair.get()).body == b"ok"
            await asyncio.sleep(0.1)
        assert count * 65536 < 10_000_000
        wire.close()


async def test_an_upload_with_expect_is_asked_for_when_it_is_read() -> None:
    async with tunnel(echo) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Expect: 100-continue", "Content-Length: 4"]))
        assert (await wire.head()).status == 100
        await wire.send(b"body")
        assert (await wire.answer()).body == b"body"


@pytest.mark.parametrize(
    ("method", "status", "headers"),
    [("HEAD", "200 OK", [("Content-Length", "1000")]), ("GET", "204 No Content", []), ("GET", "304 Not Modified", [])],
)
async def test_a_response_without_a_body_is_whole_after_its_head_and_closed(method, status, headers) -> None:
    body = Pieces(iter(lambda: b"x" * 500, b""))  # endless
    async with tunnel(answering(body, status=status, headers=headers)) as pair, await pair.open() as wire:
        await wire.send(request(method=method))
        got = await wire.answer(method)
        assert (got.status, got.body) == (int(status[:3]), b"")
        assert got.get("content-length") == (b"1000" if headers else None)
        await until(body.closed.is_set)
        await wire.send(request(method=method))  # the connection goes on
        assert (await wire.answer(method)).status == int(status[:3])


async def test_close_is_called_after_the_whole_response_was_handed_over() -> None:
    release = threading.Event()

    class Slow(Pieces):
        def close(self):
            super().close()
            assert release.wait(LIMIT)

    body = Slow([b"whole"])
    async with tunnel(answering(body, headers=[("Content-Length", "5")])) as pair:
        assert (await pair.get()).body == b"whole"
        release.set()
        await until(body.closed.is_set)


async def test_close_is_called_when_iterating_raises() -> None:
    def broken():
        yield b"some"
        raise LookupError("on purpose")

    body = Pieces(broken())
    async with tunnel(answering(body)) as pair, await pair.open() as wire:
        await wire.send(request())
        got = await wire.answer()
        assert got.body == b"some" and not got.complete
        await until(body.closed.is_set)


async def test_close_is_called_when_the_client_leaves() -> None:
    body = Pieces(iter(lambda: b"x" * 1000, b""))
    async with tunnel(answering(body)) as pair:
        async with await pair.open() as wire:
            await wire.send(request())
            await wire.head()
        await until(body.closed.is_set)


async def test_an_exception_before_the_head_is_500_and_a_traceback(caplog) -> None:
    def app(environ, start_response):
        start_response("200 OK", [])
        raise LookupError("on purpose")

    async with tunnel(app) as pair, await pair.open() as wire:
        for _ in range(2):
            await wire.send(request())
            got = await wire.answer()
            assert got.status == 500 and b"on purpose" not in got.body
    assert [record.exc_info[0] for record in caplog.records if record.levelname == "ERROR"] == [LookupError] * 2


@pytest.mark.parametrize("error", [SystemExit, StopIteration, KeyboardInterrupt])
async def test_whatever_an_application_raises_ends_its_request_alone(error, caplog) -> None:
    def app(environ, start_response):
        raise error

    async with tunnel(app) as pair:
        assert (await pair.get()).status == 500
        assert (await pair.get()).status == 500
        assert error.__name__ in caplog.text


async def test_an_exception_after_the_head_cuts_the_response(caplog) -> None:
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "100")])(b"some")
        raise LookupError("on purpose")

    async with tunnel(app) as pair, await pair.open() as wire:
        await wire.send(request())
        got = await wire.answer()
        assert (got.status, got.body, got.complete) == (200, b"some", False)
    assert "LookupError: on purpose" in caplog.text


async def test_start_response_takes_another_head_with_exc_info_until_the_first_is_sent() -> None:
    import sys

    def app(environ, start_response):
        write = start_response("200 OK", [("X-A", "1")])
        if environ["PATH_INFO"] == "/late":
            write(b"some")
        try:
            raise LookupError("on purpose")
        except LookupError:
            start_response("503 Sorry", [("X-B", "2")], sys.exc_info())
        return [b"sorry"]

    async with tunnel(app) as pair:
        got = await pair.get()
        assert (got.status, got.body, got.get("x-a"), got.get("x-b")) == (503, b"sorry", None, b"2")
        got = await pair.get("/late")
        assert (got.status, got.body, got.complete) == (200, b"some", False)


def twice(environ, start_response):
    start_response("200 OK", [])
    start_response("200 OK", [])
    return []


def never(environ, start_response):
    return [b"body"]


def text(environ, start_response):
    start_response("200 OK", [])
    return ["text"]


@pytest.mark.parametrize(
    "app",
    [
        twice,
        never,
        text,
        answering([b"x"], status="OK"),
        answering([b"x"], status="٢٠٠ OK"),
        answering([b"x"], headers=[("X-A", "a\nb")]),
        answering([b"x"], headers=[("X-A", "€")]),
        answering([b"x"], headers=[("a b", "c")]),
        answering([b"x"], status="101 Switching Protocols"),
    ],
    ids=["twice", "never", "text", "status", "digits", "line end", "latin-1", "name", "101"],
)
async def test_what_breaks_the_rules_is_a_logged_500(app, caplog) -> None:
    async with tunnel(app) as pair:
        assert (await pair.get()).status == 500
        assert (await pair.get()).status == 500
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 2


async def test_fewer_bytes_than_promised_cut_the_response() -> None:
    def pieces():
        yield b"some"
        assert arrived.wait(LIMIT)

    arrived = threading.Event()
    async with tunnel(answering(pieces(), headers=[("Content-Length", "100")])) as pair, await pair.open() as wire:
        await wire.send(request())
        await wire.head()
        assert await wire.exactly(4) == b"some"
        arrived.set()
        assert (await wire.rest())[0] == b""


async def test_as_many_bytes_as_promised_end_the_response_and_the_iteration() -> None:
    body = Pieces(iter(lambda: b"four", b""))
    async with tunnel(answering(body, headers=[("Content-Length", "8")])) as pair:
        got = await pair.get()
        assert (got.body, got.complete) == (b"fourfour", True)
        await until(body.closed.is_set)


async def test_requests_beyond_the_threads_wait_and_each_is_served() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def app(environ, start_response):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    async with tunnel(app, wsgi_threads=3) as pair:
        answers = await asyncio.gather(*(pair.get(f"/{number}") for number in range(30)))
        assert [answer.body for answer in answers] == [b"/%d" % number for number in range(30)]
        assert most == 3


async def test_a_request_whose_client_left_while_it_waited_is_not_begun() -> None:
    go, paths = threading.Event(), []

    def app(environ, start_response):
        paths.append(environ["PATH_INFO"])
        assert go.wait(LIMIT)
        start_response("200 OK", [])
        return [b"ok"]

    async with tunnel(app, wsgi_threads=1) as pair, await pair.open() as first:
        await first.send(request("/first"))
        await until(lambda: paths == ["/first"])
        async with await pair.open() as wire:
            await wire.send(request("/gone"))
            await until(lambda: pair.agents[0].requests == 2)
        await until(lambda: pair.counts()["opened"] == 1)
        go.set()
        assert (await first.answer()).body == b"ok"
        assert (await pair.get("/next")).body == b"ok"
        assert paths == ["/first", "/next"]


async def test_reading_raises_when_the_client_leaves() -> None:
    entered = threading.Event()
    raised: list[BaseException] = []

    def app(environ, start_response):
        entered.set()
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
            raise
        return []

    async with tunnel(app) as pair:
        async with await pair.open() as wire:
            await wire.send(request(method="POST", lines=["Content-Length: 10"]) + b"half")
            await until(entered.is_set)
        await until(lambda: raised)


async def test_closing_the_agent_ends_what_waits_in_threads() -> None:
    entered, ended = threading.Event(), threading.Event()

    def app(environ, start_response):
        entered.set()
        try:
            environ["wsgi.input"].read()
        finally:
            ended.set()
        return []

    async with tunnel(app, check=False) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Content-Length: 10"]) + b"half")
        await until(entered.is_set)
        async with asyncio.timeout(4):  # less than `stop` waits for one that hangs
            await pair.agents[0].close()
        assert ended.is_set()
        assert (await wire.answer()).status in (502, 503)


async def test_threads_end_with_the_agent() -> None:
    def count() -> int:
        return sum(thread.name.startswith("backstream wsgi") for thread in threading.enumerate())

    async with tunnel(hello, wsgi_threads=4) as pair:
        await asyncio.gather(*(pair.get() for _ in range(20)))
        assert 1 <= count() <= 4
    await until(lambda: count() == 0)


async def test_nothing_is_left_of_requests() -> None:
    async with tunnel(echo) as pair:
        await pair.get("/", method="POST", body=b"x" * 100_000)
        await pair.settled()
        await until(lambda: pair.proxy.connection_count == 0)
        leaks = Leaks()
        for _ in range(20):
            assert (await pair.get("/", method="POST", body=b"x" * 100_000)).complete
        await leaks.none()


async def test_wsgi_errors_goes_to_the_log(caplog) -> None:
    def app(environ, start_response):
        environ["wsgi.errors"].write("one\ntwo\n")
        environ["wsgi.errors"].writelines(["three\n"])
        environ["wsgi.errors"].flush()
        return hello(environ, start_response)

    async with tunnel(app) as pair:
        await pair.get()
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["one", "two", "three"]


async def test_a_file_is_sent_through_the_wrapper_and_closed(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 4096)
    opened = []

    def app(environ, start_response):
        opened.append(path.open("rb"))
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](opened[-1], 8192)

    async with tunnel(app) as pair:
        assert (await pair.get()).body == path.read_bytes()
        await until(lambda: opened[0].closed)


async def test_an_offer_to_upgrade_is_not_taken() -> None:
    async with tunnel(hello) as pair, await pair.open() as wire:
        lines = [
            "Connection: upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        ]
        await wire.send(request(lines=lines))
        assert (await wire.answer()).body == b"hello world"
