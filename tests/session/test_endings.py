"""How streams and sessions end: RESET, early answers, GOAWAY, loss (protocol.md 1.2, 1.4, 1.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backstream import _callbacks
from backstream._messages import GoAway, RequestHead, ResponseHead
from backstream._stream import Stream
from backstream.errors import ErrorCode, StreamError
from tests.session import wire
from tests.session.wire import (
    DATA,
    EMPTY,
    GET,
    GOAWAY,
    OK,
    POST,
    REQUEST,
    RESET,
    RESPONSE,
    SWITCH,
    UPGRADE,
    End,
    Handler,
    data,
    frame,
    goaway,
    greeting,
    request,
    reset,
    resets,
    response,
    serve,
    sized,
    window,
)

KNOWN = [code for code in ErrorCode if code < ErrorCode.SESSION_LOST]


# --- RESET ---


@pytest.mark.parametrize("code", KNOWN, ids=lambda code: code.name)
def test_a_reset_tells_its_code_and_message_to_the_other_side(code: ErrorCode) -> None:
    end = wire.agent()
    accepted = serve(end, 1, POST)
    _callbacks.reset(accepted.stream, code, "why · so")
    (sent,) = end.said()
    assert (sent.type, sent.stream, sent.value.code, sent.value.message) == (RESET, 1, code, "why · so")
    assert accepted.handler.calls == []  # who resets hears no more
    client = wire.proxy()
    handler = client.open(POST)
    client.said()
    client.hear(frame(RESET, 1, sent.payload))
    assert (handler.resets, handler.messages) == ([code], ["why · so"])
    assert client.said() == []
    assert client.session.stream_count == end.session.stream_count == 0
    assert client.owner.errors == []


@pytest.mark.parametrize("code", [4, 9, 12, 31, 44, 255, 256, 257, 2**32 - 1])
def test_a_code_that_is_unknown_counts_as_internal(code: int) -> None:
    end = wire.proxy()
    handler = end.open(POST)
    end.hear(reset(1, code))
    assert handler.resets == [ErrorCode.INTERNAL]


def test_a_reset_that_cannot_be_read_fails_its_stream_only() -> None:
    end = wire.proxy()
    handler, other = end.open(POST), end.open(POST)
    end.hear(frame(RESET, 1, b"\xff"))
    assert handler.resets == [ErrorCode.PROTOCOL_ERROR] and other.resets == []
    assert end.closed is None


def test_a_reset_cuts_the_answer_after_what_was_handed_on() -> None:
    end = wire.proxy()
    handler = end.open(GET)
    end.hear(response(1, OK), data(1, b"part"), reset(1, ErrorCode.UPSTREAM_RESET))
    assert handler.calls == ["head", "data", "reset"] and handler.body == b"part" and not handler.ended


def test_a_reset_throws_away_what_is_staged_and_frees_the_stream() -> None:
    end = wire.agent()
    accepted = serve(end)
    _callbacks.respond(accepted.stream, OK)
    _callbacks.write(accepted.stream, bytes(50_000))
    _callbacks.reset(accepted.stream, ErrorCode.APP_ERROR)
    assert [f.type for f in end.said()] == [RESPONSE, RESET]
    assert _callbacks.staged(accepted.stream) == 0 and end.session.accepted == 0


def test_after_a_reset_nothing_that_is_done_to_the_stream_has_an_effect() -> None:
    end = wire.agent()
    accepted = serve(end, 1, POST)
    stream = accepted.stream
    _callbacks.reset(stream, ErrorCode.CANCEL)
    end.said()
    _callbacks.respond(stream, OK)
    _callbacks.write(stream, b"x")
    _callbacks.end(stream)
    _callbacks.consume(stream, 0)
    _callbacks.reset(stream, ErrorCode.INTERNAL)
    assert _callbacks.room(stream) == 0 and end.said() == []


def test_a_long_message_of_a_reset_is_cut_and_still_text() -> None:
    end = wire.agent()
    accepted = serve(end, 1, POST)
    _callbacks.reset(accepted.stream, ErrorCode.INTERNAL, "€" * 1000)
    (sent,) = end.said()
    assert sent.value.message.startswith("€€€") and set(sent.value.message) == {"€"}


# --- refusing ---


def test_a_stream_that_the_owner_does_not_take_is_refused() -> None:
    end = wire.agent()
    end.owner.refuse = True
    end.hear(request(1))
    assert resets(end.said(), 1) == [ErrorCode.REFUSED]
    assert end.session.stream_count == end.session.accepted == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StreamError(ErrorCode.TOO_LARGE, "much"), ErrorCode.TOO_LARGE),
        (ValueError("oops"), ErrorCode.INTERNAL),
    ],
    ids=["stream_error", "defect"],
)
def test_an_exception_of_the_owner_resets_the_stream_it_was_about(error: Exception, code: ErrorCode) -> None:
    end = wire.agent()
    end.owner.refuse = error
    end.hear(request(1))
    assert resets(end.said(), 1) == [code]
    assert end.owner.errors == ([] if isinstance(error, StreamError) else [error])
    assert end.session.accepted == 0 and end.closed is None


class Raising(Handler):
    """Raises in one of its calls."""

    def __init__(self, where: str, error: Exception) -> None:
        super().__init__()
        self.where, self.error = where, error

    def _raise(self, where: str) -> None:
        if where == self.where:
            raise self.error

    def head_received(self, *arguments: Any) -> None:
        self._raise("head")

    def data_received(self, *arguments: Any) -> None:
        self._raise("data")

    def writable(self, stream: Stream) -> None:
        self._raise("writable")

    def end_received(self, *arguments: Any) -> None:
        self._raise("end")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StreamError(ErrorCode.APP_ERROR, "app"), ErrorCode.APP_ERROR),
        (ValueError("oops"), ErrorCode.INTERNAL),
    ],
    ids=["stream_error", "defect"],
)
@pytest.mark.parametrize("where", ["head", "data", "writable"])
def test_an_exception_of_a_handler_resets_its_stream_and_no_other(where: str, error: Exception, code: int) -> None:
    end = wire.proxy(peer={"initial_window": 1000})
    handler = Raising(where, error)
    stream = _callbacks.open_stream(end.session, POST, handler)
    other = end.open(POST)
    assert stream is not None
    _callbacks.write(stream, bytes(1000))
    assert _callbacks.room(stream) == 0
    end.said()
    end.hear(response(1), response(3), data(1, b"x"), window(1, 1000), data(3, b"y"))
    assert resets(end.said()) == [code]
    assert handler.resets == [code] and other.body == b"y"
    assert end.owner.errors == ([] if isinstance(error, StreamError) else [error])
    assert end.closed is None


def test_an_exception_at_the_end_of_a_stream_leaves_the_session_alone() -> None:
    end = wire.proxy()
    error = ValueError("oops")
    handler = Raising("end", error)
    _callbacks.open_stream(end.session, GET, handler, True)
    end.hear(response(1, EMPTY, end=True))
    assert end.owner.errors == [error]
    assert end.session.stream_count == 0 and end.alive()


# --- early answers ---


@pytest.mark.parametrize("how", ["with_the_head", "with_data", "with_trailers"])
def test_whoever_ends_a_response_before_the_request_sends_reset_no_error_behind_it(how: str) -> None:
    end = wire.agent()
    accepted = serve(end, 1, POST)
    end.hear(data(1, b"part"))
    if how == "with_the_head":
        _callbacks.respond(accepted.stream, EMPTY, True)
    else:
        _callbacks.respond(accepted.stream, OK)
        _callbacks.write(accepted.stream, b"early")
        _callbacks.end(accepted.stream, ((b"a", b"b"),) if how == "with_trailers" else ())
    sent = end.said()
    assert sent[-2].end and sent[-1].type == RESET and sent[-1].value.code == ErrorCode.NO_ERROR
    assert accepted.handler.resets == [ErrorCode.NO_ERROR]
    assert end.session.stream_count == end.session.accepted == 0
    end.hear(data(1, bytes(5000)), data(1, b"", end=True))  # what was under way
    assert end.said() == [] and end.closed is None and accepted.handler.body == b"part"


def test_a_side_that_has_the_responses_end_drops_the_rest_of_the_request_and_frees_the_stream() -> None:
    end = wire.proxy()
    handler = end.open(POST)
    assert handler.stream is not None
    _callbacks.write(handler.stream, bytes(60_000))
    end.hear(response(1, OK), data(1, b"early", end=True), reset(1, ErrorCode.NO_ERROR))
    assert handler.calls == ["head", "data", "end"] and handler.body == b"early"
    assert [f.type for f in end.said() if f.type == DATA] == []
    assert end.session.stream_count == end.session.opened == 0
    _callbacks.write(handler.stream, b"more")  # no error: the source may not know yet
    _callbacks.end(handler.stream)
    assert end.said() == []


def test_who_waits_for_the_reset_behind_its_answer_hears_of_it_also_when_the_session_is_lost_before() -> None:
    end = wire.agent()
    accepted = serve(end, head=POST)
    _callbacks.respond(accepted.stream, EMPTY, True)
    assert accepted.handler.resets == []
    end.session.lost()
    assert accepted.handler.resets == [ErrorCode.NO_ERROR]
    assert accepted.stream.handler is None


def test_no_error_behind_the_end_discards_nothing_that_was_delivered_and_not_yet_consumed() -> None:
    end = wire.proxy()
    handler = end.open(POST, eager=False)
    end.hear(response(1, OK), data(1, b"x" * 5000, end=True), reset(1, ErrorCode.NO_ERROR))
    assert handler.ended and len(handler.body) == 5000 and handler.resets == []
    handler.consume()
    assert end.said()[1:] == []  # the REQUEST, and no credit for a stream that is over


def test_no_error_before_the_end_cuts_the_answer_visibly() -> None:
    end = wire.proxy()
    handler = end.open(POST)
    end.hear(response(1, OK), data(1, b"part"), reset(1, ErrorCode.NO_ERROR))
    assert not handler.ended and handler.resets == [ErrorCode.NO_ERROR]


def test_a_response_behind_the_end_of_its_request_is_followed_by_no_reset() -> None:
    end = wire.agent()
    accepted = serve(end, 1, POST)
    end.hear(data(1, b"all", end=True))
    _callbacks.respond(accepted.stream, EMPTY, True)
    assert resets(end.said()) == [] and accepted.handler.calls == ["data", "end"]


# --- GOAWAY ---


def test_goaway_bars_its_receiver_from_opening_streams_and_those_that_run_go_on() -> None:
    end = wire.proxy()
    handler = end.open(GET)
    end.hear(goaway(last_stream=1))
    assert end.owner.goaways == [GoAway(last_stream=1)]
    assert not _callbacks.can_open(end.session) and end.session.draining
    end.hear(response(1, sized(2)), data(1, b"ok", end=True))
    assert handler.ended and handler.body == b"ok" and end.closed is None


def test_streams_above_last_stream_were_not_processed_and_end_with_draining() -> None:
    end = wire.proxy()
    handlers = [end.open(GET) for _ in range(3)]
    end.said()
    end.hear(goaway(last_stream=3))
    assert [h.resets for h in handlers] == [[], [], [ErrorCode.DRAINING]]
    assert end.said() == []  # the peer has forgotten it
    assert end.session.opened == 2


@pytest.mark.parametrize("sign", [response(5, OK), window(5, 1000)], ids=["response", "window"])
def test_a_stream_that_the_peer_has_answered_was_processed_whatever_last_stream_says(sign: bytes) -> None:
    end = wire.proxy()
    handlers = [end.open(POST) for _ in range(3)]
    end.hear(sign)
    end.hear(goaway(last_stream=1))
    assert [h.resets for h in handlers] == [[], [ErrorCode.DRAINING], []]


def test_the_streams_of_the_other_parity_do_not_matter_to_goaway() -> None:
    end = wire.proxy()
    theirs = serve(end, 10, POST)
    ours = end.open(GET)
    end.hear(goaway(last_stream=8))
    assert theirs.handler.resets == [] and ours.resets == []
    end.hear(goaway(last_stream=0))
    assert theirs.handler.resets == [] and ours.resets == [ErrorCode.DRAINING]


def test_an_agent_that_leaves_names_the_last_stream_and_refuses_later_ones_with_draining() -> None:
    end = wire.agent()
    accepted = serve(end, 7, POST)
    end.session.go_away(0, "bye", 250)
    end.session.go_away()  # once is enough
    (sent,) = end.said()
    assert sent.value == GoAway(last_stream=7, message="bye", retry_after_ms=250)
    end.hear(request(9), data(7, b"more", end=True))
    assert resets(end.said(), 9) == [ErrorCode.DRAINING]
    assert accepted.handler.ended and len(end.owner.accepted) == 1
    _callbacks.respond(accepted.stream, EMPTY, True)
    assert [f.type for f in end.said()] == [RESPONSE]
    assert end.session.stream_count == 0


def test_a_proxy_that_leaves_goes_on_opening_streams_until_it_closes() -> None:
    end = wire.proxy()
    end.session.go_away()
    assert _callbacks.can_open(end.session)
    handler = end.open(GET)
    end.hear(response(1, EMPTY, end=True))
    assert handler.ended


def test_a_proxy_that_leaves_takes_no_streams_of_the_agents() -> None:
    end = wire.proxy()
    end.session.go_away()
    end.hear(request(2))
    assert end.owner.accepted == []
    assert resets(end.said(), 2) == [ErrorCode.DRAINING]


def test_a_goaway_that_cannot_be_read_ends_the_session() -> None:
    end = wire.proxy()
    end.hear(frame(GOAWAY, 0, b"\xff"))
    assert end.closed == (ErrorCode.PROTOCOL_ERROR, 1002)


def test_after_a_peers_goaway_its_own_requests_are_still_taken() -> None:
    end = wire.agent()
    end.hear(goaway())
    serve(end)
    assert end.owner.accepted


# --- the end of a session ---


@pytest.mark.parametrize("is_proxy", [True, False])
def test_an_error_of_the_session_is_told_by_goaway_and_by_the_close_code(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    serve(end, 2 if is_proxy else 1)
    end.hear(greeting())
    (sent,) = end.said()
    assert sent.value.code == ErrorCode.PROTOCOL_ERROR
    assert sent.value.last_stream == (2 if is_proxy else 1)
    assert sent.value.message
    assert end.owner.closed == (ErrorCode.PROTOCOL_ERROR, sent.value.message, 1002)


def test_a_session_that_leaves_in_peace_says_goaway_once() -> None:
    end = wire.agent()
    end.session.go_away()
    end.session.close(close_code=1001)
    end.session.close()
    assert [f.type for f in end.said()] == [GOAWAY]
    assert end.closed == (0, 1001)


@pytest.mark.parametrize("is_proxy", [True, False])
def test_when_a_session_is_lost_every_stream_ends_and_every_table_is_empty(is_proxy: bool) -> None:
    end = End(is_proxy).greeted()
    ours = [end.open(POST) for _ in range(5)]
    theirs = [serve(end, i * 2 + (0 if is_proxy else 1), POST).handler for i in range(1, 6)]
    for handler in ours:
        assert handler.stream is not None
        _callbacks.write(handler.stream, bytes(100_000))
    end.said()
    end.session.lost("gone")
    assert all(h.resets == [ErrorCode.SESSION_LOST] and h.messages == ["gone"] for h in ours + theirs)
    assert end.session.stream_count == end.session.opened == end.session.accepted == 0
    assert _callbacks.budget_used(end.session) == end.budget.used_bytes == 0
    assert not _callbacks.can_open(end.session)
    assert end.said() == []
    end.session.lost("again")
    assert all(len(h.resets) == 1 for h in ours + theirs)


def test_a_stream_whose_request_never_went_out_ends_with_refused_when_its_session_is_lost() -> None:
    end = wire.proxy()
    sent = end.open(POST)
    end.said()
    unsent = end.open(POST)
    end.session.lost("gone")
    assert sent.resets == [ErrorCode.SESSION_LOST] and unsent.resets == [ErrorCode.REFUSED]


def test_requests_that_went_out_in_an_earlier_message_count_as_sent() -> None:
    end = wire.proxy()
    head = replace(POST, fields=tuple((b"x-%d" % i, b"v" * 13_000) for i in range(10)))
    handlers = [end.open(head) for _ in range(3)]
    assert [f.stream for f in end.message()] == [1, 3]
    end.session.lost("gone")
    assert [h.resets for h in handlers] == [[ErrorCode.SESSION_LOST], [ErrorCode.SESSION_LOST], [ErrorCode.REFUSED]]


def test_a_session_whose_ids_are_used_up_says_goaway_and_goes_on_with_what_runs() -> None:
    end = wire.proxy()
    end.said()
    _callbacks.skip_ids(end.session, 2**31 - 1)
    handler = end.open(GET)
    assert handler.stream is not None and handler.stream.id == 2**31 - 1
    assert [f.type for f in end.said()] == [GOAWAY, REQUEST]
    assert not _callbacks.can_open(end.session)
    end.hear(response(2**31 - 1, EMPTY, end=True))
    assert handler.ended and end.closed is None


class Reopening(Handler):
    """Tries to open another stream when it is reset, as a retry would."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end
        self.tries: list[Stream | None] = []

    def reset_received(self, stream: Stream, code: int, message: str) -> None:
        self.tries.append(_callbacks.open_stream(self.end.session, GET, Handler(), True))


@pytest.mark.parametrize("how", ["lost", "goaway"])
def test_a_handler_cannot_open_a_stream_in_a_session_that_ends_or_drains(how: str) -> None:
    end = wire.proxy()
    handler = Reopening(end)
    _callbacks.open_stream(end.session, GET, handler, True)
    if how == "lost":
        end.session.lost()
    else:
        end.hear(goaway())
    assert handler.tries == [None] and end.session.stream_count == 0


class Hasty(wire.Owner):
    """Answers, or resets, while it accepts."""

    def __init__(self, answer: ResponseHead | None) -> None:
        super().__init__()
        self.answer = answer

    def stream_accepted(self, stream: Stream, head: RequestHead, end: bool) -> Handler | None:
        handler = super().stream_accepted(stream, head, end)
        if self.answer is None:
            _callbacks.reset(stream, ErrorCode.TOO_LARGE)
        else:
            _callbacks.respond(stream, self.answer, True)
        return handler


@pytest.mark.parametrize(("head", "over"), [(GET, True), (POST, False)], ids=["get", "post"])
def test_an_owner_may_answer_while_it_accepts(head: RequestHead, over: bool) -> None:
    end = wire.agent(owner=Hasty(EMPTY))
    end.hear(request(1, head, over))
    sent = end.said()
    assert sent[0].type == RESPONSE and sent[0].end
    assert resets(sent) == ([] if over else [ErrorCode.NO_ERROR])
    assert end.session.stream_count == 0


def test_an_owner_may_reset_while_it_accepts() -> None:
    end = wire.agent(owner=Hasty(None))
    end.hear(request(1, POST, False))
    assert resets(end.said()) == [ErrorCode.TOO_LARGE]
    assert end.session.stream_count == 0 and end.owner.accepted[0].handler.calls == []


def test_an_upgraded_stream_ends_by_a_reset_of_either_side() -> None:
    end = wire.agent()
    first, second = serve(end, 1, UPGRADE), serve(end, 3, UPGRADE)
    for accepted in (first, second):
        _callbacks.respond(accepted.stream, SWITCH)
    end.said()
    _callbacks.reset(first.stream, ErrorCode.CANCEL)
    end.hear(reset(3, ErrorCode.CANCEL))
    assert first.handler.resets == [] and second.handler.resets == [ErrorCode.CANCEL]
    assert end.session.stream_count == 0
