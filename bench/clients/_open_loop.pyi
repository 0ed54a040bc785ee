from array import array

class OpenLoop:
    begin_ns: int
    """When the first request was due, by the clock that all processes of a machine share."""

    def __init__(
        self, port: int, connections: int, rate: float, count: int, message: bytes, body: bytes, grace_ns: int
    ) -> None: ...
    def run(self) -> array[int]: ...
