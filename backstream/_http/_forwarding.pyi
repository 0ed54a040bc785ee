from backstream._http._trust import Networks
from backstream.config import ProxySettings

class Peer:
    address: tuple[str, int] | None

class Forwarding:
    trusted: Networks | None
    def __init__(self, settings: ProxySettings) -> None: ...
