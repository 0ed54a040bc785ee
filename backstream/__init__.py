"""backstream: HTTP services behind NAT and firewalls, reached through their own outbound WebSockets.

`Proxy` is what users talk to, `Agent` runs beside the service and dials the proxy. Both are async context managers.
"""

from backstream._agents import AgentLink, AgentTable
from backstream._callbacks import Handler
from backstream._messages import Body, Notify, RequestHead, ResponseHead
from backstream._version import __version__
from backstream.agent import Agent
from backstream.config import AgentSettings, ProxySettings, SessionSettings
from backstream.errors import (
    BackstreamError,
    ConfigurationError,
    ConnectionFailed,
    RequestFailed,
    ResponseCut,
    StreamError,
)
from backstream.events import AgentEvent, Events
from backstream.proxy import Handshake, Proxy
from backstream.requests import Headers, Response

__all__ = [
    "Agent",
    "AgentEvent",
    "AgentLink",
    "AgentSettings",
    "AgentTable",
    "BackstreamError",
    "Body",
    "ConfigurationError",
    "ConnectionFailed",
    "Events",
    "Handler",
    "Handshake",
    "Headers",
    "Notify",
    "Proxy",
    "ProxySettings",
    "RequestFailed",
    "RequestHead",
    "Response",
    "ResponseCut",
    "ResponseHead",
    "SessionSettings",
    "StreamError",
    "__version__",
]
