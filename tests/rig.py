"""Proxies, agents, upstreams and clients for tests: in this process on any event loop, or as processes.

Everything here has a time limit, and nothing waits for time to pass: a test waits for what it expects.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import uvloop

import backstream
from backstream._loop import loop_state

ROOT = Path(__file__).parents[1]
ID = "svc"
LIMIT = 15.0
"""Seconds for anything that has no shorter limit of its own; reached only where something hangs."""

Scope = Mapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]

UVLOOP = {"uvloop": uvloop.new_event_loop}
BOTH_LOOPS = {**UVLOOP, "asyncio": asyncio.new_event_loop}


async def until(
    condition: Callable[[], object], what: str = "", *, seconds: float = LIMIT, pause: float = 0.005
) -> None:
    """Waits until `condition()` is true; fails the test when it is not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what or condition}"
        await asyncio.sleep(pause)


# --- raw HTTP ---


@dataclass
class Message:
    """An answer (or, at an upstream, a request) as a strict reader sees it."""

    start: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] = field(default_factory=list)
    complete: bool = True
    interim: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    @property
    def method(self) -> bytes:
        return self.start.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    def all(self, name: str) -> list[bytes]:
        wanted = name.lower().encode()
        return [value for key, value in self.fields if key.lower() == wanted]

    def get(self, name: str) -> bytes | None:
        values = self.all(name)
        assert len(values) < 2, f"{name} more than once: {values}"
        return values[0] if values else None

    @property
    def keeps_alive(self) -> bool:
        return b"close" not in [value.lower() for value in self.all("connection")]


class Ended(Exception):
    """The peer ended the connection; `how` is "fin" or "reset"."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.how = how


FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*(.*?)[ \t]*")


class Wire:
    """A socket with bytes in and bytes out: what the test does not read stays unread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.buffer = bytearray()
        self.ended: str | None = None

    @classmethod
    async def connect(cls, address: Any, *, receive_buffer: int = 0, source: str = "") -> Wire:
        """source: the address to come from; all of 127.0.0.0/8 are this machine's."""
        unix = isinstance(address, (str, Path))
        sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source:
            sock.bind((source, 0))
        sock.setblocking(False)
        try:
            async with asyncio.timeout(LIMIT):
                await asyncio.get_running_loop().sock_connect(sock, str(address) if unix else address)
        except BaseException:
            sock.close()
            raise
        if not unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return cls(sock)

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Ends the connection as a crash does."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def half_close(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    async def send(self, data: bytes, *, seconds: float = LIMIT) -> None:
        async with asyncio.timeout(seconds):
            await asyncio.get_running_loop().sock_sendall(self.sock, data)

    def send_now(self, data: bytes) -> int:
        """How many bytes the kernel takes at once."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0

    async def send_until_full(self, data: bytes, *, seconds: float = LIMIT) -> int:
        """Sends `data` again and again until nobody took any more of it for 20 looks in a row; returns the bytes."""
        taken = still = 0
        async with asyncio.timeout(seconds):
            while still < 20:
                count = self.send_now(data[taken % len(data) :])
                taken += count
                still = 0 if count else still + 1
                await asyncio.sleep(0 if count else 0.01)
        return taken

    def read_size(self) -> int:
        """How many bytes the next read takes at most."""
        return 65536

    async def fill(self, seconds: float = LIMIT) -> None:
        """Reads once. Raises Ended at the end."""
        if self.ended:
            raise Ended(self.ended)
        try:
            async with asyncio.timeout(seconds):
                data = await asyncio.get_running_loop().sock_recv(self.sock, self.read_size())
        except ConnectionError:
            self.ended = "reset"
            raise Ended("reset") from None
        if not data:
            self.ended = "fin"
            raise Ended("fin")
        self.buffer += data

    async def until(self, words: bytes, *, seconds: float = LIMIT) -> bytes:
        """Everything up to and with `words`."""
        async with asyncio.timeout(seconds):
            while (at := self.buffer.find(words)) < 0:
                await self.fill(seconds)
        data = bytes(self.buffer[: at + len(words)])
        del self.buffer[: len(data)]
        return data

    async def exactly(self, size: int, *, seconds: float = LIMIT) -> bytes:
        async with asyncio.timeout(seconds):
            while len(self.buffer) < size:
                await self.fill(seconds)
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    async def rest(self, *, seconds: float = LIMIT) -> tuple[bytes, str]:
        """Everything to the end, and how it ended: "fin" or "reset"."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    await self.fill(seconds)
                except Ended as end:
                    data = bytes(self.buffer)
                    self.buffer.clear()
                    return data, end.how

    async def line(self) -> bytes:
        line = await self.until(b"\n")
        assert line.endswith(b"\r\n") and b"\r" not in line[:-2], line
        return line[:-2]

    async def head(self) -> Message:
        """A start line and its fields; not the body."""
        start = await self.line()
        return Message(start, await self._fields())

    async def _fields(self) -> list[tuple[bytes, bytes]]:
        fields = []
        while line := await self.line():
            match = FIELD.fullmatch(line)
            assert match, line
            fields.append((match[1], match[2]))
        return fields

    async def chunk(self) -> bytes:
        """One chunk of a chunked body, b"" for the last one (whose trailers are not read)."""
        line = await self.line()
        assert re.fullmatch(rb"[0-9a-fA-F]+", line), line
        size = int(line, 16)
        if size == 0:
            return b""
        data = await self.exactly(size)
        assert await self.exactly(2) == b"\r\n"
        return data

    async def body(self, message: Message, *, to_close: bool) -> None:
        """Reads the body that the head announces; marks the message as incomplete when it breaks off."""
        length, coding = message.get("content-length"), message.get("transfer-encoding")
        assert length is None or coding is None
        pieces: list[bytes] = []
        try:
            if coding is not None:
                assert coding == b"chunked"
                while piece := await self.chunk():
                    pieces.append(piece)
                message.trailers = await self._fields()
            elif length is not None:
                left = int(length)
                while left:
                    if not self.buffer:
                        await self.fill()
                    piece = bytes(self.buffer[:left])
                    del self.buffer[: len(piece)]
                    pieces.append(piece)
                    left -= len(piece)
            elif to_close:
                data, how = await self.rest()
                pieces.append(data)
                message.complete = how == "fin"
        except Ended:
            message.complete = False
        message.body = b"".join(pieces)

    async def answer(self, method: str = "GET") -> Message:
        """A whole answer, with the interim ones before it."""
        interim = []
        while (message := await self.head()).status < 200:
            interim.append(message)
        message.interim = interim
        if method != "HEAD" and message.status not in (204, 304):
            await self.body(message, to_close=True)
        return message

    async def request(self) -> Message:
        """A whole request, at an upstream."""
        message = await self.head()
        await self.body(message, to_close=False)
        return message

    async def get(self, target: str = "/", **fields: str) -> Message:
        await self.send(request(target, **fields))
        return await self.answer()


class OddWire(Wire):
    """Reads in sizes that meet no boundary of anybody's."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.sizes = cycle((1, 4093, 2, 16385, 1447, 3, 8191))

    def read_size(self) -> int:
        return next(self.sizes)


def request(
    target: str = "/",
    *,
    method: str = "GET",
    client_id: str | None = ID,
    version: str = "1.1",
    body: bytes | None = None,
    lines: Iterable[str] = (),
) -> bytes:
    """A request's bytes; `lines` are further field lines."""
    head = [f"{method} {target} HTTP/{version}", "Host: service.example"]
    if client_id is not None:
        head.append(f"x-backstream-client-id: {client_id}")
    head += lines
    if body is not None:
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + (body or b"")


def chunked(*pieces: bytes, end: bool = True) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + (b"0\r\n\r\n" if end else b"")


class Echo:
    """A request to an echoing service, as long as its test wants: whether its stream runs shows at any time."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.count = 0

    @classmethod
    async def begin(cls, wire: Wire, target: str = "/echo", *, client_id: str = ID) -> Echo:
        await wire.send(request(target, method="POST", client_id=client_id, lines=["Transfer-Encoding: chunked"]))
        head = await wire.head()
        assert head.status == 200, head
        return cls(wire)

    async def goes_on(self, *, seconds: float = LIMIT) -> None:
        """Sends a piece and waits for it to come back."""
        self.count += 1
        piece = b"piece %d" % self.count
        async with asyncio.timeout(seconds):
            await self.wire.send(chunked(piece, end=False))
            assert await self.wire.chunk() == piece

    async def finish(self) -> None:
        """Ends the request, whose response must be whole."""
        await self.goes_on()
        await self.wire.send(b"0\r\n\r\n")
        assert await self.wire.chunk() == b"" and await self.wire.line() == b""


# --- upstreams ---


class Upstream:
    """An upstream that does exactly what `serve(wire, number)` does with its `number`-th connection."""

    def __init__(
        self, serve: Callable[[Wire, int], Awaitable[None]], path: Path | None = None, receive_buffer: int = 0
    ) -> None:
        self._serve = serve
        self._path = path
        self._receive_buffer = receive_buffer
        self.connections = 0
        self.open = 0
        self.errors: list[BaseException] = []

    async def __aenter__(self) -> Upstream:
        self._sock = socket.socket(socket.AF_UNIX if self._path else socket.AF_INET)
        self._sock.setblocking(False)
        if self._receive_buffer:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer)
        self._sock.bind(str(self._path) if self._path else ("127.0.0.1", 0))
        self._sock.listen(1024)
        name = self._sock.getsockname()
        self.url = f"unix:{name}" if self._path else f"http://127.0.0.1:{name[1]}"
        self._tasks: set[asyncio.Task[None]] = set()
        asyncio.get_running_loop().add_reader(self._sock, self._accept)
        return self

    async def __aexit__(self, kind: Any, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sock.close()
        if kind is None and self.errors:
            raise self.errors[0]

    def _accept(self) -> None:
        # Not `sock_accept`, which loses a socket where it is cancelled in the turn that brings one.
        try:
            sock, _ = self._sock.accept()
        except BlockingIOError:
            return
        wire = Wire(sock)
        self.connections += 1
        task = asyncio.create_task(self._run(wire, self.connections))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: wire.close())  # one that is cancelled before it begins closes nothing

    async def _run(self, wire: Wire, number: int) -> None:
        self.open += 1
        try:
            async with wire:
                await self._serve(wire, number)
        except (Ended, ConnectionError, asyncio.CancelledError):
            pass
        except BaseException as error:
            self.errors.append(error)
        finally:
            self.open -= 1


@contextlib.contextmanager
def full_listener() -> Iterator[str]:
    """The URL of an upstream whose backlog is full: what comes now is not answered."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def always(answer: bytes) -> Callable[[Wire, int], Awaitable[None]]:
    """Answers every request of a connection with the same bytes."""

    async def serve(wire: Wire, number: int) -> None:
        while True:
            await wire.request()
            await wire.send(answer)

    return serve


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Recorder:
    """As `always`, and keeps the requests that it saw."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.seen: list[Message] = []

    async def __call__(self, wire: Wire, number: int) -> None:
        while True:
            self.seen.append(await wire.request())
            await wire.send(self.answer)


# --- the tunnel in this process ---

QUICK = backstream.SessionSettings(ping_interval=0.2, ping_timeout=0.6, hello_timeout=0.6)
"""Session settings with which a silent peer is found out soon."""


class Tunnel:
    """A proxy and its agents."""

    def __init__(self, proxy: backstream.Proxy) -> None:
        self.proxy = proxy
        self.agents: list[backstream.Agent] = []

    @property
    def address(self) -> tuple[str, int]:
        return self.proxy.address

    @property
    def url(self) -> str:
        return "{}://{}:{}".format("https" if self.proxy.settings.tls_cert else "http", *self.address)

    @property
    def headers(self) -> dict[str, str]:
        return {"x-backstream-client-id": ID}

    async def open(self, **options: Any) -> Wire:
        """A connection to the proxy."""
        return await Wire.connect(self.address, **options)

    async def get(self, target: str = "/", **fields: Any) -> Message:
        """The answer to one request on a connection of its own."""
        async with await self.open() as wire:
            await wire.send(request(target, **fields))
            return await wire.answer(fields.get("method", "GET"))

    def counts(self) -> dict[str, int]:
        """What is under way."""
        links = list(self.proxy.agents)
        sessions = [link.session for link in links]
        sessions += [link.session for agent in self.agents for link in agent.sessions]
        return {
            "streams": sum(session.stream_count for session in sessions),
            "opened": sum(session.opened for session in sessions),
            "accepted": sum(session.accepted for session in sessions),
            "window bytes": self.proxy.window_bytes,
        }

    async def settled(self) -> None:
        """Waits until no stream is left and every counter is zero."""
        await until(lambda: not any(self.counts().values()), f"all counts at zero, not {self.counts()}")

    async def connected(self, count: int = 1, client_id: str = ID) -> None:
        """Waits until the proxy has `count` agents that take streams for an id."""
        await until(lambda: len(self.proxy.agents.by_id(client_id.encode())) == count, f"{count} agents")

    async def agent(self, app: App | None = None, *, client_id: str | None = ID, **settings: Any) -> backstream.Agent:
        """A further agent; it is closed with the tunnel."""
        before = len(self.proxy.agents.by_id(client_id or ""))
        agent = make_agent(self.proxy, app, client_id=client_id, **settings)
        self.agents.append(agent)
        await agent.start()
        async with asyncio.timeout(LIMIT):
            await agent.wait_connected()
        await self.connected(before + 1, client_id or "")
        return agent


def make_agent(
    proxy: backstream.Proxy | str,
    app: App | None = None,
    *,
    client_id: str | None = ID,
    handler: Any = None,
    kind: type[backstream.Agent] = backstream.Agent,
    **settings: Any,
) -> backstream.Agent:
    if isinstance(proxy, str):
        url = proxy
    else:
        url = "{}://{}:{}/ws".format("wss" if proxy.settings.tls_cert else "ws", *proxy.agent_address)
    settings = {"reconnect_min": 0.02, "reconnect_max": 0.2, "refused_max": 0.2} | settings
    return kind(backstream.AgentSettings(proxy_url=url, client_id=client_id, **settings), app=app, handler=handler)


def proxy_settings(**settings: Any) -> backstream.ProxySettings:
    return replace(backstream.ProxySettings(listen="127.0.0.1:0", request_timeout=LIMIT), **settings)


@asynccontextmanager
async def tunnel(
    app: App | None = None,
    *,
    proxy: Mapping[str, Any] | None = None,
    authorize: Any = None,
    agents: int = 1,
    check: bool = True,
    **agent: Any,
) -> AsyncIterator[Tunnel]:
    """A proxy with `agents` agents. check: at the end every stream must have ended by itself."""
    async with backstream.Proxy(proxy_settings(**(proxy or {})), authorize=authorize) as made:
        pair = Tunnel(made)
        try:
            for _ in range(agents):
                await pair.agent(app, **agent)
            yield pair
            if check:
                await pair.settled()
        finally:
            for each in pair.agents:
                await each.close()


LIVING = (
    "Stream",
    "SeedStream",
    "OutMessage",
    "Exchange",
    "Call",
    "ServerConnection",
    "AsgiRequest",
    "UpstreamRequest",
    "UpstreamConnection",
)
"""What a request or a connection is made of; the buffers go with these."""


class Leaks:
    """What this process holds, of which there is to be no more after a test's work."""

    def __init__(self) -> None:
        self.before = self.now()

    def now(self) -> dict[str, int]:
        gc.collect()
        names = Counter(type(each).__name__ for each in gc.get_objects())
        return {
            **{name: names[name] for name in LIVING},
            "files": len(os.listdir("/proc/self/fd")),
            "tasks": len(asyncio.all_tasks()),
            "deadlines": loop_state().deadlines,
        }

    async def none(self) -> None:
        """Waits until there is no more of anything; what was on its way out at first may have gone."""
        deadline = time.monotonic() + LIMIT
        while grown := {name: count for name, count in self.now().items() if count > self.before[name]}:
            assert time.monotonic() < deadline, f"left behind: {self.before} became {grown}"
            await asyncio.sleep(0.02)


# --- ASGI applications ---


async def answer(send: Any, body: bytes = b"ok", status: int = 200, headers: Iterable[Any] = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def begin(send: Any, headers: Iterable[Any] = (), status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def more(send: Any, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def end(send: Any, body: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": body})


async def read_body(receive: Any) -> bytes | None:
    """The whole body, None when the client went away."""
    pieces = []
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return None
        pieces.append(event["body"])
        if not event["more_body"]:
            return b"".join(pieces)


def http_only(app: App) -> App:
    """Spares an application the other scopes."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        await app(scope, receive, send)

    return wrapped


@http_only
async def ok_app(scope: Any, receive: Any, send: Any) -> None:
    await answer(send)


@http_only
async def echo_app(scope: Any, receive: Any, send: Any) -> None:
    """Sends back every piece as it comes."""
    await begin(send)
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            return
        await send({"type": "http.response.body", "body": event["body"], "more_body": event["more_body"]})
        if not event["more_body"]:
            return


# --- processes ---


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "-m", "backstream", *sys.argv[2:]])
"""


class Program:
    """A running program, whose output can be waited for line by line; for tests without a loop."""

    def __init__(self, arguments: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str]) -> None:
        """arguments: Python's."""
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._seen: list[str] = []
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, pattern: str, seconds: float = 20) -> re.Match[str]:
        """The match in the first line that has one; fails when there is none in time."""
        while True:
            try:
                line = self._lines.get(timeout=seconds)
            except Empty:
                line = None
            assert line is not None, f"no line with {pattern!r} in: {''.join(self._seen)}"
            self._seen.append(line)
            if match := re.search(pattern, line):
                return match

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def status(self, seconds: float = 20) -> int:
        """The exit status, once the process has ended."""
        return self.process.wait(seconds)

    def rest(self) -> str:
        """What was printed since `wait_for`; call it after `status`."""
        self._reader.join(10)
        lines = []
        with contextlib.suppress(Empty):
            while (line := self._lines.get_nowait()) is not None:
                lines.append(line)
        self._seen += lines
        return "".join(lines)

    def output(self) -> str:
        """All that was printed; call it after `status`."""
        self.rest()
        return "".join(self._seen)

    def stop(self, number: signal.Signals) -> tuple[int, str]:
        """The exit status after a signal, and what was printed since `wait_for`."""
        self.signal(number)
        return self.status(), self.rest()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Process:
    """One of the commands as a process of its own; killed at the end whatever happened."""

    def __init__(self, *arguments: str, inherits: socket.socket | None = None) -> None:
        """inherits: a listening socket that it is handed as by a supervisor (systemd's LISTEN_FDS)."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("BACKSTREAM_")}
        environment["PYTHONPATH"] = str(ROOT)
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  closed in `end`
        start = ["-m", "backstream"] if inherits is None else ["-c", HAND_OVER, str(inherits.fileno())]
        self.process = subprocess.Popen(
            [sys.executable, *start, *arguments],
            pass_fds=() if inherits is None else [inherits.fileno()],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    def output(self) -> str:
        size = os.fstat(self.log.fileno()).st_size
        return os.pread(self.log.fileno(), size, 0).decode()

    async def said(self, words: str, *, seconds: float = LIMIT) -> None:
        await until(
            lambda: words in self.output() or self.process.poll() is not None, f"{words!r} logged", seconds=seconds
        )
        assert words in self.output(), self.output()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def status(self, seconds: float = LIMIT) -> int:
        await until(lambda: self.process.poll() is not None, "the process to end", seconds=seconds)
        return self.process.returncode

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(10)
        self.log.close()

    def memory(self) -> int:
        """Bytes of memory that the process holds."""
        with open(f"/proc/{self.process.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


class Processes:
    """The commands of one test."""

    def __init__(self) -> None:
        self.port = free_port()
        self.all: list[Process] = []

    def start(self, *arguments: str, inherits: socket.socket | None = None) -> Process:
        self.all.append(Process(*arguments, inherits=inherits))
        return self.all[-1]

    async def proxy(self, *arguments: str) -> Process:
        proxy = self.start("proxy", "--listen", f"127.0.0.1:{self.port}", "--request-timeout", "15s", *arguments)
        await proxy.said("for agents")
        return proxy

    async def agent(self, *arguments: str, client_id: str = ID) -> Process:
        source = (
            ()
            if "--upstream" in arguments or "--app" in arguments
            else (*("--app", "service:app", "--app-dir", str(ROOT / "tests" / "faults")),)
        )
        agent = self.start(
            "agent",
            *("--proxy-url", f"ws://127.0.0.1:{self.port}/ws", "--client-id", client_id),
            *source,
            *arguments,
        )
        await agent.said("connected to")
        return agent

    async def open(self, **options: Any) -> Wire:
        return await Wire.connect(("127.0.0.1", self.port), **options)

    async def get(self, target: str = "/", **fields: Any) -> Message:
        async with await self.open() as wire:
            await wire.send(request(target, **fields))
            return await wire.answer(fields.get("method", "GET"))

    async def served(self, client_id: str = ID, *, seconds: float = LIMIT) -> None:
        """Waits until an agent of this id answers."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer = await self.get(client_id=client_id)
            except (OSError, Ended):
                answer = None
            if answer is not None and answer.status == 200:
                return
            assert time.monotonic() < deadline, f"{client_id} is not served: {answer}"
            await asyncio.sleep(0.02)

    def end(self) -> None:
        for process in self.all:
            with contextlib.suppress(ProcessLookupError):
                process.end()
