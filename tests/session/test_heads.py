"""Heads, sized bodies, interim answers, 101, trailers: protocol.md 1.1 and 1.4."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backstream import _callbacks, _message_codec
from backstream._messages import Body, RequestHead, ResponseHead
from backstream.errors import ErrorCode, StreamError
from tests.session import wire
from tests.session.wire import (
    CONTINUE,
    DATA,
    EMPTY,
    END,
    GET,
    HEAD,
    INTERIM,
    OK,
    POST,
    REQUEST,
    RESPONSE,
    SWITCH,
    TRAILERS,
    UPGRADE,
    End,
    Handler,
    data,
    frame,
    post,
    request,
    reset,
    resets,
    response,
    serve,
    sized,
    trailers,
    window,
)

OTHER_HTTP = [b"h2c", b"H2C", b"h2", b"HTTP", b"tls"]  # never travel: another HTTP or TLS on the connection


def failed(end: End, handler: Handler, code: int = ErrorCode.PROTOCOL_ERROR) -> None:
    """The stream failed, both sides know it, and a neighbour never noticed."""
    assert handler.resets == [code]
    assert handler.calls[-1] == "reset" and not handler.ended
    assert handler.stream is not None and _callbacks.is_closed(handler.stream)
    assert resets(end.said(), handler.stream.id) == [code]
    assert end.owner.errors == []
    assert end.closed is None and end.alive()


# --- what is a stream's error ---


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([data(1, b"x")], id="data_before_the_head"),
        pytest.param([data(1, b"", end=True)], id="the_end_before_the_head"),
        pytest.param([trailers(1)], id="trailers_before_the_head"),
        pytest.param([response(1, CONTINUE), data(1, b"x")], id="data_behind_an_interim_head_only"),
        pytest.param([response(1, OK), response(1, OK)], id="a_second_final_head"),
        pytest.param([response(1, OK), response(1, CONTINUE)], id="an_interim_head_behind_the_final_one"),
        pytest.param([response(1, SWITCH)], id="101_to_a_request_that_has_ended"),
        pytest.param([frame(RESPONSE, 1, b"\xff" * 40)], id="a_head_of_rubbish"),
        pytest.param([frame(RESPONSE, 1, b"")], id="a_head_of_nothing"),
        pytest.param([response(1, OK), frame(TRAILERS, 1, b"\xff")], id="trailers_of_rubbish"),
        pytest.param([response(1, replace(OK, fields=((b"Upper", b""),)))], id="a_head_against_the_grammar"),
        pytest.param([response(1, replace(OK, fields=((b"content-length", b"1"),)))], id="framing_as_a_field"),
        pytest.param([response(1, OK), trailers(1, ((b"transfer-encoding", b"chunked"),))], id="framing_in_trailers"),
        pytest.param([response(1, CONTINUE, flags=0)], id="100_without_interim"),
        pytest.param([response(1, OK, flags=INTERIM)], id="200_with_interim"),
        pytest.param([response(1, CONTINUE, flags=INTERIM | END)], id="an_interim_head_that_ends"),
        pytest.param([response(1, SWITCH, flags=INTERIM)], id="101_with_interim"),
        pytest.param([response(1, CONTINUE)] * 17, id="a_17th_interim_head"),
        pytest.param([response(1, sized(5)), data(1, b"abc", end=True)], id="less_than_was_promised"),
        pytest.param([response(1, sized(5)), data(1, b"abc"), data(1, b"abc")], id="more_than_was_promised"),
        pytest.param([response(1, sized(5)), data(1, b"abcdef", end=True)], id="more_than_promised_at_once"),
        pytest.param([response(1, sized(5), end=True)], id="a_promise_that_ends_at_once"),
        pytest.param([response(1, sized(5)), data(1, b"abc"), trailers(1)], id="trailers_short_of_the_promise"),
        pytest.param([response(1, sized(0)), data(1, b"x")], id="a_byte_beyond_nothing"),
        pytest.param([response(1, EMPTY), data(1, b"x")], id="a_body_to_204"),
        pytest.param([response(1, sized(5, status=304)), data(1, b"hello")], id="a_body_to_304"),
        pytest.param([response(1, replace(OK, status=304)), data(1, b"hello")], id="a_chunked_body_to_304"),
        pytest.param([response(1, ResponseHead(status=200)), data(1, b"x")], id="a_body_where_none_was_announced"),
        pytest.param([window(1, 0)], id="a_window_of_0"),
        pytest.param([window(1, 2**31)], id="a_window_above_2_to_the_31"),
        pytest.param([window(1, 2**32 - 1)], id="a_window_of_32_bits"),
    ],
)
def test_the_stream_alone_fails_with_protocol_error_by(frames: list[bytes]) -> None:
    end = wire.proxy()
    handler = end.open(GET)
    end.said()
    end.hear(*frames)
    failed(end, handler)


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([data(1, b"abc", end=True)], id="less_than_was_promised"),
        pytest.param([data(1, b"abcdef")], id="more_than_was_promised"),
        pytest.param([data(1, b"abc"), trailers(1)], id="trailers_short_of_the_promise"),
        pytest.param([data(1, b"abc"), frame(TRAILERS, 1, b"\xff")], id="trailers_of_rubbish"),
    ],
)
def test_an_upload_that_breaks_its_promise_fails_alone_by(frames: list[bytes]) -> None:
    end = wire.agent()
    upload = serve(end, 1, post(5))
    other = serve(end, 3, post(2))
    end.hear(*frames)
    assert upload.handler.resets == [ErrorCode.PROTOCOL_ERROR] and not upload.handler.ended
    assert resets(end.said()) == [ErrorCode.PROTOCOL_ERROR]
    end.hear(data(3, b"ok", end=True))
    assert other.handler.ended and other.handler.body == b"ok"


@pytest.mark.parametrize(
    ("head", "flags"),
    [
        pytest.param(post(5), END, id="a_promise_that_ends_at_once"),
        pytest.param(UPGRADE, END, id="an_upgrade_that_ends_at_once"),
        pytest.param(replace(GET, method=b""), END, id="no_method"),
        pytest.param(replace(GET, target=b"a"), END, id="a_target_without_a_slash"),
        pytest.param(replace(GET, fields=((b"host", b"a"),)), END, id="host_as_a_field"),
        pytest.param(replace(UPGRADE, body=Body.CHUNKED), 0, id="an_upgrade_with_a_body"),
        *(pytest.param(replace(UPGRADE, upgrade=name), 0, id=name.decode()) for name in OTHER_HTTP),
    ],
)
def test_a_malformed_request_is_reset_and_never_accepted(head: RequestHead, flags: int) -> None:
    end = wire.agent()
    payload = _message_codec.pack_request(head)
    end.hear(frame(REQUEST, 1, payload, flags), request(3))
    assert [it.stream.id for it in end.owner.accepted] == [3]
    assert resets(end.said(), 1) == [ErrorCode.PROTOCOL_ERROR]
    assert end.closed is None and end.session.stream_count == 1


def test_a_body_on_a_request_that_announced_none_fails_it() -> None:
    end = wire.agent()
    accepted = serve(end, 1, GET, over=False)
    end.hear(data(1, b"x"))
    assert accepted.handler.resets == [ErrorCode.PROTOCOL_ERROR]
    assert end.closed is None


@pytest.mark.parametrize("late", [data(1, b"x"), data(1, b"", end=True), trailers(1)], ids=["data", "end", "trailers"])
def test_a_frame_behind_the_end_of_its_direction_fails_the_stream_with_stream_closed(late: bytes) -> None:
    end = wire.agent()
    accepted = serve(end, 1, POST)
    end.hear(data(1, b"x", end=True))
    end.hear(late)
    assert accepted.handler.resets == [ErrorCode.STREAM_CLOSED]
    assert resets(end.said(), 1) == [ErrorCode.STREAM_CLOSED]
    assert end.closed is None


def test_a_response_to_a_stream_that_the_receiver_did_not_open_ends_the_session() -> None:
    end = wire.agent()
    serve(end, 1)
    end.hear(response(1))
    assert end.closed == (ErrorCode.PROTOCOL_ERROR, 1002)


@pytest.mark.parametrize("size", [0, 3, 5, 8])
def test_a_window_without_its_4_bytes_ends_the_session(size: int) -> None:
    end = wire.proxy()
    end.open(GET)
    end.hear(frame(wire.WINDOW, 1, b"\0\0\1\0\0\0\0\0"[:size]))
    assert end.closed == (ErrorCode.FRAME_SIZE_ERROR, 1002)


# --- what is right ---


@pytest.mark.parametrize(
    ("frames", "body"),
    [
        pytest.param([response(1, OK, end=True)], b"", id="a_head_that_ends"),
        pytest.param([response(1, EMPTY, end=True)], b"", id="204"),
        pytest.param([response(1, EMPTY), data(1, b"", end=True)], b"", id="204_and_an_empty_end"),
        pytest.param([response(1, OK), data(1, b"a"), data(1, b"b", end=True)], b"ab", id="chunked"),
        pytest.param([response(1, OK), data(1, b"a"), data(1, b"", end=True)], b"a", id="an_end_of_its_own"),
        pytest.param([response(1, sized(2)), data(1, b"ab", end=True)], b"ab", id="sized"),
        pytest.param([response(1, sized(2)), data(1, b"ab"), data(1, b"", end=True)], b"ab", id="sized_then_end"),
        pytest.param([response(1, sized(0), end=True)], b"", id="sized_0"),
        pytest.param([response(1, sized(0)), data(1, b"", end=True)], b"", id="sized_0_then_end"),
        pytest.param([response(1, sized(9, status=304), end=True)], b"", id="304_with_the_length_of_200"),
        pytest.param([response(1, OK), trailers(1)], b"", id="trailers_only"),
        pytest.param([response(1, sized(1)), data(1, b"a"), trailers(1)], b"a", id="trailers_behind_sized"),
        pytest.param([response(1, OK), trailers(1, ())], b"", id="empty_trailers"),
        pytest.param([response(1, ResponseHead(status=999), end=True)], b"", id="999"),
    ],
)
def test_a_response_is_whole_with(frames: list[bytes], body: bytes) -> None:
    end = wire.proxy()
    handler = end.open(GET)
    end.said()
    end.hear(*frames)
    assert handler.ended and handler.body == body and handler.resets == []
    assert handler.calls[0] == "head" and handler.calls[-1] == "end"
    assert end.session.opened == end.session.stream_count == 0
    assert end.said() == []


def test_a_response_to_head_may_promise_what_a_get_would_have_had_and_ends_at_once() -> None:
    end = wire.proxy()
    handler = end.open(HEAD)
    end.hear(response(1, sized(2**40), end=True))
    assert handler.ended and handler.heads == [sized(2**40)]


def test_a_body_in_a_response_to_head_fails_the_stream() -> None:
    end = wire.proxy()
    handler = end.open(HEAD)
    end.said()
    end.hear(response(1, sized(5)), data(1, b"hello", end=True))
    failed(end, handler)


def test_trailers_end_their_direction_and_are_handed_on_in_order_with_repeats() -> None:
    pairs = ((b"a", b"1"), (b"b", b"2"), (b"a", b"3"))
    end = wire.agent()
    accepted = serve(end, 1, POST)
    end.hear(data(1, b"x"), trailers(1, pairs))
    assert accepted.handler.trailers == pairs and accepted.handler.calls == ["data", "end"]
    _callbacks.respond(accepted.stream, OK)
    _callbacks.write(accepted.stream, b"y")
    _callbacks.end(accepted.stream, pairs)
    sent = end.said()
    assert [(f.type, f.end) for f in sent] == [(RESPONSE, False), (DATA, False), (TRAILERS, True)]
    assert sent[-1].value == pairs
    assert end.session.stream_count == 0


def test_up_to_16_interim_heads_come_before_the_final_one() -> None:
    end = wire.proxy()
    handler = end.open(GET)
    end.hear(*[response(1, CONTINUE)] * 16, response(1, OK, end=True))
    assert handler.calls == ["interim"] * 16 + ["head", "end"]


@pytest.mark.parametrize("status", [100, 102, 103, 199])
def test_interim_heads_are_sent_with_their_flag_and_at_most_16(status: int) -> None:
    end = wire.agent()
    accepted = serve(end)
    for _ in range(16):
        _callbacks.respond(accepted.stream, ResponseHead(status=status))
    with pytest.raises(StreamError):
        _callbacks.respond(accepted.stream, ResponseHead(status=status))
    _callbacks.respond(accepted.stream, EMPTY, True)
    sent = end.said()
    assert [f.flags for f in sent] == [INTERIM] * 16 + [END]


def test_an_interim_head_behind_the_final_one_is_not_sent() -> None:
    end = wire.agent()
    accepted = serve(end)
    _callbacks.respond(accepted.stream, OK)
    _callbacks.respond(accepted.stream, CONTINUE)
    assert [f.flags for f in end.said()] == [0]


def test_a_second_final_head_is_not_sent() -> None:
    end = wire.agent()
    accepted = serve(end)
    _callbacks.respond(accepted.stream, OK)
    with pytest.raises(StreamError):
        _callbacks.respond(accepted.stream, OK)
    assert len(end.said()) == 1


def test_a_sender_keeps_to_its_own_promise() -> None:
    end = wire.agent()
    accepted = serve(end)
    _callbacks.respond(accepted.stream, sized(5))
    _callbacks.write(accepted.stream, b"abc")
    with pytest.raises(StreamError):
        _callbacks.write(accepted.stream, b"abc")
    with pytest.raises(StreamError):
        _callbacks.end(accepted.stream)
    _callbacks.write(accepted.stream, b"de")
    _callbacks.end(accepted.stream)
    assert b"".join(f.payload for f in end.said() if f.type == DATA) == b"abcde"
    with_length = wire.proxy()
    handler = with_length.open(post(3))
    assert handler.stream is not None
    with pytest.raises(StreamError):
        _callbacks.write(handler.stream, b"abcd")
    with pytest.raises(StreamError):
        _callbacks.end(handler.stream)


def test_nothing_is_written_behind_the_own_end() -> None:
    end = wire.agent()
    accepted = serve(end, 1, POST)
    _callbacks.respond(accepted.stream, OK)
    _callbacks.end(accepted.stream)
    with pytest.raises(StreamError):
        _callbacks.write(accepted.stream, b"x")
    _callbacks.end(accepted.stream)  # again: nothing


# --- sizes of heads ---

LIMIT = 131072


def _with_payload_of(head: Any, pack: Any, size: int) -> Any:
    """`head` with a field so long that its payload has `size` bytes."""
    grown = replace(head, fields=((b"x", b"y" * (size - 200)),))
    return replace(grown, fields=((b"x", b"y" * (size - 200 + size - len(pack(grown)))),))


def test_a_head_of_131072_bytes_is_taken_and_one_byte_more_fails_the_stream() -> None:
    for size, taken in ((LIMIT, True), (LIMIT + 1, False)):
        end = wire.proxy()
        handler = end.open(GET)
        end.said()
        head = _with_payload_of(OK, _message_codec.pack_response, size)
        assert len(_message_codec.pack_response(head)) == size
        end.hear(response(1, head))
        if taken:
            assert handler.heads == [head]
        else:
            failed(end, handler, ErrorCode.FRAME_SIZE_ERROR)
        server = wire.agent()
        server.hear(request(1, _with_payload_of(GET, _message_codec.pack_request, size)), request(3))
        assert [it.stream.id for it in server.owner.accepted] == ([1, 3] if taken else [3])
        assert resets(server.said()) == ([] if taken else [ErrorCode.FRAME_SIZE_ERROR])


def test_trailers_of_more_than_131072_bytes_fail_the_stream() -> None:
    end = wire.proxy()
    handler = end.open(GET)
    end.said()
    end.hear(response(1, OK), trailers(1, ((b"x", b"y" * LIMIT),)))
    failed(end, handler, ErrorCode.FRAME_SIZE_ERROR)


def test_a_head_or_trailers_of_more_than_131072_bytes_are_not_sent_and_another_answer_may_be() -> None:
    end = wire.agent()
    accepted = serve(end)
    with pytest.raises(StreamError) as raised:
        _callbacks.respond(accepted.stream, replace(OK, fields=((b"x", b"y" * LIMIT),)))
    assert raised.value.code == ErrorCode.TOO_LARGE
    assert end.said() == []
    _callbacks.respond(accepted.stream, OK)
    with pytest.raises(StreamError) as raised:
        _callbacks.end(accepted.stream, ((b"x", b"y" * LIMIT),))
    assert raised.value.code == ErrorCode.TOO_LARGE
    _callbacks.end(accepted.stream)
    assert [f.type for f in end.said()] == [RESPONSE, DATA]
    client = wire.proxy()
    with pytest.raises(StreamError) as raised:
        client.open(replace(GET, fields=((b"x", b"y" * LIMIT),)))
    assert raised.value.code == ErrorCode.TOO_LARGE
    assert client.session.opened == 0 and client.said() == [] and client.alive()


def test_head_frames_are_not_bound_by_max_frame_size() -> None:
    head = replace(OK, fields=((b"x", b"y" * 100_000),))
    end = wire.proxy(settings={"max_frame_size": 16384})
    handler = end.open(GET)
    end.hear(response(1, head, end=True))
    assert handler.ended
    server = wire.agent(peer={"max_frame_size": 16384})
    _callbacks.respond(serve(server).stream, head, True)
    assert len(server.said()[0].payload) > 100_000


# --- 101 ---


def switched(is_proxy: bool) -> tuple[End, Handler]:
    """An upgraded stream."""
    if is_proxy:
        end = wire.proxy()
        handler = end.open(UPGRADE)
        end.said()
        end.hear(response(1, SWITCH))
        assert handler.heads == [SWITCH]
    else:
        end = wire.agent()
        accepted = serve(end, 1, UPGRADE)
        handler = accepted.handler
        _callbacks.respond(accepted.stream, SWITCH)
        (sent,) = end.said()
        assert (sent.type, sent.flags) == (RESPONSE, 0)
    return end, handler


BOTH = pytest.mark.parametrize("is_proxy", [True, False], ids=["proxy", "agent"])


def test_a_request_with_an_upgrade_leaves_without_its_end() -> None:
    end = wire.proxy()
    end.open(UPGRADE)
    (sent,) = end.said()
    assert (sent.type, sent.flags) == (REQUEST, 0)


@BOTH
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_after_101_each_direction_carries_raw_bytes_and_ends_for_itself(is_proxy: bool, first: str) -> None:
    end, handler = switched(is_proxy)
    stream = handler.stream
    assert stream is not None
    end.hear(data(1, b"ping"))
    _callbacks.write(stream, b"pong")

    def ours() -> None:
        _callbacks.end(stream)
        assert [(f.payload, f.end) for f in end.said()][-1][1]

    def theirs() -> None:
        end.hear(data(1, b"", end=True))

    for step in (ours, theirs) if first == "ours" else (theirs, ours):
        assert not _callbacks.is_closed(stream)
        step()
        if step is theirs and first == "theirs":
            _callbacks.write(stream, b" more")
    assert handler.body == b"ping" and handler.ended and handler.resets == []
    assert _callbacks.is_closed(stream) and end.session.stream_count == 0
    assert resets(end.said()) == []


@BOTH
def test_trailers_on_an_upgraded_stream_fail_it(is_proxy: bool) -> None:
    end, handler = switched(is_proxy)
    end.hear(trailers(1))
    failed(end, handler)


def test_a_second_head_on_an_upgraded_stream_fails_it() -> None:
    end, handler = switched(True)
    end.hear(response(1, OK))
    failed(end, handler)


def test_101_with_the_end_fails_the_stream() -> None:
    end = wire.proxy()
    handler = end.open(UPGRADE)
    end.said()
    end.hear(response(1, SWITCH, end=True))
    failed(end, handler)


def test_101_to_an_upload_that_offered_no_upgrade_fails_the_stream() -> None:
    end = wire.proxy()
    handler = end.open(POST)
    end.said()
    end.hear(response(1, SWITCH))
    failed(end, handler)


@pytest.mark.parametrize("name", OTHER_HTTP)
def test_101_to_another_http_fails_the_stream(name: bytes) -> None:
    end = wire.proxy()
    handler = end.open(UPGRADE)
    end.said()
    end.hear(response(1, replace(SWITCH, upgrade=name)))
    failed(end, handler)


def test_an_upgrade_may_be_answered_otherwise() -> None:
    end = wire.proxy()
    handler = end.open(UPGRADE)
    end.said()
    end.hear(response(1, sized(2)))
    assert handler.stream is not None
    _callbacks.end(handler.stream)
    (sent,) = end.said()
    assert (sent.type, sent.payload, sent.end) == (DATA, b"", True)
    end.hear(data(1, b"no", end=True))
    assert handler.ended and end.session.stream_count == 0
    server = wire.agent()
    accepted = serve(server, 1, UPGRADE)
    _callbacks.respond(accepted.stream, EMPTY)
    server.hear(data(1, b"", end=True))
    _callbacks.end(accepted.stream)
    assert accepted.handler.ended and resets(server.said()) == []


def test_a_stream_that_fails_takes_nothing_of_its_neighbours_in_the_same_message() -> None:
    end = wire.proxy()
    handlers = [end.open(GET) for _ in range(3)]
    end.said()
    end.hear(
        response(1, OK), response(3, OK), response(5, OK),
        data(1, b"a"), frame(TRAILERS, 3, b"\xff"), data(5, b"b", end=True),
        reset(3, ErrorCode.INTERNAL), data(1, b"c", end=True),
    )  # fmt: skip
    assert [h.body for h in handlers] == [b"ac", b"", b"b"]
    assert [h.ended for h in handlers] == [True, False, True]
    assert handlers[1].resets == [ErrorCode.PROTOCOL_ERROR]
    assert end.session.stream_count == 0
