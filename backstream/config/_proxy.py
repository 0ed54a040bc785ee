"""The settings of a proxy."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from backstream.config._addresses import parse_address
from backstream.config._options import (
    FORWARDING,
    LIMITS,
    LISTEN,
    LOGS,
    ROUTES,
    SESSIONS,
    TIMES,
    TLS,
    check,
    check_pair,
    option,
)
from backstream.config._routes import Route, parse_host_route, parse_path_route
from backstream.config._session import SessionSettings, check_session
from backstream.config._text import CLIENT_IDS, TOKEN, is_client_id, is_field_value, shown
from backstream.config._units import KiB
from backstream.errors import ConfigurationError

_NEVER_UPGRADED: Final = frozenset({"h2c", "h2", "http", "tls"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """What a `Proxy` is started with."""

    listen: str = field(
        default="127.0.0.1:8080",
        metadata=option("address", LISTEN, "Address for clients, and for agents unless --agent-listen is given."),
    )
    """`HOST:PORT`; an empty host means every interface, port 0 a free port. Loopback by default, since whoever
    reaches the port can hold any id, unless `authorize` or `tls_client_ca` keeps agents out."""

    agent_listen: str | None = field(
        default=None,
        metadata=option("address", LISTEN, "Address for agents alone, to keep it out of clients' reach."),
    )
    """`HOST:PORT`, or None: agents and clients share `listen`."""

    agent_path: str = field(
        default="/ws",
        metadata=option("text", LISTEN, "Path on which agents connect.", metavar="PATH"),
    )
    """Where an Upgrade to WebSocket makes an agent; other requests to it are ordinary ones. An Upgrade that offers
    `backstream.v1` elsewhere is an agent's that has lost its way: 404."""

    tls_cert: str | None = field(
        default=None,
        metadata=option(
            "text",
            TLS,
            "Speak TLS: this certificate (PEM), followed by those up to its CA. SIGHUP reads the files again.",
            metavar="FILE",
        ),
    )
    """Path of a PEM file, or None: plain TCP. It holds for both listeners; they speak TLS 1.2 and newer.
    `Proxy.reload_tls` reads the files again."""

    tls_key: str | None = field(
        default=None,
        metadata=option("text", TLS, "The private key of --tls-cert (PEM, without a passphrase).", metavar="FILE"),
    )
    """Path of a PEM file; together with `tls_cert`, or neither."""

    tls_client_ca: str | None = field(
        default=None,
        metadata=option(
            "text",
            TLS,
            "Mutual TLS: who connects needs a certificate from a CA in this file (PEM). With --agent-listen agents "
            "need one, and clients do not.",
            metavar="FILE",
        ),
    )
    """Path of a PEM file with the CAs whose certificates are accepted, or None: nobody is asked for one. It
    holds for the listener that agents come to: `agent_listen`, or `listen` when that is shared, and then for
    clients as well. A certificate says that its holder may connect, not which client id it may hold: that is
    for `authorize`, which sees it."""
    reuse_port: bool = field(
        default=False,
        metadata=option("switch", LISTEN, "Let several processes listen on the port (SO_REUSEPORT)."),
    )
    """For a restart without a supervisor that keeps the socket: the new process starts before the old one ends."""

    upgrade: tuple[str, ...] = field(
        default=("websocket",),
        metadata=option(
            "text",
            LISTEN,
            "A protocol that clients may switch to by an Upgrade; may be repeated.",
            metavar="NAME",
            many=True,
        ),
    )
    """Names of protocols (RFC 9110 §7.8), compared without case; none: no Upgrade is taken. An Upgrade to anything
    else is ignored and the request served as HTTP/1.1. h2c, HTTP and TLS are never taken: they would carry requests
    past the proxy's rules."""

    request_timeout: float = field(
        default=3.0,
        metadata=option(
            "duration",
            TIMES,
            "Longest wait for a response to begin, from the request's end. A request may name its own in "
            "x-backstream-request-timeout.",
            off="no limit",
        ),
    )
    """Seconds, 0 for no limit. The original's default; how long a body takes is never limited as a whole."""

    max_request_timeout: float = field(
        default=0.0,
        metadata=option("duration", TIMES, "The most that a request may name for itself.", off="no cap"),
    )
    """Seconds, 0 for no cap. It caps `request_timeout` too, and turns "no limit" into itself."""

    idle_timeout: float = field(
        default=300.0,
        metadata=option("duration", TIMES, "Longest pause between bytes of a body.", above_zero=True),
    )
    """Seconds. Never a total limit: a stream may live for days as long as it moves."""

    agent_wait: float = field(
        default=2.0,
        metadata=option(
            "duration",
            TIMES,
            "How long a request waits for an agent that is away for the moment; never longer than its own time limit.",
            off="no wait",
        ),
    )
    """Seconds, 0 for no wait. An agent that restarts, or whose network blinks, is back within them. It holds for
    ids that an agent held within the last day, and for any id in the first 10 s after the proxy's start."""

    max_retries: int = field(
        default=3,
        metadata=option(
            "count",
            LIMITS,
            "How often a request may be sent again, where nothing can have come of it.",
            least=0,
            most=64,
            off="no retries",
        ),
    )
    """Times, over all agents of an id; 0 for none. Sent again is what an agent refused or did not take before it left
    (any method, while all of the body that was sent is still at hand), and once what was on a session that was lost
    without a word, if it is idempotent and has no body."""

    header_timeout: float = field(
        default=10.0,
        metadata=option("duration", TIMES, "How long a client may take to send a request's head.", above_zero=True),
    )
    """Seconds from a head's first byte (or the connection's start) to its last, against clients that
    trickle."""

    keepalive_timeout: float = field(
        default=75.0,
        metadata=option(
            "duration",
            TIMES,
            "How long a client's connection may stay idle between requests.",
            above_zero=True,
        ),
    )
    """Seconds between two requests on a connection. Longer than the 60 s that load balancers usually keep
    theirs, so that they close first and none of their requests meets a closing connection."""

    drain_timeout: float = field(
        default=30.0,
        metadata=option("duration", TIMES, "How long running requests may go on after SIGTERM or Ctrl-C."),
    )
    """Seconds. As long as orchestrators usually wait before they kill."""

    drain_idle_timeout: float = field(
        default=3.0,
        metadata=option(
            "duration", TIMES, "How long a client's idle connection may still bring a request after SIGTERM or Ctrl-C."
        ),
    )
    """Seconds. Cut at once, a connection might be cut just as a request comes; its next answer says that it closes."""

    max_connections: int = field(
        default=10_000,
        metadata=option("count", LIMITS, "Client connections open at once."),
    )
    """Each may hold 64 KiB and its transport's buffer."""

    max_connections_per_address: int = field(
        default=0,
        metadata=option("count", LIMITS, "Client connections open at once from one address.", least=0, off="no limit"),
    )
    """0 for no limit, since many clients may stand behind one address."""

    max_aborts_per_address: int = field(
        default=100,
        metadata=option(
            "count",
            LIMITS,
            "Requests that one client address may give up per second, over ten seconds; beyond it 429.",
            least=0,
            off="no limit",
        ),
    )
    """Per second. To open and to abort costs a client nothing and the service much (CVE-2023-44487)."""

    max_waiting: int = field(
        default=10_000,
        metadata=option("count", LIMITS, "Requests that may wait for an agent at once."),
    )
    """Further ones get 503 at once. Each holds its client's connection and at most 64 KiB of its body."""

    max_agents: int = field(
        default=20_000,
        metadata=option("count", LIMITS, "Agents connected at once."),
    )
    """Sessions over all ids."""

    max_agents_per_id: int = field(
        default=64,
        metadata=option("count", LIMITS, "Agents that may share one client id."),
    )
    """Requests for an id are spread over its agents."""

    max_head_size: int = field(
        default=64 * KiB,
        metadata=option("size", LIMITS, "Largest head of a request; beyond it 431.", least=1 * KiB, most=128 * KiB),
    )
    """Bytes of request line and fields. A head must fit into one frame of 128 KiB."""

    max_target_size: int = field(
        default=16 * KiB,
        metadata=option("size", LIMITS, "Longest target (path and query); beyond it 414.", least=1, most=128 * KiB),
    )
    """Bytes."""

    max_fields: int = field(
        default=200,
        metadata=option("count", LIMITS, "Header fields of a request; beyond it 431.", most=4000),
    )
    """Fields; what is cheap to send must not be dear to read."""

    max_trailers_size: int = field(
        default=16 * KiB,
        metadata=option("size", LIMITS, "Largest trailers of a request.", least=0, most=128 * KiB),
    )
    """Bytes."""

    max_extensions_size: int = field(
        default=16 * KiB,
        metadata=option("size", LIMITS, "Largest sum of chunk extensions in a body; beyond it 400.", least=0),
    )
    """Bytes, beside 16 of each chunk and two for each byte in it. Nobody uses them, and they cost as much to read as a
    body (CVE-2023-39326)."""

    max_body_size: int = field(
        default=0,
        metadata=option("size", LIMITS, "Largest body of a request; beyond it 413.", off="no limit"),
    )
    """Bytes, 0 for no limit: a body is never held, so its size costs the proxy nothing."""

    min_head_rate: int = field(
        default=240,
        metadata=option(
            "size",
            LIMITS,
            "Fewest bytes per second in which a request's head may come, from its 5th second on; below it 408.",
            off="no minimum",
        ),
    )
    """Bytes per second, 0 for no minimum. Against clients that send a byte now and then to hold a connection."""

    min_body_rate: int = field(
        default=0,
        metadata=option(
            "size",
            LIMITS,
            "Fewest bytes per second in which a request's body may come, from its 5th second on; below it 408.",
            off="no minimum",
        ),
    )
    """Bytes per second, 0 for no minimum: a body that a person types is as good as any. Time in which the proxy
    itself did not read does not count."""

    min_read_rate: int = field(
        default=240,
        metadata=option(
            "size",
            LIMITS,
            "Fewest bytes per second that a client takes of what waits for it, from the 6th second on, "
            "where others need its place.",
            off="no minimum",
        ),
    )
    """Bytes per second, 0 for no minimum. Where every agent of an id has all its streams, a new request takes the place
    of a client below it, the one that has let its bytes wait longest; while there is room, nobody is cut off. Time in
    which nothing waits for the client does not count."""

    route_host: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "text",
            ROUTES,
            "Requests without an id whose Host is like this: {id}.tunnel.example, or www.example=ID.",
            metavar="ROUTE",
            many=True,
        ),
    )
    """`{id}.domain`: the first label, in lower case, is the client id; `host=ID`: that id. Only for requests without
    the field `x-backstream-client-id`; an exact host comes before a domain."""

    route_path: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "text",
            ROUTES,
            "Requests without an id whose path begins like this: /t/{id}/, or /shop/=ID. It is taken off the path.",
            metavar="ROUTE",
            many=True,
        ),
    )
    """`/prefix/{id}/` or `/prefix/=ID`; after the hosts, the longest prefix first. What is taken off the path is the
    ASGI application's `root_path`, and `X-Forwarded-Prefix` for an upstream."""

    default_id: str | None = field(
        default=None,
        metadata=option("text", ROUTES, "The id of requests that name none in any other way.", metavar="ID"),
    )
    """A client id, or None: such requests get 400."""

    client_id_optional: bool = field(
        default=False,
        metadata=option("switch", ROUTES, "Take agents without an id; requests that name none go to them."),
    )
    """Agents and requests without the field `x-backstream-client-id`, or with an empty one, meet under the id "".
    Routes and `default_id` come before it. Whoever reaches the agents' port can then get the requests of all clients
    that name no id."""

    x_forwarded: bool = field(
        default=False,
        metadata=option("switch", FORWARDING, "Say who asked in X-Forwarded-For, -Proto and -Host, too."),
    )
    """Beside `Forwarded` (RFC 7239), for services that know only the older fields. Proxies in `trust_forwarded` are
    then believed what they say in those, instead of in `Forwarded`."""

    trust_forwarded: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "network",
            FORWARDING,
            "Proxies in this network say who asked them; what others say is replaced.",
            metavar="CIDR",
            many=True,
        ),
    )
    """Networks of proxies before this one that write `Forwarded` (or, with `x_forwarded`, X-Forwarded-For) themselves
    and do not just pass on what a client sent in it."""

    proxy_protocol: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "network",
            FORWARDING,
            "Connections from this network begin with a PROXY header (version 1 or 2).",
            metavar="CIDR",
            many=True,
        ),
    )
    """Networks of load balancers that speak the PROXY protocol; a connection of theirs without it is closed. Not
    together with `tls_cert`: the load balancer ends TLS, or does without this header."""

    via_name: str | None = field(
        default=None,
        metadata=option(
            "text", FORWARDING, "This proxy's name in Via.  [default: backstream-, and a random part]", metavar="NAME"
        ),
    )
    """A token; requests that come with it in their Via are loops and get 508. None makes one for each process. Give the
    same name only to proxies that may not stand behind one another."""

    trace: bool = field(
        default=False,
        metadata=option("switch", LIMITS, "Pass TRACE on."),
    )
    """TRACE shows a client what arrived of its request; without it, 405."""

    access_log: bool = field(
        default=False,
        metadata=option("switch", LOGS, "Log one line per request."),
    )
    """To the logger `backstream.access`."""

    backlog: int = field(
        default=4096,
        metadata=option("count", LIMITS, "Connections that may wait to be accepted."),
    )
    """The system caps it too (net.core.somaxconn)."""

    seed_codec_of: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "text",
            SESSIONS,
            "The seed wire's encoding for the agents of one id, as ID=proto or ID=json.",
            metavar="ID=CODEC",
            many=True,
        ),
    )
    """`ID=CODEC` each, instead of `seed_codec`."""

    session: SessionSettings = field(default_factory=SessionSettings)
    """What holds inside each agent's session."""

    def __post_init__(self) -> None:
        check(self)
        check_session(self.session)
        for text in self.seed_codec_of:
            client_id, equals, codec = text.rpartition("=")
            if not equals or not client_id or codec not in ("proto", "json"):
                raise ConfigurationError(f"seed_codec_of must be like ID=proto or ID=json, not {shown(text)}")
        for name in self.upgrade:
            if not TOKEN.fullmatch(name) or name.lower() in _NEVER_UPGRADED:
                raise ConfigurationError(f"upgrade must name protocols such as websocket, never {shown(name)}")
        path = self.agent_path
        if not path.startswith("/") or not is_field_value(path) or any(char in path for char in " ?#"):
            raise ConfigurationError(f"agent_path must be a path like /ws, not {shown(path)}")
        check_pair(self, "tls_cert", "tls_key")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise ConfigurationError("tls_client_ca needs tls_cert and tls_key: client certificates are a part of TLS")
        if self.proxy_protocol and self.tls_cert is not None:
            raise ConfigurationError("proxy_protocol does not go with tls_cert yet: its header comes before TLS begins")
        if self.agent_listen is not None and self.agent_listen == self.listen and parse_address(self.listen)[1]:
            raise ConfigurationError("agent_listen must differ from listen; leave it out to share the port")
        _check_routes("route_host", self.route_host, parse_host_route)
        _check_routes("route_path", self.route_path, parse_path_route)
        if self.default_id is not None and not is_client_id(self.default_id):
            raise ConfigurationError(f"default_id must be {CLIENT_IDS}, not {shown(self.default_id)}")
        if self.via_name is not None and not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", self.via_name):
            raise ConfigurationError(f"via_name must be a name like edge-1, not {shown(self.via_name)}")


def _check_routes(name: str, texts: tuple[str, ...], parse: Callable[[str], Route]) -> None:
    places: dict[tuple[str, bool], str | None] = {}
    for text in texts:
        try:
            route = parse(text)
        except ConfigurationError as error:
            raise ConfigurationError(f"{name}: {error}") from None
        place = (route.place, route.client_id is None)
        if places.setdefault(place, route.client_id) != route.client_id:
            raise ConfigurationError(f"{name}: {shown(text)} names another id for the same place")
