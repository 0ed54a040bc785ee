"""The wire's messages as Python values, for programs and tests; the hot path never builds them.

Field by field as in `proto/backstream/v1/tunnel.proto`; bytes are as received, names of fields lower-case.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

Fields = tuple[tuple[bytes, bytes], ...]


class Body(IntEnum):
    """How a body is framed: none, `length` bytes, or an unknown number of them."""

    NONE = 0
    SIZED = 1
    CHUNKED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """A request without its body; `time_budget_ms` is what is left for the response's head, 0 no limit."""

    method: bytes
    target: bytes
    authority: bytes = b""
    scheme: bytes = b"http"
    http_minor: int = 1
    http_major: int = 1
    fields: Fields = ()
    body: Body = Body.NONE
    length: int = 0
    time_budget_ms: int = 0
    peer: bytes = b""
    upgrade: bytes = b""
    client_id: bytes = b""
    prefix: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseHead:
    """A response without its body, final or interim."""

    status: int
    reason: bytes = b""
    fields: Fields = ()
    body: Body = Body.NONE
    length: int = 0
    upgrade: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """Why a stream ended early."""

    code: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoAway:
    """The sender takes no new streams; `last_stream` is the last one that it processed."""

    last_stream: int = 0
    code: int = 0
    message: str = ""
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a side grants and who it is; the first frame each way."""

    version: int = 1
    software: str = ""
    instance: bytes = b""
    generation: int = 0
    initial_window: int = 0
    max_frame_size: int = 0
    max_streams: int = 0
    capabilities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Notify:
    """A one-way event."""

    content_type: str = ""
    data: bytes = b""
