"""Transports for httpx: an agent of a proxy in this process, without a socket; and one behind a remote proxy.

    httpx.AsyncClient(transport=backstream.httpx.Transport(proxy, "4711"))

Needs httpx (`pip install 'backstream[httpx]'`). What fails raises httpx's exceptions, as with any transport of its own:
there is no proxy's answer to be had where no proxy is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Final, TypeVar

import httpx

from backstream._agents import AgentLink
from backstream.errors import RequestFailed, ResponseCut
from backstream.proxy import Proxy
from backstream.requests import ONE_HOP, Content, Response

__all__ = ["RemoteTransport", "Transport"]

T = TypeVar("T")
CLIENT_ID: Final = b"x-backstream-client-id"
LOOP_CHECK_SECONDS: Final = 1.0
"""How often a thread that waits for the proxy's event loop looks whether that still runs."""
_NO_MORE: Final[Any] = object()


class Transport(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """Sends requests to an agent of a `Proxy` in this process. Whatever host a URL names, the agent gets the request.

    With `httpx.AsyncClient` it belongs on the proxy's event loop; with `httpx.Client` on any other thread than that
    loop's. httpx's read time-out is that of the response's head and of each wait for its body; where httpx has none,
    nothing but the proxy's `idle_timeout` limits it. A request's body that is no bytes is iterated in a thread of its
    own with `httpx.Client`. `response.extensions["backstream"]` is the `backstream.Response`, which has the trailers.

    proxy: one that runs.
    agent: a client id, whose requests fare as a client's do, or the one `AgentLink` to use.

    Raises httpx.ConnectError where no agent takes the request, httpx.ReadTimeout and httpx.WriteTimeout,
    httpx.RemoteProtocolError where the response breaks off, httpx.ReadError where none comes for another reason.
    """

    def __init__(self, proxy: Proxy, agent: str | AgentLink) -> None:
        self._proxy = proxy
        self._agent = agent

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """For httpx."""
        if not isinstance(request.stream, httpx.AsyncByteStream):
            raise RuntimeError("the request's body is synchronous, and its client is not")
        return await self._send(request, _content_of(request, request.stream), _AsyncStream)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """For httpx."""
        if not isinstance(request.stream, httpx.SyncByteStream):
            raise RuntimeError("the request's body is asynchronous, and its client is not")
        loop = self._proxy.loop
        if loop is None:
            raise httpx.ConnectError("the proxy does not run", request=request)
        content = _content_of(request, None)
        if content is None and _has_body(request):
            content = _in_thread(request.stream)
        return _run(loop, self._send(request, content, lambda *parts: _SyncStream(loop, *parts)), request)

    async def _send(self, request: httpx.Request, content: Content, stream: Any) -> httpx.Response:
        timeouts = request.extensions.get("timeout", {})
        headers = _end_to_end(request.headers.raw)
        options: dict[str, Any] = {"headers": headers, "content": content, "timeout": timeouts.get("read") or 0.0}
        target = request.url.raw_path.decode("ascii")
        try:
            if isinstance(self._agent, AgentLink):
                response = await self._agent.request(request.method, target, **options)
            else:
                response = await self._proxy.request(self._agent, request.method, target, **options)
        except RequestFailed as error:
            raise _failure(error)(str(error), request=request) from error
        except ValueError as error:
            raise httpx.LocalProtocolError(str(error), request=request) from error
        return httpx.Response(
            response.status,
            headers=list(response.headers.raw),
            stream=stream(request, response),
            extensions={
                "http_version": b"HTTP/1.1",
                "reason_phrase": response.reason.encode("latin-1"),
                "backstream": response,
            },
        )


class RemoteTransport(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """Adds the header that names the agent; URLs are those of a proxy elsewhere.

    client_id: the agent's.
    inner: the transport that does the work, of the client's kind; `httpx.HTTPTransport` or
    `httpx.AsyncHTTPTransport` as they come without it. It is closed with this one.
    """

    def __init__(self, client_id: str, inner: httpx.BaseTransport | httpx.AsyncBaseTransport | None = None) -> None:
        self._client_id = client_id.encode("ascii")
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """For httpx."""
        if self._inner is None:
            self._inner = httpx.AsyncHTTPTransport()
        if not isinstance(self._inner, httpx.AsyncBaseTransport):
            raise RuntimeError("the inner transport is synchronous, and the client is not")
        self._name_agent(request)
        return await self._inner.handle_async_request(request)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """For httpx."""
        if self._inner is None:
            self._inner = httpx.HTTPTransport()
        if not isinstance(self._inner, httpx.BaseTransport):
            raise RuntimeError("the inner transport is asynchronous, and the client is not")
        self._name_agent(request)
        return self._inner.handle_request(request)

    def _name_agent(self, request: httpx.Request) -> None:
        request.headers[CLIENT_ID.decode()] = self._client_id.decode()

    async def aclose(self) -> None:
        """For httpx."""
        if isinstance(self._inner, httpx.AsyncBaseTransport):
            await self._inner.aclose()

    def close(self) -> None:
        """For httpx."""
        if isinstance(self._inner, httpx.BaseTransport):
            self._inner.close()


# --- responses ---


class _AsyncStream(httpx.AsyncByteStream):
    """The body of a response."""

    def __init__(self, request: httpx.Request, response: Response) -> None:
        self._request = request
        self._response = response
        self._pieces = response.aiter_bytes()
        self._timeout: float | None = request.extensions.get("timeout", {}).get("read")

    async def read(self) -> bytes:
        """The next piece, b"" at the end."""
        try:
            async with asyncio.timeout(self._timeout):
                return await anext(self._pieces, b"")
        except TimeoutError:
            await self._response.aclose()
            raise httpx.ReadTimeout(f"no byte within {self._timeout} s", request=self._request) from None
        except ResponseCut as error:
            raise httpx.RemoteProtocolError(str(error), request=self._request) from error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read():
            yield piece

    async def aclose(self) -> None:
        await self._response.aclose()


class _SyncStream(httpx.SyncByteStream):
    """The body of a response, for another thread than the loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, request: httpx.Request, response: Response) -> None:
        self._loop = loop
        self._request = request
        self._stream = _AsyncStream(request, response)

    def __iter__(self) -> Iterator[bytes]:
        while piece := _run(self._loop, self._stream.read(), self._request):
            yield piece

    def close(self) -> None:
        if self._loop.is_running():
            _run(self._loop, self._stream.aclose(), self._request)


# --- requests ---


def _content_of(request: httpx.Request, stream: Content) -> Content:
    """The body as bytes where the request has it so, else `stream`."""
    try:
        content = request.content
    except httpx.RequestNotRead:
        return stream
    return content or (b"" if _has_body(request) else None)


def _has_body(request: httpx.Request) -> bool:
    return "content-length" in request.headers or "transfer-encoding" in request.headers


def _end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without what httpx says to the next hop (RFC 9110 §7.6.1), of which there is none."""
    dropped = {CLIENT_ID, *ONE_HOP}
    for name, value in headers:
        if name.lower() == b"connection":
            dropped.update(member.strip().lower() for member in value.split(b","))
    return [(name, value) for name, value in headers if name.lower() not in dropped]


async def _in_thread(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    """What a blocking iterable gives, asked for in a thread of its own."""
    loop = asyncio.get_running_loop()
    pool = ThreadPoolExecutor(1, "backstream-body")
    iterator: Any = None
    try:
        iterator = await loop.run_in_executor(pool, iter, pieces)
        while (piece := await loop.run_in_executor(pool, next, iterator, _NO_MORE)) is not _NO_MORE:
            yield piece
    finally:
        if hasattr(iterator, "close"):
            pool.submit(iterator.close)
        pool.shutdown(wait=False)


def _failure(error: RequestFailed) -> type[httpx.TransportError]:
    if error.status == httpx.codes.GATEWAY_TIMEOUT:
        return httpx.ReadTimeout
    if error.status == httpx.codes.REQUEST_TIMEOUT:
        return httpx.WriteTimeout
    if error.status in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.UNPROCESSABLE_ENTITY):
        return httpx.ConnectError
    return httpx.ReadError


def _run(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T], request: httpx.Request) -> T:
    """Has the proxy's loop do `work` while this thread waits."""
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if here is loop or not loop.is_running():
        work.close()
        if here is loop:
            raise RuntimeError("httpx.Client would block the proxy's event loop: use httpx.AsyncClient there")
        raise httpx.ConnectError("the proxy does not run", request=request)
    future = asyncio.run_coroutine_threadsafe(work, loop)
    try:
        while True:
            try:
                return future.result(LOOP_CHECK_SECONDS)
            except FutureTimeout:
                if future.done():
                    return future.result()
                if not loop.is_running():
                    raise httpx.ConnectError("the proxy's event loop has ended", request=request) from None
    except BaseException:
        future.cancel()
        raise
