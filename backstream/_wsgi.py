"""WSGI applications (PEP 3333) in the shape of ASGI ones, as `AsgiService` runs them: each request in a thread.

Rules that hold here:
- The event loop never waits for a thread. A thread waits for the loop where back-pressure wants it: in `read` for the
  client's bytes, and before the next piece of a response for the client's credit.
- There are at most so many threads; what comes beyond that waits in order, and the sessions' `max_streams` bound it.
  A request whose client left while it waited is not begun.
- The iterable's `close` is called whatever happened.
- Threads are daemons: one that hangs in the application does not hold the process up.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import logging
import queue
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, MutableMapping
from types import TracebackType
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes

from backstream._asgi import ClientDisconnected

__all__ = ["WsgiApp", "WsgiApplication"]

logger = logging.getLogger("backstream.agent")

ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType | None]
WsgiApplication: TypeAlias = Callable[[dict[str, Any], Callable[..., Callable[[bytes], None]]], Iterable[bytes]]
Message: TypeAlias = MutableMapping[str, Any]

FILE_PIECE: Final = 65536
"""Bytes that `wsgi.file_wrapper` reads at once: each piece costs a way to the event loop and back."""


class WsgiApp:
    """An ASGI application that calls `app`, a WSGI one, in at most `threads` threads."""

    def __init__(self, app: WsgiApplication, threads: int) -> None:
        self._app = app
        self._threads = Threads(threads)

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        call = _Call(self._app, scope, receive, send)
        done = self._threads.run(call.run)
        try:
            await asyncio.shield(done)
        except asyncio.CancelledError:
            # A thread cannot be stopped: its next read or write raises. Until it ends, the request is not over.
            call.abandon()
            await asyncio.wait([done])
            raise

    async def _lifespan(self, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._threads.stop()
        await send({"type": "lifespan.shutdown.complete"})


class Threads:
    """At most `most` threads, started as they are needed; used from the event loop's thread only."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._running = 0
        self._jobs: queue.SimpleQueue[tuple[Callable[[], None], asyncio.Future[None]] | None] = queue.SimpleQueue()

    def run(self, job: Callable[[], None]) -> asyncio.Future[None]:
        """Calls `job` in a thread, now or when one is free."""
        done = asyncio.get_running_loop().create_future()
        self._running += 1
        done.add_done_callback(self._ended)
        if self._running > self._count and self._count < self._most:
            self._count += 1
            threading.Thread(target=self._work, name=f"backstream wsgi {self._count}", daemon=True).start()
        self._jobs.put((job, done))
        return done

    def stop(self) -> None:
        """Lets the threads end, each after what it runs."""
        if self._running:
            logger.warning("%d requests go on in their threads", self._running)
        for _ in range(self._count):
            self._jobs.put(None)
        self._count = 0

    def _ended(self, done: asyncio.Future[None]) -> None:
        self._running -= 1
        if not done.cancelled():
            done.exception()  # so that nobody misses it where the request was given up

    def _work(self) -> None:
        while (next_job := self._jobs.get()) is not None:
            job, done = next_job
            error: BaseException | None = None
            try:
                job()
            except BaseException as raised:
                error = raised
            try:
                done.get_loop().call_soon_threadsafe(_resolve, done, error)
            except RuntimeError:
                pass  # the loop is closed
            del next_job, job, done, error


def _resolve(done: asyncio.Future[None], error: BaseException | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
        return
    if not isinstance(error, Exception) or isinstance(error, StopIteration):
        # SystemExit would end the loop, and neither may leave a coroutine.
        wrapped = RuntimeError(f"the application raised {type(error).__name__}")
        wrapped.__cause__ = error
        error = wrapped
    done.set_exception(error)


class _Call:
    """One request; `run` is what its thread does, `abandon` comes from the event loop."""

    def __init__(
        self,
        app: WsgiApplication,
        scope: Message,
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        self._app = app
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request: Any = receive.__self__  # type: ignore[attr-defined]  # AsgiService's own
        self._loop = asyncio.get_running_loop()
        self._abandoned = False
        self._waiting: concurrent.futures.Future[Any] | None = None
        self._start: Message | None = None
        self._started = False
        self._done = False
        self._left = -1
        """Bytes that the application's Content-Length still promises, -1 without one."""
        self._sending: concurrent.futures.Future[None] | None = None

    def abandon(self) -> None:
        self._abandoned = True
        for future in (self._waiting, self._sending):
            if future is not None:
                future.cancel()

    # --- in the thread ---

    def run(self) -> None:
        if self._abandoned or self._request.disconnected:
            raise ClientDisconnected("the client has gone before there was a thread for its request")
        result = self._app(self._environ(), self.start_response)
        try:
            self._respond(result)
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()
        if self._sending is not None:
            self._result(self._sending)

    def _respond(self, result: Iterable[bytes]) -> None:
        """Sends the pieces as they come; the last one as such where that can be known."""
        last = len(result) - 1 if isinstance(result, (list, tuple)) else -1
        for number, piece in enumerate(result):
            if piece or number == last:
                self._put(piece, more=number != last)
            if self._done:
                return
        self._put(b"", more=False)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        """PEP 3333's. Raises RuntimeError when called again without exc_info, and exc_info's when it is too late."""
        if exc_info is not None:
            try:
                if self._started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._start is not None or self._started:
            raise RuntimeError("start_response was called a second time without exc_info")
        code = status[:3]
        if not (code.isascii() and code.isdigit()) or status[3:4] not in ("", " "):
            raise ValueError(f"start_response takes a status like '200 OK', not {status!r}")
        self._left = -1
        for name, value in headers:
            if name.lower() == "content-length" and value.isascii() and value.isdigit():
                self._left = int(value[:19])
        self._start = {
            "type": "http.response.start",
            "status": int(code),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers],
        }
        return self.write

    def write(self, data: bytes) -> None:
        """What `start_response` returns: sends a piece before the iterable's."""
        if data and not self._done:
            self._put(data, more=True)

    def _put(self, piece: bytes, *, more: bool) -> None:
        """Hands a piece to the event loop once it has taken the one before: one at most is under way."""
        if not isinstance(piece, bytes):
            raise TypeError(f"a WSGI response consists of bytes, not of {type(piece).__name__}")
        messages: list[Message] = []
        if not self._started:
            if self._start is None:
                raise RuntimeError("the application did not call start_response")
            messages.append(self._start)
            if self._scope["method"] == "HEAD" or self._start["status"] in (204, 304):
                more = False
            self._started = True
        if self._left >= 0:
            self._left -= len(piece)
            if self._left <= 0:
                more = False
        messages.append({"type": "http.response.body", "body": piece, "more_body": more})
        self._done = not more
        if self._sending is not None:
            self._result(self._sending)
        self._sending = self._on_loop(self._send_all(messages))

    async def _send_all(self, messages: list[Message]) -> None:
        self._check()
        for message in messages:
            await self._send(message)

    def receive(self) -> Message:
        """Waits for the next piece of the request's body."""
        self._waiting = self._on_loop(self._receive_next())
        try:
            message: Message = self._result(self._waiting)
            return message
        finally:
            self._waiting = None

    async def _receive_next(self) -> Message:
        self._check()
        message: Message = await self._receive()
        return message

    def _check(self) -> None:
        # On the loop: a thread that looked before `abandon` came is caught here.
        if self._abandoned:
            raise ClientDisconnected("the request was given up")

    def _on_loop(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise ClientDisconnected("the agent has stopped") from None

    def _result(self, future: concurrent.futures.Future[Any]) -> Any:
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClientDisconnected("the request was given up") from None

    def _environ(self) -> dict[str, Any]:
        scope = self._scope
        root = scope["root_path"].encode()
        path = unquote_to_bytes(scope["raw_path"])
        path = path[len(root) :] if path.startswith(root) else path
        host, port = scope["server"] or ("localhost", 80)
        environ: dict[str, Any] = {
            "REQUEST_METHOD": scope["method"],
            "SCRIPT_NAME": root.decode("latin-1"),
            # OPTIONS * has none: it begins with a slash, or is empty (RFC 3875 §4.1.5).
            "PATH_INFO": "" if path == b"*" else path.decode("latin-1"),
            "QUERY_STRING": scope["query_string"].decode("latin-1"),
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": scope["scheme"],
            "wsgi.errors": ERRORS,
            "wsgi.multithread": True,
            "wsgi.multiprocess": True,  # other agents may serve the same id
            "wsgi.run_once": False,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.input_terminated": True,
        }
        query = "?" + environ["QUERY_STRING"] if environ["QUERY_STRING"] else ""
        environ["REQUEST_URI"] = environ["RAW_URI"] = scope["raw_path"].decode("latin-1") + query
        if scope["client"] is not None:
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = scope["client"][0], str(scope["client"][1])
        time_left = scope["extensions"].get("backstream", {}).get("time_left")
        if time_left is not None:
            environ["backstream.time_left"] = time_left
        has_body = False
        for raw_name, raw_value in scope["headers"]:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            if "_" in name:
                continue  # x_forwarded_for would pass for x-forwarded-for
            if name in ("content-length", "transfer-encoding"):
                has_body = True
            key = name.upper().replace("-", "_")
            if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                key = f"HTTP_{key}"
            if key in environ:
                environ[key] += ("; " if name == "cookie" else ",") + value
            else:
                environ[key] = value
        environ["wsgi.input"] = io.BufferedReader(Input(self), FILE_PIECE) if has_body else io.BytesIO()
        return environ


class Input(io.RawIOBase):
    """The request's body; what the application has not read is not granted to the client's side again."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._piece = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Waits for bytes. Raises OSError when the client left before the end."""
        while not self._piece:
            if self._ended:
                return 0
            message = self._call.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client has gone before its body's end")
            self._piece = memoryview(message["body"])
            self._ended = not message["more_body"]
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count


class FileWrapper:
    """wsgi.file_wrapper: a file's content in pieces, in place of an iterable."""

    def __init__(self, file: Any, size: int = FILE_PIECE) -> None:
        self._file = file
        self._size = max(size, FILE_PIECE)
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> Iterator[bytes]:
        while piece := self._file.read(self._size):
            yield piece


class Errors:
    """wsgi.errors: each line becomes a log record."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                logger.error("%s", line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        pass


ERRORS: Final = Errors()
