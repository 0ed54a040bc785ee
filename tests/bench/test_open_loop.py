"""The bench's open loop: what it counts, and from when."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from bench import compiled
from bench.clients.open_loop import GRACE, summary
from bench.clients.percentiles import percentiles
from bench.scenarios.recovery import served_again

MESSAGE = b"GET /small HTTP/1.1\r\n\r\n"
BODY = b"done\n"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n" + BODY
RATE = 200.0
LOST, UNANSWERED = -1, -2


@contextmanager
def serving(answer: Callable[[int], bytes | None]) -> Iterator[int]:
    """A server for one connection at a time: what `answer` says to the n-th request, None to close; yields its port."""
    clients: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            number = 0
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                clients.append(client)
                with client, suppress(ConnectionError):
                    while request := client.recv(len(MESSAGE), socket.MSG_WAITALL):
                        assert request == MESSAGE
                        text = answer(number)
                        number += 1
                        if text is None:
                            break
                        client.sendall(text)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            # Whichever it waits at: the next request of a client that is still there, or the next client.
            listener.shutdown(socket.SHUT_RDWR)
            for client in clients:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            assert not thread.is_alive()


def run(port: int, count: int, *, connections: int = 1, grace: float = 10.0) -> Sequence[int]:
    open_loop = compiled.load("bench.clients._open_loop").OpenLoop
    latencies: Sequence[int] = open_loop(port, connections, RATE, count, MESSAGE, BODY, int(grace * 1e9)).run()
    return latencies


def test_a_latency_counts_from_when_its_request_was_due_so_that_a_stall_is_in_those_behind_it() -> None:
    stalled, seconds = 4, 0.2

    def answer(number: int) -> bytes:
        time.sleep(seconds if number == stalled else 0)
        return ANSWER

    with serving(answer) as port:
        latencies = run(port, 60)
    assert len(latencies) == 60
    assert min(latencies) > 0
    for index in range(stalled, stalled + int(seconds * RATE)):
        waited = seconds - (index - stalled) / RATE
        assert latencies[index] / 1e9 >= waited, f"request {index} was due {waited} s before the stall ended"


def test_requests_are_not_sent_before_they_are_due() -> None:
    received: list[float] = []

    def answer(number: int) -> bytes:
        received.append(time.monotonic())
        return ANSWER

    with serving(answer) as port:
        loop = compiled.load("bench.clients._open_loop").OpenLoop(port, 1, RATE, 20, MESSAGE, BODY, 10**10)
        loop.run()
    assert [at >= loop.begin_ns / 1e9 + index / RATE for index, at in enumerate(received)] == [True] * 20


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(None, id="the connection closed"),
        pytest.param(ANSWER.replace(b"200 OK", b"502 No"), id="another status"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n" + bytes(5000), id="another body"),
    ],
)
def test_an_answer_that_is_cut_or_wrong_is_lost_and_the_rest_is_asked_on_a_new_connection(wrong: bytes | None) -> None:
    with serving(lambda number: wrong if number == 3 else ANSWER) as port:
        latencies = run(port, 10)
    assert [index for index, latency in enumerate(latencies) if latency == LOST] == [3]
    assert min(latency for latency in latencies if latency != LOST) > 0


def test_what_has_no_answer_when_the_time_is_up_is_said_to_be_unanswered() -> None:
    with serving(lambda number: ANSWER if number < 2 else b"") as port:
        latencies = run(port, 5, grace=0.3)
    assert min(latencies[:2]) > 0
    assert list(latencies[2:]) == [UNANSWERED] * 3


def test_nobody_listening_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(OSError, match="the connections could not be made"):
        run(port, 5, grace=0.1)


def test_a_summary_counts_unanswered_requests_as_the_longest_and_leaves_lost_ones_out() -> None:
    found = summary([1_000_000, 2_000_000, LOST, UNANSWERED], rate=2)
    assert found["requests"] == 2
    assert found["lost"] == found["unanswered"] == 1
    assert found["seconds"] == 2
    assert found["longest"] == GRACE * 1e6
    assert found["p50"] == pytest.approx(2000)


def test_a_run_is_as_long_as_its_last_answer_took() -> None:
    assert summary([3_000_000_000, 1_000_000], rate=2)["seconds"] == 3


def test_percentiles_are_of_the_sorted_latencies_in_microseconds() -> None:
    found = percentiles([index / 1e6 for index in reversed(range(1000))])
    assert found == pytest.approx({"p50": 500, "p99": 990, "p999": 999, "longest": 999})
    assert percentiles([])["p99"] == 0


def test_served_again_is_the_first_answer_to_a_request_due_after_the_kill() -> None:
    # Due at 100, 100.1, 100.2 and 100.3 s; killed at 100.15.
    begin, killed = 100_000_000_000, 100_150_000_000
    latencies = [500_000_000, LOST, 900_000_000, 400_000_000]
    assert served_again(latencies, 10, begin, killed) == 550_000_000
    assert served_again(latencies[:2], 10, begin, killed) is None
