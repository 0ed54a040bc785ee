"""The event loop of the bench's own processes: uvloop where it is installed."""

import asyncio
import resource
from collections.abc import Callable, Coroutine
from typing import Any

try:
    import uvloop
except ImportError:
    _new_event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
else:
    _new_event_loop = uvloop.new_event_loop

RECEIVE_BUFFER = bytearray(1 << 18)
"""One for all connections of a process: everything is consumed before the next read."""


def run(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        runner.run(main)


def allow_open_files() -> None:
    """As many as the hard limit allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def stdin_closed(on_line: Callable[[], object] | None = None) -> None:
    """Wait for whoever started this process to close its standard input; `on_line` is called for each line of it."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    with open(0, "rb", closefd=False) as standard_input:  # noqa: ASYNC230 - nothing is opened
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), standard_input)
        while await reader.readline():
            if on_line is not None:
                on_line()
