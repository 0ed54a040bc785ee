"""What others make of the bytes that our agent sends upstream is the request that the client sent.

The others are h11, which parses them, and nginx and HAProxy, which pass them on to h11 in words of their own. Those are
programs of the system: where one is not installed its leg is not in the list of parameters, and these tests say nothing
of it.

What the client sent is told by h11 as well for the table's rows, and known beforehand for those that hypothesis makes.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.play import Tap
from tests.http.table import Row, load
from tests.rig import ID, Ended, Tunnel, Upstream, Wire, free_port, tunnel, until

PROGRAMS = {
    name: found
    for name in ("nginx", "haproxy")
    if (found := shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin"))
}
LEGS = ["h11", *PROGRAMS]

HOP = {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "content-length", "expect"}
"""Fields that are made anew for each hop, or compared by what they mean."""
ADDED = re.compile(r"via|forwarded|x-forwarded-.*|x-real-ip|x-request-id|traceparent|x-backstream-.*")
"""Fields that a proxy may add, or take away, for reasons of its own."""


@dataclass
class Request:
    """A request as somebody understood it, less what is of one hop only."""

    method: str
    target: str
    authority: str
    fields: list[tuple[str, bytes]]
    framing: str
    body: bytes = b""
    trailers: list[tuple[str, bytes]] = field(default_factory=list)


def understood(head: h11.Request, body: bytes, trailers: list[tuple[bytes, bytes]]) -> Request:
    """What a request means, by the rules of RFC 9110 §7 and RFC 9112 §3."""
    fields = [(name.decode(), value) for name, value in head.headers]
    hosts = [value.decode("latin-1") for name, value in fields if name == "host"]
    nominated = {
        token.strip().decode("latin-1").lower()
        for name, value in fields
        if name == "connection"
        for token in value.split(b",")
    } - {"host", "x-backstream-client-id"}
    target, authority = head.target.decode("latin-1"), hosts[0] if hosts else ""
    if absolute := re.fullmatch(r"(?i)https?://([^/?]*)(.*)", target):
        authority, rest = absolute.groups()
        target = rest if rest.startswith("/") else "/" + rest if rest else "*" if head.method == b"OPTIONS" else "/"
    names = [name for name, _ in fields]
    framing = "chunked" if "transfer-encoding" in names else "sized" if "content-length" in names else "none"
    kept = [
        (name, value)
        for name, value in fields
        if name not in HOP and name != "host" and name not in nominated and not ADDED.fullmatch(name)
    ]
    return Request(head.method.decode(), target, authority, kept, framing, body, trailers)


EMPTY_LINES = re.compile(rb"^(?:\r\n)+")
"""Before a request line they are ignored (RFC 9112 §2.2), but not by h11."""
BLANKS_BEFORE_EXTENSION = re.compile(rb"^([0-9A-Fa-f]+)([ \t]+);", re.MULTILINE)


def in_words_of_h11(data: bytes) -> bytes:
    """Blanks before a chunk's extension (RFC 9112 §7.1.1) stand behind its semicolon, where h11 takes them, too."""
    return BLANKS_BEFORE_EXTENSION.sub(rb"\1;\2", data)


def requests_in(data: bytes) -> tuple[list[Request], bool]:
    """The requests that h11 finds, up to the first that is malformed or cut; and whether that is all there is."""
    found: list[Request] = []
    data = in_words_of_h11(data)
    while data := EMPTY_LINES.sub(b"", data):
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        reader.receive_data(data)
        head: Any = None
        pieces: list[bytes] = []
        try:
            while not isinstance(event := reader.next_event(), h11.EndOfMessage):
                if isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    pieces.append(bytes(event.data))
                else:
                    return found, False
        except h11.RemoteProtocolError:
            return found, False
        found.append(understood(head, b"".join(pieces), list(event.headers)))
        if reader.their_state is h11.MUST_CLOSE:
            break
        data = reader.trailing_data[0]
    return found, True


class Recorder:
    """An upstream that keeps the bytes of each request, one on a connection, and says 200."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []

    async def serve(self, wire: Wire, number: int) -> None:
        tap = Tap(wire.sock)
        message = await tap.head()
        if message.all("expect"):
            await tap.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await tap.body(message, to_close=False)
        if message.complete:
            self.raw.append(bytes(tap.raw))
            await tap.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")

    def take(self, mark: str) -> list[Request]:
        """What h11 makes of the requests that have `mark` in their heads."""
        mine = [raw for raw in self.raw if mark.encode() in raw.partition(b"\r\n\r\n")[0]]
        self.raw = [raw for raw in self.raw if raw not in mine]
        found = [requests_in(raw) for raw in mine]
        assert all(len(each) == 1 and whole for each, whole in found), f"h11 does not find one request in {mine}"
        return [request for (request,), _ in found]


NGINX_CONF = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    client_max_body_size 0; large_client_header_buffers 8 128k;
    underscores_in_headers on; ignore_invalid_headers off; merge_slashes off;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
            proxy_http_version 1.1; proxy_request_buffering off; proxy_buffering off;
            proxy_set_header Host $http_host; proxy_set_header Connection "";
        }}
    }}
}}
"""


HAPROXY_CONF = """
global
    maxconn 512
    tune.bufsize 200000
    tune.http.maxhdr 1000
defaults
    mode http
    timeout connect 5s
    timeout client 15s
    timeout server 15s
    http-reuse never
frontend agents
    bind 127.0.0.1:{port}
    default_backend service
backend service
    server service {address}
"""


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def through(program: str, upstream: str, folder: Path) -> AsyncIterator[str]:
    """The URL of an nginx or HAProxy in front of the upstream."""
    port = free_port()
    conf = folder / "conf"
    text = NGINX_CONF if program == "nginx" else HAPROXY_CONF
    address = upstream.removeprefix("http://")
    conf.write_text(text.format(folder=folder, port=port, upstream=upstream, address=address))
    options = ["-p", str(folder), "-c", str(conf)] if program == "nginx" else ["-db", "-f", str(conf)]
    process = subprocess.Popen(  # noqa: ASYNC220  it outlives no test, and starts at once
        [PROGRAMS[program], *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await until(lambda: process.poll() is not None or listens(port), f"{program} to have started")
        assert process.poll() is None, f"{program} did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@asynccontextmanager
async def recording(leg: str, folder: Path, **settings: Any) -> AsyncIterator[tuple[Tunnel, Recorder]]:
    recorder = Recorder()
    async with Upstream(recorder.serve) as upstream:
        if leg in PROGRAMS:
            async with through(leg, upstream.url, folder) as url, tunnel(upstream=url, **settings) as pair:
                yield pair, recorder
        else:
            async with tunnel(upstream=upstream.url, **settings) as pair:
                yield pair, recorder


async def play(pair: Tunnel, pieces: list[bytes], sent: list[Request], *, more: bool = False) -> list[int]:
    """Sends, and returns the statuses of the answers to what h11 found, and to what it did not where there is more."""
    methods = [each.method for each in sent] + (["GET"] if more else [])
    statuses: list[int] = []
    async with await pair.open() as wire:
        for piece in pieces:
            await wire.send(piece)
            await asyncio.sleep(0)
        try:
            for method in methods:
                statuses.append((await wire.answer(method)).status)
        except Ended:
            pass
    return statuses


def compare(sent: Request, got: Request, leg: str) -> None:
    assert (got.method, got.target, got.body) == (sent.method, sent.target, sent.body)
    if sent.authority:
        assert got.authority == sent.authority
    assert got.fields == sent.fields
    if leg == "h11":
        assert got.framing == sent.framing
    # Trailers may be dropped, one or all; those that go on are the client's, in their order.
    left = iter(sent.trailers)
    assert all(trailer in left for trailer in got.trailers)
    assert not {name.decode() for name, _ in got.trailers} & (HOP | {"host", "x-backstream-client-id"})


# --- the table's rows ---

H11_REFUSES = {"chunk-size-zeros"}
"""Rows that we take and h11 does not: more digits in a size than 20."""

PLAIN = [
    row
    for row in load()
    if row.answer is None
    and row.id not in H11_REFUSES
    and all(isinstance(step, str) or step.keys() == {"bytes"} for step in row.send)
    and any(200 in outcome["status"] for outcome in row.allow)
]


def bytes_of(row: Row) -> list[bytes]:
    return [row.expand(step if isinstance(step, str) else step["bytes"]) for step in row.send]


@pytest.mark.parametrize("leg", LEGS)
async def test_what_the_service_gets_of_an_accepted_row_is_what_its_client_sent(leg: str, tmp_path: Path) -> None:
    wrong: list[str] = []
    served = 0
    async with recording(leg, tmp_path) as (pair, recorder):
        for row in PLAIN:
            pieces = bytes_of(row)
            sent, whole = requests_in(b"".join(pieces))
            statuses = await play(pair, pieces, sent, more=not whole)
            got = recorder.take(row.id)
            if 200 not in statuses:
                continue
            served += 1
            ours = [request for request, status in zip(sent, statuses, strict=False) if status == 200]
            if len(got) != len(ours) or 200 in statuses[len(sent) :]:
                wrong.append(f"{row.id}: {len(got)} requests upstream, h11 finds {len(ours)}: {statuses}")
            for one, other in zip(ours, got, strict=False):
                try:
                    compare(one, other, leg)
                except AssertionError as error:
                    wrong.append(f"{row.id}: {error}")
    assert not wrong, "\n".join(wrong)
    assert served > 100


# --- requests that hypothesis makes ---

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
VISIBLE = [chr(code) for code in range(0x21, 0x7F)]
OBS_TEXT = [chr(code) for code in range(0x80, 0x100)]
PATH = [char for char in VISIBLE if char != "#"]

names = st.text(TOKEN, min_size=1, max_size=20).filter(
    lambda name: name.lower() not in HOP | {"host", "trailer"} and not ADDED.fullmatch(name.lower())
)
values = st.text([*VISIBLE, *OBS_TEXT, " ", "\t"], max_size=40).map(lambda text: text.strip(" \t"))
blanks = st.text(" \t", max_size=3)
bodies = st.one_of(
    st.none(),
    st.binary(max_size=300),
    st.lists(st.binary(min_size=1, max_size=100), max_size=5),
)


@dataclass
class Made:
    """A request as the segments that it is sent in, and as what it means."""

    pieces: list[bytes]
    meaning: Request


@st.composite
def made(draw: Any) -> Made:
    method = draw(st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "QUERY"]))
    target = "/" + draw(st.text(PATH, max_size=30))
    authority = draw(st.sampled_from(["a", "svc.example", "svc.example:8080", "[::1]:80", "127.0.0.1", "a_b.c"]))
    fields = draw(st.lists(st.tuples(names, values), max_size=6))
    nominated = [name for name, _ in fields if draw(st.integers(0, 5)) == 0]
    gone = {name.lower() for name in nominated}
    lines: list[tuple[str, tuple[str, bytes] | None]] = [
        (
            f"{name}:{draw(blanks)}{value}{draw(blanks)}",
            None if name.lower() in gone else (name.lower(), value.encode("latin-1")),
        )
        for name, value in fields
    ]
    lines += [(f"Host:{draw(blanks)}{authority}", None), (f"X-Backstream-Client-Id: {ID}", None)]
    if options := [*nominated, *draw(st.lists(st.sampled_from(["Keep-Alive", "x-none", "te"]), max_size=2))]:
        lines.append(("Connection: " + draw(st.sampled_from([", ", ",", " ,\t"])).join(options), None))
    hops = ["Keep-Alive: timeout=5", "Proxy-Connection: close", "TE: gzip, trailers"]
    lines += [(hop, None) for hop in draw(st.lists(st.sampled_from(hops), max_size=1))]
    trailers: list[tuple[str, str]] = []
    body = draw(bodies)
    if body is None:
        framing, raw, content = "none", b"", b""
    elif isinstance(body, bytes):
        framing, raw, content = "sized", body, body
        lines.append((f"Content-Length: {len(body)}", None))
    else:
        framing, content = "chunked", b"".join(body)
        trailers = draw(st.lists(st.tuples(names, values), max_size=2))
        size = draw(st.sampled_from(["%x", "%X", "000%x"])) + draw(st.sampled_from(["", ";a", ";a=b", ';a="b;c"']))
        raw = b"".join((size % len(piece)).encode() + b"\r\n" + piece + b"\r\n" for piece in body) + b"0\r\n"
        raw += "".join(f"{name}: {value}\r\n" for name, value in trailers).encode("latin-1") + b"\r\n"
        lines.append((draw(st.sampled_from(["Transfer-Encoding: chunked", "transfer-encoding:CHUNKED "])), None))
    lines = draw(st.permutations(lines))
    head = "\r\n".join([f"{method} {target} HTTP/1.1", *(line for line, _ in lines), "", ""]).encode("latin-1")
    kept = [field for _, field in lines if field is not None]
    ends = [(name.lower().encode(), value.encode("latin-1")) for name, value in trailers]
    data = head + raw
    cuts = sorted(draw(st.lists(st.integers(1, len(data) - 1), max_size=4)))
    return Made(
        [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True) if stop > start],
        Request(method, target, authority, kept, framing, content, ends),
    )


class Harness:
    """A tunnel that outlives a test's examples, with a loop of its own."""

    def __init__(self, leg: str, folder: Path, **settings: Any) -> None:
        self.leg = leg
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.entered = recording(leg, folder, **settings)
        self.pair, self.recorder = self.runner.run(self.entered.__aenter__())

    def end(self) -> None:
        self.runner.run(self.entered.__aexit__(None, None, None))
        self.runner.close()


@pytest.fixture(params=LEGS, scope="module")
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    made = Harness(request.param, tmp_path_factory.mktemp(request.param))
    yield made
    made.end()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(made())
def test_what_the_service_gets_of_a_made_up_request_is_what_its_client_sent(harness: Harness, sent: Made) -> None:
    harness.recorder.raw.clear()
    statuses = harness.runner.run(play(harness.pair, sent.pieces, [sent.meaning]))
    got = harness.recorder.take("")
    if harness.leg == "nginx" and statuses == [400]:
        assert not got  # a target that nginx does not like: it refuses, and misunderstands nothing
        return
    assert statuses == [200]
    assert len(got) == 1
    compare(sent.meaning, got[0], harness.leg)
