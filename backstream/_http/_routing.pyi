from backstream.config import ProxySettings

class Router:
    def __init__(self, settings: ProxySettings) -> None: ...
