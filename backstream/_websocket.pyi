from typing import Any

from picows import WSListener

from backstream._session import Session, SessionOwner

SUBPROTOCOL: str
CLIENT_OPTIONS: dict[str, Any]

class SessionLink(SessionOwner):
    session: Session
    name: str
    def abort(self, message: str) -> None: ...
    @property
    def listener(self) -> WSListener: ...
    @property
    def close_code(self) -> int | None: ...

class ReadGuard: ...

def accept_websocket(transport: Any, link: SessionLink, key: bytes, rest: bytes) -> ReadGuard: ...
def guard_websocket(transport: Any, link: SessionLink) -> ReadGuard: ...
