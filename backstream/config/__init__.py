"""What can be set, in three frozen dataclasses, and how the text of a flag becomes a value.

Sizes are bytes and times are seconds, everywhere. A setting is written down once, as a field of `ProxySettings`
(`_proxy`), `AgentSettings` (`_agent`) or `SessionSettings` (`_session`): its name, type, default, the reason for the
default (its docstring) and, in the field's metadata, what the command line needs (`Option`). A value that cannot work
raises `ConfigurationError` when the object is made, in one line that names the setting.

Imports point to the left only; everybody else imports from here:

    _text <- _units / _addresses / _routes <- _options <- _session <- _proxy / _agent
"""

from backstream.config._addresses import (
    DIRECT,
    ProxyUrl,
    Upstream,
    Via,
    parse_address,
    parse_network,
    parse_proxy_url,
    parse_upstream,
    parse_via,
)
from backstream.config._agent import AgentSettings
from backstream.config._options import Option, check_value
from backstream.config._proxy import ProxySettings
from backstream.config._routes import Route, parse_host_route, parse_path_route
from backstream.config._session import SessionSettings
from backstream.config._text import parse_header
from backstream.config._units import format_duration, format_size, parse_duration, parse_size

__all__ = [
    "DIRECT",
    "AgentSettings",
    "Option",
    "ProxySettings",
    "ProxyUrl",
    "Route",
    "SessionSettings",
    "Upstream",
    "Via",
    "check_value",
    "format_duration",
    "format_size",
    "parse_address",
    "parse_duration",
    "parse_header",
    "parse_host_route",
    "parse_network",
    "parse_path_route",
    "parse_proxy_url",
    "parse_size",
    "parse_upstream",
    "parse_via",
]
