"""Applications of five frameworks behind the tunnel: each does here what it does on another ASGI server."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import importlib
import warnings
from collections.abc import AsyncIterator, Iterator
from types import ModuleType

import httpx
import pytest

from tests.interop.conftest import Tunnel
from tests.interop.probe import Probe

FRAMEWORKS = ["starlette", "fastapi", "litestar", "quart", "django"]
MEBIBYTE = 1024 * 1024


@pytest.fixture(params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def collect_files_left_open() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        # Django leaves the temporary file of a request that is cancelled to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def module_of(framework: str) -> ModuleType:
    return importlib.import_module(f"tests.interop.frameworks.{framework}_app")


def running_requests() -> int:
    """The tasks in which an application serves a request."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return names.count("AsgiRequest.run")


async def test_a_json_view_gets_path_query_and_fields(framework: str, tunnel: Tunnel) -> None:
    async with tunnel(module_of(framework).build(Probe())) as client:
        for _ in range(3):
            response = await client.get("/json/caf%C3%A9", params={"q": "a b&c"}, headers={"x-a": "1"})
            assert response.status_code == 200
            assert response.json() == {"name": "café", "q": "a b&c", "x": "1"}
            assert response.headers["x-state"] == "ready"
            assert response.headers["x-url"].startswith(f"http://127.0.0.1:{client.base_url.port}/json/caf")


async def test_a_url_without_a_port_stays_without_one(framework: str, tunnel: Tunnel) -> None:
    async with tunnel(module_of(framework).build(Probe())) as client:
        fields = {"host": "service.example", "x-a": "1"}
        response = await client.get("/json/n", params={"q": "1"}, headers=fields)
        assert response.headers["x-url"] == "http://service.example/json/n?q=1"


async def test_each_piece_of_a_stream_arrives_before_the_next_is_made(framework: str, tunnel: Tunnel) -> None:
    probe = Probe()
    async with tunnel(module_of(framework).build(probe)) as client:
        probe.go.set()
        async with asyncio.timeout(20), client.stream("GET", "/stream") as response:
            assert response.status_code == 200
            number = 0
            async for line in response.aiter_lines():
                assert line == f"line {number}"
                number += 1
                probe.go.set()
            assert number == 3


@pytest.mark.parametrize("framing", ["sized", "chunked"])
async def test_an_upload_is_read_whole(framework: str, framing: str, tunnel: Tunnel) -> None:
    body = bytes(range(256)) * 4096 * 3 + b"the end"

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(body), 100_000):
            yield body[at : at + 100_000]

    async with tunnel(module_of(framework).build(Probe())) as client:
        response = await client.post("/upload", content=body if framing == "sized" else pieces())
        assert response.status_code == 200
        assert response.json() == {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}


async def test_an_upload_that_nobody_reads_does_not_hold_up_the_answer(framework: str, tunnel: Tunnel) -> None:
    async with tunnel(module_of(framework).build(Probe())) as client:
        response = await client.post("/nowhere", content=b"x" * MEBIBYTE)
        assert response.status_code == 404
        response = await client.get("/json/n", params={"q": "1"}, headers={"x-a": "1"})
        assert response.status_code == 200


async def test_an_endless_stream_ends_when_its_client_leaves(framework: str, tunnel: Tunnel) -> None:
    probe = Probe()
    async with tunnel(module_of(framework).build(probe)) as client:
        async with asyncio.timeout(20), client.stream("GET", "/endless") as response:
            async for piece in response.aiter_bytes():
                assert piece.startswith(b"more\n")
                break
        async with asyncio.timeout(20):
            while running_requests():
                await asyncio.sleep(0.01)
            while not probe.left.is_set():
                # Litestar and Django stop asking a generator, and leave its end to the garbage collector.
                gc.collect()
                await asyncio.sleep(0.01)
        # Nobody else is affected.
        response = await client.get("/json/n", params={"q": "1"}, headers={"x-a": "1"})
        assert response.status_code == 200


async def test_django_finishes_a_request_in_good_order_when_its_client_leaves(tunnel: Tunnel) -> None:
    # What hangs on this signal is its closing of database connections.
    from django.core.signals import request_finished

    finished = asyncio.Event()

    def on_finished(**_: object) -> None:
        finished.set()

    request_finished.connect(on_finished)
    try:
        async with tunnel(module_of("django").build(Probe())) as client:
            async with asyncio.timeout(20), client.stream("GET", "/endless") as response:
                assert response.status_code == 200
            await asyncio.wait_for(finished.wait(), 20)
    finally:
        request_finished.disconnect(on_finished)


async def test_a_view_that_waits_sees_its_client_leave(framework: str, tunnel: Tunnel) -> None:
    probe = Probe()
    async with tunnel(module_of(framework).build(probe)) as client:
        task = asyncio.create_task(client.get("/wait"))
        await asyncio.wait_for(probe.entered.wait(), 20)
        assert running_requests() == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait_for(probe.left.wait(), 20)


@pytest.mark.parametrize("framework", ["starlette", "fastapi", "litestar", "quart"])
async def test_an_upload_that_breaks_off_is_not_taken_for_a_whole_one(framework: str, tunnel: Tunnel) -> None:
    # Django is not among them: it takes the body before its view is called, and drops the request.
    probe = Probe()
    never = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        await never.wait()

    async with tunnel(module_of(framework).build(probe)) as client:
        task = asyncio.create_task(client.post("/broken-upload", content=pieces()))
        await asyncio.wait_for(probe.entered.wait(), 20)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.wait_for(probe.left.wait(), 20)


@pytest.mark.parametrize("framework", ["starlette", "fastapi", "litestar", "quart"])
async def test_lifespan_starts_before_the_first_request_and_stops_after_the_last(
    framework: str, tunnel: Tunnel
) -> None:
    probe = Probe()
    async with tunnel(module_of(framework).build(probe)) as client:
        assert probe.started
        assert not probe.stopped
        await client.get("/json/n", params={"q": "1"}, headers={"x-a": "1"})
        assert not probe.stopped
    assert probe.stopped


async def test_an_application_without_lifespan_is_served(tunnel: Tunnel) -> None:
    async with tunnel(module_of("django").build(Probe())) as client:
        response = await client.get("/json/n", params={"q": "1"}, headers={"x-a": "1"})
        assert response.status_code == 200


async def test_what_a_framework_does_not_know_is_its_own_404(framework: str, tunnel: Tunnel) -> None:
    async with tunnel(module_of(framework).build(Probe())) as client:
        response = await client.get("/nowhere")
        assert response.status_code == 404
        assert "proxy-status" not in response.headers
        head = await client.head("/nowhere")
        assert (head.status_code, head.content) == (404, b"")


async def test_requests_at_the_same_time_get_their_own_answers(framework: str, tunnel: Tunnel) -> None:
    async def one(client: httpx.AsyncClient, number: int) -> None:
        response = await client.get(f"/json/{number}", params={"q": str(number)}, headers={"x-a": "1"})
        assert response.json() == {"name": str(number), "q": str(number), "x": "1"}

    async with tunnel(module_of(framework).build(Probe())) as client, asyncio.TaskGroup() as group:
        for number in range(40):
            group.create_task(one(client, number))
