"""Answers that the proxy gives itself, as a request's final recipient (RFC 9110 §7.6.2, §9.3.7, §9.3.8)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from backstream._http.errors import MessageError

METHODS: Final = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
SECRETS: Final = frozenset({b"authorization", b"cookie", b"proxy-authorization"})
"""What no TRACE shows."""


class OwnAnswer(NamedTuple):
    """A 200 of the proxy's own."""

    lines: list[str]
    """Its field lines, beside those that every answer has."""
    body: bytes


def allowed(trace: bool) -> str:
    """The value of Allow."""
    return METHODS + ", TRACE" if trace else METHODS


def next_max_forwards(value: bytes) -> bytes | None:
    """What Max-Forwards says to the next recipient; None: this one is the last. Raises MessageError for no number."""
    if not value.isdigit() or len(value) > 20:
        raise MessageError(400, "Max-Forwards is no number")
    return b"%d" % (int(value) - 1) if int(value) else None


def answer_options(trace: bool) -> OwnAnswer:
    """What OPTIONS is told."""
    return OwnAnswer([f"allow: {allowed(trace)}"], b"")


def answer_trace(target: bytes, minor: int, fields: Iterable[tuple[bytes, bytes]]) -> OwnAnswer:
    """The request as it arrived, without what is secret."""
    lines = [b"TRACE %b HTTP/1.%d" % (target, minor)]
    lines += [b"%b: %b" % field for field in fields if field[0] not in SECRETS]
    return OwnAnswer(["content-type: message/http"], b"\r\n".join(lines) + b"\r\n\r\n")
