"""Requests that the program which embeds a proxy makes itself, through an agent and without a socket.

`Proxy.request` names a client id, and the request fares as a client's would: it waits for an agent that is away, and is
sent again where that is safe. `AgentLink.request` names one session. Both return a `Response` once its head has come;
its body streams under the same credit as everyone's.

Rules that hold here:
- What is one hop's is not for the caller to set: such fields are refused, not dropped.
- The task that sends a body ends with its request, however that ends.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from types import TracebackType
from typing import Any, Final

from backstream._agents import AgentLink, AgentTable
from backstream._call import Call
from backstream._headers import Headers
from backstream._messages import Body, RequestHead, ResponseHead
from backstream.errors import ErrorCode, HeadError, RequestFailed, ResponseCut, StreamError

__all__ = ["Calls", "Content", "HeaderTypes", "Headers", "Response", "send"]

HeaderTypes = Mapping[str, str] | Iterable[tuple[str | bytes, str | bytes]]
"""Header fields: a mapping, or (name, value) pairs."""
Content = bytes | bytearray | memoryview | AsyncIterable[bytes] | None
"""A request's body: none, all of it, or piece by piece."""

ONE_HOP: Final = frozenset(
    (b"connection", b"expect", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade")
)
"""Fields of one connection (RFC 9110 §7.6.1), which there is none of here."""
OWN: Final = b"x-backstream-"
MAX_READ: Final = 64 * 1024 * 1024
"""Bytes that `Response.aread` puts together unless it is told otherwise."""


class Response:
    """The response to a request of the program's own; read its body to the end, or close it.

    As an asynchronous context manager it is closed at the end. What was not asked for yet is held back by credit, so
    that one which is neither read nor closed holds its stream until the proxy's `idle_timeout`.
    """

    def __init__(self, call: Call, head: ResponseHead, sending: asyncio.Task[None] | None) -> None:
        self._call = call
        self._sending = sending
        self._content: bytes | None = None
        self.status = head.status
        """The status code, 200 to 999."""
        self.reason = head.reason.decode("latin-1")
        """The reason phrase, often empty."""
        fields = head.fields
        if head.body == Body.SIZED:
            fields = (*fields, (b"content-length", b"%d" % head.length))
        self.headers = Headers(fields)
        """Its `Headers`."""

    def __repr__(self) -> str:
        return f"<Response {self.status}>"

    @property
    def trailers(self) -> Headers:
        """The fields behind the body, once they have come."""
        return Headers(self._call.trailers)

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """The body in pieces, as they come. Raises ResponseCut where it breaks off."""
        if self._content is not None:
            if self._content:
                yield self._content
            return
        while piece := await self._call.read():
            yield piece

    async def aread(self, max_size: int = MAX_READ) -> bytes:
        """The whole body.

        max_size: bytes; a larger body is given up. Raises StreamError (TOO_LARGE) for it, ResponseCut where the body
        breaks off.
        """
        if self._content is None:
            pieces, size = [], 0
            async for piece in self.aiter_bytes():
                size += len(piece)
                if size > max_size:
                    await self.aclose()
                    raise StreamError(ErrorCode.TOO_LARGE, f"the body is larger than {max_size} bytes")
                pieces.append(piece)
            self._content = b"".join(pieces)
        return self._content

    async def aclose(self) -> None:
        """Gives up what has not come yet; the agent is told."""
        self._call.abandon("the response was closed")
        await _ended(self._sending)

    async def __aenter__(self) -> Response:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class Calls:
    """The requests of a program that go on."""

    def __init__(self) -> None:
        self._calls: set[Call] = set()
        self._emptied = asyncio.Event()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Call, sending: asyncio.Task[None] | None) -> None:
        """sending: the task that sends its body, which ends with it."""

        def over() -> None:
            self._calls.discard(call)
            if not self._calls:
                self._emptied.set()
            if sending is not None:
                sending.cancel()

        self._calls.add(call)
        call.on_over = over
        if call.over:
            over()

    async def wait_empty(self) -> None:
        """Waits until none goes on."""
        while self._calls:
            self._emptied.clear()
            await self._emptied.wait()

    def abandon(self) -> None:
        """Ends them all."""
        why = "the proxy has stopped"
        for call in list(self._calls):
            cut = call.head is not None
            call.abandon(
                why,
                ResponseCut(why)
                if cut
                else RequestFailed(why, status=503, cause="destination_unavailable", leg="proxy"),
            )


async def send(
    table: AgentTable,
    client_id: bytes,
    method: str,
    target: str,
    *,
    only: AgentLink | None = None,
    headers: HeaderTypes = (),
    content: Content = None,
    timeout: float | None = None,
    running: Calls,
) -> Response:
    """Sends a request on the running loop, which is the proxy's; see `Proxy.request`.

    only: the one session that it may take. running: where its `Call` is kept while it goes on.
    """
    head_timeout = table.settings.request_timeout if timeout is None else max(timeout, 0.0)
    if not math.isfinite(head_timeout):
        raise ValueError("timeout must be a number of seconds, 0 for no limit")
    head = _head(client_id, method, target, headers, content, head_timeout)
    has_body = head.body == Body.CHUNKED or head.length > 0
    call = Call()
    try:
        call.start(table, only, client_id, head, has_body, head_timeout)
    except HeadError as error:
        raise ValueError(str(error)) from None
    sending = None
    if has_body and content is not None and not call.over:
        if isinstance(content, bytes) and len(content) <= call.room():
            call.write(content)
            call.end()
        else:
            sending = asyncio.get_running_loop().create_task(_send_body(call, content))

    running.add(call, sending)
    try:
        return Response(call, await call.wait_head(), sending)
    except BaseException:
        call.abandon("the program gave the request up")
        await _ended(sending)
        raise


async def _send_body(call: Call, content: bytes | bytearray | memoryview | AsyncIterable[bytes]) -> None:
    """Sends a body as the agent takes it. Whatever goes wrong in making it is what waits for the response hears."""
    pieces = _once(bytes(content)) if isinstance(content, (bytes, bytearray, memoryview)) else content
    try:
        async for piece in pieces:
            view = memoryview(piece).cast("B")
            while view:
                room = await call.wait_room()
                if room == 0:
                    return  # no more is wanted
                call.write(bytes(view[:room]))
                view = view[room:]
            if call.over:
                return
        call.end()
    except Exception as error:
        call.abandon("the program's body failed", error)
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            await close()


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _ended(task: asyncio.Task[None] | None) -> None:
    if task is not None and task is not asyncio.current_task():
        task.cancel()
        await asyncio.wait((task,))


def _head(
    client_id: bytes, method: str, target: str, headers: HeaderTypes, content: Content, timeout: float
) -> RequestHead:
    """Raises ValueError; what the grammar says is judged where the head is encoded."""
    pairs: Iterable[tuple[Any, Any]] = headers.items() if isinstance(headers, Mapping) else headers
    authority, length = b"", None
    fields: list[tuple[bytes, bytes]] = []
    for given, text in pairs:
        name, value = _bytes(given, "a header's name").lower(), _bytes(text, "a header's value").strip(b" \t")
        if name in ONE_HOP:
            raise ValueError(f"{name.decode()} is a matter of one connection, and there is none here")
        if name.startswith(OWN):
            raise ValueError(f"{name.decode('latin-1')} is set by the proxy: name the id or the timeout as an argument")
        if name == b"host":
            authority = value
        elif name == b"content-length":
            if not value.isdigit() or (length is not None and int(value) != length):
                raise ValueError("content-length is not a number of bytes")
            length = int(value)
        else:
            fields.append((name, value))
    if content is None or isinstance(content, (bytes, bytearray, memoryview)):
        size = 0 if content is None else memoryview(content).nbytes
        if length is not None and length != size:
            raise ValueError(f"content-length is {length}, and the content has {size} bytes")
        body, length = Body.NONE if content is None and length is None else Body.SIZED, size
    else:
        body, length = Body.CHUNKED if length is None else Body.SIZED, length or 0
    if client_id:
        fields.append((b"x-backstream-client-id", client_id))
    fields.append((b"te", b"trailers"))
    return RequestHead(
        method=_bytes(method, "the method"),
        target=_bytes(target, "the target"),
        authority=authority,
        fields=tuple(fields),
        body=body,
        length=length,
        time_budget_ms=math.ceil(timeout * 1000),
        client_id=client_id,
    )


def _bytes(value: str | bytes, what: str) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(f"{what} has characters that HTTP can't carry: {value!r}") from None
