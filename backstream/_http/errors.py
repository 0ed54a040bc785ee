"""What can be wrong with an HTTP message."""

from __future__ import annotations

from backstream.errors import BackstreamError


class MessageError(BackstreamError):
    """A message that is refused.

    status: what its sender is told where it is a request.
    cause: the error type of RFC 9209 §2.3 that goes with it.
    """

    def __init__(self, status: int, message: str, cause: str = "http_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.cause = cause
