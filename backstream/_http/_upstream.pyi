import ssl

from backstream._service import Service
from backstream.config import AgentSettings, Upstream

class UpstreamService(Service):
    connections: int
    def __init__(self, target: Upstream, settings: AgentSettings, tls: ssl.SSLContext | None = None) -> None: ...
    @property
    def where(self) -> str: ...
