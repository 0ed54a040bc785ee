import asyncio

class LoopMember: ...

class LoopState:
    asyncio_loop: asyncio.AbstractEventLoop
    deadlines: int

def loop_state() -> LoopState: ...
