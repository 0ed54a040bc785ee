"""Plays the table's rows, many at once, through one tunnel: raw clients, and an upstream that does as the rows say.

What holds for each row, beside the outcomes that it allows:
- both ends get well-formed HTTP/1.1 only, and nothing behind its end;
- no byte of another row's answer, and none that belongs to no answer;
- a request that belongs to no row never reaches the upstream;
- afterwards a good request on a new connection is served.

Both ends are in this process: a step does not wait for time to pass, but for what the other end has got.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
from collections import defaultdict
from collections.abc import Iterable

from tests.http.table import POISON, US, Row, Seen, Step, default_answer, faults, verdict
from tests.rig import Ended, Message, Tunnel, Upstream, Wire, tunnel, until

SECONDS = 10.0
"""For a row; reached only where something hangs."""
SECONDS_ALONE = 4.0
"""For a row that is played alone: all of them together stay within a test's time, hanging or not."""
AT_ONCE = 24


class Tap(Wire):
    """A wire that keeps all that it has read."""

    def __init__(self, sock) -> None:
        super().__init__(sock)
        self.raw = bytearray()

    async def fill(self, seconds: float = SECONDS) -> None:
        before = len(self.buffer)
        await super().fill(seconds)
        self.raw += self.buffer[before:]

    async def hangup(self) -> None:
        """Waits until the peer is gone, and reads nothing meanwhile."""
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        await until(lambda: poll.poll(0), "the peer to leave", seconds=SECONDS)


class Player:
    """Plays rows and keeps what came of each."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {row.id: row for row in rows}
        self.seen = {name: Seen() for name in self.rows}
        self.strays: list[str] = []
        """What reached the upstream and belongs to no row."""
        self._playing: dict[str, int] = defaultdict(int)
        self._clients: dict[str, Tap] = {}
        self._upstreams: dict[str, list[Tap]] = defaultdict(list)

    async def run(self) -> dict[str, str]:
        """Why each row does not hold; empty for those that do."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(row: Row) -> None:
            async with slots:
                await self._row(pair, row)

        async with Upstream(self._serve) as upstream, tunnel(upstream=upstream.url, check=False) as pair:
            await asyncio.gather(*(one(row) for row in self.rows.values() if not row.alone))
            for row in self.rows.values():
                if row.alone:
                    await self._row(pair, row)
        self._blame()
        return {name: verdict(row, self.seen[name]) for name, row in self.rows.items()}

    def _blame(self) -> None:
        for victim, seen in self.seen.items():
            for culprit in {name.decode() for name in re.findall(rb"%b of ([a-z0-9-]+)" % POISON, seen.raw)}:
                seen.wrong.append(f"the client got bytes that belong to no answer, from {culprit}")
                self.seen[culprit].wrong.append(f"bytes that belong to no answer reached {victim}")

    async def _row(self, pair: Tunnel, row: Row) -> None:
        seen = self.seen[row.id]
        try:
            async with asyncio.timeout(SECONDS_ALONE if row.alone else SECONDS):
                await (self._client if row.rounds == 1 else self._rounds)(pair, row, seen)
                await until(lambda: not self._playing[row.id], "the upstream to have played the row", seconds=SECONDS)
                async with await Tap.connect(pair.address) as wire:
                    await wire.send(_plain_request(row, "next"))
                    answer = await wire.answer()
                    seen.raw += wire.raw
                    if answer.body != _plain_answer(row, "next") or answer.interim:
                        seen.wrong.append(f"a later request got {answer.status} {answer.body[:60]!r}")
        except (TimeoutError, AssertionError, OSError, Ended) as error:
            seen.wrong.append(f"{type(error).__name__}: {error}"[:300])

    # --- the client ---

    async def _client(self, pair: Tunnel, row: Row, seen: Seen) -> None:
        async with await Tap.connect(pair.address) as wire:
            self._clients[row.id] = wire
            sending = asyncio.create_task(self._play(row, row.send, wire))
            receiving = asyncio.create_task(self._receive(row, seen, wire, sending))
            pending = next((want["pending"] for want in row.allow if "pending" in want), None)
            try:
                if pending is not None:
                    words = row.expand(pending)
                    await until(lambda: receiving.done() or words in wire.raw, pending, seconds=SECONDS)
                    seen.pending = not receiving.done()
                if not seen.pending:
                    await receiving
            finally:
                for task in (sending, receiving):
                    task.cancel()
                await asyncio.gather(sending, receiving, return_exceptions=True)
                seen.raw += wire.raw

    async def _receive(self, row: Row, seen: Seen, wire: Tap, sending: asyncio.Task[None]) -> None:
        """Reads all answers: up to the one to the probe, which goes out behind the first, or to the end."""
        probing = False
        while True:
            number = len(seen.answers)
            try:
                message = await self._head(seen, wire)
            except Ended:
                seen.closed = True
                if wire.buffer:
                    seen.wrong.append(f"the client got {bytes(wire.buffer[:60])!r}, then the end")
                return
            seen.answers.append(message)
            has_body = message.status not in (101, 204, 304)
            if has_body and (row.methods[number] if number < len(row.methods) else "GET") != "HEAD":
                await wire.body(message, to_close=True)
                seen.wrong += faults(message, of_request=False)
            if probing and message.body == _plain_answer(row, "then"):
                seen.answers.pop()
                seen.probed = True
                return
            if message.all("x-row") not in ([], [row.id.encode()]):
                seen.wrong.append(f"the answer of {message.all('x-row')}")
            if not message.complete or wire.ended or message.status == 101:
                seen.closed = True
                return
            if message.keeps_alive and not row.probe:
                return
            if message.keeps_alive and not probing:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    await sending
                    await wire.send(_plain_request(row, "then"))
                probing = True

    async def _head(self, seen: Seen, wire: Tap) -> Message:
        while True:
            message = await wire.head()
            seen.wrong += faults(message, of_request=False)
            if message.status >= 200 or message.status == 101:
                return message
            seen.interim.append(message.status)

    async def _rounds(self, pair: Tunnel, row: Row, seen: Seen) -> None:
        """The row's one request again and again, on one connection as far as it is kept, until a round falls."""
        (text,) = row.send
        allowed = [status for want in row.allow for status in want["status"]]
        wire = await Tap.connect(pair.address)
        try:
            for number in range(row.rounds):
                await wire.send(row.expand(text, number))
                try:
                    seen.answers[:] = [await wire.answer(row.methods[0])]
                except Ended:
                    seen.answers.clear()
                if (seen.answers[0].status if seen.answers else 0) not in allowed:
                    return
                if not seen.answers or not seen.answers[0].keeps_alive:
                    seen.raw += wire.raw
                    wire.close()
                    wire = await Tap.connect(pair.address)
        finally:
            seen.raw += wire.raw
            wire.close()

    # --- the upstream ---

    async def _serve(self, wire: Wire, number: int) -> None:
        tap = Tap(wire.sock)
        served = 0
        while True:
            if not tap.buffer:
                await tap.fill(60)  # longer than the agent keeps an idle connection
            try:
                request = await tap.head()
            except AssertionError as error:
                self.strays.append(f"malformed: {error}")
                return
            row = self._row_of(request)
            if row is None:
                self.strays.append(f"{request.start!r}")
                return
            seen = self.seen[row.id]
            self._upstreams[row.id].append(tap)
            self._playing[row.id] += 1
            try:
                await self._exchange(tap, row, seen, request, served)
            except AssertionError as error:
                seen.wrong.append(f"malformed towards the upstream: {error}")
                return
            finally:
                self._playing[row.id] -= 1
            served += 1

    async def _exchange(self, tap: Tap, row: Row, seen: Seen, request: Message, served: int) -> None:
        seen.wrong += [f"towards the upstream: {what}" for what in faults(request, of_request=True)]
        if word := re.search(rb"/(then|next)$", request.target):
            await tap.send(_sized(row, _plain_answer(row, word[1].decode())))
            return
        request.complete = False
        seen.requests.append(request)
        if not row.early:
            if request.all("expect"):
                await tap.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await self._body(tap, request)
        steps = row.answer
        if steps is None:
            await tap.send(_sized(row, default_answer(request), with_body=request.method != b"HEAD"))
        else:
            if isinstance(steps[0], dict) and "reused" in steps[0]:
                steps = [{"end": steps[0]["reused"]}] if served else steps[1:]
            await self._play(row, steps, tap)
        if row.early:
            await self._body(tap, request)

    async def _body(self, tap: Tap, request: Message) -> None:
        request.complete = True
        await tap.body(request, to_close=False)
        if not request.complete:
            raise Ended("fin")

    def _row_of(self, request: Message) -> Row | None:
        if marks := request.all("x-row"):
            return self.rows.get(marks[0].decode())
        found = re.match(rb"/([a-z0-9-]+)", request.target)
        return self.rows.get(found[1].decode()) if found else None

    # --- steps ---

    async def _play(self, row: Row, steps: list[Step], wire: Tap) -> None:
        for step in steps:
            if isinstance(step, str):
                await wire.send(row.expand(step), seconds=SECONDS)
                continue
            ((kind, what),) = step.items()
            if kind == "bytes":
                for byte in row.expand(what):
                    await wire.send(bytes([byte]))
                    for _ in range(2):  # the loop's turns in which the other end reads it
                        await asyncio.sleep(0)
            elif kind == "pause":
                await asyncio.sleep(what)
            elif kind == "client":
                await self._has_got(what, row.expand(what), lambda: [self._clients[row.id]])
            elif kind == "upstream":
                await self._has_got(what, row.expand(what), lambda: self._upstreams[row.id])
            elif kind == "hold":
                await wire.hangup()
            elif kind == "gone":
                with contextlib.suppress(Ended):
                    while True:
                        await wire.fill()
            elif what == "half-close":
                wire.half_close()
            else:
                (wire.reset if what == "reset" else wire.close)()
                raise Ended(what)

    async def _has_got(self, what: str, words: bytes, taps) -> None:
        await until(lambda: any(words in tap.raw for tap in taps()), f"{what!r} to arrive", seconds=SECONDS)


def _plain_request(row: Row, word: str) -> bytes:
    return f"GET /{row.id}/{word} HTTP/1.1\r\n{US}\r\n".encode()


def _plain_answer(row: Row, word: str) -> bytes:
    return f"{word} of {row.id}".encode()


def _sized(row: Row, body: bytes, *, with_body: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nX-Row: %b\r\nContent-Length: %d\r\n\r\n" % (row.id.encode(), len(body))
    return head + (body if with_body else b"")
