"""What `receive` and `send` return can be awaited in every way that applications await it."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest
import uvloop

from tests.interop.conftest import open_tunnel

App = Callable[..., Awaitable[None]]
Play = Callable[[App, Callable[[httpx.AsyncClient], Awaitable[None]]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Play:
    """Run a client against an application, on either event loop; what the application raises fails the test."""

    def play(app: App, client: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
        errors: list[BaseException] = []

        async def guarded(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                raise NotImplementedError
            try:
                await app(scope, receive, send)
            except Exception as error:
                errors.append(error)
                raise

        async def main() -> None:
            async with asyncio.timeout(30), open_tunnel(guarded) as http:
                await client(http)

        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(main())
        assert errors == []

    return play


async def answer(send: Any, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def hello(client: httpx.AsyncClient) -> None:
    response = await client.post("/", content=b"hello")
    assert (response.status_code, response.content) == (200, b"hello")


async def expect_ok(client: httpx.AsyncClient) -> None:
    response = await client.post("/", content=b"hello")
    assert (response.status_code, response.content) == (200, b"ok")


class Upload:
    """A body whose second half is sent when the application asks for it."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"first"
        await self.go.wait()
        yield b"second"

    async def send(self, client: httpx.AsyncClient) -> None:
        response = await client.post("/", content=aiter(self))
        assert (response.status_code, response.content) == (200, b"ok")


def test_receive_as_a_task(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await asyncio.create_task(receive())
        await answer(send, message["body"])

    play(app, hello)


def test_receive_as_a_task_before_its_bytes_are_there(play: Play) -> None:
    upload = Upload()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"first"
        task = asyncio.create_task(receive())
        await asyncio.sleep(0)
        assert not task.done()
        upload.go.set()
        message = await task
        assert message["body"] == b"second"
        await answer(send, b"ok")

    play(app, upload.send)


def test_receive_under_wait_for(play: Play) -> None:
    upload = Upload()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await asyncio.wait_for(receive(), 10)
        assert message["body"] == b"first"
        # Given up for now: what comes afterwards is not lost with it.
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(receive(), 0.01)
        upload.go.set()
        message = await asyncio.wait_for(receive(), 10)
        assert message["body"] == b"second"
        await answer(send, b"ok")

    play(app, upload.send)


def test_receive_under_a_timeout_block(play: Play) -> None:
    upload = Upload()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with asyncio.timeout(10):
            assert (await receive())["body"] == b"first"
        with anyio.move_on_after(0.01) as scope_of_time:
            await receive()
        assert scope_of_time.cancelled_caught
        upload.go.set()
        with anyio.fail_after(10):
            assert (await receive())["body"] == b"second"
        await answer(send, b"ok")

    play(app, upload.send)


def test_a_cancelled_receive_takes_no_message_with_it(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        # Ready at once, and cancelled before the first step of its task.
        task = asyncio.create_task(receive())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(receive(), -1)
        assert await receive() == {"type": "http.request", "body": b"hello", "more_body": False}
        # Not ready, and cancelled while it waits.
        task = asyncio.create_task(receive())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await answer(send, b"ok")
        # The answer is complete: whoever asks again hears that it is over.
        assert (await receive())["type"] == "http.disconnect"

    play(app, expect_ok)


def test_several_receivers_all_hear_of_the_disconnect(play: Play) -> None:
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        tasks = [asyncio.create_task(receive()) for _ in range(3)]
        await asyncio.sleep(0)
        await answer(send, b"ok")
        heard.extend(message["type"] for message in await asyncio.gather(*tasks))

    play(app, expect_ok)
    assert heard == ["http.disconnect"] * 3


def test_a_receive_that_is_given_up_leaves_nothing_behind(play: Play) -> None:
    def waiters() -> int:
        return sum(isinstance(each, asyncio.Future) for each in gc.get_objects())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        before = waiters()
        for _ in range(100):
            task = asyncio.create_task(receive())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert waiters() < before + 10
        await answer(send, b"ok")

    play(app, expect_ok)


def test_several_sends_wait_at_once_and_one_is_given_up(play: Play) -> None:
    reading = asyncio.Event()
    piece = bytes(4 * 1024 * 1024)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200})
        body = {"type": "http.response.body", "body": piece, "more_body": True}
        tasks = [asyncio.create_task(send(body)) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        reading.set()
        await asyncio.gather(tasks[0], tasks[2])
        await send({"type": "http.response.body"})

    async def read(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/", content=b"hello") as response:
            await reading.wait()
            # What was sent is sent: given up is only the waiting.
            assert len(await response.aread()) == 3 * len(piece)

    play(app, read)


@pytest.mark.parametrize("fails", [False, True])
def test_a_send_that_waits_does_so_no_longer_than_its_response_lasts(play: Play, fails: bool) -> None:
    ended = asyncio.Event()
    waiting: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200})
        body = {"type": "http.response.body", "body": bytes(4 * 1024 * 1024), "more_body": True}
        waiting.append(asyncio.create_task(send(body)))
        await asyncio.sleep(0)
        assert not waiting[0].done()
        if fails:
            # As an application that fails does, but not as one that this test takes for wrong.
            raise asyncio.CancelledError
        await send({"type": "http.response.body"})
        await asyncio.wait_for(waiting[0], 10)

    async def read(client: httpx.AsyncClient) -> None:
        if fails:
            with pytest.raises(httpx.RemoteProtocolError):
                await client.post("/", content=b"hello")
            await asyncio.wait_for(waiting[0], 10)
        else:
            assert len((await client.post("/", content=b"hello")).content) == 4 * 1024 * 1024
        ended.set()

    play(app, read)
    assert ended.is_set()


def test_send_as_a_task_under_wait_for_and_gathered(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.create_task(send({"type": "http.response.start", "status": 200}))
        await asyncio.wait_for(send({"type": "http.response.body", "body": b"o", "more_body": True}), 10)
        message, _ = await asyncio.gather(
            receive(), send({"type": "http.response.body", "body": b"k", "more_body": True})
        )
        assert message["body"] == b"hello"
        done, pending = await asyncio.wait({asyncio.create_task(send({"type": "http.response.body"}))})
        assert len(done) == 1
        assert not pending

    play(app, expect_ok)


def test_receive_and_send_in_anyio_task_groups(play: Play) -> None:
    upload = Upload()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
        await send({"type": "http.response.start", "status": 200})
        async with anyio.create_task_group() as group:
            # One that is ready, one that has to wait.
            group.start_soon(send, {"type": "http.response.body", "body": b"ok", "more_body": True})
            group.start_soon(receive)
            upload.go.set()
        async with anyio.create_task_group() as group:
            group.start_soon(send, {"type": "http.response.body"})

    play(app, upload.send)


def test_an_anyio_task_group_can_give_up_a_receive_that_waits(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        await answer(send, b"ok")

    play(app, expect_ok)


def test_awaitables_have_what_asyncio_calls_a_coroutine(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        first = receive()
        assert asyncio.iscoroutine(first)
        assert (await first)["body"] == b"hello"
        later = receive()
        assert asyncio.iscoroutine(later)
        later.close()
        await answer(send, b"ok")

    play(app, expect_ok)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_receive_as_an_eager_task(play: Play) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.Task(receive(), loop=loop, eager_start=True)  # type: ignore[call-arg,unused-ignore]
        await answer(send, (await task)["body"])

    play(app, hello)


def test_an_exception_in_send_comes_when_it_is_awaited(play: Play) -> None:
    left = asyncio.Event()
    refused: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        late = send({"type": "http.response.body", "body": b"more", "more_body": True})
        try:
            await asyncio.create_task(late)
        except OSError as error:
            refused.append(error)
        left.set()

    async def leave(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", "/", content=b"x") as response:
            assert response.status_code == 200
        await left.wait()

    play(app, leave)
    assert len(refused) == 1
