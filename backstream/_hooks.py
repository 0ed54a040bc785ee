"""Calls of a program's own functions on an agent's events: in order, each within a time limit, none of them fatal."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Hooks"]

logger = logging.getLogger("backstream.agent")

HOOK_SECONDS: Final = 60.0


class Hooks:
    """The owner of the tasks in which hooks run."""

    def __init__(self) -> None:
        self._last: asyncio.Task[None] | None = None
        self._running: asyncio.Task[None] | None = None

    def call(self, name: str, hook: Callable[..., object], *arguments: Any) -> None:
        """Calls `hook` when those before it have ended."""
        self._last = asyncio.create_task(self._run(self._last, name, hook, arguments), name=f"backstream {name}")

    async def end(self, seconds: float) -> None:
        """Waits for what runs, for at most `seconds`; then it is cancelled. A hook does not wait for itself."""
        if self._last is not None and self._running is not asyncio.current_task():
            await asyncio.wait([self._last], timeout=seconds)
            self._last.cancel()

    async def _run(
        self, before: asyncio.Task[None] | None, name: str, hook: Callable[..., object], arguments: tuple[Any, ...]
    ) -> None:
        try:
            if before is not None:
                await asyncio.wait([before])
                before = None
            limit = asyncio.timeout(HOOK_SECONDS)
            self._running = asyncio.current_task()
            try:
                async with limit:
                    result = hook(*arguments)
                    if inspect.isawaitable(result):
                        await result
            except Exception:
                logger.exception("%s %s", name, f"took longer than {HOOK_SECONDS:g} s" if limit.expired() else "failed")
            finally:
                self._running = None
        except asyncio.CancelledError:
            if before is not None:
                before.cancel()
            raise
