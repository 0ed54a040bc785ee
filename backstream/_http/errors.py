"""What can be wrong with an HTTP message."""

from __future__ import annotations

from backstream.errors import BackstreamError


class MessageError(BackstreamError):
    """A message that is refused; `status` is what its sender is told where it is a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
