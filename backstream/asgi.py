"""A proxy as an ASGI application: mounted beside other routes, in somebody else's server.

Rules that hold here:
- A request's judgement, its routing and its answers are the server's own (`AppConnection`); this file carries ASGI's
  events to and fro.
- Nothing is asked of `receive` before the one before was taken, and nothing handed to `send` before it took the last:
  the ASGI server's back-pressure is the tunnel's.
- A response that breaks off ends in an exception, since a server or a middleware would complete it otherwise.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final
from urllib.parse import quote

from backstream._app_link import AppLink
from backstream._http._app_connection import AppConnection
from backstream._http._context import ServerContext
from backstream._http._error_pages import error_page
from backstream._http._handshake import CLIENT_ID, judge_handshake
from backstream._http.errors import MessageError
from backstream._loop import loop_state
from backstream._websocket import SUBPROTOCOL
from backstream.proxy import AgentPeer, Proxy

__all__ = ["ProxyApp"]

logger = logging.getLogger("backstream.proxy")

Event = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

HANDSHAKE: Final = ((b"sec-websocket-version", b"13"), (b"sec-websocket-key", b"AAAAAAAAAAAAAAAAAAAAAA=="))
"""What the ASGI server has judged already, and need not pass on."""
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LINE_END: Final = re.compile(rb"[\r\n\0]")
PATH_SAFE: Final = "/:@!$&'()*+,;=-._~"


class ProxyApp(Proxy):
    """A `Proxy` that listens nowhere: an ASGI 3 application, to be served or mounted wherever one can be.

    Agents dial the path `settings.agent_path` below the one that it is mounted at, by WebSocket; every other path is
    for clients, and is what the agent's service sees, with the mount's own path as its prefix. WebSockets of clients
    are refused (501). What the settings say of listening, TLS and the PROXY protocol is the ASGI server's matter and
    has no effect. Everything else is as in `Proxy`: `agents`, `request`, `drain`, `close`.

    It starts with the first event that it gets, or with the lifespan's where it is the whole application. Mounted in
    another one, whose lifespan it does not see, enter it as an async context manager there, or call `drain` at the end.
    """

    async def start(self) -> None:
        """Starts it on the running event loop; nothing listens."""
        self._begin()
        self._app_context = self._context(clients=True, agents=True, tls=None)

    _app_context: ServerContext

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._serve_lifespan(receive, send)
            return
        if self._closed is None:
            await self.start()
        if self.loop is not asyncio.get_running_loop():
            raise RuntimeError("a ProxyApp serves on one event loop")
        if kind == "http":
            await self._serve_request(scope, receive, send)
        elif kind == "websocket":
            await self._serve_websocket(scope, receive, send)
        else:
            raise NotImplementedError(f"ASGI's {kind} is not served here")

    async def _serve_lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            event = await receive()
            if event["type"] == "lifespan.startup":
                if self._closed is None:
                    await self.start()
                await send({"type": "lifespan.startup.complete"})
            else:
                await self.drain()
                await send({"type": "lifespan.shutdown.complete"})
                return

    # --- clients ---

    async def _serve_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = AppConnection(self._app_context)
        events: list[Event] = []
        chunked = _framing_is_unknown(scope)
        if chunked:
            events.append(await receive())
            chunked = bool(events[0].get("body") or events[0].get("more_body"))
        offers_trailers = "http.response.trailers" in (scope.get("extensions") or {})
        root_path, target = _target(scope)
        connection.begin(
            _head(scope, target, chunked),
            _address(scope),
            b"https" if scope.get("scheme") == "https" else b"http",
            root_path,
            offers_trailers,
        )
        reading = asyncio.get_running_loop().create_task(_read_request(connection, events, receive))
        try:
            await _write_response(connection, send)
        finally:
            connection.leave()
            reading.cancel()
            await asyncio.wait((reading,))

    # --- agents ---

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        event = await receive()
        if event["type"] != "websocket.connect":
            return
        root_path, target = _target(scope)
        agent_path = self.settings.agent_path.encode()
        try:
            if target.partition(b"?")[0] != agent_path:
                if SUBPROTOCOL in (scope.get("subprotocols") or ()):
                    where = (root_path + agent_path).decode("latin-1")
                    raise MessageError(404, f"agents connect at {where}", "destination_not_found")
                raise MessageError(501, "WebSockets of clients are not passed on from here", "http_upgrade_failed")
            link = self._accept(scope)
        except MessageError as error:
            await _refuse(error, scope, send)
            return
        tasks = [
            asyncio.get_running_loop().create_task(work)
            for work in (_read_messages(link, receive), _write_messages(link, send))
        ]
        try:
            await link.wait_ended()
        finally:
            link.discard("the ASGI server ended it")
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _accept(self, scope: Scope) -> AppLink:
        """An agent's link. Raises MessageError to refuse it."""
        fields = tuple((name.lower(), value) for name, value in scope["headers"])
        ids = [field for field in fields if field[0] == CLIENT_ID]
        offered = ", ".join(scope.get("subprotocols") or ()).encode()
        handshake = judge_handshake(
            [*ids, (b"sec-websocket-protocol", offered), *HANDSHAKE],
            1,
            False,
            id_optional=self.settings.client_id_optional,
        )
        if SUBPROTOCOL not in (scope.get("subprotocols") or ()):
            raise MessageError(501, f"the subprotocol {SUBPROTOCOL} is required", "http_upgrade_failed")
        if self._closing:
            raise MessageError(503, "the proxy is shutting down", "http_upgrade_failed")
        address = _address(scope)
        answer = self._on_agent(AgentPeer(address, None), handshake.client_id, fields)
        if isinstance(answer, tuple):
            raise MessageError(answer[0], answer[1], "http_upgrade_failed")
        return AppLink(self.agents, loop_state(), handshake.client_id, address)


# --- a request's events ---


async def _read_request(connection: AppConnection, events: list[Event], receive: Receive) -> None:
    """Passes the body on as the agent takes it, then waits for the client to go."""
    wanted = connection.wants_body
    if wanted:
        await connection.wait_continue()
    while True:
        event = events.pop() if events else await receive()
        if event["type"] == "http.disconnect":
            connection.leave()
            return
        if not wanted:
            continue
        body = event.get("body", b"")
        while body:
            room = await connection.wait_room()
            if room == 0:
                return
            connection.feed(bytes(body[:room]))
            body = body[room:]
        if not event.get("more_body", False):
            connection.end()
            wanted = False


async def _write_response(connection: AppConnection, send: Send) -> None:
    await connection.wait_head()
    if connection.headers is None:
        return  # the client has gone
    start = {
        "type": "http.response.start",
        "status": connection.response_status,
        "headers": connection.headers,
    }
    trailers = connection.trailers is not None
    if trailers:
        start["trailers"] = True
    await send(start)
    more = True
    while more:
        piece = await connection.read()
        more = not connection.all_read
        await send({"type": "http.response.body", "body": piece, "more_body": more})
        connection.took(len(piece))
    if trailers:
        fields = list(connection.trailers or ())
        await send({"type": "http.response.trailers", "headers": fields, "more_trailers": False})


# --- an agent's messages ---


async def _read_messages(link: AppLink, receive: Receive) -> None:
    try:
        while True:
            event = await receive()
            if event["type"] != "websocket.receive":
                link.abort(f"the peer closed the session ({event.get('code', 1005)})")
                return
            link.message(event.get("bytes"))
    except Exception:
        logger.exception("reading from agent %s failed", link.name)
        link.abort("the connection failed")


async def _write_messages(link: AppLink, send: Send) -> None:
    loop = asyncio.get_running_loop()
    try:
        await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL})
        while not link.is_lost:
            while (message := link.next_message()) is not None:
                pending = loop.call_soon(link.set_pending, True)
                await send({"type": "websocket.send", "bytes": message})
                pending.cancel()
                link.set_pending(False)
            event = link.close_event
            if event is not None:
                loop.call_soon(link.set_pending, True)
                await send(event)
                link.abort("the session is closed")
                return
            await link.wait_output()
    except Exception as error:
        link.abort(f"the connection was lost ({type(error).__name__})")


async def _refuse(error: MessageError, scope: Scope, send: Send) -> None:
    """Answers a WebSocket handshake with a status, where the ASGI server can send one."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:120]})
        return
    leg = "client" if error.cause in ("http_request_error", "http_request_denied") else "proxy"
    accept = [value for name, value in scope["headers"] if name.lower() == b"accept"]
    lines, body = error_page(error.status, error.cause, str(error), leg, accept=accept)
    pairs = [line.split(": ", 1) for line in lines]
    headers = [(name.encode("ascii"), value.encode("ascii", "replace")) for name, value in pairs]
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "websocket.http.response.start", "status": error.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


# --- scopes ---


def _address(scope: Scope) -> tuple[str, int] | None:
    client = scope.get("client")
    return (client[0], client[1] or 0) if client else None


def _target(scope: Scope) -> tuple[bytes, bytes]:
    """The path that the application is mounted at, escaped, and the rest of the path with the query."""
    root = quote(scope.get("root_path") or "", safe=PATH_SAFE).rstrip("/").encode()
    path = scope.get("raw_path") or quote(scope["path"], safe=PATH_SAFE).encode("ascii")
    path = path.partition(b"?")[0]
    if root and (path == root or path.startswith(root + b"/")):
        path = path[len(root) :] or b"/"
    query = scope.get("query_string") or b""
    return root, path + (b"?" + query if query else b"")


def _framing_is_unknown(scope: Scope) -> bool:
    """Whether only the body itself says whether there is one: without Content-Length, from HTTP/2 on."""
    if scope.get("http_version", "1.1") in ("1.0", "1.1"):
        return False
    return not any(name.lower() == b"content-length" for name, _ in scope["headers"])


def _head(scope: Scope, target: bytes, chunked: bool) -> bytes:
    """The request's head as HTTP/1.1 has it. chunked: it has a body, which no field of it announces.

    What could not stand in one is left for the reader to refuse, but for what would end a line.
    """
    later = scope.get("http_version", "1.1") not in ("1.0", "1.1")
    version = b"1.0" if scope.get("http_version") == "1.0" else b"1.1"
    lines = [b"%s %s HTTP/%s" % (scope["method"].encode("latin-1", "replace"), target, version)]
    for name, value in scope["headers"]:
        if name.lower() == b"upgrade" or (later and name.lower() == b"transfer-encoding"):
            continue  # switching protocols is nothing that ASGI has
        if not _NAME.fullmatch(name) or _LINE_END.search(value):
            return b"malformed\r\n\r\n"
        lines.append(name + b": " + value)
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    if _LINE_END.search(lines[0]):
        return b"malformed\r\n\r\n"
    return b"\r\n".join(lines) + b"\r\n\r\n"
