"""Steady load for tests that end a process under it: every request has a path of its own, and is accounted for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.rig import ID, LIMIT, Ended, Message, Processes, request

Kind = tuple[str, bytes | None]
KINDS: tuple[Kind, ...] = (("POST", b"b" * 1000), ("GET", None))


@dataclass
class Sent:
    """One request and what came of it: an answer, or None when its connection ended without a byte of one."""

    method: str
    path: str
    body: bytes | None
    answer: Message | None = None


class Load:
    """Clients that send requests of some kinds in turn, each over a connection that it keeps.

    kinds: method and body of each. path: what their targets begin with.
    """

    def __init__(
        self, commands: Processes, client_id: str = ID, *, kinds: Sequence[Kind] = KINDS, path: str = "/ok"
    ) -> None:
        self.commands = commands
        self.client_id = client_id
        self.kinds = kinds
        self.path = path
        self.sent: list[Sent] = []
        self.refused = 0
        """Connections that nobody took."""
        self._ending = False

    @property
    def answered(self) -> list[tuple[Sent, Message]]:
        return [(sent, sent.answer) for sent in self.sent if sent.answer is not None]

    def whole(self) -> int:
        return sum(got.status == 200 and got.complete for _, got in self.answered)

    async def goes_on(self, count: int = 50) -> None:
        """Waits for `count` more whole answers."""
        wanted = self.whole() + count
        async with asyncio.timeout(LIMIT):
            while self.whole() < wanted:
                await asyncio.sleep(0.005)

    async def _client(self, number: int) -> None:
        wire = None
        count = 0
        try:
            while not self._ending:
                if wire is None:
                    try:
                        wire = await self.commands.open()
                    except ConnectionRefusedError:
                        self.refused += 1
                        await asyncio.sleep(0.005)
                        continue
                count += 1
                method, body = self.kinds[count % len(self.kinds)]
                sent = Sent(method, f"{self.path}/{number}-{count}", body)
                self.sent.append(sent)
                try:
                    await wire.send(request(sent.path, method=method, body=body, client_id=self.client_id))
                    sent.answer = await wire.answer()
                except (Ended, ConnectionError):
                    assert not wire.buffer, "a part of a head"
                if sent.answer is None or not sent.answer.complete or not sent.answer.keeps_alive:
                    wire.close()
                    wire = None
        finally:
            if wire is not None:
                wire.close()

    @asynccontextmanager
    async def run(self, clients: int = 8) -> AsyncIterator[Load]:
        tasks = [asyncio.create_task(self._client(number)) for number in range(clients)]
        try:
            yield self
        finally:
            self._ending = True
            async with asyncio.timeout(LIMIT):
                await asyncio.gather(*tasks)
