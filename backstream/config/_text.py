"""Client ids and header fields as somebody writes them, and how a text is shown in a message."""

from __future__ import annotations

import re
from typing import Final

from backstream.errors import ConfigurationError

_HANDSHAKE_FIELDS: Final = frozenset(
    ("connection", "content-length", "host", "transfer-encoding", "upgrade", "x-backstream-client-id")
)
TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}", re.ASCII)


def shown(text: str) -> str:
    """`text` in quotes for a message of one line, not longer than is useful."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def is_field_value(text: str) -> bool:
    """Whether `text` can be a header's value as it is: visible ASCII, blanks only inside."""
    return text.isascii() and text.isprintable() and text == text.strip(" ")


CLIENT_IDS: Final = "1 to 128 visible ASCII characters"


def is_client_id(text: str) -> bool:
    return 0 < len(text) <= 128 and is_field_value(text) and " " not in text


def parse_header(text: str) -> tuple[str, str]:
    """Name and value of a field of an agent's handshake, written `NAME: VALUE`. Raises ConfigurationError."""
    name, colon, value = text.partition(":")
    value = value.strip(" ")
    # What is wrong with it is not shown: it may hold a secret.
    if not colon or not TOKEN.fullmatch(name) or not is_field_value(value):
        raise ConfigurationError("header must be like 'NAME: VALUE', in visible ASCII")
    if name.lower() in _HANDSHAKE_FIELDS or name.lower().startswith("sec-websocket-"):
        raise ConfigurationError(f"header must not name {name}: the handshake has its own")
    return name, value
