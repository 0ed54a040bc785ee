from backstream._flow import WindowBudget
from backstream._messages import Hello
from backstream._session import Session
from backstream._stream import SessionOwner, Stream

class SeedStream(Stream): ...

class SeedSession(Session):
    json: bool
    max_message: int
    late: int
    dropped: int
    def __init__(
        self,
        owner: SessionOwner,
        is_proxy: bool,
        hello: Hello,
        budget: WindowBudget,
        json: bool,
        max_message: int,
        request_timeout: float,
    ) -> None: ...
    @property
    def queued(self) -> int: ...
