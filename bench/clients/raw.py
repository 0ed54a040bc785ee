"""The bench's clients on raw sockets, each a process of its own: ``python -m bench.clients.raw WHAT PORT …``.

bulk       one body down or up, sized or chunked, or several, so many at once; every byte counted
flood      many endless bodies at once in one direction, until standard input closes; counted from a while
           after all have begun
received   how many bytes the service's sinks have received so far, and when it said so
probe      small requests at a low rate on one connection, each one's latency; with a duration of 0 until
           standard input closes
events     asks for Server-Sent Events; how long after it was made each arrives
first      asks for one Server-Sent Event, again and again; how long until its first byte
stall      asks for an endless download and never reads it, until standard input closes
stalls     the same COUNT times over, every other time an upload that the service does not read

Each prints one line of JSON when it is done (`flood` and `stall` one more, ``ready``, when they are under
way).
"""

import argparse
import json
import math
import re
import select
import selectors
import socket
import ssl
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from itertools import islice
from typing import TypeAlias

from bench.aio import allow_open_files
from bench.clients.framing import ChunkCounter
from bench.clients.percentiles import percentiles
from bench.routes import CLIENT_ID, CLIENT_ID_HEADER, HOST, SMALL

_BUFFER = bytearray(1 << 20)
_VIEW = memoryview(_BUFFER)
_CHUNK_SIZE = 1 << 16
_CHUNKS = memoryview((b"%x\r\n%b\r\n" % (_CHUNK_SIZE, bytes(_CHUNK_SIZE))) * 16)
SEGMENT = 1400
"""Bytes of a TCP segment on an ordinary network."""
_TIMEOUT = 15.0
"""Seconds that a socket may be silent before the client gives up."""


def connect(port: int, ca: str | None = None, host: str = "127.0.0.1") -> socket.socket:
    """A connection, over TLS if there is a CA to verify it with."""
    client = socket.create_connection((host, port), timeout=_TIMEOUT)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ssl.create_default_context(cafile=ca).wrap_socket(client, server_hostname="127.0.0.1") if ca else client


def request(method: str, target: str, *fields: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"host: {HOST}", f"{CLIENT_ID_HEADER}: {CLIENT_ID}", *fields]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Answer:
    """A response as it comes: the head is kept, the body counted.

    ConnectionError when it is not whole or not 200.
    """

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self.body = 0
        """Bytes of body so far."""
        self._start = bytearray()  # the head and what came with it of the body
        self._length: int | None = None
        self._chunks: ChunkCounter | None = None

    def receive_head(self) -> None:
        while (end := self._start.find(b"\r\n\r\n")) < 0:
            self._start += self._client.recv(65536) or self._cut()
        if not self._start.startswith(b"HTTP/1.1 200 "):
            raise ConnectionError(f"answer {bytes(self._start[:200])!r}")
        end += 4
        for line in self._start[:end].lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                self._length = int(line[15:])
            elif line.startswith(b"transfer-encoding:"):
                self._chunks = ChunkCounter()
        self._count(self._start, end, len(self._start))

    @property
    def done(self) -> bool:
        return self._chunks.done if self._chunks is not None else self.body == self._length

    def receive_some(self) -> None:
        count = self._client.recv_into(_BUFFER)
        if not count:
            self._cut()
        self._count(_BUFFER, 0, count)

    def receive_all(self) -> None:
        self.receive_head()
        while not self.done:
            self.receive_some()

    def receive_text(self) -> bytes:
        """The body of a small answer with a Content-Length."""
        self.receive_head()
        while not self.done:
            data = self._client.recv(65536) or self._cut()
            self._start += data
            self.body += len(data)
        return bytes(self._start[len(self._start) - self.body :])

    def _count(self, buffer: bytearray, start: int, end: int) -> None:
        if self._chunks is None:
            self.body += end - start
        else:
            self._chunks.feed(buffer, start, end)
            self.body = self._chunks.body

    def _cut(self) -> bytes:
        raise ConnectionError(f"connection closed after {self.body} bytes of body")


def download(port: int, size: int, *, chunked: bool, ca: str | None = None) -> int:
    with connect(port, ca) as client:
        client.sendall(request("GET", f"/{'chunked' if chunked else 'bytes'}/{size}"))
        answer = Answer(client)
        answer.receive_all()
        return answer.body


def upload(port: int, size: int, *, chunked: bool, ca: str | None = None) -> int:
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
    with connect(port, ca) as client:
        client.sendall(request("POST", "/sink", framing))
        for piece in _upload_pieces(size, chunked=chunked):
            client.sendall(piece)
        return int(Answer(client).receive_text())


def _upload_pieces(size: int, *, chunked: bool) -> Iterator[bytes | memoryview]:
    step = _CHUNK_SIZE * 16 if chunked else len(_VIEW)
    for _ in range(size // step):
        yield _CHUNKS if chunked else _VIEW
    rest = size % step
    if not chunked:
        yield _VIEW[:rest]
    else:
        yield (b"%x\r\n%b\r\n" % (rest, bytes(rest)) if rest else b"") + b"0\r\n\r\n"


def bulk(
    port: int, direction: str, size: int, *, chunked: bool, ca: str | None = None, streams: int = 1, bodies: int = 0
) -> dict[str, float]:
    """`size` bytes in so many bodies, or in one for each of the streams; with several streams not over TLS."""
    bodies = bodies or streams
    sizes = [size // bodies] * bodies
    cpu, begin = time.process_time(), time.perf_counter()
    if streams == 1:
        transfer = download if direction == "down" else upload
        count = sum(transfer(port, part, chunked=chunked, ca=ca) for part in sizes)
    else:
        assert ca is None
        steps = _download_steps if direction == "down" else _upload_steps
        count = _side_by_side([steps(port, part, chunked=chunked) for part in sizes], streams)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    if count != size:
        raise ConnectionError(f"{count} bytes arrived of {size}")
    return {"bytes": count, "seconds": seconds, "cpu_seconds": cpu}


Steps: TypeAlias = Generator[tuple[socket.socket, int], None, int]
"""A transfer that stops where its socket would block: what it waits for, and at last how many bytes arrived."""


def _download_steps(port: int, size: int, *, chunked: bool) -> Steps:
    with connect(port) as client:
        client.sendall(request("GET", f"/{'chunked' if chunked else 'bytes'}/{size}"))
        client.setblocking(False)
        answer = Answer(client)
        receive = answer.receive_head
        while not answer.done:
            yield client, selectors.EVENT_READ
            with suppress(BlockingIOError):
                receive()
                receive = answer.receive_some
        return answer.body


def _upload_steps(port: int, size: int, *, chunked: bool) -> Steps:
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {size}"
    with connect(port) as client:
        client.sendall(request("POST", "/sink", framing))
        client.setblocking(False)
        for piece in _upload_pieces(size, chunked=chunked):
            left = memoryview(piece)
            while left:
                yield client, selectors.EVENT_WRITE
                with suppress(BlockingIOError):
                    left = left[client.send(left) :]
        yield client, selectors.EVENT_READ
        client.settimeout(_TIMEOUT)
        return int(Answer(client).receive_text())


def _side_by_side(transfers: list[Steps], limit: int) -> int:
    """Takes all transfers to their ends in one thread, so many at once; returns the sum of what they return."""
    waiting, active, total = iter(transfers), 0, 0
    with selectors.DefaultSelector() as selector:

        def go_on(steps: Steps, before: tuple[object, int] | None) -> bool:
            nonlocal total
            try:
                now = next(steps)
            except StopIteration as end:
                total += end.value
                return False
            if before is None:
                selector.register(*now, steps)
            elif now != before:
                selector.modify(*now, steps)
            return True

        for steps in islice(waiting, limit):
            active += go_on(steps, None)
        while active:
            events = selector.select(_TIMEOUT)
            if not events:
                raise TimeoutError(f"nothing moved for {_TIMEOUT:g} s")
            for key, _ in events:
                if go_on(key.data, (key.fileobj, key.events)):
                    continue
                selector.unregister(key.fd)
                active -= 1
                for steps in islice(waiting, 1):
                    active += go_on(steps, None)
    return total


def received(port: int, host: str) -> dict[str, int]:
    with connect(port, host=host) as client:
        client.sendall(request("GET", "/received"))
        count, nanoseconds = Answer(client).receive_text().split()
        return {"bytes": int(count), "nanoseconds": int(nanoseconds)}


def flood(port: int, direction: str, streams: int, settle: float, host: str) -> dict[str, float]:
    """Endless bodies on `streams` connections, as fast as they go; counted `settle` seconds after all have begun."""
    clients = [connect(port, host=host) for _ in range(streams)]
    downloads = direction == "down"
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        for client in clients:
            client.sendall(
                request("GET", "/endless") if downloads else request("POST", "/sink", "transfer-encoding: chunked")
            )
            client.setblocking(False)
            selector.register(client, selectors.EVENT_READ if downloads else selectors.EVENT_WRITE, client)
        # The place in _CHUNKS that an upload has reached; -1 for a download that has shown nothing yet.
        at = dict.fromkeys(clients, -1 if downloads else 0)
        total = 0
        waiting = set(clients)
        begin = time.perf_counter()
        settled_at = math.inf
        while True:
            if settled_at <= time.perf_counter():
                total, begin, settled_at = 0, time.perf_counter(), math.inf
            for key, _ in selector.select(_TIMEOUT):
                if key.fileobj == 0:
                    return {"bytes": total, "seconds": time.perf_counter() - begin}
                client = key.data
                if downloads:
                    count = client.recv_into(_VIEW)
                    if at[client] < 0:
                        at[client] = 0
                        if not _BUFFER.startswith(b"HTTP/1.1 200 "):
                            raise ConnectionError(f"answer {bytes(_BUFFER[:200])!r}")
                else:
                    count = client.send(_CHUNKS[at[client] :])
                    at[client] = (at[client] + count) % len(_CHUNKS)
                if not count:
                    raise ConnectionError(f"a stream ended, {total} bytes into the flood")
                total += count
                if waiting:
                    waiting.discard(client)
                    if not waiting:
                        print("ready", flush=True)
                        settled_at = time.perf_counter() + settle


def probe(port: int, duration: float, pause: float) -> dict[str, float | int]:
    """Requests on one connection, `pause` seconds between an answer and the next request."""
    message = request("GET", "/small")
    latencies: list[float] = []
    with connect(port) as client:
        if not duration:
            print("ready", flush=True)
        begin = time.perf_counter()
        while (now := time.perf_counter()) - begin < duration or (not duration and not _stdin_closed()):
            client.sendall(message)
            body = Answer(client).receive_text()
            latencies.append(time.perf_counter() - now)
            if body != SMALL:
                raise ConnectionError(f"answer {body[:80]!r}")
            time.sleep(pause)
        seconds = time.perf_counter() - begin
    return {"requests": len(latencies), "seconds": seconds, **percentiles(latencies)}


def events(port: int, duration: float) -> dict[str, float | int]:
    delays: list[float] = []
    pending = b""
    with connect(port) as client:
        client.sendall(request("GET", "/events"))
        begin = time.perf_counter()
        while time.perf_counter() - begin < duration:
            data = client.recv(65536)
            now = time.monotonic_ns()
            if not data:
                raise ConnectionError(f"the events ended after {len(delays)}: {pending[:200]!r}")
            pending += data
            delays += [(now - int(made)) / 1e9 for made in re.findall(rb"data: (\d+)\n\n", pending)]
            pending = pending[pending.rfind(b"\n\n") + 2 :] if b"\n\n" in pending else pending
    return {"events": len(delays), **percentiles(delays)}


def first(port: int, duration: float) -> dict[str, float | int]:
    """How long from a request of one event to the event, on a kept connection."""
    latencies: list[float] = []
    with connect(port) as client:
        begin = time.perf_counter()
        while (now := time.perf_counter()) - begin < duration:
            client.sendall(request("GET", "/events/1"))
            answer = Answer(client)
            answer.receive_head()
            while not answer.body:
                answer.receive_some()
            latencies.append(time.perf_counter() - now)
            while not answer.done:
                answer.receive_some()
            time.sleep(0.001)
    return {"requests": len(latencies), **percentiles(latencies)}


def _stdin_closed() -> bool:
    return bool(select.select([0], [], [], 0)[0])


def stall(port: int) -> dict[str, int]:
    with connect(port) as client:
        client.sendall(request("GET", "/endless"))
        if not client.recv(16).startswith(b"HTTP/1.1 200 "):
            raise ConnectionError("the endless download did not begin")
        print("ready", flush=True)
        with open(0, "rb", closefd=False) as standard_input:
            standard_input.read()
    return {}


def _small_client(port: int) -> socket.socket:
    """As on a network: with loopback's segments of 64 KiB the kernel keeps 3 MiB for each that does not read.

    A thousand of them would take all the memory that it has for TCP, which slows everybody's sockets.
    """
    client = socket.socket()
    client.settimeout(_TIMEOUT)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        client.setsockopt(socket.SOL_SOCKET, option, 32768)
    client.connect(("127.0.0.1", port))
    return client


def stalls(port: int, count: int) -> dict[str, int]:
    """Says ``ready`` once no upload has moved for a second."""
    allow_open_files()
    clients = [_small_client(port) for _ in range(count)]
    for client in clients[::2]:
        client.sendall(request("GET", "/endless"))
    uploads = dict.fromkeys(clients[1::2], 0)
    for client in uploads:
        client.sendall(request("POST", "/stall/600", "transfer-encoding: chunked"))
    for client in clients[::2]:
        if not client.recv(16).startswith(b"HTTP/1.1 200 "):
            raise ConnectionError("the endless download did not begin")
    for client in clients:
        client.setblocking(False)
    moved_at = time.monotonic()
    while time.monotonic() - moved_at < 1:
        for client, at in uploads.items():
            try:
                uploads[client] = (at + client.send(_CHUNKS[at:])) % len(_CHUNKS)
                moved_at = time.monotonic()
            except BlockingIOError:
                pass
            except OSError as error:
                raise ConnectionError(f"{error}; the answer was {client.recv(1000)!r}") from None
        time.sleep(0.01)
    print("ready", flush=True)
    with open(0, "rb", closefd=False) as standard_input:
        standard_input.read()
    return {}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.clients.raw")
    commands = parser.add_subparsers(dest="what", required=True)
    for name in ("bulk", "flood", "received", "probe", "events", "first", "stall", "stalls"):
        command = commands.add_parser(name)
        command.add_argument("port", type=int)
        if name in ("flood", "received"):
            command.add_argument("--host", default="127.0.0.1")
        if name in ("bulk", "flood"):
            command.add_argument("direction", choices=["down", "up"])
        if name == "bulk":
            command.add_argument("size", type=int)
            command.add_argument("--chunked", action="store_true")
            command.add_argument("--ca", help="over TLS, verified with this file")
            command.add_argument("--streams", type=int, default=1)
            command.add_argument("--bodies", type=int, default=0)
        elif name == "stalls":
            command.add_argument("count", type=int)
        elif name == "flood":
            command.add_argument("--streams", type=int, default=8)
            command.add_argument("--settle", type=float, default=0.0)
        elif name in ("probe", "events", "first"):
            command.add_argument("--duration", type=float, default=5.0)
            if name == "probe":
                command.add_argument("--pause", type=float, default=0.001)
    args = parser.parse_args()
    result: object
    if args.what == "bulk":
        result = bulk(
            args.port,
            args.direction,
            args.size,
            chunked=args.chunked,
            ca=args.ca,
            streams=args.streams,
            bodies=args.bodies,
        )
    elif args.what == "flood":
        result = flood(args.port, args.direction, args.streams, args.settle, args.host)
    elif args.what == "received":
        result = received(args.port, args.host)
    elif args.what == "probe":
        result = probe(args.port, args.duration, args.pause)
    elif args.what == "events":
        result = events(args.port, args.duration)
    elif args.what == "first":
        result = first(args.port, args.duration)
    elif args.what == "stalls":
        result = stalls(args.port, args.count)
    else:
        result = stall(args.port)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
