from collections.abc import Iterable

class SendBatch:
    count: int

def send_together(sends: Iterable[tuple[int, bytes]]) -> list[int] | None: ...
