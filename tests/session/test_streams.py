"""Which stream a frame is for, among many."""

from __future__ import annotations

import random

import pytest

from tests.session import wire
from tests.session.wire import POST, data, reset, serve

IN_A_ROW = range(1, 401, 2)
FAR_APART = range(1, 200 * 1024, 1024)


@pytest.mark.parametrize("ids", [IN_A_ROW, FAR_APART, sorted({*IN_A_ROW, *FAR_APART})], ids=["near", "far", "mixed"])
def test_each_of_many_streams_hears_its_own_frames_in_whatever_order_they_come_and_end(ids) -> None:
    end = wire.agent(settings={"max_streams": 1000})
    chance = random.Random(1)
    open_streams = {id: serve(end, id, POST).handler for id in ids}
    assert end.session.stream_count == len(open_streams)
    while open_streams:
        for id in chance.sample(list(open_streams), len(open_streams)):
            end.hear(data(id, b"%d " % id))
        over = chance.sample(list(open_streams), (len(open_streams) + 1) // 2)
        for id in over:
            handler = open_streams.pop(id)
            assert set(bytes(handler.body).split()) == {b"%d" % id}
            end.hear(reset(id, 8))
            assert handler.resets == [8]
            end.hear(data(id, b"late"))
        assert end.session.stream_count == len(open_streams)
    assert serve(end, max(ids) + 2, POST).handler.resets == []


def test_a_session_that_is_lost_tells_its_streams_in_the_order_of_their_opening() -> None:
    end = wire.agent(settings={"max_streams": 1000})
    told: list[int] = []
    for id in sorted({*IN_A_ROW, *FAR_APART}):
        handler = serve(end, id, POST).handler
        handler.reset_received = lambda stream, code, message: told.append(stream.id)  # type: ignore[method-assign]
    end.session.lost("gone")
    assert told == sorted({*IN_A_ROW, *FAR_APART})
    assert end.session.stream_count == 0
