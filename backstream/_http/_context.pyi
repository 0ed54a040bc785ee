import asyncio
import ssl
from collections.abc import Callable
from typing import Any

from backstream._agents import AgentTable
from backstream._http._clients import ClientTable
from backstream.config import ProxySettings

class ServerContext:
    table: AgentTable
    settings: ProxySettings
    serves_agents: bool
    draining: bool
    tls: ssl.SSLContext | None
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
        protocol: Callable[[ServerContext], asyncio.BaseProtocol],
        tls: ssl.SSLContext | None = None,
    ) -> None: ...
    def connection(self) -> asyncio.BaseProtocol: ...
    @property
    def connection_count(self) -> int: ...
    def drain(self) -> None: ...
    def abort(self) -> None: ...
    async def wait_empty(self) -> None: ...
