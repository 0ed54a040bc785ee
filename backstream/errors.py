"""Every exception of backstream, as a tree by what the caller can do about it.

    BackstreamError
    ├── ConfigurationError    a setting is wrong: fix it
    ├── ConnectionFailed      the other side cannot be reached or refused: retry later
    ├── RequestFailed         a request of the program's own got no response: `status` says what a client would have got
    ├── ResponseCut           a response of the program's own request broke off
    ├── StreamError           this one request failed; others are not affected
    │   └── HeadError         its head is malformed
    └── ProtocolError         the peer broke the wire's rules: the session ends
        └── FrameError        a frame or a message that cannot be read

`ErrorCode` holds the codes that travel in RESET and GOAWAY frames; `STATUS_OF_CODE` the HTTP status that a client
gets when a stream ends with one before its response's head.
"""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """Why a stream or a session ended (0 to 31 as in RFC 9113 §7, the rest are this wire's own)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED = 7
    CANCEL = 8
    ENHANCE_YOUR_CALM = 11
    TIMEOUT = 32
    UPSTREAM_UNREACHABLE = 33
    UPSTREAM_RESET = 34
    UPSTREAM_PROTOCOL = 35
    APP_ERROR = 36
    TOO_LARGE = 37
    DRAINING = 38
    UPSTREAM_CONNECT_TIMEOUT = 39
    UPSTREAM_DNS = 40
    UPSTREAM_UNROUTABLE = 41
    UPSTREAM_TLS = 42
    UPSTREAM_CERTIFICATE = 43
    SESSION_LOST = 256
    """Never on the wire, like all from here on: the session ended under the stream without a word about it."""
    BODY_TOO_LARGE = 257
    """The request's body is more than the seed wire carries in a message."""
    NOT_CARRIED = 258
    """The seed wire has no way to carry the request."""
    BUDGET_SPENT = 259
    """The memory for bodies on the seed wire is taken for the moment."""


STATUS_OF_CODE: dict[int, int] = {
    ErrorCode.REFUSED: 503,
    ErrorCode.DRAINING: 503,
    ErrorCode.TIMEOUT: 504,
    ErrorCode.UPSTREAM_CONNECT_TIMEOUT: 504,
    ErrorCode.BODY_TOO_LARGE: 413,
    ErrorCode.NOT_CARRIED: 501,
    ErrorCode.BUDGET_SPENT: 503,
}
"""HTTP status by error code; a code that is not here becomes 502."""


class BackstreamError(Exception):
    """Base of all exceptions that backstream raises on purpose."""


class ConfigurationError(BackstreamError, ValueError):
    """A setting has a value that cannot work; the message names it and says what would."""


class ConnectionFailed(BackstreamError):
    """The proxy cannot be reached or refused the agent.

    `refused` is true when the other side answered and said no (so that hurrying will not help).
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class RequestFailed(BackstreamError):
    """No response came to a request that the program made through its proxy; the message says why.

    status: what a client of the proxy would have got, 502, 503, 504 and so on. cause: an error type of RFC 9209 §2.3.
    leg: where it failed: client, proxy, session, agent or service.
    """

    def __init__(self, message: str, *, status: int, cause: str, leg: str) -> None:
        super().__init__(message)
        self.status = status
        self.cause = cause
        self.leg = leg


class ResponseCut(BackstreamError):
    """The response broke off within its body, or was closed: what came of it is not all."""


class StreamError(BackstreamError):
    """One stream failed; `code` is the `ErrorCode` that its RESET carries."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class HeadError(StreamError):
    """A REQUEST, RESPONSE or TRAILERS payload that is malformed: the stream is reset with PROTOCOL_ERROR."""

    def __init__(self, message: str, code: int = ErrorCode.PROTOCOL_ERROR) -> None:
        super().__init__(code, message)


class ProtocolError(BackstreamError):
    """The peer broke a rule of the session: GOAWAY with `code`, then the WebSocket closes with `close_code`."""

    def __init__(self, message: str, code: int = ErrorCode.PROTOCOL_ERROR, close_code: int = 1002) -> None:
        super().__init__(message)
        self.code = code
        self.close_code = close_code


class FrameError(ProtocolError):
    """A frame that is malformed or does not end within its message."""
