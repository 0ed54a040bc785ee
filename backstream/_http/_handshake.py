"""The handshake of an agent's WebSocket, judged on both sides (RFC 6455 §4.1, §4.2.1); picows writes and reads it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Final, NamedTuple

from backstream._http.errors import MessageError

CLIENT_ID: Final = b"x-backstream-client-id"


class AgentHandshake(NamedTuple):
    """What a handshake that is in order says."""

    client_id: bytes
    key: bytes
    """Sec-WebSocket-Key, as it stands there."""


def judge_handshake(
    fields: Iterable[tuple[bytes, bytes]], minor: int, has_body: bool, *, id_optional: bool = False
) -> AgentHandshake:
    """What the head of a GET with `Upgrade: websocket` says.

    fields: (name in lower case, value). minor: of the request's HTTP/1.x. id_optional: without an id it is "".

    Raises MessageError with the status that refuses it.
    """
    found: dict[bytes, list[bytes]] = {}
    for name, value in fields:
        found.setdefault(name, []).append(value)
    ids = found.get(CLIENT_ID, [])
    if id_optional:
        ids = ids or [b""]
    if not ids:
        raise MessageError(400, "header x-backstream-client-id is required")
    client_id = ids[0]
    if not (client_id or id_optional) or len(client_id) > 128 or not all(0x21 <= byte <= 0x7E for byte in client_id):
        raise MessageError(400, "header x-backstream-client-id is not 1 to 128 visible ASCII characters")
    if minor != 1 or has_body:
        raise MessageError(400, "a WebSocket handshake is an HTTP/1.1 GET without a body")
    if found.get(b"sec-websocket-version") != [b"13"]:
        raise MessageError(426, "Sec-WebSocket-Version must be 13", "http_upgrade_failed")
    keys = found.get(b"sec-websocket-key", [])
    try:
        valid = len(keys) == 1 and len(base64.b64decode(keys[0], validate=True)) == 16
    except ValueError:
        valid = False
    if not valid:
        raise MessageError(400, "Sec-WebSocket-Key is not 16 bytes in base64")
    return AgentHandshake(client_id, keys[0])


def answer_fault(fields: Iterable[tuple[str, str]], subprotocol: str | None, *, needed: bool) -> str:
    """What is wrong with a 101's fields (name, value) beside what picows judges; "" where nothing is.

    subprotocol: what was offered, or None; needed: whether the proxy must take it. RFC 6455 §4.1 has the client fail
    the connection where an extension or a subprotocol is used that it did not offer; §11.3.3 and §11.3.4 let accept and
    protocol stand once.
    """
    seen: dict[str, str] = {}
    for name, value in fields:
        lower = name.lower()
        if lower == "sec-websocket-extensions" and value.strip():
            return f"uses the extension {value[:100]!r}, which was not offered"
        if lower in ("sec-websocket-accept", "sec-websocket-protocol"):
            if lower in seen:
                return f"says {name} twice"
            seen[lower] = value
    chosen = seen.get("sec-websocket-protocol", "")
    if chosen and chosen != subprotocol:
        return f"wants the subprotocol {chosen[:100]!r}"
    if needed and not chosen:
        return f"does not take the subprotocol {subprotocol}"
    return ""


def plain_connection(head: bytes) -> bytes:
    """The head of a 101 with `Connection: Upgrade`, where Connection is a list that has it among others.

    RFC 6455 §4.1 asks for that token only, and intermediaries add theirs; picows takes nothing beside it.
    """
    lines = head.split(b"\r\n")
    own = [line for line in lines[1:] if line.partition(b":")[0].lower() == b"connection"]
    tokens = [token.strip(b" \t").lower() for line in own for token in line.partition(b":")[2].split(b",")]
    if b"upgrade" not in tokens or len(tokens) == 1:
        return head
    others = [line for line in lines[1:] if line not in own]
    return b"\r\n".join([lines[0], b"Connection: Upgrade", *others])
