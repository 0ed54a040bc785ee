"""Which id a request is for where no header says it: by its host, or by its path."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from backstream.config._text import CLIENT_IDS, is_client_id, shown
from backstream.errors import ConfigurationError

ID_PLACE: Final = "{id}"
_LABELS: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_PREFIX: Final = re.compile(r"/([A-Za-z0-9._~!$&'()*+;:@%-]+/)*")


class Route(NamedTuple):
    """Where requests for one id, or for many, come to."""

    place: str
    """The host; the path's prefix, with its last slash. The domain or prefix before the id where that is None."""
    client_id: str | None
    """None: the host's first label, or the path's next segment, is the id."""


def parse_host_route(text: str) -> Route:
    """What `{id}.tunnel.example` or `www.example=ID` says. Raises ConfigurationError for anything else."""
    host, equals, client_id = text.partition("=")
    host = host.lower()
    if not equals and host.startswith(ID_PLACE + "."):
        host = host.removeprefix(ID_PLACE + ".")
    elif not equals:
        raise ConfigurationError(f"{shown(text)} is not a host route (write {{id}}.tunnel.example or www.example=ID)")
    if len(host) > 253 or not _LABELS.fullmatch(host):
        raise ConfigurationError(f"{shown(text)} has no valid host name (neither a port nor a * belongs there)")
    return Route(host, _route_id(text, client_id) if equals else None)


def parse_path_route(text: str) -> Route:
    """What `/t/{id}/` or `/shop/=ID` says. Raises ConfigurationError for anything else."""
    prefix, equals, client_id = text.partition("=")
    if not equals and prefix.endswith(f"/{ID_PLACE}/"):
        prefix = prefix.removesuffix(f"{ID_PLACE}/")
    elif not equals or prefix == "/":
        raise ConfigurationError(f"{shown(text)} is not a path route (write /t/{{id}}/ or /shop/=ID)")
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(f"{shown(text)} has no valid path that begins and ends with a slash")
    return Route(prefix, _route_id(text, client_id) if equals else None)


def _route_id(text: str, client_id: str) -> str:
    if not is_client_id(client_id):
        raise ConfigurationError(f"{shown(text)} has no valid id: it must be {CLIENT_IDS}")
    return client_id
