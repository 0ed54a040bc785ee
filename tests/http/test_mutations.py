"""Rows of the table with bytes changed, lost, added and doubled: what we take is the same to h11, the rest is refused.

h11 is the more generous reader, so that nearly all that we take is something to it as well.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import h11
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.play import Tap
from tests.http.table import faults, load
from tests.http.test_differential import (
    EMPTY_LINES,
    PLAIN,
    Harness,
    Request,
    bytes_of,
    compare,
    in_words_of_h11,
    play,
    requests_in,
)
from tests.rig import Ended, Upstream, Wire, request, tunnel

SPLICES = [
    *(
        b"\r",
        b"\n",
        b"\r\n",
        b" ",
        b"\t",
        b"\0",
        b"\x0b",
        b"\xff",
        b":",
        b";",
        b",",
        b"#",
        b"0",
        b"5\r\n",
        b"0\r\n\r\n",
    ),
    *(b"\r\n\r\n", b"HTTP/1.1", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Expect: 100-continue\r\n", b"HTTP/1.1 103 E\r\n\r\n"),
]


@st.composite
def mutated(draw: Any, originals: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["splice", "cut", "byte", "bit", "repeat", "line"])):
            case "splice":
                data[place:place] = draw(st.sampled_from(SPLICES))
            case "cut":
                del data[place : place + draw(st.integers(1, 5))]
            case "byte":
                data[place : place + 1] = bytes([draw(st.integers(0, 255))])
            case "bit":
                data[place : place + 1] = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[place : place + 1])
            case "repeat":
                data[place:place] = data[place : place + draw(st.integers(1, 60))]
            case "line":
                lines = bytes(data).split(b"\r\n")
                lines.insert(draw(st.integers(0, len(lines))), draw(st.sampled_from(lines)))
                data = bytearray(b"\r\n".join(lines))
    return bytes(data)


# Not HEAD: of a request that h11 refuses this client knows no method, and waits for the content of its answer.
REQUESTS = [data for row in PLAIN if len(data := b"".join(bytes_of(row))) < 2000 and b"HEAD " not in data]
ANSWERS = [
    data
    for row in load()
    if row.answer and row.methods[0] == "GET"
    if 20
    < len(data := b"".join(row.expand(s if isinstance(s, str) else s.get("bytes", "")) for s in row.answer))
    < 2000
]

mutations = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    # What is not whole is answered soon, too.
    made = Harness(
        "h11",
        tmp_path_factory.mktemp("unused"),
        proxy={"header_timeout": 0.2, "idle_timeout": 0.2, "keepalive_timeout": 0.3},
    )
    yield made
    made.end()


def may_end_here(request: Request) -> bool:
    """Whether the proxy may answer it itself (RFC 9110 §7.6.2, §9.3.7)."""
    return request.method == "OPTIONS" and (request.target == "*" or "max-forwards" in dict(request.fields))


@mutations
@given(mutated(REQUESTS), st.integers(1, 1000))
def test_a_mutated_request_is_refused_or_is_the_same_to_h11(harness: Harness, data: bytes, cut: int) -> None:
    sent, whole = requests_in(data)
    harness.recorder.raw.clear()
    statuses = harness.runner.run(play(harness.pair, [data[:cut] or b"x", data[cut:]], sent, more=not whole))
    got = [request for request in harness.recorder.take("") if not may_end_here(request)]
    ours = [
        request for request, status in zip(sent, statuses, strict=False) if status == 200 and not may_end_here(request)
    ]
    assert 200 not in statuses[len(sent) :]  # we take nothing that h11 does not
    # Behind what both refuse another request may be served, which h11 did not get to.
    assert len(got) == len(ours) if whole else len(got) >= len(ours)
    for one, other in zip(ours, got, strict=False):
        compare(one, other, "h11")


def read_by_h11(data: bytes) -> tuple[int, bytes, bool]:
    """Status, content, and whether it is whole; status 0 where it is refused."""
    reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    reader.send(h11.Request(method="GET", target="/", headers=[("host", "a")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(in_words_of_h11(data))
    status, body, ended = 0, b"", False
    while True:
        try:
            event = reader.next_event()
        except h11.RemoteProtocolError:
            return status, body, False
        if event is h11.NEED_DATA and not ended:
            ended = True
            reader.receive_data(b"")
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif not isinstance(event, h11.InformationalResponse):
            return status, body, isinstance(event, h11.EndOfMessage)


def without_empty_lines(data: bytes) -> bytes:
    """Without those before status lines: they are ignored here, and an error to h11."""
    data = EMPTY_LINES.sub(b"", data)
    head, end, rest = data.partition(b"\r\n\r\n")
    return head + end + without_empty_lines(rest) if re.match(rb"HTTP/1\.[01] 1", head) else data


class EvilService:
    """A tunnel to a service that answers everything with the same bytes and then closes."""

    def __init__(self) -> None:
        self.data = b""
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.upstream = Upstream(self._serve)
        self.runner.run(self.upstream.__aenter__())
        self.tunnel = tunnel(upstream=self.upstream.url)
        self.pair = self.runner.run(self.tunnel.__aenter__())

    async def _serve(self, wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(self.data)

    async def ask(self) -> tuple[int, bytes, bool, bool]:
        """Status, content, whether it is whole, and whether the answer is the proxy's own."""
        async with await Tap.connect(self.pair.address) as wire:
            await wire.send(request())
            try:
                got = await wire.answer()
            except Ended:
                assert not wire.buffer
                return 0, b"", False, True
        assert not faults(got, of_request=False)
        return got.status, got.body, got.complete, bool(got.all("proxy-status"))

    def end(self) -> None:
        self.runner.run(self.tunnel.__aexit__(None, None, None))
        self.runner.run(self.upstream.__aexit__(None, None, None))
        self.runner.close()


@pytest.fixture(scope="module")
def service() -> Iterator[EvilService]:
    made = EvilService()
    yield made
    made.end()


@mutations
@given(mutated(ANSWERS))
def test_a_mutated_answer_is_refused_or_cut_or_is_the_same_to_h11(service: EvilService, data: bytes) -> None:
    service.data = data
    status, body, whole, own = service.runner.run(service.ask())
    if own:
        assert status in (0, 502)
        return
    expected = read_by_h11(without_empty_lines(data))
    if status == 205:
        assert (expected[0], body) == (205, b"")  # RFC 9110 §15.3.6: whatever the service sends, there is no content
    elif whole:
        assert (status, body, whole) == expected
    else:
        assert expected[0] == status
        assert expected[1].startswith(body)
