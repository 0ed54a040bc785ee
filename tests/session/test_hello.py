"""HELLO, stream ids and states: protocol.md 1.1 and 1.2."""

from __future__ import annotations

from typing import Any

import pytest

from backstream import _callbacks, _codec, _message_codec
from backstream._messages import Hello, Notify
from backstream.errors import ErrorCode
from tests.session import wire
from tests.session.wire import (
    DATA,
    EMPTY,
    GOAWAY,
    HELLO,
    NOTIFY,
    OK,
    PING,
    POST,
    REQUEST,
    RESET,
    RESPONSE,
    TRAILERS,
    WINDOW,
    End,
    data,
    frame,
    greeting,
    request,
    reset,
    resets,
    response,
    trailers,
    window,
)

BOTH = pytest.mark.parametrize("is_proxy", [True, False], ids=["proxy", "agent"])
PROTOCOL_ERROR = (ErrorCode.PROTOCOL_ERROR, 1002)


@BOTH
def test_the_first_frame_of_either_side_is_hello_on_stream_0_and_says_its_settings(is_proxy: bool) -> None:
    end = End(is_proxy, settings={"initial_window": 1000, "max_frame_size": 20_000, "max_streams": 7})
    (sent,) = end.said()
    assert (sent.type, sent.stream, sent.flags) == (HELLO, 0, 0)
    assert sent.value == wire.hello(initial_window=1000, max_frame_size=20_000, max_streams=7)


@BOTH
@pytest.mark.parametrize(
    "first",
    [
        frame(DATA, 1, b"x"),
        request(1),
        response(1),
        trailers(1),
        window(1, 1000),
        reset(1),
        wire.goaway(),
        frame(NOTIFY, 0),
        frame(PING, 0, bytes(8)),
        frame(0xEE, 0),
    ],
    ids=lambda first: f"type_{first[3]}",
)
def test_a_first_frame_that_is_not_hello_ends_the_session(is_proxy: bool, first: bytes) -> None:
    end = End(is_proxy)
    end.hear(first, greeting())
    assert end.closed == PROTOCOL_ERROR
    assert [f.type for f in end.said()] == [HELLO, GOAWAY]
    assert end.owner.hellos == []


@BOTH
def test_a_second_hello_ends_the_session(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    end.hear(greeting())
    assert end.closed == PROTOCOL_ERROR


@BOTH
@pytest.mark.parametrize(
    "members",
    [
        {"version": 0},
        {"version": 2},
        {"initial_window": 2**31},
        {"initial_window": 2**32 - 1},
        {"max_frame_size": 1},
        {"max_frame_size": 16383},
        {"max_frame_size": 131073},
        {"instance": b""},
        {"instance": bytes(15)},
        {"instance": bytes(17)},
    ],
    ids=str,
)
def test_values_out_of_range_in_hello_end_the_session(is_proxy: bool, members: dict[str, Any]) -> None:
    end = End(is_proxy)
    end.hear(greeting(**members))
    assert end.closed == PROTOCOL_ERROR
    assert end.said()[-1].value.code == ErrorCode.PROTOCOL_ERROR
    assert end.owner.hellos == []


@BOTH
@pytest.mark.parametrize(
    "members",
    [
        {"initial_window": 1},
        {"initial_window": 2**31 - 1},
        {"max_frame_size": 16384},
        {"max_frame_size": 131072},
        {"max_streams": 2**32 - 1},
        {"generation": 2**64 - 1},
        {"capabilities": ("ping", "of-the-future")},
        {"capabilities": ("of-the-future",) * 64},
        {"software": "x" * 1000},
    ],
    ids=lambda members: next(iter(members)),
)
def test_values_at_the_edges_in_hello_are_taken(is_proxy: bool, members: dict[str, Any]) -> None:
    end = End(is_proxy).greeted(**members)
    assert end.closed is None
    assert end.owner.hellos == [wire.hello(**members)] == [end.session.peer_hello]


@BOTH
def test_a_hello_of_more_than_64_capabilities_ends_the_session(is_proxy: bool) -> None:
    end = End(is_proxy)
    end.hear(greeting(capabilities=("of-the-future",) * 65))
    assert end.closed == PROTOCOL_ERROR


@BOTH
def test_a_hello_that_cannot_be_read_ends_the_session(is_proxy: bool) -> None:
    end = End(is_proxy)
    end.hear(frame(HELLO, 0, b"\xff"))
    assert end.closed == PROTOCOL_ERROR


@BOTH
def test_unknown_members_and_flags_of_hello_are_passed_over(is_proxy: bool) -> None:
    end = End(is_proxy)
    end.hear(frame(HELLO, 0, _codec.encode_hello(wire.hello()) + b"\xf8\x07\x05", flags=0xFE))
    assert end.closed is None
    assert end.session.peer_hello == wire.hello()


def test_an_initial_window_of_0_means_65536_and_a_frame_size_of_0_means_65536() -> None:
    end = wire.proxy(peer={"initial_window": 0, "max_frame_size": 0})
    handler = end.open(POST)
    assert handler.stream is not None
    assert _callbacks.room(handler.stream) == 65536
    for _ in range(2):
        _callbacks.write(handler.stream, bytes(60_000))
    sent = [f for f in end.said() if f.type == DATA]
    assert sum(len(f.payload) for f in sent) == 65536


def test_no_stream_is_opened_before_the_peers_hello_and_none_where_it_grants_none() -> None:
    end = End(True)
    assert not _callbacks.can_open(end.session)
    end.greeted(max_streams=0)
    assert not _callbacks.can_open(end.session)
    assert _callbacks.open_stream(end.session, wire.GET, wire.Handler(), True) is None


def test_no_more_streams_are_opened_than_the_peer_grants_and_an_ended_one_makes_place() -> None:
    end = wire.proxy(peer={"max_streams": 2})
    first = end.open()
    end.open()
    assert not _callbacks.can_open(end.session)
    assert first.stream is not None
    end.hear(response(first.stream.id, EMPTY, end=True))
    assert _callbacks.can_open(end.session)
    assert end.session.opened == 1


@BOTH
def test_a_stream_beyond_max_streams_is_refused_and_the_others_go_on(is_proxy: bool) -> None:
    end = End(is_proxy, settings={"max_streams": 2}).greeted()
    ids = (2, 4, 6) if is_proxy else (1, 3, 5)
    end.hear(*(request(i, POST, end=False) for i in ids))
    assert [it.stream.id for it in end.owner.accepted] == list(ids[:2])
    assert [(f.stream, f.value.code) for f in end.said() if f.type == RESET] == [(ids[2], ErrorCode.REFUSED)]
    end.hear(data(ids[0], b"x", end=True))
    assert end.owner.accepted[0].handler.body == b"x"
    assert end.closed is None


def test_an_agents_request_is_refused_by_a_proxy_that_grants_no_streams() -> None:
    end = End(True, settings={"max_streams": 0}).greeted()
    end.hear(request(2))
    assert resets(end.said(), 2) == [ErrorCode.REFUSED]
    assert end.closed is None and end.session.stream_count == 0


# --- frames and the session ---


@BOTH
@pytest.mark.parametrize("kind", [HELLO, GOAWAY, NOTIFY, PING])
def test_a_frame_of_the_session_on_a_stream_ends_the_session(is_proxy: bool, kind: int) -> None:
    end = End(is_proxy)
    if kind != HELLO:
        end.greeted()
    end.hear(frame(kind, 1, bytes(8)))
    assert end.closed == PROTOCOL_ERROR


@BOTH
@pytest.mark.parametrize("kind", [DATA, REQUEST, RESPONSE, TRAILERS, WINDOW, RESET])
def test_a_frame_of_a_stream_on_stream_0_ends_the_session(is_proxy: bool, kind: int) -> None:
    end = End(is_proxy).greeted()
    end.hear(frame(kind, 0, bytes(4)))
    assert end.closed == PROTOCOL_ERROR


@BOTH
@pytest.mark.parametrize(
    "broken",
    [
        data(1, b"x")[:5] + (1 | 1 << 31).to_bytes(4, "big") + b"x",
        data(1, b"long")[:-1],
        data(1)[:8],
        b"\x00",
    ],
    ids=["reserved_bit", "past_its_message", "header_cut", "one_byte"],
)
def test_a_malformed_frame_ends_the_session_but_those_before_it_count(is_proxy: bool, broken: bytes) -> None:
    end = End(is_proxy).greeted()
    end.hear(frame(NOTIFY, 0, _message_codec.pack_notify(Notify(data=b"1"))), broken)
    assert end.owner.notifies == [("", b"1")]
    assert end.closed == PROTOCOL_ERROR


@BOTH
def test_frames_of_unknown_types_are_skipped_on_any_stream(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    end.hear(frame(0x0A, 0, b"x"), frame(0xFF, 0), frame(0x77, 99_999, bytes(1000), flags=0xFF))
    assert end.closed is None
    assert end.said() == []


@BOTH
def test_unknown_flags_are_ignored(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    stream = 2 if is_proxy else 1
    end.hear(frame(REQUEST, stream, _message_codec.pack_request(POST), flags=0xFC))
    end.hear(frame(DATA, stream, b"x", flags=0xFE))
    (accepted,) = end.owner.accepted
    assert not accepted.end and not accepted.handler.ended and accepted.handler.body == b"x"


@BOTH
def test_nothing_is_heard_and_nothing_sent_after_the_session_was_closed(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    end.hear(greeting(), frame(NOTIFY, 0))
    end.hear(request(2 if is_proxy else 1))
    assert end.owner.notifies == [] and end.owner.accepted == []
    assert [f.type for f in end.said()] == [GOAWAY]


@BOTH
def test_a_ping_is_sent_back_with_ack_and_an_answer_is_not(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    end.hear(frame(PING, 0, b"12345678"), frame(PING, 0, b"abcdefgh", flags=wire.ACK))
    assert [(f.type, f.flags, f.payload) for f in end.said()] == [(PING, wire.ACK, b"12345678")]


@BOTH
@pytest.mark.parametrize("size", [0, 7, 9])
def test_a_ping_without_its_8_bytes_ends_the_session(is_proxy: bool, size: int) -> None:
    end = End(is_proxy).greeted()
    end.hear(frame(PING, 0, bytes(size)))
    assert end.closed == (ErrorCode.FRAME_SIZE_ERROR, 1002)


@BOTH
def test_a_notify_is_handed_on(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    other = End(not is_proxy).greeted()
    other.session.notify("text/plain", b"news")
    end.hear(*(frame(f.type, f.stream, f.payload, f.flags) for f in other.said()))
    assert end.owner.notifies == [("text/plain", b"news")]


# --- ids ---


def test_a_proxy_opens_odd_streams_and_an_agent_even_ones_strictly_increasing() -> None:
    for is_proxy, ids in ((True, [1, 3, 5]), (False, [2, 4, 6])):
        end = End(is_proxy).greeted()
        for _ in ids:
            end.open()
        assert [f.stream for f in end.said()] == ids


@BOTH
def test_a_request_of_the_wrong_parity_ends_the_session(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    end.hear(request(1 if is_proxy else 2))
    assert end.closed == PROTOCOL_ERROR


@BOTH
@pytest.mark.parametrize("again", [0, -2, -4])
def test_a_request_whose_id_is_not_above_the_last_ends_the_session(is_proxy: bool, again: int) -> None:
    end = End(is_proxy).greeted()
    last = 8 if is_proxy else 7
    end.hear(request(last))
    end.hear(request(last + again))
    assert end.closed == PROTOCOL_ERROR


@BOTH
def test_ids_may_leave_gaps_up_to_the_highest(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    ids = [10, 2**31 - 2] if is_proxy else [11, 2**31 - 1]
    end.hear(*map(request, ids))
    assert [it.stream.id for it in end.owner.accepted] == ids


@BOTH
@pytest.mark.parametrize("mine", [True, False])
@pytest.mark.parametrize("kind", [DATA, RESPONSE, TRAILERS, WINDOW, RESET])
def test_a_frame_for_a_stream_that_was_never_opened_ends_the_session(is_proxy: bool, kind: int, mine: bool) -> None:
    end = End(is_proxy).greeted()
    payload = {RESPONSE: _message_codec.pack_response(OK), WINDOW: b"\0\0\1\0"}.get(kind, b"")
    end.hear(frame(kind, 1 if mine == is_proxy else 2, payload))
    assert end.closed == PROTOCOL_ERROR


CLOSED_FRAMES = [
    data(1, b"x" * 2000),
    data(1, b"", end=True),
    response(1),
    response(1, EMPTY, end=True),
    frame(RESPONSE, 1, b"\xff rubbish"),
    trailers(1),
    frame(TRAILERS, 1, b"\xff"),
    window(1, 1000),
    window(1, 2**31 - 1),
    reset(1, ErrorCode.CANCEL),
    reset(1),
]


@pytest.mark.parametrize("late", CLOSED_FRAMES, ids=lambda late: f"type_{late[3]}_{len(late)}_bytes")
@pytest.mark.parametrize("how", ["finished", "reset_here", "reset_there"])
def test_frames_for_a_stream_that_is_closed_are_dropped_silently(how: str, late: bytes) -> None:
    end = wire.proxy()
    handler = end.open(POST)
    assert handler.stream is not None
    match how:
        case "finished":
            _callbacks.end(handler.stream)
            end.said()
            end.hear(response(1, EMPTY, end=True))
        case "reset_here":
            _callbacks.reset(handler.stream, ErrorCode.CANCEL)
        case _:
            end.hear(reset(1, ErrorCode.INTERNAL))
    assert _callbacks.is_closed(handler.stream)
    end.said()
    calls = list(handler.calls)
    end.hear(late)
    assert end.said() == [] and end.closed is None
    assert handler.calls == calls
    assert end.alive()


def test_a_hello_has_defaults_for_everything_but_its_instance() -> None:
    assert Hello().version == 1
