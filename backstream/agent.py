"""The agent: dials the proxy, serves what comes down the WebSocket, and dials again whenever it must.

Life-cycle and policy; what serves the requests is a `Service`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from types import TracebackType
from typing import TypeAlias
from urllib.parse import urlsplit

import picows

from backstream._applications import AsgiApp, application_service, function_service
from backstream._callbacks import Handler
from backstream._flow import WindowBudget
from backstream._hooks import Hooks
from backstream._http._upstream import UpstreamService
from backstream._loop import loop_state
from backstream._messages import Notify, RequestHead
from backstream._service import CallbackService, Service, ServiceLink
from backstream._stream import Stream
from backstream._via import choose_via, connect_via
from backstream._websocket import SUBPROTOCOL, dial_websocket
from backstream._wsgi import WsgiApplication
from backstream.certificates import client_context, describe, is_refusal, stamp
from backstream.config import AgentSettings, parse_header, parse_proxy_url, parse_upstream
from backstream.errors import ConfigurationError, ConnectionFailed
from backstream.functions import Function
from backstream.thread import AgentThread

__all__ = ["Agent", "AsgiApp", "ContextFactory", "HandlerFactory"]

logger = logging.getLogger("backstream.agent")

HandlerFactory: TypeAlias = Callable[[Stream, RequestHead, bool], Handler | None]
ContextFactory: TypeAlias = Callable[[], ssl.SSLContext | Awaitable[ssl.SSLContext]]

MAX_LEAVING = 8
"""Sessions that proxies said GOAWAY on and that still have streams; beyond it the oldest is closed."""
STEADY_SECONDS = 5.0
"""A session that lived as long ends the back-off."""
MAX_SPREAD_SECONDS = 60.0
"""The longest that a proxy can keep an agent away by its GOAWAY."""
CLOSE_SECONDS = 3.0
"""How long `close` waits for sessions that were told to end."""
LEAST_FRAME = 1024 * 1024
"""Bytes of a WebSocket frame that are taken on the seed wire even where the message is then passed over."""


class Agent:
    """An agent as an async context manager: it serves inside, and is closed at the end.

    settings: `AgentSettings`.
    app: an ASGI 3 or WSGI application to serve, instead of `settings.app` or `settings.upstream`.
    function: an async function that takes a `functions.Request` and returns a `functions.Response`.
    handler: called with (stream, `RequestHead`, whether the request ends with its head) for each request; returns a
        `Handler`, or None to refuse it.
    on_notify: called with each one-way event of the proxy's, on the event loop, so it must not block.
    on_connect: called with the agent when a session is ready for requests while none was.
    on_disconnect: called with the agent and the reason, when the last session that was ready is gone. Both hooks may be
        coroutine functions. They are called one after the other, in order, and take at most 60 s each.
    ssl_context: for `wss://`, instead of what `settings` says of TLS towards the proxy: an `ssl.SSLContext`, or a
        function that returns one (or an awaitable of it) and is called for every dial.

    Raises ConfigurationError unless exactly one of the five is given that it can serve.
    """

    def __init__(
        self,
        settings: AgentSettings,
        app: AsgiApp | WsgiApplication | None = None,
        *,
        function: Function | None = None,
        handler: HandlerFactory | None = None,
        on_notify: Callable[[Notify], None] | None = None,
        on_connect: Callable[[Agent], object] | None = None,
        on_disconnect: Callable[[Agent, str], object] | None = None,
        ssl_context: ssl.SSLContext | ContextFactory | None = None,
    ) -> None:
        self.settings = settings
        given = [value for value in (app, function, handler, settings.app, settings.upstream) if value is not None]
        if len(given) != 1:
            raise ConfigurationError(
                "an agent serves exactly one thing: an application, a function, an upstream or a handler"
            )
        self._app = app
        self._function = function
        self._handler = handler
        self._on_notify = on_notify
        self._log_fields = {"id": settings.client_id}
        self._hooks = Hooks()
        self._on_connect = on_connect
        self._on_disconnect = on_disconnect
        self._ssl_context = ssl_context
        self._ready: set[ServiceLink] = set()
        self._service: Service | None = None
        self._url = parse_proxy_url(settings.proxy_url)
        if ssl_context is not None and not self._url.tls:
            raise ConfigurationError("ssl_context needs a proxy_url that begins with wss://")
        if ssl_context is not None and (settings.ca is not None or settings.client_cert is not None):
            raise ConfigurationError("ssl_context stands in place of ca and client_cert")
        self._tls: ssl.SSLContext | None = None
        self._tls_stamp: object = None
        self._instance = os.urandom(16)
        self._generation = 0
        self._budget = WindowBudget(settings.session.window_budget)
        self._seed_budget = WindowBudget(settings.session.seed_budget)
        self._links: set[ServiceLink] = set()
        self._current: ServiceLink | None = None
        self._changed = asyncio.Event()
        self._connected = asyncio.Event()
        self._unlinked = asyncio.Event()
        self._closed = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None
        self._drain_tasks: set[asyncio.Task[None]] = set()
        self._leaving = False
        self._closing = False

    # --- life-cycle ---

    async def start(self) -> None:
        """Makes the service ready and begins to dial; returns without waiting for the proxy.

        Raises ConfigurationError when the service can't be loaded or fails to start, or a file of TLS can't be used.
        """
        if self._runner is not None or self._closing:
            raise RuntimeError("an Agent is started once")
        self._read_tls()
        self._service = self._make_service()
        await self._service.start()
        self._runner = asyncio.create_task(self._run(), name=f"backstream agent {self.settings.client_id}")

    def _read_tls(self) -> None:
        """Makes the context for `wss://`, anew where its files have changed."""
        settings = self.settings
        now = stamp(settings.ca, settings.client_cert, settings.client_key)
        if self._url.tls and self._ssl_context is None and (self._tls is None or now != self._tls_stamp):
            self._tls = client_context(settings.ca, settings.client_cert, settings.client_key)
            self._tls_stamp = now

    def reload_tls(self) -> bool:
        """Reads the files of TLS towards the proxy again, for the next dial; a session that is open goes on as it is.

        It happens by itself before each dial where they have changed: this tells at once whether they can be used.
        Returns whether they can: what can't is logged as an error, and what was read before stays.
        """
        settings = self.settings
        files = [path for path in (settings.ca, settings.client_cert, settings.client_key) if path is not None]
        self._tls_stamp = None
        try:
            self._read_tls()
        except ConfigurationError as error:
            logger.error("TLS stays as it was: %s", error, extra=self._log_fields)
            return False
        if files and self._tls is not None:
            logger.info("the files of TLS were read again: %s", ", ".join(files), extra=self._log_fields)
        else:
            logger.info("no file of TLS is to be read again", extra=self._log_fields)
        return True

    def _make_service(self) -> Service:
        if self._function is not None:
            return function_service(self._function, self.settings)
        if self._handler is not None:
            return CallbackService(self._handler)
        if self.settings.upstream is not None:
            target = parse_upstream(self.settings.upstream)
            tls = client_context(self.settings.upstream_ca, ca_name="upstream_ca") if target.tls else None
            return UpstreamService(target, self.settings, tls)
        return application_service(self._app, self.settings)

    async def drain(self) -> None:
        """Ends gracefully, within `settings.drain_timeout` seconds: no new requests, running ones finish."""
        if self._closed.is_set() or self._closing:
            return
        self._leaving = True
        self._changed.set()
        for link in list(self._links):
            link.leave("the agent is leaving")
        if not await self._without_links(self.settings.drain_timeout):
            logger.warning("requests were cut after %g s", self.settings.drain_timeout, extra=self._log_fields)
        await self.close()

    async def close(self) -> None:
        """Ends at once: requests that run are cut."""
        if self._closing:
            return
        self._closing = self._leaving = True
        self._changed.set()
        self._connected.set()  # whoever waits for it hears that it will not come
        try:
            if self._runner is not None:
                self._runner.cancel()
                await asyncio.gather(self._runner, return_exceptions=True)
                self._runner = None  # whose exception holds on to where it was
            for link in list(self._links):
                link.session.close(0, "the agent has stopped", 1001)
            await self._without_links(CLOSE_SECONDS)
            for link in list(self._links):
                link.abort("the agent has stopped")
            for task in list(self._drain_tasks):
                task.cancel()
            await self._hooks.end(CLOSE_SECONDS)
            if self._service is not None:
                await self._service.stop()
        finally:
            self._closed.set()
            logger.info("stopped", extra=self._log_fields)

    async def _without_links(self, seconds: float) -> bool:
        """Waits until every session is gone; false when some are left after `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while self._links:
                    self._unlinked.clear()
                    await self._unlinked.wait()
        except TimeoutError:
            return False
        return True

    async def wait_connected(self) -> None:
        """Waits until a session is ready for requests. Raises ConnectionFailed when the agent is closed before."""
        await self._connected.wait()
        if self._closing:
            raise ConnectionFailed("the agent was closed before it was connected")

    async def wait_closed(self) -> None:
        """Waits until `close` or `drain` has ended it."""
        await self._closed.wait()

    def start_in_thread(self) -> AgentThread:
        """Runs the agent in a thread with an event loop of its own, for programs that are not asynchronous.

        Returns once its service is ready, as `start` does. Raises what `start` raises.
        """
        return AgentThread(self)

    async def __aenter__(self) -> Agent:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def connected(self) -> bool:
        """Whether a session is ready for requests."""
        return self._connected.is_set() and not self._closing

    @property
    def sessions(self) -> tuple[ServiceLink, ...]:
        """The sessions that are open: one, or for a moment two while a new one takes over."""
        return tuple(self._links)

    @property
    def requests(self) -> int:
        """Requests that came so far."""
        return self._service.requests if self._service is not None else 0

    def notify(self, data: bytes, content_type: str = "") -> None:
        """Sends the proxy a one-way event (over the seed wire without its type).

        Raises ConnectionFailed while there is no session, StreamError when the session can't take it.
        """
        ready = [link for link in self._ready if not link.session.closed]
        if not ready or self._closing:
            raise ConnectionFailed("there is no session with the proxy")
        max(ready, key=lambda link: link.since).session.notify(content_type, data)

    # --- connecting ---

    async def _run(self) -> None:
        """Keeps one session that the proxy may open streams on, and dials when there is none."""
        failures = 0
        while not self._leaving:
            self._changed.clear()
            link = None
            try:
                link = await self._dial()
            except ConnectionFailed as error:
                failures += 1
                wait = self._back_off(failures, refused=error.refused)
                logger.warning("%s; next try in %.1f s", error, wait, extra=self._log_fields)
            except Exception:
                # A defect: the agent goes on trying all the same.
                failures += 1
                wait = self._back_off(failures, refused=True)
                logger.exception("dialling failed; next try in %.1f s", wait, extra=self._log_fields)
            if link is None:
                # Not above: the exception, and all that it holds, would stay as long.
                await asyncio.sleep(wait)
                continue
            self._current = None if link.is_lost else link
            if link.goaway is not None:  # it came with the handshake's answer
                self.session_leaving(link)
            while self._current is link and not self._leaving:
                await self._changed.wait()
                self._changed.clear()
            if self._leaving:
                return
            refused = link.close_code == 1008
            asked = link.close_code == 1001 or (link.goaway is not None and link.goaway.code == 0)
            if time.monotonic() - link.since >= STEADY_SECONDS or link.session.served:
                failures = 0
            failures += 1
            if asked and not refused and failures == 1:
                # The proxy wants another session: at once, spread over the time that it names. Asked again before one
                # was steady, the agent backs off; it goes on serving on the one that it has.
                spread = (link.goaway.retry_after_ms if link.goaway is not None else 0) / 1000
                await asyncio.sleep(random.uniform(0, min(spread, MAX_SPREAD_SECONDS)))
                continue
            wait = self._back_off(failures, refused=refused)
            logger.info("dialling again in %.1f s", wait, extra=self._log_fields)
            await asyncio.sleep(wait)

    def _back_off(self, failures: int, *, refused: bool) -> float:
        """Seconds to wait: exponential with full jitter, longer where the proxy said no."""
        most = self.settings.refused_max if refused else self.settings.reconnect_max
        return random.uniform(0, min(most, self.settings.reconnect_min * 2.0 ** min(failures - 1, 30)))

    async def _dial(self) -> ServiceLink:
        """Opens a WebSocket and a session on it. Raises ConnectionFailed."""
        assert self._service is not None
        settings = self.settings
        self._generation += 1
        link = ServiceLink(
            self,
            self._service,
            loop_state(),
            settings.session,
            self._budget,
            settings.client_id or "",
            self._instance,
            self._generation,
            None if settings.session.wire == "native" else (self._seed_budget, settings.request_timeout),
        )
        try:
            await self._open(link)
        except BaseException:
            link.discard("it did not come about")
            raise
        if not link.is_lost:
            self._links.add(link)
            link.begin_service()
        return link

    async def _open(self, link: ServiceLink) -> None:
        """Makes the link's WebSocket. Raises ConnectionFailed."""
        settings = self.settings
        where = _without_query(settings.proxy_url)
        offered = [] if settings.session.wire == "seed" else [("Sec-WebSocket-Protocol", SUBPROTOCOL)]
        named = [] if settings.client_id is None else [("x-backstream-client-id", settings.client_id)]
        headers = [*named, *offered, *(parse_header(text) for text in settings.header)]
        # Which wire it is shows in the answer only.
        largest = 0 if settings.session.wire == "native" else max(settings.session.seed_max_message, LEAST_FRAME)
        try:
            self._read_tls()
        except ConfigurationError as error:
            logger.error("TLS stays as it was: %s", error, extra=self._log_fields)
        try:
            async with asyncio.timeout(settings.connect_timeout):
                tls = await self._context()
                via = choose_via(settings.via, self._url)
                sock = await connect_via(via, self._url.host, self._url.port) if via is not None else None
                transport = await dial_websocket(link, self._url, headers, tls, largest, sock)
        except picows.WSInvalidStatusError as error:
            status = int(error.response.status) if error.response is not None else 0
            body = bytes(error.raw_body or b"")[:200].decode("utf-8", "replace").strip()
            phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
            why = f"{status} {phrase}" + (f" ({body})" if body else "")
            raise ConnectionFailed(f"{where} refused the agent: {why}", refused=400 <= status < 500) from None
        except TimeoutError:
            raise ConnectionFailed(f"no connection to {where} within {settings.connect_timeout:g} s") from None
        except OSError as error:
            raise ConnectionFailed(f"no connection to {where}: {describe(error)}", refused=is_refusal(error)) from None
        except picows.WSError as error:
            raise ConnectionFailed(f"no connection to {where}: {error}") from None
        except RuntimeError as error:
            raise ConnectionFailed(f"{where} does not speak WebSocket: {error}", refused=True) from None
        if link.fault:
            raise ConnectionFailed(f"{where} {link.fault}", refused=True)
        if transport.response is None or transport.is_disconnected:
            raise ConnectionFailed(f"{where} closed the connection during the handshake")

    async def _context(self) -> ssl.SSLContext | None:
        """The context for one dial."""
        given = self._ssl_context
        if given is None or isinstance(given, ssl.SSLContext):
            return given or self._tls
        try:
            made = given()
            return await made if inspect.isawaitable(made) else made
        except Exception as error:
            logger.exception("ssl_context failed")
            raise ConnectionFailed(f"there is no TLS context: {error}", refused=True) from None

    # --- from the sessions ---

    def session_ready(self, link: ServiceLink) -> None:
        """The proxy's HELLO came, which may be before `_dial` goes on."""
        self._links.add(link)
        if not self._ready and self._on_connect is not None:
            self._hooks.call("on_connect", self._on_connect, self)
        self._ready.add(link)
        self._connected.set()
        logger.info(
            "connected to %s as %s",
            _without_query(self.settings.proxy_url),
            self.settings.client_id,
            extra=link.log_fields,
        )
        if self._leaving:
            link.leave("the agent is leaving")

    def session_leaving(self, link: ServiceLink) -> None:
        """The proxy's GOAWAY came: a replacement first; this session goes on with what the proxy still sends."""
        assert link.goaway is not None
        if link.goaway.code:
            return  # an error: the proxy closes the session, and why it does says how soon to dial again
        logger.info("the proxy is leaving: %r", link.goaway.message[:200], extra=link.log_fields)
        if self._current is link:
            self._current = None
            self._changed.set()
        leaving = [other for other in self._links if other is not self._current]
        if len(leaving) > MAX_LEAVING:
            # An honest proxy restarts seldom enough; another would have its streams kept for ever.
            min(leaving, key=lambda other: other.since).abort("too many sessions are leaving")

    def session_drained(self, link: ServiceLink) -> None:
        """Its last stream has ended after `leave`."""
        link.session.close(0, "", 1001)

    def session_lost(self, link: ServiceLink, why: str) -> None:
        """The session is over."""
        self._links.discard(link)
        if not self._links:
            self._unlinked.set()
        if link in self._ready:
            self._ready.discard(link)
            if not self._ready and not self._closing:
                self._connected.clear()
            if not self._ready and self._on_disconnect is not None:
                self._hooks.call("on_disconnect", self._on_disconnect, self, why)
        if self._current is link:
            self._current = None
            self._changed.set()
            logger.info("disconnected: %s", why, extra=link.log_fields)

    def notified(self, link: ServiceLink, content_type: str, data: bytes) -> None:
        """A one-way event of the proxy's."""
        if self._on_notify is not None:
            try:
                self._on_notify(Notify(content_type=content_type, data=data))
            except Exception:
                logger.exception("the handler of events failed", extra={"id": self.settings.client_id})


def _without_query(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
