"""Sends of many sockets in one system call: what each of them gets, and what happens where there is no such call."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backstream._send_batch import send_together
from tests import rig

PIPELINED = 300


def uses_batches() -> bool:
    """Whether this process has asked the kernel for a context."""
    return "/[aio]" in Path("/proc/self/maps").read_text()


class Pair:
    """Two sockets, of which one sends without blocking."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)

    def fill(self) -> None:
        with pytest.raises(BlockingIOError):
            while True:
                self.ours.send(bytes(65536))


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made = [Pair() for _ in range(5)]
    yield made
    for pair in made:
        pair.ours.close()
        pair.theirs.close()


def test_each_socket_has_a_result_of_its_own(pairs: list[Pair]) -> None:
    good, full, gone, shut, partly = pairs
    full.fill()
    gone.theirs.close()
    closed = shut.ours.detach()
    os.close(closed)
    large = bytes(range(256)) * 8192
    results = send_together(
        [
            (good.ours.fileno(), b"first"),
            (full.ours.fileno(), b"second"),
            (gone.ours.fileno(), b"third"),
            (closed, b"fourth"),
            (partly.ours.fileno(), large),
            (good.ours.fileno(), b"last"),
        ]
    )
    assert results is not None
    assert results[:4] == [5, -errno.EAGAIN, -errno.EPIPE, -errno.EBADF] and results[5] == 4
    assert good.theirs.recv(100) == b"firstlast"
    assert 0 < results[4] < len(large)
    partly.ours.close()
    received = b"".join(iter(lambda: partly.theirs.recv(65536), b""))
    assert received == large[: results[4]]


def test_nothing_is_sent_where_a_broken_connection_would_end_the_process(pairs: list[Pair]) -> None:
    pair = pairs[0]
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        assert send_together([(pair.ours.fileno(), b"unsent")]) is None
    finally:
        signal.signal(signal.SIGPIPE, before)
    pair.theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        pair.theirs.recv(1)


class Together:
    """An application that answers when `count` requests are there: all of them in the same turn."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.all = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.all.set()
        await self.all.wait()
        await rig.answer(send, scope["path"].encode() * 100)


@pytest.mark.parametrize("count", [16, 150])
async def test_answers_of_one_turn_reach_each_its_client(count: int) -> None:
    async with rig.tunnel(rig.http_only(Together(count))) as tunnel:
        wires = [await tunnel.open() for _ in range(count)]
        for number, wire in enumerate(wires):
            await wire.send(rig.request(f"/{number}"))
        for number, wire in enumerate(wires):
            answer = await wire.answer()
            assert (answer.status, answer.body) == (200, f"/{number}".encode() * 100)
            wire.close()
    assert uses_batches()


@pytest.mark.parametrize("count", [16, 150])
async def test_requests_of_one_turn_reach_each_its_connection_of_the_upstream(count: int) -> None:
    seen: list[bytes] = []
    all_there = asyncio.Event()

    async def serve(wire: rig.Wire, number: int) -> None:
        for _ in range(2):
            request = await wire.request()
            seen.append(request.target)
            if len(seen) % count == 0:
                all_there.set()
            await all_there.wait()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(request.target), request.target))

    async with rig.Upstream(serve) as upstream, rig.tunnel(upstream=upstream.url) as tunnel:
        wires = [await tunnel.open() for _ in range(count)]
        for turn in range(2):
            all_there.clear()
            for number, wire in enumerate(wires):
                await wire.send(rig.request(f"/{turn}/{number}"))
            for number, wire in enumerate(wires):
                assert (await wire.answer()).body == f"/{turn}/{number}".encode()
        for wire in wires:
            wire.close()
    assert sorted(seen) == sorted(f"/{turn}/{number}".encode() for turn in range(2) for number in range(count))


async def test_a_client_that_is_full_loses_nothing_and_holds_up_nobody() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await rig.answer(send, scope["path"].encode() * 2000)

    async with rig.tunnel(rig.http_only(app)) as tunnel:
        slow = [await tunnel.open(receive_buffer=4096) for _ in range(6)]
        for number, wire in enumerate(slow):
            await wire.send(b"".join(rig.request(f"/{number}/{at}") for at in range(PIPELINED)))
        for number in range(20):
            assert (await tunnel.get(f"/quick{number}")).body == f"/quick{number}".encode() * 2000
        for number, wire in enumerate(slow):
            for at in range(PIPELINED):
                assert (await wire.answer()).body == f"/{number}/{at}".encode() * 2000
            wire.close()


WITHOUT = """
import asyncio, signal
from tests import rig
from tests.tunnel import test_send_batch as these

these.{how}()

async def main():
    async with rig.tunnel(rig.http_only(these.Together(32))) as tunnel:
        wires = [await tunnel.open() for _ in range(32)]
        for number, wire in enumerate(wires):
            await wire.send(rig.request(f"/{{number}}"))
        for number, wire in enumerate(wires):
            assert (await wire.answer()).body == f"/{{number}}".encode() * 100
    for wire in wires:
        wire.close()
    assert not these.uses_batches()
    print("served")

asyncio.run(main())
"""


def take_broken_pipes_as_fatal() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def forbid_contexts() -> None:
    """Has the kernel refuse `io_setup` to this process, as sandboxes do (a filter of seccomp in classic BPF)."""
    number = {"x86_64": 206, "aarch64": 0}[platform.machine()]
    load, jump_if_equal, give = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    steps = [(load, 0, 0, 0), (jump_if_equal, 0, 1, number), (give, 0, 0, refuse), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filtered = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, filtered, program, 0, 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@pytest.mark.parametrize("how", [take_broken_pipes_as_fatal, forbid_contexts])
def test_all_is_served_by_plain_calls_where_batches_are_not_to_be_had(how: Any) -> None:
    program = WITHOUT.format(how=how.__name__)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    assert (ended.returncode, ended.stdout) == (0, "served\n"), ended.stderr
