"""What an application under test and its test say to each other, so that neither has to sleep and hope."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass
class Probe:
    """One for each application."""

    started: bool = False
    """The application's start-up ran."""
    stopped: bool = False
    """The application's shutdown ran."""
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    """A request is in the application."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """The test allows `/stream` its next line."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """The application saw its client go."""
    close_code: int | None = None
    """With which its WebSocket was closed by the client."""

    async def step(self) -> None:
        """Waits until the test allows one more."""
        await self.go.wait()
        self.go.clear()
