"""What an agent sends is masked as RFC 6455 §5.3 asks: with keys that nobody can foresee, and any peer reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve

import backstream
from tests.frames import BINARY, CLOSE, PING, PONG, TEXT
from tests.rig import Processes, answer, http_only, make_agent, until
from tests.session.wire import DATA, HELLO, RESPONSE, RequestHead, frames_of, greeting, request
from tests.tunnel.played_proxy import PlayedProxy, played_proxies

MiB = 2**20


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.end()


def get(stream: int, target: str) -> bytes:
    return request(stream, RequestHead(method=b"GET", target=target.encode()))


@pytest.mark.uvloop_only
@pytest.mark.parametrize("wire", ["native", "seed"])
async def test_no_two_agents_use_the_same_keys_for_whatever_they_send(wire: str, processes: Processes) -> None:
    sessions: list[PlayedProxy] = []
    for _ in range(2):
        async with played_proxies() as proxies:
            agent = processes.start(
                *("agent", "--proxy-url", proxies.url, "--client-id", "a", "--app", "service:app"),
                *("--app-dir", "tests/faults"),
            )
            peer = await proxies.next("backstream.v1" if wire == "native" else "")
            sessions.append(peer)
            if wire == "native":
                await peer.until(HELLO)
                await peer.greet()
                await peer.tell(get(1, "/"))
                await peer.until(RESPONSE)
            else:
                await peer.say(TEXT, b'{"id":"x","type":"REQUEST","data":"eyJtZXRob2QiOiJHRVQiLCJyYXdQYXRoIjoiLyJ9"}')
                await peer.next(TEXT)
            await peer.say(PING, b"a ping")
            assert (await peer.next(PONG)).payload == b"a ping"
            await peer.say(3)  # an opcode that RFC 6455 does not have
            assert (await peer.next(CLOSE)).code == 1002
            assert {PING, PONG, CLOSE, BINARY if wire == "native" else TEXT} <= set(peer.opcodes)
            agent.kill()
    first, second = (peer.keys for peer in sessions)
    assert len(set(first) | set(second)) == len(first) + len(second), (first, second)


async def test_each_frame_of_an_agent_has_a_key_of_its_own() -> None:
    async with played_proxies() as proxies, make_agent(proxies.url, sized):
        peer = await proxies.next()
        await peer.greet()
        for at in range(100):
            await peer.say(PING, bytes(at))
            assert (await peer.next(PONG)).payload == bytes(at)
            await peer.tell(get(2 * at + 1, "/1"))
            await peer.until(DATA)
        assert len(set(peer.keys)) == len(peer.keys) >= 200


@http_only
async def sized(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, pattern(int(scope["path"][1:])))


def pattern(size: int) -> bytes:
    return bytes(at % 251 for at in range(size))


async def test_messages_of_all_sizes_are_read_by_another_implementation() -> None:
    sizes = [*range(300), *range(1000, 1040), *range(16_000, 16_140), *range(65_380, 65_420), 65_535, 65_536, 300_000]
    bodies: dict[int, bytearray] = {at: bytearray() for at in range(len(sizes))}
    ended: set[int] = set()
    largest = 0

    async def handle(wire: ServerConnection) -> None:
        nonlocal largest
        await wire.send(greeting(max_streams=0, initial_window=2**31 - 1))
        for at, size in enumerate(sizes):
            # One after another, so that the messages are of all sizes too.
            await wire.send(get(2 * at + 1, f"/{size}"))
            while at not in ended:
                message = await wire.recv()
                assert isinstance(message, bytes)
                largest = max(largest, len(message))
                for sent in frames_of(message):
                    if sent.type == DATA:
                        bodies[sent.stream // 2] += sent.payload
                    if sent.end:
                        ended.add(sent.stream // 2)

    async with serve(handle, "127.0.0.1", 0, compression=None, subprotocols=["backstream.v1"]) as server:  # type: ignore[list-item]
        port = next(iter(server.sockets)).getsockname()[1]
        async with make_agent(f"ws://127.0.0.1:{port}/ws", sized):
            await until(lambda: len(ended) == len(sizes), "every body", seconds=40)
    assert [bytes(bodies[at]) for at in range(len(sizes))] == [pattern(size) for size in sizes]
    assert largest > 65_000


async def test_no_frame_comes_within_another_that_the_socket_did_not_take_whole() -> None:
    session = backstream.SessionSettings(ping_interval=0.01, ping_timeout=30)
    size = 2 * MiB

    @http_only
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answer(send, pattern(size))

    async with played_proxies(receive_buffer=4096) as proxies, make_agent(proxies.url, app, session=session) as agent:
        peer = await proxies.next()
        await peer.greet(initial_window=2**31 - 1)
        await peer.tell(get(1, "/"))
        body = bytearray()
        while len(body) < size:
            if agent.sessions and agent.sessions[0].session.congested:
                await asyncio.sleep(0.02)  # a ping or two become due
            await peer.say(PING, b"x")
            for sent in frames_of((await peer.next(BINARY)).payload):
                if sent.type == DATA:
                    body += sent.payload
        assert bytes(body) == pattern(size)
        assert peer.opcodes.count(PING) > 5
