"""The library's own handlers (`backstream.Handler`, `backstream.streams`): what is called when, and what it may do."""

from __future__ import annotations

import asyncio

import pytest

import backstream
from backstream import streams
from backstream.errors import ErrorCode, StreamError
from tests.rig import LIMIT, Tunnel, chunked, request, tunnel, until

PLAIN = backstream.ResponseHead(status=200, body=backstream.Body.CHUNKED)


def sized(length: int) -> backstream.ResponseHead:
    return backstream.ResponseHead(status=200, body=backstream.Body.SIZED, length=length)


class Recording(backstream.Handler):
    """Notes every call; takes nothing by itself."""

    def __init__(self, stream: streams.Stream, head: backstream.RequestHead, end: bool) -> None:
        self.stream = stream
        self.head = head
        self.calls: list[tuple] = [("opened", end)]

    def data_received(self, stream, data):
        self.calls.append(("data", data))

    def end_received(self, stream, trailers):
        self.calls.append(("end", trailers))

    def reset_received(self, stream, code, message):
        self.calls.append(("reset", code))

    def writable(self, stream):
        self.calls.append(("writable", streams.room(stream) > 0))


class Handlers:
    """A factory of recording handlers, kept for the test."""

    def __init__(self, kind: type[Recording] = Recording) -> None:
        self.kind = kind
        self.made: list[Recording] = []

    def __call__(self, stream, head, end):
        self.made.append(self.kind(stream, head, end))
        return self.made[-1]

    async def next(self, count: int = 1) -> Recording:
        await until(lambda: len(self.made) == count, f"{count} requests")
        return self.made[-1]


def handled(factory, **options):
    return tunnel(agents=1, handler=factory, **options)


async def test_a_request_without_a_body_is_head_and_end_in_one() -> None:
    handlers = Handlers()
    async with handled(handlers) as pair, await pair.open() as wire:
        await wire.send(request("/a?b", lines=["X-A: 1", "X-A: 2"]))
        handler = await handlers.next()
        head = handler.head
        assert (head.method, head.target, head.authority) == (b"GET", b"/a?b", b"service.example")
        assert (head.scheme, head.http_major, head.http_minor) == (b"http", 1, 1)
        assert [pair for pair in head.fields if pair[0] == b"x-a"] == [(b"x-a", b"1"), (b"x-a", b"2")]
        assert head.body == backstream.Body.NONE and head.client_id == b"svc"
        assert head.peer == b"%s:%d" % (wire.sock.getsockname()[0].encode(), wire.sock.getsockname()[1])
        assert head.time_budget_ms == LIMIT * 1000
        assert handler.calls == [("opened", True)]
        streams.respond(handler.stream, backstream.ResponseHead(status=204, reason=b"Nothing"), end=True)
        got = await wire.answer()
        assert got.start == b"HTTP/1.1 204 Nothing"
        assert streams.is_closed(handler.stream)


@pytest.mark.parametrize(
    ("proxy", "lines"),
    [
        ({}, ["x-backstream-request-timeout: 1ns"]),
        ({"request_timeout": 1e-7}, []),
        ({"max_request_timeout": 1e-7}, ["x-backstream-request-timeout: 0"]),
    ],
)
async def test_a_time_limit_below_a_millisecond_is_no_budget_of_0(proxy, lines) -> None:
    handlers = Handlers()
    async with handled(handlers, proxy=proxy) as pair, await pair.open() as wire:
        await wire.send(request("/", lines=lines))
        handler = await handlers.next()
        assert handler.head.time_budget_ms == 1
        assert (await wire.answer()).status == 504


class Failing(Recording):
    def data_received(self, stream, data):
        super().data_received(stream, data)
        raise LookupError("on purpose")


class Wanting(Recording):
    def data_received(self, stream, data):
        super().data_received(stream, data)
        raise StreamError(ErrorCode.APP_ERROR, "on purpose")


class Quick(Recording):
    """Answers before it has heard of any body."""

    def __init__(self, stream, head, end):
        super().__init__(stream, head, end)
        streams.respond(stream, sized(2))
        streams.write(stream, b"ok")
        streams.end(stream)


@pytest.mark.parametrize("wire", ["native", "seed"])
@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [(Failing, 502, ErrorCode.INTERNAL), (Wanting, 502, ErrorCode.APP_ERROR), (Quick, 200, ErrorCode.NO_ERROR)],
)
async def test_a_handler_hears_how_its_stream_ends_on_both_wires(kind, status, code, wire) -> None:
    handlers = Handlers(kind)
    session = backstream.SessionSettings(wire=wire)
    async with handled(handlers, session=session, proxy={"session": session}) as pair:
        assert [link.wire for link in pair.agents[0].sessions] == ["proto" if wire == "seed" else "native"]
        async with await pair.open() as client:
            await client.send(request(method="POST", body=b"x" * 200_000))
            assert (await client.answer()).status == status
        handler = await handlers.next()
        await until(lambda: handler.calls[-1][0] == "reset", "the end")
        await pair.settled()
        assert [call[0] for call in handler.calls].count("data") == 1 or kind is Quick
        assert [call for call in handler.calls if call[0] != "data"] == [("opened", False), ("reset", code)]


async def test_a_body_comes_in_pieces_and_is_granted_as_it_is_consumed() -> None:
    handlers = Handlers()
    settings = backstream.SessionSettings(initial_window=16384, max_window=16384)
    async with handled(handlers, session=settings) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Transfer-Encoding: chunked"]) + chunked(b"u" * 20_000))
        handler = await handlers.next()
        assert handler.head.body == backstream.Body.CHUNKED

        def received() -> int:
            return sum(len(call[1]) for call in handler.calls if call[0] == "data")

        # No more than the window, until something is consumed.
        await until(lambda: received() == 16384)
        async with await pair.open() as other:
            await other.send(request(client_id="nobody"))
            assert (await other.answer()).status == 503
        assert received() == 16384 and handler.calls[-1][0] == "data"
        streams.consume(handler.stream, 16384)
        await until(lambda: handler.calls[-1] == ("end", ()))
        assert received() == 20_000
        streams.respond(handler.stream, sized(2))
        streams.write(handler.stream, b"ok")
        streams.end(handler.stream)
        assert (await wire.answer()).body == b"ok"


async def test_room_says_how_much_may_be_written_and_writable_when_again() -> None:
    handlers = Handlers()
    settings = backstream.SessionSettings(initial_window=16384, max_window=16384)
    async with handled(handlers, proxy={"session": settings}) as pair, await pair.open(receive_buffer=4096) as wire:
        await wire.send(request())
        handler = await handlers.next()
        streams.respond(handler.stream, PLAIN)
        assert streams.room(handler.stream) == 16384
        written = 0
        # Whenever there is room it is filled, until the client's side takes no more.
        while True:
            if room := streams.room(handler.stream):
                streams.write(handler.stream, b"w" * room)
                written += room
                handler.calls.clear()
            elif not await happens(lambda: ("writable", True) in handler.calls):
                break
        assert streams.room(handler.stream) == 0 and written > 16384
        read = 0
        await wire.head()
        while read < written:
            read += len(await wire.chunk())
        await until(lambda: ("writable", True) in handler.calls)
        streams.end(handler.stream)
        assert await wire.chunk() == b""
        assert read == written


async def happens(condition) -> bool:
    """Whether something comes true within a moment."""
    try:
        await until(condition, seconds=0.2)
    except AssertionError:
        return False
    return True


async def test_a_client_that_leaves_is_a_reset_with_cancel_and_the_last_call() -> None:
    handlers = Handlers()
    async with handled(handlers) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Content-Length: 10"]) + b"half")
        handler = await handlers.next()
        await until(lambda: ("data", b"half") in handler.calls)
        wire.close()
        await until(lambda: handler.calls[-1][0] == "reset")
        assert handler.calls == [("opened", False), ("data", b"half"), ("reset", ErrorCode.CANCEL)]
        # Whatever it does with its stream from now on is without effect.
        stream = handler.stream
        assert streams.is_closed(stream) and streams.room(stream) == 0
        streams.respond(stream, PLAIN)
        streams.write(stream, b"to nobody")
        streams.consume(stream, 4)
        streams.reset(stream, ErrorCode.INTERNAL, "again")
        streams.end(stream)
        assert handler.calls[-1] == ("reset", ErrorCode.CANCEL)


async def test_interim_heads_pass_before_the_final_one() -> None:
    handlers = Handlers()
    async with handled(handlers) as pair, await pair.open() as wire:
        await wire.send(request())
        handler = await handlers.next()
        hint = backstream.ResponseHead(status=103, fields=((b"link", b"</a.css>; rel=preload"),))
        streams.respond(handler.stream, hint)
        assert (await wire.head()).get("link") == b"</a.css>; rel=preload"
        streams.respond(handler.stream, hint)
        streams.respond(handler.stream, sized(0), end=True)
        got = await wire.answer()
        assert got.status == 200 and [each.status for each in got.interim] == [103]


class Raising(Recording):
    def end_received(self, stream, trailers):
        raise LookupError("on purpose")


@pytest.mark.parametrize(
    ("kind", "method", "status"),
    [("factory", "GET", 502), ("factory error", "GET", 504), ("end_received", "POST", 502)],
)
async def test_an_exception_of_a_handlers_ends_its_stream_alone_and_is_logged(kind, method, status, caplog) -> None:
    handlers = Handlers(Raising)

    def factory(stream, head, end):
        if head.target == b"/good":
            streams.respond(stream, sized(0), end=True)
            return backstream.Handler()
        if kind == "factory":
            raise LookupError("on purpose")
        if kind == "factory error":
            raise backstream.StreamError(ErrorCode.TIMEOUT, "in so many words")
        return handlers(stream, head, end)

    async with handled(factory) as pair, await pair.open() as wire:
        await wire.send(request("/good"))
        assert (await wire.answer()).status == 200
        got = await wire_post(wire, method)
        assert got.status == status
        assert (await pair.get("/good")).status == 200 and len(pair.proxy.agents) == 1
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    if kind == "factory error":
        # It chose its code, so it is no defect.
        assert b"in so many words" in got.body and not errors
    else:
        assert len(errors) == 1 and errors[0].exc_info[0] is LookupError
        assert b"on purpose" not in got.body


async def wire_post(wire, method: str):
    await wire.send(request("/bad", method=method, body=b"x" if method == "POST" else None))
    return await wire.answer()


async def test_writing_against_the_promise_is_an_error_of_the_handlers() -> None:
    handlers = Handlers()
    async with handled(handlers) as pair, await pair.open() as wire:
        await wire.send(request())
        handler = await handlers.next()
        streams.respond(handler.stream, sized(4))
        streams.write(handler.stream, b"123")
        with pytest.raises(backstream.StreamError):
            streams.write(handler.stream, b"45")
        with pytest.raises(backstream.StreamError):
            streams.end(handler.stream)
        with pytest.raises(backstream.StreamError):
            streams.respond(handler.stream, PLAIN)
        streams.write(handler.stream, b"4")
        streams.end(handler.stream)
        assert (await wire.answer()).body == b"1234"


async def test_a_handler_may_answer_at_once_and_hear_no_more_of_the_body() -> None:
    handlers = Handlers()

    def factory(stream, head, end):
        handler = handlers(stream, head, end)
        streams.respond(stream, sized(4))
        streams.write(stream, b"done")
        streams.end(stream)
        return handler

    async with handled(factory) as pair, await pair.open() as wire:
        await wire.send(request(method="POST", lines=["Content-Length: 1000"]) + b"half")
        got = await wire.answer()
        assert got.body == b"done" and got.complete
        await pair.settled()
        handler = await handlers.next()
        assert all(call[0] != "end" for call in handler.calls)


async def many(pair: Tunnel, count: int) -> None:
    async with asyncio.timeout(LIMIT):
        await asyncio.gather(*(pair.get(f"/{i}") for i in range(count)))


async def test_each_request_has_a_stream_of_its_own() -> None:
    seen = []

    def factory(stream, head, end):
        seen.append(stream.id)
        streams.respond(stream, sized(len(head.target)))
        streams.write(stream, head.target)
        streams.end(stream)
        return backstream.Handler()

    async with handled(factory) as pair:
        await many(pair, 50)
    assert seen == list(range(1, 100, 2))
