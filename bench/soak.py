"""``python -m bench soak``: random traffic, aborts, stalls and kills for a while; then nothing may be left.

A proxy and four agents run as processes that say what they hold (gauges.py): one with an application and one with an
upstream, which nobody touches, and two more under one id, of which one is killed, told to end or frozen now and then,
and replaced; with ``--kill-proxy`` the proxy is killed too. Workers make requests of all kinds at random, a good part
of which they abort or stop reading.

While it runs, an answer that is whole must be what was asked for, and whoever asks gets one, unless an agent under this
id or the proxy was killed meanwhile: an agent that is told to end loses nothing. In the end every gauge is back to
zero, tasks, open files and objects are as many as in the beginning, since the first quarter of the time no process has
grown by more than GROWTH, and none has logged a traceback. Otherwise a line says what is not so, and the exit status
is 1.
"""

import asyncio
import json
import random
import re
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from bench.aio import allow_open_files, run
from bench.context import Context, Options, start_bulk_backend
from bench.errors import BenchError
from bench.net import free_port
from bench.processes import Fleet, Spawned, memory_bytes, read_line
from bench.routes import CLIENT_ID_HEADER, MIB, SMALL
from bench.services.gauges import DRAIN_SECONDS

WORKERS = 48
GROWTH = 16 * MIB
"""Bytes that a process may grow by after the first quarter of the time: what an allocator keeps of peaks."""
OBJECTS = 500
"""Objects more than in the beginning that are none too many: caches of Python's and its libraries'."""
SETTLE_SECONDS = 20.0
"""How long after the last request everything may take to come back to zero."""
FORGIVEN_SECONDS = 2.0
"""How long after a kill requests may fail."""
KILL_EVERY = 6.0
FROZEN_SECONDS = 2.0
PROXY_KILL_EVERY = 20.0

UNTOUCHED = ("app", "upstream")
DOOMED = "doomed"
ZERO = ("streams", "places", "connections", "waiting", "addresses", "window bytes", "deadlines")
SAME = ("tasks", "files")

UPGRADE = (
    "connection: upgrade",
    "upgrade: websocket",
    "sec-websocket-version: 13",
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
)
BINARY, CLOSE = 2, 8


class Violation(Exception):
    """Something that must not happen."""


class Cut(Exception):
    """The connection ended before the answer did."""


@dataclass(slots=True)
class Watched:
    """A process that says what it holds."""

    name: str
    argv: list[str]
    spawned: Spawned
    first: dict[str, int] = field(default_factory=dict)
    warm: int = 0
    """Bytes of memory after the first quarter."""

    def gauges(self) -> dict[str, int]:
        pipe = self.spawned.process.stdin
        assert pipe is not None
        pipe.write(b"?\n")
        pipe.flush()
        found: dict[str, int] = json.loads(read_line(self.spawned, timeout=10))
        return found

    def memory(self) -> int:
        return memory_bytes(self.spawned.pid) or 0


class Soak:
    """Processes, workers and what came of them."""

    def __init__(self, fleet: Fleet, seconds: float, seed: int, *, kill_proxy: bool) -> None:
        self._fleet = fleet
        self._seconds = seconds
        self._random = random.Random(seed)
        self._kill_proxy = kill_proxy
        self._killed_at = dict.fromkeys(("proxy", *UNTOUCHED, DOOMED), -FORGIVEN_SECONDS)
        self.port = free_port()
        self.outcomes: Counter[str] = Counter()
        self.violations: list[str] = []
        backend = start_bulk_backend(fleet)
        self.proxy = self._start("proxy", "proxy", str(self.port))
        self.agents = [
            self._agent("app", "app"),
            self._agent("upstream", f"http://127.0.0.1:{backend.port}"),
            self._agent(DOOMED, "app"),
            self._agent(DOOMED, "app"),
        ]

    def _start(self, name: str, *arguments: str) -> Watched:
        argv = [sys.executable, "-m", "bench.services.gauges", *arguments]
        spawned = self._fleet.spawn(f"soak {name}", argv, pipes=True)
        if read_line(spawned, timeout=30) != "ready":
            raise BenchError(f"{name} did not start")
        return Watched(name, argv, spawned)

    def _agent(self, client_id: str, what: str) -> Watched:
        return self._start(client_id, "agent", str(self.port), client_id, what)

    @property
    def watched(self) -> list[Watched]:
        return [self.proxy, *self.agents]

    # --- the time in which it runs ---

    async def run(self) -> None:
        """Each kind of request once at every agent, so that all is loaded; then what the beginning was; then all."""
        kinds: list[Callable[[str], Awaitable[None]]] = [
            self.small,
            self.download,
            self.upload,
            self.slow_download,
            self.events,
            self.websocket,
            self.abort_download,
            self.abort_upload,
            self.abort_websocket,
            self.stall,
            self.nonsense,
            self.leave_while_waiting,
        ]
        await asyncio.gather(*(self._do(kind, client_id) for kind in kinds for client_id in (*UNTOUCHED, DOOMED) * 3))
        await self._settled()
        for each in self.watched:
            each.first = each.gauges()
        end = time.monotonic() + self._seconds
        workers = [asyncio.create_task(self._work(kinds, end)) for _ in range(WORKERS)]
        killing = asyncio.create_task(self._kill(end))
        await asyncio.sleep(self._seconds / 4)
        for each in self.watched:
            each.warm = each.memory()
        await asyncio.gather(*workers, killing)
        await self._settled()
        self._judge()

    async def _work(self, kinds: list[Callable[[str], Awaitable[None]]], end: float) -> None:
        while time.monotonic() < end:
            await self._do(self._random.choice(kinds), self._random.choice((*UNTOUCHED, DOOMED)))

    async def _do(self, kind: Callable[[str], Awaitable[None]], client_id: str) -> None:
        name, begun = kind.__name__.replace("_", " "), time.monotonic()
        try:
            async with asyncio.timeout(60):
                await kind(client_id)
            self.outcomes[name] += 1
        except (Cut, OSError, asyncio.IncompleteReadError) as error:
            self.outcomes[f"{name}: failed"] += 1
            if begun - max(self._killed_at["proxy"], self._killed_at[client_id]) > FORGIVEN_SECONDS:
                self.violations.append(f"{name} at {client_id}: {error!r}")
            await asyncio.sleep(0.1)  # nobody listens for a moment
        except (Violation, TimeoutError) as error:
            self.violations.append(f"{name} at {client_id}: {error!r}")

    async def _kill(self, end: float) -> None:
        proxy_at = time.monotonic() + PROXY_KILL_EVERY
        for way in cycle((self._kill_agent, self._end_agent, self._freeze_agent)):
            await asyncio.sleep(KILL_EVERY)
            if time.monotonic() > end - FORGIVEN_SECONDS:
                return
            await way(self.agents.pop())
            if self._kill_proxy and time.monotonic() > proxy_at:
                proxy_at += PROXY_KILL_EVERY
                self._killed_at["proxy"] = time.monotonic()
                self.proxy = await asyncio.to_thread(self._replace, self.proxy)
                self._killed_at["proxy"] = time.monotonic()

    async def _kill_agent(self, agent: Watched) -> None:
        self._killed_at[DOOMED] = time.monotonic()
        self.agents.append(await asyncio.to_thread(self._replace, agent))

    async def _freeze_agent(self, agent: Watched) -> None:
        """It takes nothing and says nothing, but its connection stays; then it is killed."""
        # Whatever is asked meanwhile may have been given to it.
        self._killed_at[DOOMED] = time.monotonic() + FROZEN_SECONDS
        agent.spawned.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(FROZEN_SECONDS)
        await self._kill_agent(agent)

    async def _end_agent(self, agent: Watched) -> None:
        """SIGTERM: it goes when its requests have ended, and none of them fails."""
        self.agents.append(await asyncio.to_thread(self._start, agent.name, *agent.argv[3:]))
        agent.spawned.process.send_signal(signal.SIGTERM)
        try:
            left = json.loads(await asyncio.to_thread(read_line, agent.spawned, timeout=DRAIN_SECONDS + 10))
            self.violations += [f"{agent.name} ends with {name}: {count}" for name, count in left.items() if count]
        except BenchError as error:
            self.violations.append(f"{agent.name} does not end: {error}")
        await asyncio.to_thread(self._fleet.stop, agent.spawned)
        self.outcomes[f"ends of {agent.name}"] += 1

    def _replace(self, old: Watched) -> Watched:
        self._fleet.kill(old.spawned.pid)
        new = self._start(old.name, *old.argv[3:])
        self.outcomes[f"kills of {old.name}"] += 1
        return new

    # --- requests ---

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=65536)

    async def small(self, client_id: str) -> None:
        """A few on one connection, some sent ahead of their turn."""
        reader, writer = await self._open()
        try:
            for _ in range(self._random.randint(1, 20)):
                ahead = self._random.randint(1, 4)
                writer.write(request("GET", "/small", client_id) * ahead)
                for _ in range(ahead):
                    if await answer(reader, expected=SMALL) != len(SMALL):
                        raise Violation("another answer than the one asked for")
        finally:
            writer.close()

    async def download(self, client_id: str) -> None:
        size = int(2 ** self._random.uniform(0, 21))
        reader, writer = await self._open()
        try:
            writer.write(request("GET", f"/{self._random.choice(('bytes', 'chunked'))}/{size}", client_id))
            if (count := await answer(reader)) != size:
                raise Violation(f"{count} bytes of {size} in an answer that looks whole")
        finally:
            writer.close()

    async def slow_download(self, client_id: str) -> None:
        size = self._random.randint(1, 400_000)
        reader, writer = await self._open()
        try:
            writer.write(request("GET", f"/chunked/{size}", client_id))
            if (count := await answer(reader, pause=0.01)) != size:
                raise Violation(f"{count} bytes of {size} in an answer that looks whole")
        finally:
            writer.close()

    async def upload(self, client_id: str) -> None:
        size = int(2 ** self._random.uniform(0, 21))
        reader, writer = await self._open()
        try:
            if self._random.random() < 0.5:
                writer.write(request("POST", "/sink", client_id, f"content-length: {size}") + bytes(size))
            else:
                writer.write(request("POST", "/sink", client_id, "transfer-encoding: chunked"))
                writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (size, bytes(size)))
            await writer.drain()
            await answer(reader, expected=b"%d" % size)
        finally:
            writer.close()

    async def events(self, client_id: str) -> None:
        """Server-Sent Events in the order in which they were made, until that is enough."""
        reader, writer = await self._open()
        writer.write(request("GET", "/events", client_id))
        enough = self._random.randint(1, 200)
        received, last, seen = b"", 0, 0
        async with aclosing(body(reader, await head(reader, 200))) as pieces:
            async for piece in pieces:
                *whole, received = (received + piece).split(b"\n\n")
                for event in whole:
                    found = re.fullmatch(rb"data: (\d+)", event)
                    if found is None or int(found[1]) <= last:
                        raise Violation(f"the event {event!r}")
                    last, seen = int(found[1]), seen + 1
                if seen >= enough:
                    break
        self._leave(writer)

    async def websocket(self, client_id: str) -> None:
        """Messages that come back, some sent ahead of their turn; closed as RFC 6455 has it, or left."""
        reader, writer = await self._open()
        try:
            writer.write(request("GET", "/echo", client_id, *UPGRADE))
            await head(reader, 101)
            for _ in range(self._random.randint(0, 20)):
                messages = [self._random.randbytes(self._random.randint(0, 125)) for _ in range(4)]
                writer.write(b"".join(frame(BINARY, message) for message in messages))
                for message in messages:
                    if (echo := await reader.readexactly(2 + len(message)))[2:] != message:
                        raise Violation(f"{echo!r} instead of {message!r}")
            if self._random.random() < 0.5:
                writer.write(frame(CLOSE, b"\x03\xe8"))
                if (echo := await reader.readexactly(4)) != b"\x88\x02\x03\xe8":
                    raise Violation(f"{echo!r} instead of a close frame")
        finally:
            writer.close()

    async def abort_websocket(self, client_id: str) -> None:
        """Messages whose echoes nobody reads."""
        _, writer = await self._open()
        writer.write(request("GET", "/echo", client_id, *UPGRADE))
        writer.write(frame(BINARY, bytes(125)) * self._random.randint(0, 5000))
        await asyncio.sleep(self._random.uniform(0, 2))
        self._leave(writer)

    async def abort_download(self, client_id: str) -> None:
        reader, writer = await self._open()
        writer.write(request("GET", "/endless", client_id))
        for _ in range(self._random.randint(0, 20)):
            await reader.read(65536)
        self._leave(writer)

    async def abort_upload(self, client_id: str) -> None:
        _, writer = await self._open()
        writer.write(request("POST", "/sink", client_id, "content-length: 100000000000"))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._random.uniform(0, 0.5)):
                while True:
                    writer.write(bytes(65536))
                    await writer.drain()
        self._leave(writer)

    async def stall(self, client_id: str) -> None:
        """A reader, or a service, that takes nothing for a while."""
        _, writer = await self._open()
        if self._random.random() < 0.5:
            writer.write(request("GET", "/endless", client_id))
        else:
            writer.write(request("POST", "/stall/4", client_id, "content-length: 100000000") + bytes(300_000))
        await asyncio.sleep(self._random.uniform(0, 3))
        self._leave(writer)

    async def leave_while_waiting(self, client_id: str) -> None:
        """Requests behind one that is not answered, and nobody who waits for them."""
        _, writer = await self._open()
        writer.write(request("GET", "/stall/2", client_id) + request("GET", "/small", client_id) * 5)
        await asyncio.sleep(self._random.uniform(0, 0.3))
        self._leave(writer)

    async def nonsense(self, client_id: str) -> None:
        """What is no request, in whole or in part, or is for nobody."""
        reader, writer = await self._open()
        good = request("GET", "/small", client_id)
        data = self._random.choice(
            (good[: self._random.randrange(len(good))], b"\x16\x03\x01\x02\x00", good.replace(b"HTTP/1.1", b"HTTP/9.9"))
        )
        writer.write(data)
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(self._random.uniform(0, 0.2)):
                await reader.read(65536)
        self._leave(writer)

    def _leave(self, writer: asyncio.StreamWriter) -> None:
        """Ends a connection with a word or without one."""
        sock = writer.get_extra_info("socket")
        if sock is not None and self._random.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    # --- the end ---

    async def _settled(self) -> None:
        """Waits until nothing is under way anywhere; what is left after a while is told by `_judge`."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            await asyncio.sleep(0.2)
            if not any(self._left(each, each.gauges()) for each in self.watched):
                return

    def _left(self, each: Watched, now: dict[str, int]) -> list[str]:
        left = [f"{name}: {now[name]}" for name in ZERO if now.get(name)]
        left += [
            f"{name}: {each.first[name]} became {now[name]}"
            for name in SAME
            if now[name] != each.first.get(name, now[name])
        ]
        if each.first and now["objects"] > each.first["objects"] + OBJECTS:
            left.append(f"objects: {each.first['objects']} became {now['objects']}")
        return left

    def _judge(self) -> None:
        lines = []
        for log in sorted(self._fleet.directory.glob("*.log")):
            if found := re.search(rb"^Traceback.*(\n .*)*\n(.*)", log.read_bytes(), re.MULTILINE):
                self.violations.append(f"{log.stem} logged a traceback: {found[2].decode(errors='replace')}")
        for each in self.watched:
            now = each.gauges()
            self.violations += [f"{each.name} is left with {what}" for what in self._left(each, now)]
            memory = each.memory()
            # One that was started since has nothing to be compared with.
            grown = memory - each.warm if each.warm else 0
            if grown > GROWTH:
                self.violations.append(f"{each.name} grew by {grown / MIB:.1f} MiB")
            values = "  ".join(f"{name} {value}" for name, value in now.items())
            lines.append(f"  {each.name:<9} {memory / MIB:6.1f} MiB ({grown / MIB:+.1f})  {values}")
        print("what is left:", *lines, sep="\n")


def request(method: str, target: str, client_id: str, *fields: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "host: localhost", f"{CLIENT_ID_HEADER}: {client_id}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def frame(opcode: int, payload: bytes) -> bytes:
    """A WebSocket frame of at most 125 bytes; a mask of zero leaves the payload as it is."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + bytes(4) + payload


async def head(reader: asyncio.StreamReader, status: int) -> dict[bytes, bytes]:
    """The fields of an answer's head. Raises Cut where there is none, or one with another status."""
    try:
        text = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        raise Cut(f"no answer: {error.partial[:100]!r}") from None
    if not text.startswith(b"HTTP/1.1 %d " % status):
        raise Cut(f"{text[:300]!r} {await _rest(reader)!r}")
    return dict(line.lower().split(b": ", 1) for line in text[:-4].split(b"\r\n")[1:])


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """Some more of an answer that nobody expects, for the report."""
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(0.2):
            return await reader.read(200)
    return b""


async def body(
    reader: asyncio.StreamReader, fields: dict[bytes, bytes], *, pause: float = 0.0
) -> AsyncGenerator[bytes, None]:
    """The pieces of a body, `pause` seconds between them. Raises Cut where it breaks off."""
    chunked = fields.get(b"transfer-encoding") == b"chunked"
    while left := int(await reader.readuntil(b"\r\n"), 16) if chunked else int(fields[b"content-length"]):
        while left:
            piece = await _some(reader, left, pause)
            left -= len(piece)
            yield piece
        if not chunked:
            return
        await reader.readexactly(2)
    if chunked:
        await reader.readexactly(2)


async def answer(reader: asyncio.StreamReader, *, pause: float = 0.0, expected: bytes = b"") -> int:
    """Reads one answer; the bytes of its body. Raises Cut where there is none, or not the whole of it."""
    total, begin = 0, b""
    async with aclosing(body(reader, await head(reader, 200), pause=pause)) as pieces:
        async for piece in pieces:
            total += len(piece)
            begin = (begin + piece)[:64]
    if expected and begin != expected:
        raise Violation(f"{begin!r} instead of {expected!r}")
    return total


async def _some(reader: asyncio.StreamReader, most: int, pause: float) -> bytes:
    if pause:
        await asyncio.sleep(pause)
    data = await reader.read(min(most, 65536))
    if not data:
        raise Cut("a body that breaks off")
    return data


def main(seconds: float, seed: int | None, *, kill_proxy: bool) -> int:
    """The exit status. seed: of what is random; a new one if None."""
    seed = seed if seed is not None else random.randrange(1 << 32)
    print(f"soak of {seconds:g} s, --seed {seed}", flush=True)
    allow_open_files()
    with tempfile.TemporaryDirectory(prefix="soak-", ignore_cleanup_errors=True) as directory:
        context = Context(Options(), Path(directory))
        with context.fleet() as fleet:
            soak = Soak(fleet, seconds, seed, kill_proxy=kill_proxy)
            try:
                run(soak.run())
            except BenchError as error:
                soak.violations.append(str(error))
            print(
                "what was done:", *(f"  {count:>8,} {name}" for name, count in sorted(soak.outcomes.items())), sep="\n"
            )
    for violation, count in Counter(soak.violations).most_common(50):
        print(f"VIOLATION: {violation}" + (f" (× {count})" if count > 1 else ""), file=sys.stderr)
    return 1 if soak.violations else 0
