"""A loop and transports without sockets: a turn happens when it is asked for, time-outs never."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any


class Failures(logging.Handler):
    """What the library logs with a traceback is a defect."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[BaseException | str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.exc_info[1] if record.exc_info and record.exc_info[1] else record.getMessage())


class Loop(asyncio.AbstractEventLoop):
    """The running event loop within `with`; raises at its end what failed inside a callback."""

    def __init__(self) -> None:
        self._ready: deque[asyncio.Handle] = deque()
        self._failures = Failures()
        self.transports: list[Transport] = []
        self.accepts: Callable[[], bool] = lambda: True

    def __enter__(self) -> Loop:
        asyncio._set_running_loop(self)
        logging.getLogger("backstream").addHandler(self._failures)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        global _shared
        logging.getLogger("backstream").removeHandler(self._failures)
        asyncio._set_running_loop(None)
        self.transports.clear()
        if kind is not None or self._failures.found or self._ready:
            _shared = None
        if kind is None:
            for failure in self._failures.found:
                raise AssertionError("a callback failed") from (
                    failure if isinstance(failure, BaseException) else RuntimeError(failure)
                )
            assert not self._ready, "something is left to do"

    def turn(self) -> bool:
        """Runs what is due; false when nothing was."""
        count = len(self._ready)
        for _ in range(count):
            handle = self._ready.popleft()
            if not handle._cancelled:
                handle._run()
        return count > 0

    def settle(self) -> None:
        """Turns until nothing is due."""
        for _ in range(10000):
            if not self.turn():
                return
        raise AssertionError("the loop spins")

    def complete(self, work: Coroutine[Any, Any, Any]) -> Any:
        task = self.create_task(work)
        self.settle()
        return task.result()

    # What asyncio and the library ask of a loop.

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return asyncio.TimerHandle(when, callback, args, self, context)

    call_later = call_at  # type: ignore[assignment]

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def time(self) -> float:
        return 0.0

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> Any:
        return asyncio.Task(coro, loop=self, **options)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._failures.found.append(context.get("exception") or context["message"])

    async def create_connection(self, protocol_factory: Any, *_: Any, **__: Any) -> Any:
        if not self.accepts():
            raise ConnectionRefusedError("nobody listens")
        protocol = protocol_factory()
        transport = Transport(self, protocol)
        self.transports.append(transport)
        protocol.connection_made(transport)
        return transport, protocol


_shared: Loop | None = None


def shared_loop() -> Loop:
    """One loop for input after input, since its buffers are dear; a new one after a failure."""
    global _shared
    if _shared is None:
        _shared = Loop()  # type: ignore[abstract]
    return _shared


class NoSocket:
    """Takes options; has no descriptor, so that all is written by the transport."""

    family = socket.AF_UNIX

    def fileno(self) -> int:
        return -1

    def setsockopt(self, *_: object) -> None: ...


class Transport(asyncio.Transport):
    """One end of a connection whose other end is the fuzzer: `feed` is what it sends, `sent` what it got.

    blocked: its socket takes nothing; what is written waits.
    sock: what its protocol sends to by itself, past the transport.
    """

    def __init__(self, loop: Loop, protocol: Any, *, blocked: bool = False, sock: Any = None) -> None:
        super().__init__()
        self.loop = loop
        self.protocol = protocol
        self.sent = bytearray()
        self.reading = True
        self.closing = self.lost = self.aborted = self.half_closed = False
        self.blocked = blocked
        self.waiting = bytearray()
        self._sock = NoSocket() if sock is None else sock
        self._paused_writing = False
        self._high = 65536

    # --- the fuzzer's side ---

    def feed(self, data: bytes) -> int:
        """Hands bytes over as a socket does, as long as they are read; returns how many were."""
        done = 0
        while done < len(data) and self.reading and not self.lost and not self.closing:
            view = self.protocol.get_buffer(-1)
            count = min(len(view), len(data) - done)
            assert count > 0
            view[:count] = data[done : done + count]
            del view
            self.protocol.buffer_updated(count)
            done += count
        return done

    def end(self) -> None:
        """The other end sends no more."""
        if not self.lost and not self.closing and not self.protocol.eof_received():
            self.close()

    def lose(self, error: Exception | None = None) -> None:
        if not self.lost:
            self.lost = self.closing = True
            self.protocol.connection_lost(error)

    def release(self) -> None:
        """The socket takes what waits."""
        self.blocked = False
        self.sent += self.waiting
        self.waiting.clear()
        if self._paused_writing:
            self._paused_writing = False
            self.protocol.resume_writing()
        if self.closing and not self.lost:
            self.loop.call_soon(self.lose)

    # --- the protocol's side ---

    def write(self, data: Any) -> None:
        assert not self.half_closed, "bytes behind the end"
        if self.lost or self.aborted:
            return
        if not self.blocked:
            self.sent += data
            return
        self.waiting += data
        if len(self.waiting) > self._high and not self._paused_writing:
            self._paused_writing = True
            self.protocol.pause_writing()

    def write_eof(self) -> None:
        self.half_closed = True

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.waiting:
                self.loop.call_soon(self.lose)

    def abort(self) -> None:
        self.aborted = True
        if not self.lost:
            self.closing = True
            self.waiting.clear()
            self.loop.call_soon(self.lose)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        assert self.reading and not self.lost
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading and not self.lost
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 65536 if high is None else high

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 5000), "socket": self._sock}.get(name, default)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol
