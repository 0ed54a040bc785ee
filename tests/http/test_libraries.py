"""What the libraries below do and don't do, as far as our safety leans on it.

A test that falls after an update says where the code has to be looked at again: the readers of `_http/_message.pyx` for
httptools, `_websocket.pyx` for picows, `_http/_writer.pyx` and `_loop.pyx` for the event loops.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import socket
import struct
from typing import Any

import httptools
import picows
import pytest
from picows.common import WSUpgradeResponseWithListener
from picows.picows import WSProtocol

from backstream._websocket import PAUSES_LATE
from tests.rig import LIMIT, Wire, until

# --- httptools ---


class Events:
    """What a parser reported."""

    def __init__(self, parser: Any = httptools.HttpRequestParser) -> None:
        self.all: list[Any] = []
        self.parser = parser(self)

    def feed(self, data: bytes) -> Events:
        self.parser.feed_data(data)
        return self

    def names(self) -> list[str]:
        return [event if isinstance(event, str) else event[0] for event in self.all]

    def values(self, kind: str) -> list[Any]:
        return [event[1] for event in self.all if event[0] == kind]

    def on_message_begin(self) -> None:
        self.all.append("begin")

    def on_url(self, url: bytes) -> None:
        self.all.append(("url", url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self.all.append(("header", (name, value)))

    def on_headers_complete(self) -> None:
        self.all.append("headers complete")

    def on_body(self, body: bytes) -> None:
        self.all.append(("body", body))

    def on_chunk_header(self) -> None:
        self.all.append("chunk")

    def on_chunk_complete(self) -> None:
        self.all.append("chunk complete")

    def on_message_complete(self) -> None:
        self.all.append("complete")


GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED = {
    "both lengths": POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both lengths, the other way round": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
    "Content-Length twice": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
    "a list of lengths": POST + b"Content-Length: 1, 1\r\n\r\n",
    "a signed length": POST + b"Content-Length: +1\r\n\r\n",
    "an empty length": POST + b"Content-Length:\r\n\r\n",
    "Transfer-Encoding twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked is not the last": POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "a bare LF behind a field": b"GET / HTTP/1.1\r\nHost: a\n\r\n",
    "a bare LF behind the request line": b"GET / HTTP/1.1\nHost: a\r\n\r\n",
    "a bare CR": GET + b"X: a\rb\r\n\r\n",
    "NUL in a value": GET + b"X: a\0\r\n\r\n",
    "a control byte in a value": GET + b"X: \x01\r\n\r\n",
    "a fold": GET + b"X: a\r\n b\r\n\r\n",
    "a blank before a colon": GET + b"X : a\r\n\r\n",
    "a blank before the first field": b"GET / HTTP/1.1\r\n X: a\r\n\r\n",
    "a size that is none": CHUNKED + b"x\r\n",
    "a size with a sign": CHUNKED + b"+1\r\n",
    "a size with a blank before it": CHUNKED + b" 1\r\n",
    "a size beyond 64 bits": CHUNKED + b"10000000000000000\r\n",
    "a bare LF behind a size": CHUNKED + b"1\nx\r\n",
    "a bare LF behind a chunk": CHUNKED + b"1\r\nx\n0\r\n\r\n",
    "a control byte in an extension": CHUNKED + b"1;a\x01\r\nx\r\n",
    "a bare LF in an extension": CHUNKED + b"1;a\nx\r\n",
    "a byte beyond ASCII in the target": b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "a control byte in the target": b"GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
    "data behind Connection: close": GET + b"Connection: close\r\n\r\nG",
    "Content-Length in trailers": CHUNKED + b"0\r\nContent-Length: 1\r\n\r\n",
    "Transfer-Encoding in trailers": CHUNKED + b"0\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_httptools_refuses_by_itself(kind: str) -> None:
    with pytest.raises(httptools.HttpParserError):
        Events().feed(REFUSED[kind])


@pytest.mark.parametrize("coding", [b"xchunked", b"identity", b"chunked;q=1"])
def test_httptools_refuses_an_unknown_coding_only_after_the_head_was_called_complete(coding: bytes) -> None:
    events = Events()
    with pytest.raises(httptools.HttpParserError):
        events.feed(POST + b"Transfer-Encoding: " + coding + b"\r\n\r\n")
    assert events.names()[-1] == "headers complete"


PASSED = {
    "gzip, chunked": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\n\r\n",
    "RTSP": b"GET / RTSP/1.0\r\n\r\n",
    "ICE": b"SOURCE / ICE/1.0\r\n\r\n",
    "several blanks": b"GET   /   HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fragment": b"GET /#x HTTP/1.1\r\nHost: a\r\n\r\n",
    "characters that no URI has": b'GET /"<>\\^{}|` HTTP/1.1\r\nHost: a\r\n\r\n',
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"Host: b\r\n\r\n",
    "an odd Host": b"GET / HTTP/1.1\r\nHost: a b/c@d\r\n\r\n",
    "QUERY": b"QUERY / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a field of a megabyte": GET + b"X: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "a target of a megabyte": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "ten thousand fields": GET + b"X: a\r\n" * 10_000 + b"\r\n",
    "trailers of a megabyte": CHUNKED + b"0\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "an extension of a megabyte": CHUNKED + b"1;" + b"a" * 1_000_000 + b"\r\nx\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("kind", PASSED)
def test_httptools_leaves_it_to_us_to_refuse(kind: str) -> None:
    # Where one of these is refused one day, nothing breaks; the reader's own check may then be spared.
    assert Events().feed(PASSED[kind]).names()[-1] == "complete"


def test_httptools_tells_versions_but_not_protocols() -> None:
    assert Events().feed(b"GET /\r\n\r\n").parser.get_http_version() == "0.9"
    assert Events().feed(b"GET / HTTP/2.0\r\n\r\n").parser.get_http_version() == "2.0"
    assert Events().feed(b"GET / RTSP/1.0\r\n\r\n").parser.get_http_version() == "1.0"


def test_httptools_keeps_the_blanks_behind_a_value() -> None:
    assert Events().feed(GET + b"X:  5 \t\r\n\r\n").values("header")[-1] == (b"X", b"5 \t")


@pytest.mark.parametrize("framing", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"])
def test_httptools_passes_over_the_body_behind_an_upgrade(framing: bytes) -> None:
    head, _, body = (POST + b"Connection: upgrade\r\nUpgrade: h2c\r\n" + framing).partition(b"\r\n\r\n")
    events = Events()
    with pytest.raises(httptools.HttpParserUpgrade) as raised:
        events.feed(head + b"\r\n\r\n" + body)
    assert raised.value.args == (len(head) + 4,)
    assert events.names()[-2:] == ["headers complete", "complete"]


def test_a_fresh_httptools_parser_that_is_told_the_framing_reads_the_body() -> None:
    events = Events().feed(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n")
    assert events.feed(b"hel").feed(b"lo").values("body") == [b"hel", b"lo"]
    assert events.names()[-1] == "complete"


def test_httptools_ends_connect_at_its_head() -> None:
    with pytest.raises(httptools.HttpParserUpgrade):
        Events().feed(b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n")


def test_httptools_refuses_the_preface_of_http_2() -> None:
    with pytest.raises(httptools.HttpParserError, match="PRI"):
        Events().feed(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


def test_httptools_has_an_error_of_its_own_for_an_unknown_method() -> None:
    with pytest.raises(httptools.HttpParserInvalidMethodError):
        Events().feed(b"FROB / HTTP/1.1\r\nHost: a\r\n\r\n")


def test_httptools_gives_targets_and_bodies_in_the_pieces_that_they_came_in() -> None:
    events = Events().feed(b"POST /a").feed(b"b HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nx").feed(b"yz!")
    assert events.values("url") == [b"/a", b"b"]
    assert events.values("body") == [b"x", b"yz!"]


def test_httptools_gives_trailers_as_headers_behind_the_head_and_before_the_last_chunks_end() -> None:
    events = Events().feed(CHUNKED + b"1\r\nx\r\n0\r\nX-T: y\r\n\r\n")
    assert events.names()[-4:] == ["chunk", "header", "chunk complete", "complete"]
    assert events.names().index("headers complete") < len(events.all) - 4


def test_httptools_calls_back_all_that_it_is_given_before_an_error_in_a_later_message() -> None:
    events = Events()
    with pytest.raises(httptools.HttpParserError):
        events.feed((GET + b"\r\n") * 10 + b"GET / HTTP/1.1\r\nX : a\r\n\r\n")
    assert events.names().count("complete") == 10


def test_httptools_takes_a_memoryview_and_keeps_no_reference_to_it() -> None:
    memory = bytearray(POST + b"Content-Length: 5\r\n\r\nhello")
    view = memoryview(memory)
    events = Events()
    events.parser.feed_data(view)
    view.release()
    memory[:] = bytes(len(memory))
    del memory[:]  # would raise BufferError where somebody still held it
    assert events.values("body") == [b"hello"]


def answer_events(data: bytes) -> Events:
    return Events(httptools.HttpResponseParser).feed(data)


def test_httptools_waits_for_the_body_that_an_answer_to_head_describes() -> None:
    assert answer_events(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").names()[-1] == "headers complete"


def test_httptools_reads_a_body_without_framing_on_and_on() -> None:
    events = answer_events(b"HTTP/1.1 200 OK\r\n\r\nab").feed(b"cd")
    assert events.values("body") == [b"ab", b"cd"]
    assert "complete" not in events.names()
    assert not hasattr(events.parser, "finish")


def test_httptools_passes_odd_answers() -> None:
    assert answer_events(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nx").values("body") == [b"x"]
    assert answer_events(b"HTTP/1.1 099 X\r\n\r\n").parser.get_status_code() == 99
    assert answer_events(b"HTTP/1.1 999 X\r\n\r\n").parser.get_status_code() == 999
    assert answer_events(b"HTTP/2.0 200 OK\r\n\r\n").parser.get_status_code() == 200
    assert answer_events(b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n").names()[-1] == "complete"
    with pytest.raises(httptools.HttpParserError):
        answer_events(b"HTTP/1.1 1000 X\r\n\r\n")


def test_httptools_completes_an_interim_answer_and_goes_on_to_the_final_one() -> None:
    events = answer_events(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert events.names().count("complete") == 2


def test_httptools_raises_on_101_with_and_without_an_upgrade() -> None:
    with pytest.raises(httptools.HttpParserError):
        answer_events(b"HTTP/1.1 101 X\r\n\r\n")
    with pytest.raises(httptools.HttpParserUpgrade):
        answer_events(b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: a\r\n\r\nabc")


def test_httptools_takes_bytes_behind_an_answer_for_the_next_one() -> None:
    two = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
    assert answer_events(two).names().count("complete") == 2


@pytest.mark.parametrize("status", [b"204", b"304"])
def test_httptools_ends_an_answer_without_a_body_at_its_head(status: bytes) -> None:
    assert answer_events(b"HTTP/1.1 %b X\r\nContent-Length: 5\r\n\r\n" % status).names()[-1] == "complete"


# --- picows ---

MAX_FRAME = 262_144
FIRST_BUFFER = 6400

BINARY, TEXT, CLOSE, PING, PONG, CONTINUATION = 2, 1, 8, 9, 10, 0


class Listener(picows.WSListener):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.transport: picows.WSTransport | None = None
        self.frames: list[tuple[int, bool, bytes]] = []
        self.calls: list[str] = []

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        self.frames.append((int(frame.msg_type), bool(frame.fin), frame.get_payload_as_bytes()))
        if int(frame.msg_type) == CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.calls.append("disconnected")

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")


class TakenOver(asyncio.BufferedProtocol):
    """A server that reads the request itself and then hands its socket to picows, as `accept_websocket` does."""

    def __init__(self) -> None:
        self.listener = Listener()
        self.logger = logging.getLogger("tests.picows")
        self.logger.setLevel(logging.CRITICAL)
        self.memory = bytearray(65536)
        self.head = b""
        self.largest = 0
        """Bytes of the largest view that picows gave."""
        self.protocol: Any = None

    def connection_made(self, transport: Any) -> None:
        self.raw = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        if self.protocol is None:
            return memoryview(self.memory)
        view = self.protocol.get_buffer(sizehint)
        self.largest = max(self.largest, len(view))
        return view[:65536]

    def buffer_updated(self, nbytes: int) -> None:
        if self.protocol is not None:
            self.protocol.buffer_updated(nbytes)
            return
        self.head += self.memory[:nbytes]
        head, end, rest = self.head.partition(b"\r\n\r\n")
        if end:
            self.take_over(head + end, rest)

    def take_over(self, head: bytes, rest: bytes) -> None:
        def answer(request: picows.WSUpgradeRequest) -> Any:
            response = picows.WSUpgradeResponse.create_101_response([("Sec-WebSocket-Protocol", "x")])
            return WSUpgradeResponseWithListener(response, self.listener)

        self.protocol = WSProtocol(
            None,
            None,
            False,
            answer,
            self.logger,
            True,
            None,
            False,
            10,
            10,
            picows.WSAutoPingStrategy.PING_WHEN_IDLE,
            False,
            MAX_FRAME,
            None,
            FIRST_BUFFER,
        )
        self.raw.set_protocol(self)
        self.protocol.connection_made(self.raw)
        for data in (head, rest):
            while data:
                view = self.get_buffer(-1)
                size = min(len(view), len(data))
                view[:size] = data[:size]
                view.release()
                self.buffer_updated(size)
                data = data[size:]

    def eof_received(self) -> Any:
        return self.protocol.eof_received() if self.protocol is not None else None

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.protocol is not None:
            self.protocol.connection_lost(exc)


def frame(kind: int, payload: bytes, *, fin: bool = True, masked: bool = True, bits: int = 0) -> bytes:
    """A client's WebSocket frame; its mask is of zeros, so that the payload reads as it is."""
    size = len(payload)
    mask = 0x80 if masked else 0
    if size < 126:
        length = bytes([mask | size])
    elif size < 65536:
        length = bytes([mask | 126]) + struct.pack(">H", size)
    else:
        length = bytes([mask | 127]) + struct.pack(">Q", size)
    return bytes([(0x80 if fin else 0) | bits | kind]) + length + (bytes(4) if masked else b"") + payload


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
)


class Picows:
    """One connection to a server that picows took over."""

    def __init__(self, behind: bytes = b"") -> None:
        self.behind = behind

    async def __aenter__(self) -> Picows:
        made: list[TakenOver] = []

        def factory() -> TakenOver:
            made.append(TakenOver())
            return made[-1]

        self.server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0)
        self.wire = await Wire.connect(self.server.sockets[0].getsockname())
        await self.wire.send(HANDSHAKE + self.behind)
        head = await self.wire.until(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=\r\n" in head
        self.taken = made[0]
        self.listener = self.taken.listener
        return self

    async def __aexit__(self, *_: object) -> None:
        self.wire.close()
        self.server.close()
        await self.server.wait_closed()
        await until(lambda: "disconnected" in self.listener.calls, "picows to have noticed")

    async def frames(self, count: int) -> list[tuple[int, bool, bytes]]:
        await until(lambda: len(self.listener.frames) >= count, f"{count} frames")
        return self.listener.frames


async def test_picows_takes_over_a_socket_whose_first_bytes_somebody_else_has_read() -> None:
    async with Picows(frame(BINARY, b"one") + frame(BINARY, b"two")) as it:
        assert await it.frames(2) == [(BINARY, True, b"one"), (BINARY, True, b"two")]
        await it.wire.send(frame(BINARY, b"three"))
        assert (await it.frames(3))[2] == (BINARY, True, b"three")
        assert it.listener.transport is not None
        it.listener.transport.send(picows.WSMsgType.BINARY, b"back")
        assert await it.wire.exactly(6) == b"\x82\x04back"
        assert it.listener.transport.underlying_transport is it.taken.raw


async def test_picows_hands_over_fragments_one_by_one() -> None:
    async with Picows() as it:
        await it.wire.send(
            frame(BINARY, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False) + frame(CONTINUATION, b"c")
        )
        assert await it.frames(3) == [(BINARY, False, b"a"), (CONTINUATION, False, b"b"), (CONTINUATION, True, b"c")]


async def test_picows_does_not_check_the_order_of_fragments_nor_reserved_bits_nor_utf_8() -> None:
    async with Picows() as it:
        await it.wire.send(frame(CONTINUATION, b"a") + frame(BINARY, b"b", bits=0x70) + frame(TEXT, b"\xff"))
        assert await it.frames(3) == [(CONTINUATION, True, b"a"), (BINARY, True, b"b"), (TEXT, True, b"\xff")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(BINARY, b"x", masked=False), 1002),
        (frame(3, b"x"), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(BINARY, bytes(MAX_FRAME + 1))[:14], 1009),
        (b"\x82\xff" + struct.pack(">Q", 1 << 62) + bytes(4), 1009),
        (b"\x82\xff" + struct.pack(">Q", 1 << 63) + bytes(4), 1002),
        (b"\x82\xfe" + struct.pack(">H", 5) + bytes(4), 1002),
    ],
    ids=["no mask", "opcode", "control in fragments", "long ping", "long", "very long", "negative", "long-winded"],
)
async def test_picows_ends_a_connection_for_a_malformed_frame_and_hands_nothing_of_it_over(
    data: bytes, code: int
) -> None:
    async with Picows() as it:
        await it.wire.send(data)
        rest, _ = await it.wire.rest()
        assert rest[0] == 0x88
        assert struct.unpack(">H", rest[2:4]) == (code,)
        assert it.listener.frames == []


async def test_picows_takes_a_frame_of_the_limit_and_its_buffer_stays_bounded() -> None:
    async with Picows() as it:
        for number in range(1, 9):
            await it.wire.send(frame(BINARY, bytes(MAX_FRAME)))
            await it.frames(number)
        for number in range(2000):
            await it.wire.send(frame(BINARY, bytes(number * 37 % 9000)))
        await it.frames(2008)
        # Doubled from FIRST_BUFFER - 256 until a whole frame and one more read fit.
        assert it.taken.largest <= 64 * (FIRST_BUFFER - 256) == 393_216


async def test_picows_takes_reads_that_are_smaller_than_the_buffer_it_offers() -> None:
    async with Picows() as it:
        for byte in frame(BINARY, b"x" * 200):
            await it.wire.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await it.frames(1) == [(BINARY, True, b"x" * 200)]


async def test_picows_answers_no_ping_by_itself_when_told_not_to() -> None:
    async with Picows() as it:
        await it.wire.send(frame(PING, b"x"))
        assert await it.frames(1) == [(PING, True, b"x")]
        assert it.listener.transport is not None
        it.listener.transport.send_pong(b"x")
        assert await it.wire.exactly(3) == b"\x8a\x01x"


async def test_picows_tells_the_listener_when_its_transport_is_full_and_when_it_is_not() -> None:
    async with Picows() as it:
        transport = it.listener.transport
        assert transport is not None
        transport.underlying_transport.set_write_buffer_limits(131_072, 32_768)
        sent = 0
        while "pause" not in it.listener.calls:
            assert sent < 1 << 30
            transport.send(picows.WSMsgType.BINARY, bytes(65_536))
            sent += 65_536
            if PAUSES_LATE:
                transport.underlying_transport.set_write_buffer_limits(131_072, 32_768)
            await asyncio.sleep(0)
        while "resume" not in it.listener.calls:
            await it.wire.fill()
            it.wire.buffer.clear()


async def test_picows_writes_the_header_before_a_buffer_of_ours_and_leaves_the_payload() -> None:
    async with Picows() as it:
        assert it.listener.transport is not None
        memory = bytearray(14) + b"payload"
        it.listener.transport.send_reuse_external_bytearray(picows.WSMsgType.BINARY, memory, 14)
        assert await it.wire.exactly(9) == b"\x82\x07payload"
        memory[14:] = b"another"
        it.listener.transport.send_reuse_external_bytearray(picows.WSMsgType.BINARY, memory, 14)
        assert await it.wire.exactly(9) == b"\x82\x07another"


async def test_picows_copies_what_the_socket_does_not_take_of_a_buffer_of_ours() -> None:
    async with Picows() as it:
        assert it.listener.transport is not None
        size = 200_000
        memory = bytearray(14) + bytes(size)
        count = 40
        for number in range(count):
            memory[14:] = bytes([number]) * size
            it.listener.transport.send_reuse_external_bytearray(picows.WSMsgType.BINARY, memory, 14)
        memory[14:] = bytes([255]) * size
        for number in range(count):
            got = await it.wire.exactly(10 + size)
            assert got[10:] == bytes([number]) * size


# --- event loops ---


class Taker(asyncio.BufferedProtocol):
    """Reads into a buffer that all its like share; keeps what it read."""

    def __init__(self, shared: bytearray) -> None:
        self.shared = shared
        self.got = bytearray()
        self.calls: list[str] = []
        self.ended = False
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self.shared)

    def buffer_updated(self, nbytes: int) -> None:
        self.got += self.shared[:nbytes]
        self.shared[:nbytes] = b"\xee" * nbytes

    def eof_received(self) -> bool:
        self.ended = True
        return True

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append(f"resume at {self.transport.get_write_buffer_size()}")


async def taker(shared: bytearray | None = None) -> tuple[Taker, Wire]:
    ours, theirs = socket.socketpair()
    wire = Wire(theirs)
    _, protocol = await asyncio.get_running_loop().create_connection(
        lambda: Taker(shared if shared is not None else bytearray(65536)), sock=ours
    )
    return protocol, wire


async def test_a_loop_uses_up_a_read_before_it_reads_for_another_connection() -> None:
    shared = bytearray(4096)
    pairs = [await taker(shared) for _ in range(20)]

    async def feed(number: int, wire: Wire) -> None:
        for _ in range(50):
            await wire.send(bytes([number]) * 3000)

    await asyncio.gather(*(feed(number, wire) for number, (_, wire) in enumerate(pairs)))
    for number, (protocol, wire) in enumerate(pairs):
        await until(lambda protocol=protocol: len(protocol.got) == 150_000, "all of it")
        assert protocol.got == bytes([number]) * 150_000
        protocol.transport.abort()
        wire.close()
    await asyncio.sleep(0)


async def test_a_loop_that_may_buffer_nothing_says_so_within_the_write_and_again_when_all_is_gone() -> None:
    protocol, wire = await taker()
    protocol.transport.set_write_buffer_limits(0)
    protocol.transport.write(bytes(10_000_000))
    assert protocol.calls == ["pause"]
    async with asyncio.timeout(LIMIT):
        assert await wire.exactly(10_000_000) == bytes(10_000_000)
    await until(lambda: len(protocol.calls) == 2, "room again")
    assert protocol.calls == ["pause", "resume at 0"]
    protocol.transport.abort()
    wire.close()
    await asyncio.sleep(0)


async def test_bytes_that_go_past_an_empty_transport_keep_their_order() -> None:
    protocol, wire = await taker()
    protocol.transport.set_write_buffer_limits(0)
    fd = protocol.transport.get_extra_info("socket").fileno()
    sending = socket.socket(fileno=fd)
    try:
        sent = 0
        for number in range(200):
            while protocol.transport.get_write_buffer_size():
                await wire.fill()
            data = bytes([number]) * 60_000
            try:
                taken = sending.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                taken = 0
            if taken < len(data):
                protocol.transport.write(data[taken:])
            sent += len(data)
        got = await wire.exactly(sent)
    finally:
        sending.detach()
    assert got == b"".join(bytes([number]) * 60_000 for number in range(200))
    protocol.transport.abort()
    wire.close()
    await asyncio.sleep(0)


async def test_a_connection_whose_end_was_taken_stays_open_for_writing() -> None:
    protocol, wire = await taker()
    wire.half_close()
    await until(lambda: protocol.ended, "the end")
    protocol.transport.write(b"still here")
    protocol.transport.write_eof()
    assert await wire.rest() == (b"still here", "fin")
    protocol.transport.close()
    wire.close()
    await asyncio.sleep(0)


async def test_a_transport_that_is_paused_reads_nothing() -> None:
    protocol, wire = await taker()
    protocol.transport.pause_reading()
    await wire.send(b"later")
    for _ in range(10):
        await asyncio.sleep(0)
    assert not protocol.got
    protocol.transport.resume_reading()
    await until(lambda: protocol.got == b"later", "what was sent")
    protocol.transport.abort()
    wire.close()
    await asyncio.sleep(0)
