"""A service that is one function: `async def serve(request: Request) -> Response`, for programs without a framework.

The function is run as an ASGI application. Both bodies stream: what the function does not ask for is not sent to the
agent, and a response's next piece is asked for when the client has taken the one before.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from backstream._asgi import ClientDisconnected
from backstream._headers import Headers
from backstream.errors import ErrorCode, StreamError

__all__ = ["ClientDisconnected", "Function", "Headers", "Request", "Response"]

MAX_BODY: Final = 16 * 1024 * 1024
"""Bytes that `Request.body` gathers unless told otherwise."""


class Request:
    """A request, as the function gets it."""

    def __init__(self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]]) -> None:
        self.method: str = scope["method"]
        """Such as `GET`."""
        self.path: str = scope["path"]
        """Decoded; `raw_path` is as the client sent it."""
        self.raw_path: bytes = scope["raw_path"]
        """As the client sent it, byte for byte."""
        self.query: str = scope["query_string"].decode("latin-1")
        """What follows the `?`, as the client sent it; `urllib.parse.parse_qs` takes it apart."""
        self.headers = Headers(tuple(scope["headers"]))
        """The header fields by name, as a `Headers`."""
        self.client: tuple[str, int] | None = scope["client"]
        """The client's address and port, as the proxy sees them."""
        self.time_left: float | None = scope["extensions"].get("backstream", {}).get("time_left")
        """Seconds that the proxy waits for the response's head from the request's end; None for no limit."""
        self._receive = receive
        self._more = True

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path}>"

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body in pieces, as they come. Raises ClientDisconnected when the client leaves before its end."""
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected("the client has gone before its body's end")
            self._more = message["more_body"]
            if message["body"]:
                yield message["body"]

    async def body(self, max_size: int = MAX_BODY) -> bytes:
        """The rest of the body, all of it where nothing was read yet.

        max_size: bytes. Raises StreamError (TOO_LARGE) for a larger one, which is 413 for the client unless the
        function does otherwise; ClientDisconnected when the client leaves before its end.
        """
        pieces, size = [], 0
        async for piece in self:
            size += len(piece)
            if size > max_size:
                raise _TooLarge(ErrorCode.TOO_LARGE, f"the request's body is larger than {max_size} bytes")
            pieces.append(piece)
        return b"".join(pieces)


class Response:
    """A response, as the function returns it.

    body: bytes, or an asynchronous iterable of them, which is closed (`aclose`) whatever happens.
    status: 200 to 999.
    headers: a mapping, or pairs where a name comes more than once; the body's length is added where it is known.
    """

    def __init__(
        self,
        body: bytes | AsyncIterable[bytes] = b"",
        *,
        status: int = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
    ) -> None:
        self.body = body
        self.status = status
        self.headers = list(headers.items() if isinstance(headers, Mapping) else headers)

    def __repr__(self) -> str:
        return f"<Response {self.status}>"


Function: TypeAlias = Callable[[Request], Awaitable[Response]]


class _TooLarge(StreamError):
    pass


def asgi_application(
    function: Function,
) -> Callable[[Any, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]:
    """An ASGI application (without lifespan) that answers each request by `function`."""

    async def app(
        scope: Mapping[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        try:
            response = await function(Request(scope, receive))
        except _TooLarge as error:
            response = Response(f"{error}\n".encode(), status=413, headers={"content-type": "text/plain"})
        if not isinstance(response, Response):
            raise TypeError(f"the function returned {response!r}, which is no Response")
        await _send(response, scope["method"] == "HEAD", send)

    return app


async def _send(response: Response, is_head: bool, send: Callable[[Any], Awaitable[None]]) -> None:
    body = response.body
    try:
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        if isinstance(body, (bytes, bytearray, memoryview)):
            await send({"type": "http.response.body", "body": bytes(body)})
            return
        if not is_head and response.status not in (204, 304):
            async for piece in body:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()
