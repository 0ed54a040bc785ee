"""The settings of an agent."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from backstream.config._addresses import DIRECT, parse_proxy_url, parse_upstream, parse_via
from backstream.config._options import CONNECT, LIMITS, SERVICE, TIMES, TLS, check, check_pair, option
from backstream.config._session import SessionSettings, check_session
from backstream.config._text import CLIENT_IDS, is_client_id, parse_header, shown
from backstream.config._units import KiB, MiB, format_duration
from backstream.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What an `Agent` is started with."""

    proxy_url: str = field(
        default="ws://127.0.0.1:8080/ws",
        metadata=option("text", CONNECT, "The proxy: ws://HOST:PORT/PATH, or wss:// for TLS.", metavar="URL"),
    )
    """`ws://` or `wss://`; the path is the proxy's `agent_path`. With `wss://` the proxy's certificate is
    verified, its host name too; nothing switches that off."""

    via: str | None = field(
        default=None,
        metadata=option(
            "text",
            CONNECT,
            "A forward proxy on the way: http://HOST:PORT, socks5://… or socks5h://…, or direct.  "
            "[default: HTTPS_PROXY and its kin]",
            metavar="URL",
        ),
    )
    """`http://user:password@host:port` (CONNECT), `socks5://…` (names are looked up here) or `socks5h://…` (there);
    `direct` for none. None takes `HTTPS_PROXY` (for wss://), `HTTP_PROXY` (for ws://), else `ALL_PROXY`, and heeds
    `NO_PROXY`. A command line is seen by others: give a password by the variable or the file."""

    header: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "text",
            CONNECT,
            "A field of the handshake, such as a token that the proxy asks for; may be repeated. In the variable each "
            "has a line of its own.",
            metavar="'NAME: VALUE'",
            many=True,
            separator="\n",
        ),
    )
    """What the proxy's `authorize` finds in `Handshake.fields`. A command line is seen by others: give a secret by the
    variable or the file. A value may have commas, so in the variable line ends stand between the fields."""

    client_id: str | None = field(
        metadata=option("text", CONNECT, "The id under which clients reach this agent.", metavar="ID"),
    )
    """Clients name it in `x-backstream-client-id`. Several agents may share one: requests are spread over
    them. None: it has no id, for a proxy with `client_id_optional`."""

    app: str | None = field(
        default=None,
        metadata=option(
            "text",
            SERVICE,
            "An ASGI 3 or WSGI application, as module:attribute, run in this process.",
            metavar="MODULE:ATTR",
        ),
    )
    """`module:attribute`; not together with `upstream`."""

    factory: bool = field(
        default=False,
        metadata=option("switch", SERVICE, "--app is a function without arguments that makes the application."),
    )
    """Called once, when the agent starts."""

    interface: str = field(
        default="auto",
        metadata=option(
            "text",
            SERVICE,
            "What the application is; auto tells by its arguments.",
            metavar="auto|asgi3|wsgi|function",
            choices=("auto", "asgi3", "wsgi", "function"),
        ),
    )
    """`function`: `async def serve(request) -> Response`. `auto` takes a coroutine function of one argument for that,
    what takes two arguments and not three for WSGI, and everything else for ASGI 3."""

    lifespan: str = field(
        default="auto",
        metadata=option(
            "text",
            SERVICE,
            "Run an ASGI application's start-up and shutdown; auto does where it knows of them.",
            metavar="auto|on|off",
            choices=("auto", "on", "off"),
        ),
    )
    """`on` makes an exception at start-up an error; with `auto` the application is served without."""

    root_path: str = field(
        default="",
        metadata=option(
            "text", SERVICE, "The path under which the application is mounted for its clients.", metavar="PATH"
        ),
    )
    """`/shop`: ASGI's `root_path`, WSGI's `SCRIPT_NAME`; requests come without it."""

    wsgi_threads: int = field(
        default=32,
        metadata=option("count", LIMITS, "Requests that a WSGI application serves at once.", most=10_000),
    )
    """Threads, started as they are needed; further requests wait. A slow client holds its thread."""

    upstream: str | None = field(
        default=None,
        metadata=option(
            "text",
            SERVICE,
            "A service to forward to: http://HOST:PORT, https://HOST:PORT or unix:/PATH.",
            metavar="URL",
        ),
    )
    """`http://host:port`, `https://host:port` or `unix:/path`; not together with `app`. With `https://` the
    upstream's certificate is verified, its host name too."""

    ca: str | None = field(
        default=None,
        metadata=option(
            "text", TLS, "CAs to trust for the proxy (PEM), instead of the system's; for wss://.", metavar="FILE"
        ),
    )
    """Path of a PEM file with trust anchors, or None: the system's."""

    client_cert: str | None = field(
        default=None,
        metadata=option(
            "text", TLS, "The agent's own certificate (PEM), for a proxy that asks for one.", metavar="FILE"
        ),
    )
    """Path of a PEM file, followed by the certificates up to its CA. This file, `client_key` and `ca` are read
    again before the agent dials when they have changed."""

    client_key: str | None = field(
        default=None,
        metadata=option("text", TLS, "The private key of --client-cert (PEM, without a passphrase).", metavar="FILE"),
    )
    """Path of a PEM file; together with `client_cert`, or neither."""

    upstream_ca: str | None = field(
        default=None,
        metadata=option(
            "text", TLS, "CAs to trust for an https:// upstream (PEM), instead of the system's.", metavar="FILE"
        ),
    )
    """Path of a PEM file with trust anchors, or None: the system's."""

    time_left_header: bool = field(
        default=False,
        metadata=option(
            "switch", SERVICE, "Tell the upstream in X-Backstream-Time-Left how long the proxy waits for its answer."
        ),
    )
    """`X-Backstream-Time-Left: 2750ms`, a Go duration as `x-backstream-request-timeout` takes it: what is left for the
    response's head from the request's end. Absent where there is no limit. ASGI applications find it in their scope."""

    connect_timeout: float = field(
        default=5.0,
        metadata=option(
            "duration", TIMES, "How long connecting may take, to the proxy or the upstream.", above_zero=True
        ),
    )
    """Seconds for name look-up, TCP, TLS and, towards the proxy, the WebSocket handshake."""

    drain_timeout: float = field(
        default=30.0,
        metadata=option("duration", TIMES, "How long running requests may go on after SIGTERM or Ctrl-C."),
    )
    """Seconds. As long as orchestrators usually wait before they kill."""

    request_timeout: float = field(
        default=300.0,
        metadata=option(
            "duration",
            TIMES,
            "Longest wait for the service's response to begin, where the proxy names no limit.",
            off="no limit",
        ),
    )
    """Seconds from the request's end to the response's head, 0 for no limit. What the proxy or the client's
    `x-backstream-request-timeout` leaves comes before it; the agent holds the service to that too. On the seed wire,
    where nobody tells the agent that a client has gone, it counts to the end of the answer."""

    reconnect_min: float = field(
        default=0.1,
        metadata=option(
            "duration",
            CONNECT,
            "Upper bound of the first pause before reconnecting; it doubles with each failure.",
            above_zero=True,
        ),
    )
    """Seconds; doubles with each failure, and each pause is a random part of it, so that agents don't come in
    step."""

    reconnect_max: float = field(
        default=3.0,
        metadata=option("duration", CONNECT, "Longest pause while the proxy is unreachable.", above_zero=True),
    )
    """Seconds. Short: a restarted proxy should have its agents back at once."""

    refused_max: float = field(
        default=30.0,
        metadata=option("duration", CONNECT, "Longest pause while the proxy refuses this agent.", above_zero=True),
    )
    """Seconds after a 4xx, close code 1008 or a failure of TLS (a certificate that is not trusted, has expired
    or is for another name; a port without TLS): somebody has to mend something first."""

    upstream_connections: int = field(
        default=512,
        metadata=option("count", LIMITS, "Connections to the upstream open at once."),
    )
    """The pool's size; further requests wait for a free connection."""

    upstream_idle_timeout: float = field(
        default=4.0,
        metadata=option("duration", TIMES, "How long an unused upstream connection is kept.", above_zero=True),
    )
    """Seconds. Shorter than servers keep theirs (5 s is common), so that few requests meet a closing one."""

    idle_timeout: float = field(
        default=300.0,
        metadata=option("duration", TIMES, "Longest pause between bytes of a body.", above_zero=True),
    )
    """Seconds, towards the upstream; the proxy's setting of that name watches the clients."""

    websocket_ping_interval: float = field(
        default=20.0,
        metadata=option(
            "duration", TIMES, "How long an application's WebSocket may be silent before it is pinged.", off="no pings"
        ),
    )
    """Seconds, 0 for no pings. Below the 30 to 60 s after which NAT entries and load balancers forget a connection."""

    websocket_ping_timeout: float = field(
        default=20.0,
        metadata=option(
            "duration",
            TIMES,
            "How long the client of an application's WebSocket may take to answer a ping or a close.",
            above_zero=True,
        ),
    )
    """Seconds without any sign of life: a byte from the client, or one that it took."""

    websocket_max_message: int = field(
        default=16 * MiB,
        metadata=option(
            "size", LIMITS, "Largest message on an application's WebSocket; beyond it close code 1009.", least=1
        ),
    )
    """Bytes, over all of a message's fragments: it is handed to the application whole. Upstreams have limits of their
    own."""

    max_response_head: int = field(
        default=128 * KiB,
        metadata=option(
            "size",
            LIMITS,
            "Largest head of an upstream's response; beyond it 502.",
            least=1 * KiB,
            most=128 * KiB,
        ),
    )
    """Bytes. A head must fit into one frame of 128 KiB."""

    session: SessionSettings = field(default_factory=SessionSettings)
    """What holds inside the session with the proxy."""

    def __post_init__(self) -> None:
        check(self)
        check_session(self.session)
        try:
            secure = parse_proxy_url(self.proxy_url).tls
        except ConfigurationError as error:
            raise ConfigurationError(f"proxy_url: {error}") from None
        if self.via is not None and self.via != DIRECT:
            try:
                parse_via(self.via)
            except ConfigurationError as error:
                raise ConfigurationError(f"via: {error}") from None
        for text in self.header:
            parse_header(text)
        if self.client_id is not None and not is_client_id(self.client_id):
            raise ConfigurationError(f"client_id must be {CLIENT_IDS}, not {shown(self.client_id)}")
        if self.app is not None and self.upstream is not None:
            raise ConfigurationError("app and upstream exclude each other: an agent serves one service")
        if self.factory and self.app is None:
            raise ConfigurationError("factory needs an application (app): it says how that is made")
        if self.root_path and (
            not re.fullmatch(r"(/[A-Za-z0-9._~!$&'()*+,;=:@-]+)+", self.root_path)
            or any(part in (".", "..") for part in self.root_path.split("/"))
        ):
            raise ConfigurationError(f"root_path must be a path like /shop, not {shown(self.root_path)}")
        if self.app is not None and not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", self.app):
            raise ConfigurationError(f"app must be module:attribute (such as main:app), not {shown(self.app)}")
        upstream_secure = False
        if self.upstream is not None:
            try:
                upstream_secure = parse_upstream(self.upstream).tls
            except ConfigurationError as error:
                raise ConfigurationError(f"upstream: {error}") from None
        check_pair(self, "client_cert", "client_key")
        for name in ("ca", "client_cert"):
            # Silence would let somebody believe that the connection is protected.
            if getattr(self, name) is not None and not secure:
                raise ConfigurationError(f"{name} needs a proxy_url that begins with wss://")
        if self.upstream_ca is not None and not upstream_secure:
            raise ConfigurationError("upstream_ca needs an upstream that begins with https://")
        if self.reconnect_min > self.reconnect_max:
            raise ConfigurationError(
                f"reconnect_min ({format_duration(self.reconnect_min)}) must not be more than reconnect_max "
                f"({format_duration(self.reconnect_max)})"
            )
