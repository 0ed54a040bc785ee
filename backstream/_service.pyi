from collections.abc import Callable

from backstream._callbacks import Handler
from backstream._flow import WindowBudget
from backstream._loop import LoopState
from backstream._messages import GoAway, RequestHead
from backstream._stream import Stream
from backstream._websocket import SessionLink
from backstream.agent import Agent
from backstream.config import SessionSettings

class Service:
    requests: int
    async def start(self) -> None: ...
    async def stop(self) -> None: ...

class CallbackService(Service):
    def __init__(self, factory: Callable[[Stream, RequestHead, bool], Handler | None]) -> None: ...

class ServiceLink(SessionLink):
    since: float
    fault: str
    goaway: GoAway | None
    def __init__(
        self,
        agent: Agent,
        service: Service,
        loop: LoopState,
        settings: SessionSettings,
        budget: WindowBudget,
        name: str,
        instance: bytes,
        generation: int,
        seed: tuple[WindowBudget, float] | None = None,
    ) -> None: ...
    @property
    def wire(self) -> str: ...
    def leave(self, reason: str) -> None: ...
