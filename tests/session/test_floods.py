"""Frames that say nothing cost from a bucket of 2,000, refilled with 200 a second: protocol.md 1.4, Floods."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backstream import _callbacks
from backstream.errors import ErrorCode
from tests.session import wire
from tests.session.wire import (
    EMPTY,
    GET,
    NOTIFY,
    OK,
    PING,
    POST,
    End,
    data,
    frame,
    goaway,
    request,
    reset,
    response,
    serve,
    trailers,
    window,
)

CALM = (ErrorCode.ENHANCE_YOUR_CALM, 1008)
CROSSING = 8  # frames for each stream that has ended
BUCKET = 2000
REFILL = 200


def open_download() -> End:
    end = wire.proxy()
    end.open(GET)
    end.said()
    end.hear(response(1, OK))
    return end


def closed_stream() -> End:
    end = open_download()
    end.hear(data(1, b"", end=True))
    return end


def upload() -> End:
    end = wire.agent(settings={"max_streams": 100_000})
    serve(end, 1, POST)
    return end


def no_streams() -> End:
    return wire.proxy(settings={"max_streams": 0})


COSTLY: list[tuple[str, Callable[[], End], Callable[[int], bytes]]] = [
    ("empty_data", open_download, lambda i: data(1)),
    ("empty_data_of_an_upload", upload, lambda i: data(1)),
    ("a_window_of_one_byte", open_download, lambda i: window(1, 1)),
    ("data_for_a_closed_stream", closed_stream, lambda i: data(1, b"x")),
    ("empty_data_for_a_closed_stream", closed_stream, lambda i: data(1)),
    ("trailers_for_a_closed_stream", closed_stream, lambda i: trailers(1)),
    ("heads_for_a_closed_stream", closed_stream, lambda i: response(1)),
    ("windows_for_a_closed_stream", closed_stream, lambda i: window(1, 1)),
    ("resets_for_a_closed_stream", closed_stream, lambda i: reset(1)),
    ("unknown_types", closed_stream, lambda i: frame(0x0A + i % 240, i, b"")),
    ("refused_streams_of_an_agent", no_streams, lambda i: request(i * 2 + 2)),
    ("pings", open_download, lambda i: frame(PING, 0, bytes(8), flags=1)),
    ("empty_notifies", open_download, lambda i: frame(NOTIFY, 0)),
]


@pytest.mark.parametrize(("make", "say"), [it[1:] for it in COSTLY], ids=[it[0] for it in COSTLY])
def test_a_flood_ends_with_enhance_your_calm_and_1008_behind_2000_frames(
    make: Callable[[], End], say: Callable[[int], bytes]
) -> None:
    end = make()
    # A few frames that crossed a stream's end on the wire are an honest peer's.
    free = CROSSING if make is closed_stream and say(0)[3] < 10 else 0
    end.hear(*(say(i) for i in range(BUCKET + free)))
    assert end.closed is None
    end.said()
    end.hear(say(BUCKET + free))
    assert end.closed == CALM
    assert end.said()[-1].value.code == ErrorCode.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("seconds", [0.5, 1.0, 3.0])
def test_the_bucket_refills_with_200_a_second(seconds: float) -> None:
    end = open_download()
    end.hear(*[data(1)] * BUCKET)
    end.owner.clock += seconds
    end.hear(*[data(1)] * int(seconds * REFILL))
    assert end.closed is None
    end.hear(data(1))
    assert end.closed == CALM


def test_the_bucket_never_holds_more_than_2000() -> None:
    end = open_download()
    end.owner.clock += 3600
    end.hear(*[data(1)] * BUCKET)
    assert end.closed is None
    end.hear(data(1))
    assert end.closed == CALM


def test_a_peer_that_stays_below_the_refill_may_go_on_for_ever() -> None:
    end = open_download()
    for _ in range(100):
        end.hear(*[data(1)] * REFILL)
        end.owner.clock += 1.0
    assert end.closed is None


def test_a_ping_of_the_transports_costs_as_much() -> None:
    end = open_download()
    for _ in range(BUCKET):
        end.session.charge_idle_frame()
    assert end.closed is None
    end.session.charge_idle_frame()
    assert end.closed == CALM


def test_repeated_goaways_cost_but_the_first_does_not() -> None:
    end = open_download()
    end.hear(*[goaway(1)] * (BUCKET + 1))
    assert end.closed is None
    end.hear(goaway(1))
    assert end.closed == CALM


@pytest.mark.parametrize("code", [ErrorCode.CANCEL, ErrorCode.TIMEOUT])
def test_a_reset_with_cancel_or_timeout_by_the_opener_never_counts(code: int) -> None:
    end = wire.agent()
    for i in range(3 * BUCKET):
        end.hear(request(i * 2 + 1, POST, end=False), reset(i * 2 + 1, code))
        end.said()
    assert end.closed is None
    assert len(end.owner.accepted) == 3 * BUCKET and end.session.stream_count == 0


def test_other_resets_by_the_opener_cost() -> None:
    end = wire.agent()
    for i in range(BUCKET + 1):
        end.hear(request(i * 2 + 1, POST, end=False), reset(i * 2 + 1, ErrorCode.INTERNAL))
    assert end.closed == CALM


@pytest.mark.parametrize("code", [ErrorCode.NO_ERROR, ErrorCode.PROTOCOL_ERROR, ErrorCode.FLOW_CONTROL_ERROR])
def test_resets_by_the_side_that_did_not_open_the_stream_cost_where_they_blame_the_one_that_did(code: int) -> None:
    end = wire.proxy()
    assert reset_all(end, code, BUCKET) == BUCKET and end.closed is None
    assert reset_all(end, code, 1) == 1
    assert end.closed == CALM


@pytest.mark.parametrize(
    "code",
    [ErrorCode.INTERNAL, ErrorCode.REFUSED, ErrorCode.CANCEL, ErrorCode.APP_ERROR, 38, 77, 2**32 - 1],
)
def test_a_service_that_fails_every_request_does_not_end_the_session(code: int) -> None:
    end = wire.proxy()
    assert reset_all(end, code, 3 * BUCKET) == 3 * BUCKET
    assert end.closed is None and end.alive()


def reset_all(end: End, code: int, count: int) -> int:
    """Opens streams that the other side resets, each once; how many there were."""
    for at in range(count):
        handler = end.open(GET)
        assert handler.stream is not None
        end.said()
        end.hear(reset(handler.stream.id, code))
        if end.closed is not None:
            return at + 1
    return count


def test_small_grants_cost_where_the_window_is_none_that_is_small() -> None:
    end = wire.agent(peer={"initial_window": 100})
    serve(end, 1)
    # Credit that nobody uses adds up: the window is large.
    end.hear(*[window(1, 25)] * (BUCKET + 100))
    assert end.closed == CALM
    end = wire.agent(peer={"initial_window": 64 * 1024})
    stream = serve(end, 1).stream
    _callbacks.respond(stream, OK)
    _callbacks.write(stream, bytes(64 * 1024 + BUCKET + 1))
    end.said()
    # It has taken all, and would have us send byte by byte.
    for _ in range(BUCKET + 1):
        end.hear(window(1, 1))
        end.said()
    assert end.closed == CALM


# --- what honest peers do must not count ---


@pytest.mark.parametrize("size", [1, 2, 5, 100, 255, 256, 511])
@pytest.mark.parametrize("part", [2, 4])
def test_a_small_window_that_is_granted_in_parts_costs_nothing(size: int, part: int) -> None:
    end = wire.agent(peer={"initial_window": size})
    stream = serve(end, 1).stream
    _callbacks.respond(stream, OK)
    grant = max(size // part, 1) if part == 2 else -(-size // part)
    for _ in range(2 * BUCKET):
        _callbacks.write(stream, bytes(grant))
        end.said()
        end.hear(window(1, grant))
    assert end.closed is None


def test_large_data_for_a_closed_stream_is_what_crossed_and_costs_nothing() -> None:
    end = closed_stream()
    end.hear(*[data(1, bytes(1024))] * (BUCKET + 1))
    assert end.closed is None


def test_real_frames_cost_nothing() -> None:
    end = open_download()
    for _ in range(2 * BUCKET):
        end.hear(data(1, b"x"), window(1, 128))
    end.hear(*[frame(NOTIFY, 0, b"\x12\x01x")] * (2 * BUCKET))
    assert end.closed is None
    for _ in range(2 * BUCKET):
        handler = end.open(GET)
        assert handler.stream is not None
        end.said()
        end.hear(response(handler.stream.id, EMPTY, end=True))
    assert end.closed is None


def test_uploads_that_are_answered_early_do_not_end_the_session() -> None:
    client, server = wire.proxy(), wire.agent()
    for i in range(BUCKET + 1):
        client.open(POST)
        server.hear(*again(client))
        _callbacks.respond(server.owner.accepted[i].stream, EMPTY, True)
        client.hear(*again(server))  # the answer's end, and the RESET(NO_ERROR) that has to follow it
        assert client.closed is None and server.closed is None, i


def test_credit_that_crosses_the_end_of_its_stream_does_not_end_the_session() -> None:
    client, server = wire.proxy(), wire.agent()
    for i in range(BUCKET + 1):
        client.open(GET)
        server.hear(*again(client))
        stream = server.owner.accepted[i].stream
        _callbacks.respond(stream, OK)
        _callbacks.write(stream, bytes(16384))
        first = again(server)
        _callbacks.end(stream)
        last = again(server)
        client.hear(*first)
        credit = again(client)
        client.hear(*last)
        server.hear(*credit)
        assert client.closed is None and server.closed is None, i


@pytest.mark.parametrize("code", [ErrorCode.CANCEL, ErrorCode.TIMEOUT])
def test_a_cancel_that_crosses_the_answer_never_counts(code: int) -> None:
    client, server = wire.proxy(), wire.agent()
    for i in range(BUCKET + 1):
        handler = client.open(GET)
        server.hear(*again(client))
        _callbacks.respond(server.owner.accepted[i].stream, EMPTY, True)
        assert handler.stream is not None
        _callbacks.reset(handler.stream, code)
        server.hear(*again(client))
        again(server)
        assert server.closed is None, i


def again(end: End) -> list[bytes]:
    """What an end says, as frames to be heard."""
    return [frame(f.type, f.stream, f.payload, f.flags) for f in end.said()]
