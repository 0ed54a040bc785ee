import asyncio
from collections.abc import Callable
from typing import Any

from backstream._agents import AgentTable
from backstream._exchange import Responder
from backstream._http._clients import ClientTable
from backstream.config import ProxySettings

class ServerContext:
    table: AgentTable
    settings: ProxySettings
    draining: bool
    requests: int
    def __init__(
        self,
        table: AgentTable,
        clients: ClientTable,
        settings: ProxySettings,
        *,
        serves_clients: bool,
        serves_agents: bool,
        on_agent: Callable[..., Any],
        access_log: Callable[..., None] | None,
    ) -> None: ...
    def connection(self) -> ServerConnection: ...
    @property
    def connection_count(self) -> int: ...
    def drain(self) -> None: ...
    def abort(self) -> None: ...
    async def wait_empty(self) -> None: ...

class ServerConnection(Responder, asyncio.BufferedProtocol):
    client_address: tuple[str, int] | None
