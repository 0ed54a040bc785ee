from typing import Any

from backstream._service import Service

class ClientDisconnected(OSError): ...

class AsgiService(Service):
    def __init__(self, app: Any, root_path: str = "", lifespan: str = "auto", request_timeout: float = 0.0) -> None: ...
