"""What happens to a proxy's agents, for programs that follow it.

Each reader has a queue of its own with a limit. What no longer fits is counted, and the reader is told how much that
was where it is missing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal
from weakref import WeakSet

from backstream._agents import AgentLink

__all__ = ["AgentEvent", "Events", "Readers"]


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """Something that happened to an agent's session."""

    kind: Literal["connected", "draining", "disconnected", "missed"]
    """connected: it takes requests; draining: it takes no new ones, those that run go on; disconnected: it is gone;
    missed: the reader was too slow for `missed` events, which would stand here."""
    agent: AgentLink | None
    """The session; None where events were missed."""
    reason: str = ""
    """Why it drains or is gone, in words for people."""
    missed: int = 0
    """How many events did not fit into the reader's queue."""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    """When, in UTC."""


class Events:
    """An asynchronous iterator of `AgentEvent`, from the moment that it was made to the proxy's end.

    To be read by one task. It ends with `close`, too, and costs nothing once nobody refers to it any more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: deque[AgentEvent] = deque()
        self._missed = 0
        self._ended = False
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Events:
        return self

    async def __anext__(self) -> AgentEvent:
        while not self._queue:
            if self._missed:
                self._note_missed()
                break
            if self._ended:
                raise StopAsyncIteration
            if self._waiter is not None:
                raise RuntimeError("another task reads these events")
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._queue.popleft()

    def close(self) -> None:
        """Takes no more events; those that came before are still given out."""
        self._ended = True
        self._wake()

    def put(self, event: AgentEvent) -> None:
        """Adds an event, or counts it where there is no room."""
        if self._ended:
            return
        if len(self._queue) >= self._limit:
            self._missed += 1
            return
        if self._missed:
            self._note_missed()
        self._queue.append(event)
        self._wake()

    def _note_missed(self) -> None:
        self._queue.append(AgentEvent("missed", None, missed=self._missed))
        self._missed = 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Readers:
    """Everyone who follows a proxy's agents."""

    def __init__(self) -> None:
        self._readers: WeakSet[Events] = WeakSet()

    def add(self, limit: int) -> Events:
        """A reader with a queue of `limit` events."""
        events = Events(limit)
        self._readers.add(events)
        return events

    def tell(self, kind: Literal["connected", "draining", "disconnected"], agent: AgentLink, reason: str) -> None:
        """Gives every reader an event."""
        if self._readers:
            event = AgentEvent(kind, agent, reason)
            for reader in list(self._readers):
                reader.put(event)

    def close(self) -> None:
        """There will be no more."""
        for reader in list(self._readers):
            reader.close()
