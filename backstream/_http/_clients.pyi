from typing import final

@final
class Client:
    host: str
    connections: int

@final
class ClientTable:
    def __init__(self, max_connections: int, aborts_rate: float) -> None: ...
    def __len__(self) -> int: ...
