"""Credit, windows and the budget: protocol.md 1.3."""

from __future__ import annotations

import pytest

from backstream import _callbacks
from backstream._flow import WindowBudget
from backstream._message_codec import pack_notify
from backstream._messages import Notify
from backstream.errors import ErrorCode
from tests.session import wire
from tests.session.wire import (
    DATA,
    GET,
    OK,
    POST,
    SWITCH,
    UPGRADE,
    WINDOW,
    Accepted,
    End,
    Handler,
    KiB,
    MiB,
    Sent,
    data,
    reset,
    resets,
    response,
    serve,
    window,
)


def bytes_of(frames: list[Sent], stream: int | None = None) -> int:
    return sum(len(f.payload) for f in frames if f.type == DATA and (stream is None or f.stream == stream))


def grants(frames: list[Sent], stream: int | None = None) -> list[int]:
    return [f.value for f in frames if f.type == WINDOW and (stream is None or f.stream == stream)]


def answering(end: End, stream: int = 1) -> Accepted:
    """An accepted stream whose response's head has gone out."""
    accepted = serve(end, stream)
    _callbacks.respond(accepted.stream, OK)
    end.said()
    return accepted


def downloading(end: End, eager: bool = True) -> Handler:
    """An opened stream whose response's head has come."""
    handler = end.open(GET, eager=eager)
    end.said()
    assert handler.stream is not None
    end.hear(response(handler.stream.id, OK))
    return handler


def books(handler: Handler) -> tuple[int, int, int, int]:
    """(window, credit, queued, ungranted), of which the last three always make the first."""
    assert handler.stream is not None
    window, credit, queued, ungranted = _callbacks.window(handler.stream)
    assert credit + queued + ungranted == window
    assert min(credit, queued, ungranted) >= 0
    return window, credit, queued, ungranted


# --- sending ---


@pytest.mark.parametrize("initial", [1, 999, 1000, 16384, 65536, 100_000])
def test_a_sender_uses_the_peers_initial_window_to_the_byte_and_then_waits(initial: int) -> None:
    end = wire.agent(peer={"initial_window": initial})
    accepted = answering(end)
    _callbacks.write(accepted.stream, bytes(200_000))
    assert bytes_of(end.said()) == initial
    assert _callbacks.staged(accepted.stream) == 200_000 - initial
    assert end.said() == []
    end.hear(window(1, 777))
    assert bytes_of(end.said()) == 777


def test_an_opener_has_the_same_credit_for_its_request() -> None:
    end = wire.proxy(peer={"initial_window": 1000})
    handler = end.open(POST)
    assert handler.stream is not None
    _callbacks.write(handler.stream, bytes(5000))
    assert bytes_of(end.said()) == 1000
    end.hear(window(1, 1), window(1, 2))  # they add up
    assert bytes_of(end.said()) == 3


def test_the_end_waits_behind_bytes_without_credit_but_needs_none_itself() -> None:
    end = wire.agent(peer={"initial_window": 10})
    accepted = answering(end)
    _callbacks.write(accepted.stream, bytes(11))
    _callbacks.end(accepted.stream)
    assert [(len(f.payload), f.end) for f in end.said()] == [(10, False)]
    end.hear(window(1, 1))
    assert [(len(f.payload), f.end) for f in end.said()] == [(1, True)]
    second = answering(end, 3)
    _callbacks.write(second.stream, bytes(10))
    assert bytes_of(end.said()) == 10
    _callbacks.end(second.stream)
    assert [(len(f.payload), f.end) for f in end.said()] == [(0, True)]


@pytest.mark.parametrize(
    ("initial", "largest", "expected"),
    [
        (65536, 65536, 16384),
        (16384, 65536, 16384),
        (30_000, 65536, 16384),
        (131072, 65536, 32768),
        (1 << 20, 65536, 65536),
        (1 << 20, 131072, 131072),
        (1 << 20, 16384, 16384),
        (1000, 65536, 1000),
    ],
)
def test_a_data_frame_is_at_most_a_quarter_of_the_window_but_not_below_16_kib_nor_above_the_peers_limit(
    initial: int, largest: int, expected: int
) -> None:
    end = wire.agent(peer={"initial_window": initial, "max_frame_size": largest})
    accepted = answering(end)
    _callbacks.write(accepted.stream, bytes(2 << 20))
    sizes = [len(f.payload) for f in end.message()]
    assert max(sizes) == sizes[0] == expected


def test_a_quarter_is_that_of_the_largest_window_the_sender_has_seen() -> None:
    end = wire.agent()
    accepted = answering(end)
    end.hear(window(1, 256 * KiB - 64 * KiB))
    _callbacks.write(accepted.stream, bytes(1 << 20))
    assert len(end.message()[0].payload) == 64 * KiB


@pytest.mark.parametrize("opener", [True, False])
def test_credit_above_2_to_the_31_less_1_fails_the_stream(opener: bool) -> None:
    end = wire.proxy() if opener else wire.agent()
    handler = end.open(POST) if opener else serve(end, 1, POST).handler
    end.said()
    end.hear(window(1, 2**31 - 1 - 65536))
    assert handler.resets == []
    end.hear(window(1, 1))
    assert handler.resets == [ErrorCode.FLOW_CONTROL_ERROR]
    assert resets(end.said()) == [ErrorCode.FLOW_CONTROL_ERROR]
    assert end.closed is None


def test_room_is_the_credit_less_what_is_staged_and_at_most_128_kib() -> None:
    end = wire.agent(peer={"initial_window": 200_000})
    stream = answering(end).stream
    assert _callbacks.room(stream) == 128 * KiB
    _callbacks.write(stream, bytes(120_000))
    assert _callbacks.room(stream) == 128 * KiB - 120_000
    while end.said():
        pass
    assert _callbacks.room(stream) == 80_000
    _callbacks.write(stream, bytes(80_000))
    end.said()
    assert _callbacks.room(stream) == 0


def test_a_source_that_found_no_room_is_told_once_when_credit_comes() -> None:
    end = wire.agent(peer={"initial_window": 1000})
    accepted = answering(end)
    _callbacks.write(accepted.stream, bytes(1000))
    end.said()
    assert _callbacks.room(accepted.stream) == 0
    assert accepted.handler.writable_calls == 0
    end.hear(window(1, 500), window(1, 500))
    assert accepted.handler.writable_calls == 1
    assert _callbacks.room(accepted.stream) == 1000


def test_a_source_that_found_no_room_is_told_when_what_it_staged_has_left() -> None:
    end = wire.agent(peer={"initial_window": 1 << 20})
    accepted = answering(end)
    _callbacks.write(accepted.stream, bytes(128 * KiB))
    assert _callbacks.room(accepted.stream) == 0
    end.said()
    assert accepted.handler.writable_calls == 1


def test_a_source_that_has_room_is_not_told() -> None:
    end = wire.agent()
    accepted = answering(end)
    _callbacks.write(accepted.stream, b"x")
    assert _callbacks.room(accepted.stream) > 0
    end.said()
    end.hear(window(1, 1000))
    assert accepted.handler.writable_calls == 0


# --- receiving ---


def test_credit_is_granted_on_consumption_and_never_on_receipt() -> None:
    end = wire.proxy()
    handler = downloading(end, eager=False)
    end.hear(data(1, bytes(65536)))
    assert end.said() == []
    assert books(handler) == (65536, 0, 65536, 0)
    handler.consume(10_000)
    assert end.said() == []
    handler.consume(6384)
    assert grants(end.said()) == [16384]
    assert books(handler) == (65536, 16384, 49152, 0)


@pytest.mark.parametrize("initial", [1000, 4096, 16384, 65536])
def test_credit_is_topped_up_at_a_quarter_of_the_window(initial: int) -> None:
    end = wire.proxy(settings={"initial_window": initial})
    handler = downloading(end, eager=False)
    end.hear(data(1, bytes(initial)))
    # Of a small window at 8 KiB, or at half of it: frames of bulk are not to become small.
    due = max(-(-initial // 4), min(8192, -(-initial // 2)))
    handler.consume(due - 1)
    assert end.said() == []
    handler.consume(1)
    assert grants(end.said()) == [due]


def test_grants_of_one_turn_add_up_to_one_window_frame() -> None:
    end = wire.proxy()
    handler = downloading(end, eager=False)
    end.hear(data(1, bytes(65536)))
    for _ in range(3):
        handler.consume(16384)
    assert grants(end.said()) == [3 * 16384]


@pytest.mark.parametrize("initial", [1, 1000, 65536])
def test_a_byte_beyond_the_credit_fails_its_stream_with_flow_control_error_and_leaves_the_others_alone(
    initial: int,
) -> None:
    end = wire.proxy(settings={"initial_window": initial})
    handler, other = downloading(end, eager=False), downloading(end)
    end.hear(data(1, bytes(initial)))
    assert handler.resets == []
    end.hear(data(1, b"x"), data(3, b"y", end=True))
    assert handler.resets == [ErrorCode.FLOW_CONTROL_ERROR]
    assert len(handler.body) == initial  # what overran was not handed on
    assert resets(end.said()) == [ErrorCode.FLOW_CONTROL_ERROR]
    assert other.ended and other.body == b"y"
    assert end.closed is None and end.alive()


def test_an_overrun_of_an_upload_fails_it_alone() -> None:
    end = wire.agent(settings={"initial_window": 1000})
    end.owner.eager = False
    upload, other = serve(end, 1, POST), serve(end, 3, POST)
    end.hear(data(1, bytes(600)), data(1, bytes(401)), data(3, bytes(1000), end=True))
    assert upload.handler.resets == [ErrorCode.FLOW_CONTROL_ERROR]
    assert other.handler.ended and len(other.handler.body) == 1000


def test_each_direction_of_a_stream_has_its_own_credit() -> None:
    end = wire.agent(settings={"initial_window": 1000}, peer={"initial_window": 2000})
    end.owner.eager = False
    accepted = serve(end, 1, POST)
    _callbacks.respond(accepted.stream, OK)
    end.hear(data(1, bytes(1000)))
    _callbacks.write(accepted.stream, bytes(3000))
    assert bytes_of(end.said()) == 2000
    accepted.handler.consume()
    assert grants(end.said()) == [1000 + 1000]  # a window taken in no time: doubled
    assert accepted.handler.resets == []


def test_heads_and_trailers_cost_no_credit() -> None:
    end = wire.proxy(settings={"initial_window": 1})
    handler = end.open(GET)
    end.hear(response(1, OK), data(1, b"x"), wire.trailers(1, ((b"a", b"b" * 5000),)))
    assert handler.ended
    server = wire.agent(peer={"initial_window": 1})
    accepted = serve(server)
    _callbacks.respond(accepted.stream, OK)
    _callbacks.write(accepted.stream, b"x")
    _callbacks.end(accepted.stream, ((b"a", b"b" * 5000),))
    assert server.said()[-1].type == wire.TRAILERS


def test_a_stream_that_nobody_reads_does_not_stall_its_neighbours() -> None:
    end = wire.proxy()
    stalled, running = downloading(end, eager=False), downloading(end)
    end.hear(data(1, bytes(65536)))
    credit, received = 65536, 0
    while received < 4 * MiB:
        size = min(credit, 16384)
        assert size
        end.hear(data(3, bytes(size)))
        received += size
        credit += sum(grants(end.said(), 3)) - size
    assert len(running.body) == received and len(stalled.body) == 65536
    assert books(stalled) == (65536, 0, 65536, 0)


def test_granting_does_not_depend_on_what_this_side_has_to_write_itself() -> None:
    end = wire.agent(peer={"initial_window": 10})
    accepted = serve(end, 1, POST)
    _callbacks.respond(accepted.stream, OK)
    _callbacks.write(accepted.stream, bytes(100_000))
    end.said()
    end.hear(data(1, bytes(65536)))  # consumed at once, though nothing can be written
    assert sum(grants(end.said())) >= 65536


def test_nothing_is_granted_to_a_direction_that_has_ended() -> None:
    end = wire.agent()
    end.owner.eager = False
    accepted = serve(end, 1, POST)
    end.hear(data(1, bytes(65536), end=True))
    accepted.handler.consume()
    assert end.said() == []
    assert not _callbacks.is_closed(accepted.stream)


# --- windows that grow ---


def take_a_window(end: End, handler: Handler, seconds: float) -> int:
    """The peer fills the window, the consumer takes it all `seconds` later; returns what was granted."""
    assert handler.stream is not None
    _, credit, queued, _ = books(handler)
    assert queued == 0
    left = credit
    while left:
        size = min(left, 65536)
        end.hear(data(handler.stream.id, bytes(size)))
        left -= size
    end.owner.clock += seconds
    handler.consume()
    return sum(grants(end.said(), handler.stream.id))


@pytest.mark.parametrize(
    ("round_trip", "seconds", "factor"),
    [
        (0.0, 0.019, 2),
        (0.0, 0.021, 1),
        (0.001, 0.019, 2),
        (0.004, 0.021, 1),
        (0.1, 0.399, 4),  # a long path: what was lost on it takes a round trip or two to come again
        (0.1, 0.401, 1),
        (0.5, 1.9, 4),
    ],
)
def test_a_window_of_a_lone_stream_grows_when_it_was_taken_soon(round_trip: float, seconds: float, factor: int) -> None:
    end = wire.proxy()
    end.session.round_trip = round_trip
    handler = downloading(end, eager=False)
    granted = take_a_window(end, handler, seconds)
    assert granted == books(handler)[0] == 65536 * factor
    assert _callbacks.budget_used(end.session) == end.budget.used_bytes == 65536 * (factor - 1)


def crowd(end: End, count: int, seconds: float, rounds: int = 4) -> list[Handler]:
    """So many downloads that take turns, each of which takes its window `seconds` after the last one took its own."""
    end.session.round_trip = 0.00004
    handlers = [downloading(end, eager=False) for _ in range(count)]
    for _ in range(rounds):
        for handler in handlers:
            take_a_window(end, handler, seconds)
    return handlers


def test_many_streams_on_a_short_path_shrink_each_others_windows_below_their_initial_size() -> None:
    end = wire.proxy()
    handlers = crowd(end, 8, 0.0001)
    assert [books(handler)[0] for handler in handlers] == [16384] * 8
    assert end.budget.used_bytes == 0
    for handler in handlers[1:]:
        end.hear(data(handler.stream.id, b"", end=True))  # type: ignore[union-attr]
    take_a_window(end, handlers[0], 0.0)
    for _ in range(3):
        take_a_window(end, handlers[0], 0.00005)
    assert books(handlers[0])[0] == 131072  # the path is its own again


def test_a_stream_that_is_alone_on_a_short_path_grows_to_512_kib_without_being_fast() -> None:
    end = wire.proxy()
    end.session.round_trip = 0.00004
    handler = downloading(end, eager=False)
    windows = []
    for _ in range(12):
        take_a_window(end, handler, 0.01)  # a hundred times what a window on this path may take
        windows.append(books(handler)[0])
    assert windows == [131072, 262144] + 10 * [524288]


@pytest.mark.parametrize(("streams", "factor"), [(1, 4), (2, 2)])
def test_a_stream_that_is_alone_on_a_long_path_grows_faster(streams: int, factor: int) -> None:
    end = wire.proxy()
    end.session.round_trip = 0.1
    handlers = [downloading(end, eager=False) for _ in range(streams)]
    windows = []
    for _ in range(3):
        for handler in handlers:
            take_a_window(end, handler, 0.1 / streams)
        windows.append(books(handlers[-1])[0])
    assert windows == [65536 * factor, 65536 * factor**2, 65536 * factor**3]


def test_what_a_halved_window_leaves_to_grant_is_no_flood_of_small_grants() -> None:
    end = wire.proxy()
    end.session.round_trip = 0.00004
    handlers = [downloading(end, eager=False) for _ in range(2)]
    granted = []
    for handler in handlers:
        assert handler.stream is not None
        for size in (32684, 32852):  # 84 bytes more than half of the window, when it is halved
            end.hear(data(handler.stream.id, bytes(size)))
            end.owner.clock += 0.0005
            handler.consume()
            granted += grants(end.said())
    assert [books(handler)[0] for handler in handlers][1] == 32768
    assert min(granted) >= 8192


def test_a_stream_that_is_slow_by_itself_keeps_its_initial_window_and_gets_it_back() -> None:
    end = wire.proxy()
    slow = crowd(end, 2, 0.03)  # a round of 60 ms: whoever sends or reads at that pace fills no queue
    assert [books(handler)[0] for handler in slow] == [65536] * 2
    end = wire.proxy()
    slow = crowd(end, 8, 0.0001)
    for _ in range(2):
        for handler in slow:
            take_a_window(end, handler, 0.1)
    assert [books(handler)[0] for handler in slow] == [65536] * 8
    assert end.budget.used_bytes == 0


def test_a_small_initial_window_does_not_shrink() -> None:
    end = wire.proxy(settings={"initial_window": 20_000})
    assert [books(handler)[0] for handler in crowd(end, 8, 0.0001)] == [20_000] * 8


def test_a_window_does_not_grow_while_something_is_queued() -> None:
    end = wire.proxy()
    handler = downloading(end, eager=False)
    for _ in range(20):
        end.hear(data(1, bytes(16384)))
        while len(handler.body) < 65536:
            end.hear(data(1, bytes(16384)))
        handler.consume(16384)  # always less than what is there
        end.said()
    assert books(handler)[0] == 65536


def test_a_window_grows_to_max_window_and_no_further() -> None:
    end = wire.proxy(max_window=512 * KiB)
    handler = downloading(end, eager=False)
    for _ in range(6):
        take_a_window(end, handler, 0.0)
    assert books(handler)[0] == 512 * KiB
    assert end.budget.used_bytes == 512 * KiB - 65536


def test_a_window_grows_to_16_mib_by_default_and_that_of_an_upgraded_stream_to_1_mib() -> None:
    end = wire.proxy()
    handler = downloading(end, eager=False)
    upgraded = end.open(UPGRADE, eager=False)
    end.said()
    end.hear(response(3, SWITCH))
    for _ in range(9):
        take_a_window(end, handler, 0.0)
        take_a_window(end, upgraded, 0.0)
    assert books(handler)[0] == 16 * MiB
    assert books(upgraded)[0] == MiB


def test_a_window_of_an_upgraded_stream_grows_to_a_maximum_of_its_own() -> None:
    end = wire.proxy(max_upgraded_window=256 * KiB)
    upgraded = end.open(UPGRADE, eager=False)
    end.said()
    end.hear(response(1, SWITCH))
    for _ in range(9):
        take_a_window(end, upgraded, 0.0)
    assert books(upgraded)[0] == 256 * KiB


def test_without_budget_windows_stay_as_they_are() -> None:
    end = wire.proxy(budget=WindowBudget(0))
    handler = downloading(end, eager=False)
    assert take_a_window(end, handler, 0.0) == 65536
    assert books(handler)[0] == 65536


@pytest.mark.parametrize("how", ["end", "reset_there", "reset_here", "failed", "lost"])
def test_a_stream_gives_its_part_of_the_budget_back_however_it_ends(how: str) -> None:
    end = wire.proxy()
    handler = downloading(end, eager=False)
    take_a_window(end, handler, 0.0)
    take_a_window(end, handler, 0.0)
    assert end.budget.used_bytes == 3 * 65536
    assert handler.stream is not None
    match how:
        case "end":
            end.hear(data(1, b"", end=True))
        case "reset_there":
            end.hear(reset(1, ErrorCode.INTERNAL))
        case "reset_here":
            _callbacks.reset(handler.stream, ErrorCode.CANCEL)
        case "failed":
            end.hear(response(1, OK))
        case _:
            end.session.lost()
    assert end.budget.used_bytes == _callbacks.budget_used(end.session) == 0


def test_while_several_sessions_hold_some_budget_none_gets_more_than_a_quarter_and_one_alone_three() -> None:
    budget = WindowBudget(16 * 65536)
    first, second = wire.proxy(budget=budget), wire.proxy(budget=budget)
    one, other = downloading(first, eager=False), downloading(second, eager=False)
    take_a_window(second, other, 0.0)  # holds 1 of the 16
    for _ in range(5):
        take_a_window(first, one, 0.0)
    assert _callbacks.budget_used(first.session) == 3 * 65536  # the next doubling would make it 7
    second.hear(data(1, b"", end=True))
    for _ in range(5):
        take_a_window(first, one, 0.0)
    assert _callbacks.budget_used(first.session) == 7 * 65536  # the next would make it 15, more than 12
    for _ in range(5):
        take_a_window(second, downloading(second, eager=False), 0.0)
    assert _callbacks.budget_used(second.session) == 4 * 65536
    assert budget.used_bytes == 11 * 65536 <= budget.total_bytes


def test_a_sender_follows_a_window_that_grows() -> None:
    end = wire.agent()
    accepted = answering(end)
    total = 0
    for credit in (65536, 131072, 262144):
        _callbacks.write(accepted.stream, bytes(credit))
        total += credit
        sent = bytes_of(end.said())
        assert sent == (65536 if credit == 65536 else credit)
        end.hear(window(1, credit * 2))
    assert accepted.handler.resets == []


@pytest.mark.parametrize("largest", [16384, 65536, 131072])
def test_a_data_frame_above_the_own_max_frame_size_fails_its_stream(largest: int) -> None:
    end = wire.proxy(settings={"max_frame_size": largest, "initial_window": MiB})
    handler, other = downloading(end), downloading(end)
    end.hear(data(1, bytes(largest)), data(3, b"x"))
    assert len(handler.body) == largest
    end.said()
    end.hear(data(1, bytes(largest + 1)), data(3, b"y"))
    assert handler.resets == [ErrorCode.FRAME_SIZE_ERROR] and other.body == b"xy"
    assert end.closed is None


@pytest.mark.parametrize("largest", [16384, 65536])
def test_a_notify_above_the_own_max_frame_size_ends_the_session(largest: int) -> None:
    end = wire.proxy(settings={"max_frame_size": largest})
    event = pack_notify(Notify(data=bytes(largest - (3 if largest == 16384 else 4))))
    assert len(event) == largest
    end.hear(wire.frame(wire.NOTIFY, 0, event))
    assert end.closed is None and len(end.owner.notifies) == 1
    end.hear(wire.frame(wire.NOTIFY, 0, event + b"\x00"))
    assert end.closed == (ErrorCode.FRAME_SIZE_ERROR, 1002)
