import asyncio
from typing import Any

from backstream._http._context import ServerContext
from backstream._http._front_end import FrontEnd

class ServerConnection(FrontEnd, asyncio.BufferedProtocol):
    def __init__(self, context: ServerContext) -> None: ...
    @property
    def peer_certificate(self) -> dict[str, Any] | None: ...
