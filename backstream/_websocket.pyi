import socket
import ssl
from typing import Any

from picows import WSListener, WSTransport

from backstream._session import Session
from backstream._stream import SessionOwner
from backstream.config import ProxyUrl

SUBPROTOCOL: str
PAUSES_LATE: bool

class SessionLink(SessionOwner):
    session: Session
    name: str
    bytes_received: int
    bytes_sent: int
    session_name: str | None
    @property
    def log_fields(self) -> dict[str, str | None]: ...
    def abort(self, message: str) -> None: ...
    def discard(self, message: str) -> None: ...
    def begin_service(self) -> None: ...
    @property
    def listener(self) -> WSListener: ...
    @property
    def is_lost(self) -> bool: ...
    @property
    def close_code(self) -> int | None: ...

class ReadGuard: ...

def accept_websocket(transport: Any, link: SessionLink, key: bytes, rest: bytes) -> ReadGuard: ...
async def dial_websocket(
    link: SessionLink,
    url: ProxyUrl,
    headers: list[tuple[str, str]],
    tls: ssl.SSLContext | None,
    max_frame_size: int = 0,
    sock: socket.socket | None = None,
) -> WSTransport: ...
