"""The proxy: listens for clients and agents, and brings each request to the agent that it names.

Life-cycle and policy; bytes are the business of `_http` and of the sessions.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

from backstream import requests
from backstream._agents import AgentLink, AgentTable
from backstream._flow import WindowBudget
from backstream._http._clients import ClientTable
from backstream._http._context import ServerContext
from backstream._http._server import ServerConnection
from backstream._loop import loop_state
from backstream._messages import Notify
from backstream._websocket import SUBPROTOCOL, accept_websocket
from backstream.certificates import server_context
from backstream.config import ProxySettings, parse_address
from backstream.errors import ConfigurationError
from backstream.events import Events, Readers

__all__ = ["Authorize", "Handshake", "Proxy"]

logger = logging.getLogger("backstream.proxy")
access_logger = logging.getLogger("backstream.access")

CLOSE_SECONDS = 3.0
"""How long `close` waits for connections that were told to end."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """An agent that asks to be accepted: the head of its WebSocket handshake."""

    client_id: str
    """The id that it wants to hold."""
    address: tuple[str, int] | None
    """(host, port) that it comes from; None on a Unix socket."""
    fields: tuple[tuple[bytes, bytes], ...]
    """Its header fields as (name in lower case, value)."""
    certificate: Mapping[str, Any] | None = None
    """The client certificate that it showed, as `ssl.SSLSocket.getpeercert` has it; None without `tls_client_ca`."""

    def field(self, name: str) -> str | None:
        """The value of its first field with this name, without regard to case, or None."""
        wanted = name.lower().encode()
        return next((value.decode("latin-1") for key, value in self.fields if key == wanted), None)


Authorize = Callable[[Handshake], bool]


class AgentPeer(NamedTuple):
    """Who dials, where no connection of the proxy's own knows."""

    client_address: tuple[str, int] | None
    peer_certificate: dict[str, Any] | None


class Proxy:
    """A proxy as an async context manager: it listens inside, and is closed at the end.

    settings: `ProxySettings`, its defaults where there is none.
    authorize: called with each agent's `Handshake` before it is accepted, on the event loop, so it must not block;
        false refuses the agent with 403. Without it whoever reaches the agents' port can hold any id.
    on_notify: called with each one-way event that an agent sends, and the agent.
    sockets: listening TCP sockets to take over instead of binding `settings.listen`: the first for clients, a second
        one for agents. They are left open for the next process, and so is whoever waits in their queues.
    """

    def __init__(
        self,
        settings: ProxySettings | None = None,
        *,
        authorize: Authorize | None = None,
        on_notify: Callable[[AgentLink, Notify], None] | None = None,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        self.settings = settings or ProxySettings()
        self._authorize = authorize
        self._inherited = tuple(sockets)
        if len(self._inherited) > 2:
            raise ConfigurationError("a proxy takes at most two sockets: one for clients, one for agents")
        self._budget = WindowBudget(self.settings.session.window_budget)
        self.agents = AgentTable(self.settings, self._budget)
        """Every agent's session as an `AgentTable`: iterate over it, count it, or ask `agents.by_id("4711")`."""
        self.agents.on_notify = on_notify
        self._seed_codecs = dict(text.rsplit("=", 1) for text in self.settings.seed_codec_of)
        self.agents.sender = self._send
        self._calls = requests.Calls()
        self._readers = Readers()
        self.agents.on_event = self._readers.tell
        self._clients = ClientTable(self.settings.max_connections_per_address, self.settings.max_aborts_per_address)
        self._contexts: list[ServerContext] = []
        self._listeners: list[tuple[asyncio.Server, ServerContext]] = []
        self._addresses: list[tuple[str, int]] = []
        self._adopting: set[asyncio.Task[Any]] = set()
        self._closed: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False

    # --- life-cycle ---

    async def start(self) -> None:
        """Listens.

        Raises OSError when an address can't be bound, ConfigurationError when a file of TLS can't be used.
        """
        self._begin()
        shared = self.settings.agent_listen is None and len(self._inherited) < 2
        first, second = (*self._inherited, None, None)[:2]
        try:
            await self._listen(self.settings.listen, first, clients=True, agents=shared)
            if not shared:
                await self._listen(self.settings.agent_listen or "", second, clients=False, agents=True)
        except BaseException:
            await self.close()
            raise
        self._say_hello()

    def _begin(self) -> None:
        if self._closed is not None:
            raise RuntimeError("a Proxy is started once")
        self._closed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        loop_state()

    async def _listen(self, address: str, inherited: socket.socket | None, *, clients: bool, agents: bool) -> None:
        context = self._context(clients=clients, agents=agents, tls=self._tls_context(agents))
        loop = asyncio.get_running_loop()
        backlog = self.settings.backlog
        if inherited is not None:
            # A copy: the original stays open when this server closes.
            server = await loop.create_server(context.connection, sock=inherited.dup(), backlog=backlog)
        else:
            host, port = parse_address(address)
            server = await loop.create_server(
                context.connection, host or None, port, backlog=backlog, reuse_port=self.settings.reuse_port or None
            )
        self._listeners.append((server, context))
        self._addresses.append(_bound(server))

    def _context(self, *, clients: bool, agents: bool, tls: ssl.SSLContext | None) -> ServerContext:
        """What the connections of one listener share."""
        context = ServerContext(
            self.agents,
            self._clients,
            self.settings,
            serves_clients=clients,
            serves_agents=agents,
            on_agent=self._on_agent,
            access_log=_log_access if self.settings.access_log else None,
            protocol=ServerConnection,
            tls=tls,
        )
        self._contexts.append(context)
        return context

    def _tls_context(self, agents: bool) -> ssl.SSLContext | None:
        """The context of the listener for agents, or of one for clients alone; None where TLS is not spoken."""
        settings = self.settings
        if settings.tls_cert is None or settings.tls_key is None:
            return None
        return server_context(settings.tls_cert, settings.tls_key, settings.tls_client_ca if agents else None)

    def reload_tls(self) -> bool:
        """Reads the files of TLS again, for new connections; those that are open go on as they are.

        Returns whether it could: a file that can't be used is logged as an error, and what was read before stays.
        """
        if self.settings.tls_cert is None:
            logger.info("no file of TLS is to be read again")
            return True
        try:
            contexts = [self._tls_context(context.serves_agents) for context in self._contexts]
        except ConfigurationError as error:
            logger.error("TLS stays as it was: %s", error)
            return False
        for context, tls in zip(self._contexts, contexts, strict=True):
            context.tls = tls
        logger.info("the certificate was read again: %s", self.settings.tls_cert)
        return True

    def _say_hello(self) -> None:
        secure = " with TLS" if self.settings.tls_cert is not None else ""
        logger.info("listening on %s for clients%s", _text(self.address), secure)
        logger.info("listening on %s%s for agents%s", _text(self.agent_address), self.settings.agent_path, secure)
        if self._authorize is None and self.settings.tls_client_ca is not None:
            logger.info(
                "agents show a certificate from %s; each can hold any client id",
                self.settings.tls_client_ca,
            )
        elif self._authorize is None:
            host, _ = self.agent_address
            logger.log(
                logging.INFO if ipaddress.ip_address(host).is_loopback else logging.WARNING,
                "agents are not authenticated: whoever reaches %s can hold any client id",
                _text(self.agent_address),
            )
        logger.info("memory of buffers is bounded by %s MiB", f"{memory_bound(self.settings) / 2**20:,.0f}")

    async def drain(self) -> None:
        """Ends gracefully, within `settings.drain_timeout` seconds: no new connections, running requests finish."""
        if self._closed is None or self._closed.is_set():
            return
        logger.info("draining: %d connections, %d agents", self.connection_count, len(self.agents))
        self._stop_listening(admit=True)
        self.agents.drain()
        for context in self._contexts:
            context.drain()
        if not await _within(
            self.settings.drain_timeout,
            *self._adopting,
            self._calls.wait_empty(),
            *(context.wait_empty() for context in self._contexts),
        ):
            logger.warning("%d connections were cut after %g s", self.connection_count, self.settings.drain_timeout)
        await self.close()

    async def close(self) -> None:
        """Ends at once: requests that run are cut, agents are told to come again."""
        if self._closed is None or self._closing:
            return
        self._closing = True
        self._stop_listening(admit=False)
        for context in self._contexts:
            context.abort()
        self.agents.close()
        self._calls.abandon()
        waits = [self.agents.wait_empty(), *(context.wait_empty() for context in self._contexts)]
        try:
            await _within(CLOSE_SECONDS, *waits)
        finally:
            self.agents.abort()
            self._readers.close()
            self._closed.set()
            logger.info("stopped")

    async def wait_closed(self) -> None:
        """Waits until `close` or `drain` has ended it."""
        if self._closed is not None:
            await self._closed.wait()

    async def __aenter__(self) -> Proxy:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _stop_listening(self, *, admit: bool) -> None:
        """Stops accepting. admit: those who wait in a queue that nobody else will look into are let in first."""
        listeners, self._listeners = self._listeners, []
        for server, context in listeners:
            queues = []
            if admit and not self._inherited:
                queues = [socket.socket(fileno=os.dup(each.fileno())) for each in server.sockets]
            server.close()
            for queue in queues:
                with queue:
                    self._empty(queue, context)

    def _empty(self, queue: socket.socket, context: ServerContext) -> None:
        queue.setblocking(False)
        loop = asyncio.get_running_loop()
        for _ in range(self.settings.backlog):
            try:
                accepted, _ = queue.accept()
            except OSError:
                return
            accepted.setblocking(False)
            task = loop.create_task(self._adopt(accepted, context))
            self._adopting.add(task)
            task.add_done_callback(self._adopting.discard)

    async def _adopt(self, accepted: socket.socket, context: ServerContext) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(context.connection, accepted)
        except OSError:
            accepted.close()  # gone already

    # --- what there is to see ---

    @property
    def address(self) -> tuple[str, int]:
        """(host, port) that clients reach it at, as bound. Raises RuntimeError before `start`."""
        return self._bound_addresses()[0]

    @property
    def agent_address(self) -> tuple[str, int]:
        """(host, port) that agents reach it at, as bound. Raises RuntimeError as `address` does."""
        return self._bound_addresses()[-1]

    def _bound_addresses(self) -> list[tuple[str, int]]:
        if not self._addresses:
            raise RuntimeError("there is no address before start() has listened")
        return self._addresses

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that it runs on, None before `start`."""
        return self._loop

    @property
    def connection_count(self) -> int:
        """Connections of clients that are open (an agent's is none any more once it is a WebSocket)."""
        return sum(context.connection_count for context in self._contexts)

    @property
    def window_bytes(self) -> int:
        """Bytes of the window budget that are in use."""
        return self._budget.used_bytes

    @property
    def seed_bytes(self) -> int:
        """Bytes of the seed wire's budget that are in use."""
        return self.agents.seed_budget.used_bytes

    def events(self, limit: int = 1024) -> Events:
        """What happens to agents from now on, as an asynchronous iterator of `AgentEvent` that ends with the proxy.

        limit: events that wait for a slow reader; it is told how many more there were.
        """
        return self._readers.add(limit)

    # --- requests of the program's own ---

    async def request(
        self,
        client_id: str,
        method: str,
        target: str,
        *,
        headers: requests.HeaderTypes = (),
        content: requests.Content = None,
        timeout: float | None = None,
    ) -> requests.Response:
        """Sends a request to an agent of `client_id` and returns its `Response` once the head has come.

        It waits for an agent and is sent again as a client's request is. method: such as "GET". target: path and query,
        as they are to stand in the request ("/a%20b?c=d"). headers: a mapping or (name, value) pairs, of str or bytes;
        Host is the request's authority. content: the body, as bytes or an asynchronous iterator of them, which is asked
        for more as the agent takes it. timeout: seconds for the response's head from the request's end, 0 for no limit,
        None for `settings.request_timeout`.

        Raises RequestFailed when no response comes, ValueError for a head that HTTP does not allow, and what the body's
        iterator raises. Cancelled, it resets the stream.
        """
        return await self._send(
            client_id.encode("ascii"), method, target, headers=headers, content=content, timeout=timeout
        )

    async def _send(self, to: AgentLink | bytes, method: str, target: str, **options: Any) -> requests.Response:
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError("a request is made on the event loop of a proxy that runs")
        only = None if isinstance(to, bytes) else to
        client_id = to if isinstance(to, bytes) else to.client_id
        return await requests.send(self.agents, client_id, method, target, only=only, running=self._calls, **options)

    # --- agents ---

    def _on_agent(
        self, connection: ServerConnection | AgentPeer, client_id: bytes, fields: tuple[tuple[bytes, bytes], ...]
    ) -> tuple[int, str] | Callable[[Any, bytes, bytes], object]:
        """What becomes of an agent's handshake: (status, reason), or a function that takes its connection over."""
        reason = self.agents.refusal(client_id)
        if reason is not None:
            return 503, reason
        if self._authorize is not None:
            handshake = Handshake(
                client_id.decode("ascii"), connection.client_address, fields, connection.peer_certificate
            )
            try:
                allowed = self._authorize(handshake)
            except Exception:
                logger.exception("authorize failed for agent %s", handshake.client_id)
                return 500, "the agent could not be authorized"
            if allowed is not True:
                logger.warning(
                    "agent %s from %s was refused",
                    handshake.client_id,
                    _text(connection.client_address) if connection.client_address else "a local socket",
                    extra={"id": handshake.client_id},
                )
                return 403, "the agent is not authorized for this id"

        wire = self._wire_for(client_id, fields)
        if wire is None:
            return 501, f"the subprotocol {SUBPROTOCOL} is required: the seed wire is not spoken here"

        def take_over(transport: Any, key: bytes, rest: bytes) -> object:
            link = AgentLink(self.agents, loop_state(), client_id, connection.client_address, wire)
            return accept_websocket(transport, link, key, rest)

        return take_over

    def _wire_for(self, client_id: bytes, fields: tuple[tuple[bytes, bytes], ...]) -> str | None:
        """native, the encoding that the seed wire begins with, or None: neither is spoken to this agent."""
        session = self.settings.session
        offered = b",".join(value for name, value in fields if name == b"sec-websocket-protocol").split(b",")
        if session.wire != "seed" and SUBPROTOCOL.encode() in [name.strip() for name in offered]:
            return "native"
        if session.wire == "native":
            return None
        return self._seed_codecs.get(client_id.decode("ascii"), session.seed_codec)


async def _within(seconds: float, *work: Awaitable[Any]) -> bool:
    """Awaits all of `work`; false when it took longer than `seconds` and was cancelled."""
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*work)
    except TimeoutError:
        return False
    return True


def memory_bound(settings: ProxySettings) -> int:
    """The most that buffers can take, in bytes, when every limit is reached at once (docs: the bound)."""
    session = settings.session
    message, high_water, piece, read_buffer = 256 * 1024, 128 * 1024, 64 * 1024, 384 * 1024
    # OpenSSL's state of a connection, and what it keeps of buffers after bulk in both directions.
    tls = 128 * 1024 if settings.tls_cert is not None else 0
    streams = min(settings.max_connections, settings.max_agents * session.max_streams)
    return (
        streams * session.initial_window
        + session.window_budget
        + (session.seed_budget if session.wire != "native" else 0)
        + settings.max_agents * (read_buffer + message + high_water + tls)
        + settings.max_connections * (2 * piece + settings.max_head_size + tls)
    )


def _log_access(
    connection: ServerConnection,
    method: bytes,
    target: bytes,
    client_id: bytes,
    status: int,
    size: int,
    seconds: float,
    request_id: bytes,
    link: AgentLink | None,
    stream_id: int,
    cut: str | None,
) -> None:
    address = connection.client_address
    access_logger.info(
        "%s %s %s %d %d %.3fs",
        address[0] if address else "-",
        method.decode("latin-1"),
        target.decode("latin-1"),
        status,
        size,
        seconds,
        extra={
            "id": client_id.decode("latin-1"),
            "session": link.session_name if link is not None else None,
            "stream": stream_id or None,
            "status": status,
            "bytes": size,
            "seconds": round(seconds, 6),
            "request": request_id.decode("ascii"),
            "cut": cut,
        },
    )


def _bound(server: asyncio.Server) -> tuple[str, int]:
    host, port = server.sockets[0].getsockname()[:2]
    return str(host), int(port)


def _text(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
