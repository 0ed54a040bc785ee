from typing import Any

from backstream._asgi import AsgiService
from backstream.config import AgentSettings

class AsgiWebService(AsgiService):
    def __init__(self, app: Any, settings: AgentSettings) -> None: ...
