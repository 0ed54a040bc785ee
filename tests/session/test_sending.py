"""What leaves when: order, fairness, messages, and a transport that is full; protocol.md 1 and 1.3."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backstream import _callbacks
from backstream._flow import WindowBudget
from backstream._messages import ResponseHead
from backstream._seed_session import SeedSession
from backstream._stream import Stream
from backstream.errors import ErrorCode, StreamError
from tests.session import wire
from tests.session.wire import (
    CONTINUE,
    DATA,
    EMPTY,
    GET,
    GOAWAY,
    NOTIFY,
    OK,
    PING,
    POST,
    REQUEST,
    RESET,
    RESPONSE,
    TRAILERS,
    WINDOW,
    Accepted,
    End,
    KiB,
    Sent,
    data,
    frame,
    request,
    response,
    serve,
    window,
)


def several(count: int, window: int = 1 << 20, **peer: int) -> tuple[End, list[Accepted]]:
    """An agent's end with streams 1, 3, 5, … whose heads have gone out."""
    end = wire.agent(peer={"initial_window": window, **peer})
    accepted = [serve(end, i * 2 + 1) for i in range(count)]
    for it in accepted:
        _callbacks.respond(it.stream, OK)
    end.said()
    return end, accepted


def order(frames: list[Sent]) -> list[tuple[int, int]]:
    return [(f.type, f.stream) for f in frames]


# --- order and fairness ---


def test_ready_streams_are_served_in_turn_one_data_frame_each() -> None:
    end, accepted = several(4, window=64 * KiB)
    for it in accepted:
        _callbacks.write(it.stream, bytes(50 * KiB))
    assert [f.stream for f in end.said()] == [1, 3, 5, 7] * 4


def test_a_large_stream_does_not_hold_up_a_small_one() -> None:
    end, (large, small) = several(2)
    _callbacks.write(large.stream, bytes(64 * KiB) * 10)
    end.message(limit=32 * KiB)
    _callbacks.write(small.stream, b"small")
    sent = end.message()
    assert [f.stream for f in sent][:2].count(3) == 1


def test_a_turn_goes_on_where_the_last_message_stopped() -> None:
    end, accepted = several(3, window=64 * KiB)
    for it in accepted:
        _callbacks.write(it.stream, bytes(64 * KiB))
    streams: list[int] = []
    while message := end.message(limit=20 * KiB):
        streams += [f.stream for f in message]
    heads = [s for i, s in enumerate(streams) if i == 0 or streams[i - 1] != s]
    assert heads[:6] == [1, 3, 5, 1, 3, 5]


def test_heads_resets_and_credit_go_before_data() -> None:
    end, (one, two, three) = several(3)
    upload = serve(end, 7, POST)
    for it in (one, two, three):
        _callbacks.write(it.stream, bytes(20_000))
    end.hear(data(7, bytes(65536)))
    _callbacks.respond(serve(end, 9).stream, OK)
    _callbacks.reset(three.stream, ErrorCode.APP_ERROR)
    end.open(GET)
    assert upload.handler.body
    kinds = order(end.message())
    first_data = next(i for i, (kind, _) in enumerate(kinds) if kind == DATA)
    assert sorted(kinds[:first_data]) == sorted([(RESPONSE, 9), (RESET, 5), (REQUEST, 2), (WINDOW, 7)])
    assert {kind for kind, _ in kinds[first_data:]} == {DATA}
    assert 5 not in [stream for _, stream in kinds[first_data:]]


def test_trailers_with_nothing_before_them_go_before_the_data_of_others() -> None:
    end, (one, two) = several(2)
    _callbacks.write(one.stream, bytes(20_000))
    _callbacks.end(two.stream, ((b"a", b"b"),))
    assert order(end.message())[0] == (TRAILERS, 3)


def test_trailers_go_behind_the_data_of_their_own_stream() -> None:
    end, (one, two) = several(2)
    _callbacks.write(one.stream, bytes(64 * KiB))
    _callbacks.write(one.stream, bytes(64 * KiB))
    _callbacks.write(two.stream, b"x")
    _callbacks.end(one.stream, ((b"a", b"b"),))
    sent = end.said()
    own = [f for f in sent if f.stream == 1]
    assert [f.type for f in own[:-1]] == [DATA] * (len(own) - 1) and own[-1].type == TRAILERS
    assert sum(len(f.payload) for f in own[:-1]) == 128 * KiB


def test_large_trailers_never_overfill_a_message() -> None:
    end, accepted = several(6)
    for it in accepted:
        _callbacks.write(it.stream, bytes(30_000))
        _callbacks.end(it.stream, ((b"a", b"b" * 120_000),))
    seen = 0
    while size := len(message := _callbacks.pull(end.session)):
        assert size <= 256 * KiB
        seen += sum(f.type == TRAILERS for f in wire.frames_of(message))
    assert seen == 6 and end.session.stream_count == 0


@pytest.mark.parametrize("limit", [32 * KiB, 256 * KiB, 10, 11, 1000])
def test_data_fills_a_message_up_to_its_limit_and_no_further(limit: int) -> None:
    end, accepted = several(3)
    for it in accepted:
        _callbacks.write(it.stream, bytes(120 * KiB))
    assert 10 <= len(_callbacks.pull(end.session, limit)) <= limit


def test_a_message_has_at_most_256_kib_however_much_waits() -> None:
    end = wire.agent(settings={"max_streams": 1000})
    head = replace(OK, fields=((b"x", b"y" * 60_000),))
    for i in range(20):
        _callbacks.respond(serve(end, i * 2 + 1).stream, head)
    total = 0
    while message := _callbacks.pull(end.session):
        assert len(message) <= 256 * KiB
        total += len(wire.frames_of(message))
    assert total == 20


def test_what_is_written_in_pieces_leaves_whole_and_in_order() -> None:
    end, (one,) = several(1)
    pieces = [bytes([i % 251]) * (i % 700 + 1) for i in range(300)]
    for piece in pieces:
        _callbacks.write(one.stream, piece)
    sent: list[Sent] = []
    limit = 17
    while message := end.message(limit=limit):
        sent += message
        limit = limit * 5 % 9001 + 10
    assert b"".join(f.payload for f in sent) == b"".join(pieces)


def test_an_end_leaves_with_the_last_bytes_in_one_frame() -> None:
    end, (one,) = several(1)
    _callbacks.write(one.stream, b"last")
    _callbacks.end(one.stream)
    assert [(f.type, f.payload, f.end) for f in end.said()] == [(DATA, b"last", True)]


def test_no_empty_data_frame_leaves_but_an_end() -> None:
    end, (one,) = several(1)
    _callbacks.write(one.stream, b"")
    assert end.said() == []
    _callbacks.end(one.stream)
    assert [(f.payload, f.end) for f in end.said()] == [(b"", True)]


def test_a_session_without_anything_to_say_gives_no_message() -> None:
    end, _ = several(1)
    assert _callbacks.pull(end.session) == b""


def test_what_is_of_the_native_wire_finds_nothing_in_a_session_on_the_seed_wire() -> None:
    session = SeedSession(wire.Owner(), True, wire.hello(), WindowBudget(0), False, 1 << 20, 0)
    session.notify("", b"an event")
    assert _callbacks.has_output(session)
    assert _callbacks.pull(session) == b""
    assert _callbacks.has_output(session)


def test_a_notify_beyond_the_peers_max_frame_size_is_not_sent() -> None:
    end = wire.proxy(peer={"max_frame_size": 16384})
    end.session.notify("", bytes(16381))
    with pytest.raises(StreamError) as raised:
        end.session.notify("", bytes(16382))
    assert raised.value.code == ErrorCode.TOO_LARGE
    assert [(f.type, len(f.payload)) for f in end.said()] == [(NOTIFY, 16384)]


@pytest.mark.parametrize("is_proxy", [True, False])
@pytest.mark.parametrize("size", [10, 1000, 60_000])
def test_events_that_a_full_transport_does_not_take_are_refused_and_leave_room_for_answers(
    is_proxy: bool, size: int
) -> None:
    end = End(is_proxy).greeted()
    _callbacks.set_congested(end.session, True)
    count = 0
    with pytest.raises(StreamError) as raised:
        while True:
            end.session.notify("", bytes(size))
            count += 1
    assert raised.value.code == ErrorCode.REFUSED and count > 1
    end.hear(*[frame(PING, 0, bytes(8))] * 400)
    assert end.closed is None
    _callbacks.set_congested(end.session, False)
    assert [f.type for f in end.said()] == [NOTIFY] * count + [PING] * 400
    end.session.notify("", bytes(size))
    assert [f.type for f in end.said()] == [NOTIFY]


def test_events_gather_only_so_far_where_nobody_takes_them() -> None:
    end = wire.proxy()
    with pytest.raises(StreamError):
        for _ in range(1000):
            end.session.notify("", bytes(1000))
    assert end.closed is None and 100_000 < sum(len(f.payload) for f in end.said()) < 200_000


def test_an_event_of_a_session_that_is_over_is_refused() -> None:
    end = wire.proxy()
    end.session.close()
    end.said()
    with pytest.raises(StreamError) as raised:
        end.session.notify("", b"late")
    assert raised.value.code == ErrorCode.REFUSED and not end.said()


# --- a full transport ---


def test_while_the_transport_is_full_no_stream_is_opened_and_a_source_has_no_room() -> None:
    end = wire.proxy()
    handler = end.open(POST)
    end.said()
    _callbacks.set_congested(end.session, True)
    assert handler.stream is not None
    assert not _callbacks.can_open(end.session)
    assert _callbacks.room(handler.stream) == 0
    end.hear(window(1, 1000))  # credit alone makes no room now
    assert handler.writable_calls == 0
    _callbacks.set_congested(end.session, False)
    assert handler.writable_calls == 1
    assert _callbacks.can_open(end.session) and _callbacks.room(handler.stream) > 0


def test_a_source_that_was_told_to_wait_is_told_once_however_often_it_asked() -> None:
    end, (one,) = several(1)
    for _ in range(3):
        _callbacks.set_congested(end.session, True)
        assert _callbacks.room(one.stream) == _callbacks.room(one.stream) == 0
        _callbacks.set_congested(end.session, True)
        _callbacks.set_congested(end.session, False)
    assert one.handler.writable_calls == 3


def test_a_source_without_credit_is_not_told_when_the_transport_has_room_but_when_credit_comes() -> None:
    end, (one,) = several(1, window=1000)
    _callbacks.write(one.stream, bytes(1000))
    end.said()
    _callbacks.set_congested(end.session, True)
    assert _callbacks.room(one.stream) == 0
    _callbacks.set_congested(end.session, False)
    assert one.handler.writable_calls == 0
    end.hear(window(1, 1))
    assert one.handler.writable_calls == 1


def test_interim_answers_but_100_are_dropped_while_the_transport_is_full() -> None:
    end = wire.agent()
    accepted = serve(end)
    _callbacks.set_congested(end.session, True)
    _callbacks.respond(accepted.stream, ResponseHead(status=103))
    _callbacks.respond(accepted.stream, CONTINUE)
    _callbacks.respond(accepted.stream, OK)
    _callbacks.set_congested(end.session, False)
    # A client may wait for 100 before it sends its body.
    assert [f.value.status for f in end.said()] == [100, 200]


def test_grants_add_up_to_one_window_of_each_stream_while_the_transport_is_full() -> None:
    end = wire.agent(budget=WindowBudget(0))
    accepted = serve(end, 1, POST)
    _callbacks.set_congested(end.session, True)
    for _ in range(4):
        end.hear(data(1, bytes(16384)))
    _callbacks.set_congested(end.session, False)
    assert accepted.handler.resets == []
    assert [f.value for f in end.said() if f.type == WINDOW] == [65536]


@pytest.mark.parametrize("is_proxy", [True, False])
def test_a_session_whose_waiting_control_frames_pass_their_limit_is_closed_with_1008(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    _callbacks.set_congested(end.session, True)
    ping = frame(PING, 0, bytes(8))
    end.hear(*[ping] * (1000 + 2 * end.session.local_hello.max_streams))
    assert end.closed is None
    end.hear(ping)
    assert end.closed == (ErrorCode.ENHANCE_YOUR_CALM, 1008)
    assert [f.type for f in end.said()] == [GOAWAY]  # what waited is thrown away


def test_the_answers_of_all_streams_that_a_peer_may_open_may_wait_at_once() -> None:
    end = wire.agent(settings={"max_streams": 1000})
    accepted = [serve(end, 2 * i + 1) for i in range(1000)]
    _callbacks.set_congested(end.session, True)
    for it in accepted:
        _callbacks.respond(it.stream, ResponseHead(status=200, fields=((b"x", b"y" * 1000),)), True)
    assert end.closed is None
    _callbacks.set_congested(end.session, False)
    assert len(end.said()) == 1000


def test_a_session_whose_waiting_control_frames_pass_256_kib_and_1_for_each_stream_is_closed_with_1008() -> None:
    end = wire.agent()
    accepted = [serve(end, i) for i in (1, 3, 5, 7)]
    _callbacks.set_congested(end.session, True)
    head = ResponseHead(status=200, fields=((b"x", b"y" * 100_000),))
    for it in accepted[:3]:
        _callbacks.respond(it.stream, head, True)
    assert end.closed is None
    _callbacks.respond(accepted[3].stream, head, True)
    assert end.closed == (ErrorCode.ENHANCE_YOUR_CALM, 1008)
    assert sum(len(f.payload) for f in end.said()) < 1000
    end.session.lost()
    assert end.session.stream_count == 0


def test_control_frames_that_left_between_two_jams_do_not_count() -> None:
    end = wire.proxy()
    ping = frame(PING, 0, bytes(8))
    for _ in range(3):
        _callbacks.set_congested(end.session, True)
        end.hear(*[ping] * 600)
        _callbacks.set_congested(end.session, False)
        assert len(end.said()) == 600
        end.owner.clock += 10
    assert end.closed is None


def test_a_full_transport_does_not_stop_what_comes_in() -> None:
    end = wire.proxy()
    handler = end.open(GET)
    end.said()
    _callbacks.set_congested(end.session, True)
    end.hear(response(1, OK), data(1, b"x", end=True))
    assert handler.ended and end.session.opened == 0


class Greedy(wire.Handler):
    """Writes as much as there is room for, whenever there is any."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left
        self.most = 0

    def pump(self) -> None:
        assert self.stream is not None
        while self.left and (room := _callbacks.room(self.stream)):
            size = min(room, self.left)
            _callbacks.write(self.stream, bytes(size))
            self.left -= size
            self.most = max(self.most, _callbacks.staged(self.stream))
        if not self.left:
            _callbacks.end(self.stream)

    def writable(self, stream: Stream) -> None:
        super().writable(stream)
        self.pump()


def test_a_source_that_asks_for_room_never_stages_more_than_128_kib_and_is_never_forgotten() -> None:
    end = wire.proxy(peer={"initial_window": 200_000})
    handlers = []
    for _ in range(5):
        handler = Greedy(1_000_000)
        handler.stream = _callbacks.open_stream(end.session, POST, handler)
        handlers.append(handler)
        handler.pump()
    received = dict.fromkeys(range(1, 11, 2), 0)
    ended = set()
    for turn in range(10_000):
        _callbacks.set_congested(end.session, turn % 3 == 1)
        if turn % 3 == 1:
            continue
        message = end.message(limit=32 * KiB)
        if not message:
            break
        for f in message:
            if f.type == DATA:
                received[f.stream] += len(f.payload)
                if f.end:
                    ended.add(f.stream)
                elif f.payload:
                    end.hear(window(f.stream, len(f.payload)))
    assert set(received.values()) == {1_000_000} and len(ended) == 5
    assert all(h.most <= 128 * KiB for h in handlers)
    assert end.closed is None


def test_a_closed_session_has_nothing_more_to_send_than_its_goaway() -> None:
    end = wire.agent()
    end.hear(wire.request(1))
    stream = end.owner.accepted[0].stream
    end.hear(wire.greeting())
    _callbacks.respond(stream, OK)
    _callbacks.write(stream, b"x")
    assert end.said()[0].type == GOAWAY
    assert not _callbacks.has_output(end.session)


# --- places ---


def test_an_ended_stream_frees_its_place_for_the_next_one() -> None:
    end = wire.agent(settings={"max_streams": 1})
    for stream in (1, 3, 5):
        _callbacks.respond(serve(end, stream).stream, EMPTY, True)
    end.hear(request(7), request(9))
    assert [f.stream for f in end.said() if f.type == RESET] == [9]
