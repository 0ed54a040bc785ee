"""What a client gets when its request fails: Proxy-Status (RFC 9209), and a body in text or JSON (RFC 9457).

Made only when there is an error; nothing here is on a good request's way.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from backstream._http._final_recipient import allowed

NAME: Final = "backstream"
"""In Proxy-Status."""
JSON_TYPES: Final = ("application/problem+json", "application/json")
TEXT_TYPES: Final = ("text/plain",)
MAX_ACCEPT: Final = 4096
"""Bytes of Accept that are looked at."""
MAX_DETAIL: Final = 500


def error_page(
    status: int, cause: str, detail: str, leg: str, *, accept: Sequence[bytes] = (), trace: bool = False
) -> tuple[list[str], bytes]:
    """The field lines (besides those that every answer has) and the body.

    cause: an error type of RFC 9209 §2.3. detail: why, in a sentence; it may come from an agent. leg: where it failed
    (client, proxy, session, agent, service). accept: the request's Accept lines. trace: whether TRACE is allowed.
    """
    detail = "".join(char if " " <= char <= "~" else "?" for char in detail[:MAX_DETAIL])
    quoted = detail.replace("\\", "\\\\").replace('"', '\\"')
    if prefers_json(b",".join(accept)):
        problem = {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "error": cause,
            "leg": leg,
        }
        kind, body = "application/problem+json", json.dumps(problem).encode() + b"\n"
    else:
        kind, body = "text/plain; charset=utf-8", detail.encode() + b"\n"
    lines = [f"content-type: {kind}", f'proxy-status: {NAME}; error={cause}; leg={leg}; details="{quoted}"']
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        lines.append("retry-after: 1")
    elif status == HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append(f"allow: {allowed(trace)}")
    elif status == HTTPStatus.UPGRADE_REQUIRED:
        lines += ["sec-websocket-version: 13", "upgrade: websocket"]
    return lines, body


def prefers_json(accept: bytes) -> bool:
    """Whether a client would rather have JSON than text (RFC 9110 §12.5.1).

    A tie is text's, unless JSON is named and stands before any text: scripts write `application/json, text/plain, */*`.
    """
    if not accept:
        return False
    ranges = _ranges(accept[:MAX_ACCEPT].decode("latin-1"))
    (as_json, json_at), (as_text, text_at) = _best(ranges, JSON_TYPES), _best(ranges, TEXT_TYPES)
    return as_json > as_text or (as_json == as_text > 0 and json_at < text_at)


def _ranges(accept: str) -> dict[str, tuple[float, int]]:
    """Media ranges with their weight and place; those with parameters of their own, which match nothing here, are not
    among them."""
    ranges: dict[str, tuple[float, int]] = {}
    for place, member in enumerate(accept.lower().split(",")):
        name, *parameters = [part.strip() for part in member.split(";")]
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key != "q":
                name = ""
                break
            weight = _weight(value)
        if name:
            ranges.setdefault(name, (weight, place))
    return ranges


def _weight(text: str) -> float:
    """A qvalue: 0 to 1, at most three decimals; 0 for anything else."""
    whole, _, decimals = text.partition(".")
    valid = whole in ("0", "1") and len(decimals) <= 3 and (not decimals or (decimals.isascii() and decimals.isdigit()))
    weight = float(f"{whole}.{decimals or 0}") if valid else 0.0
    return weight if weight <= 1 else 0.0


def _best(ranges: dict[str, tuple[float, int]], names: Sequence[str]) -> tuple[float, int]:
    """The highest weight of these media types, and the place of the one that has it; a range that is not exact has
    none."""
    best, place = 0.0, len(ranges) + MAX_ACCEPT
    for name in names:
        if name in ranges:
            weight, at = ranges[name]
        else:
            # The more exact range decides, even with 0.
            main = name.partition("/")[0]
            weight, at = ranges.get(f"{main}/*", ranges.get("*/*", (0.0, 0)))[0], len(ranges) + MAX_ACCEPT
        if weight > best or (weight == best and at < place):
            best, place = weight, at
    return best, place
