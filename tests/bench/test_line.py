"""The bench's long line, between sockets in place of TUN devices, for which one would have to be root."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench import compiled

FAST = 1e9
QUEUE = 1 << 20


class Line:
    """Its two ends, and what it says when it is over."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near = near
        self.far = far
        self.result: dict[str, int] = {}


@contextmanager
def line(*, delay: float = 0.0, loss: float = 0.0, rate: float = FAST, queue: int = QUEUE) -> Iterator[Line]:
    near, inner_near = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far, inner_far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stop, stopping = os.pipe()
    found = Line(near, far)
    with near, far, inner_near, inner_far:
        for end in (inner_near, inner_far):
            end.setblocking(False)
        for end in (near, far):
            end.settimeout(10)
        ends = inner_near.fileno(), inner_far.fileno()
        running = compiled.load("bench.services._line").Line(*ends, int(delay * 1e9), loss, rate, queue, 1)
        thread = threading.Thread(target=lambda: found.result.update(running.run(stop)))
        thread.start()
        try:
            yield found
        finally:
            os.close(stopping)
            thread.join(10)
            os.close(stop)


@pytest.mark.parametrize("way", ["near to far", "far to near"])
def test_packets_come_whole_and_in_order_and_not_before_the_delay(way: str) -> None:
    packets = [bytes([number]) * (number + 1) for number in range(5)]
    with line(delay=0.05) as found:
        source, target = (found.near, found.far) if way == "near to far" else (found.far, found.near)
        begin = time.monotonic()
        for packet in packets:
            source.send(packet)
        assert [target.recv(2000) for _ in packets] == packets
        assert time.monotonic() - begin >= 0.05
    assert found.result == {"carried": 5, "lost": 0, "overflowed": 0}


def test_packets_take_as_long_as_the_rate_says() -> None:
    with line(rate=100_000) as found:
        begin = time.monotonic()
        for _ in range(5):
            found.near.send(bytes(1000))
        for _ in range(5):
            found.far.recv(2000)
        assert time.monotonic() - begin >= 0.05


def test_a_packet_that_finds_the_queue_full_is_dropped() -> None:
    with line(rate=100, queue=500) as found:
        # The first takes ten seconds to send, so that the others would wait for longer than 500 bytes take.
        for _ in range(3):
            found.near.send(bytes(1000))
        # The line turns to both ways one after the other: by the second answer it has seen what was sent before.
        for _ in range(2):
            found.far.send(b".")
            found.near.recv(10)
    assert found.result == {"carried": 2, "lost": 0, "overflowed": 2}


def test_about_as_many_are_lost_as_was_asked_for_and_the_same_ones_each_time() -> None:
    runs: list[list[int]] = []
    for _ in range(2):
        received: list[int] = []
        with line(loss=0.25) as found:
            for number in range(200):
                found.near.send(b"%d" % number)
            while not received or received[-1] < 180:
                received.append(int(found.far.recv(100)))
        runs.append([number for number in received if number < 180])
    assert runs[0] == runs[1]
    assert 0.6 * 180 < len(runs[0]) < 0.9 * 180
