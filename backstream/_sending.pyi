from backstream._stream import SessionBase

class SendingSession(SessionBase):
    @property
    def closed(self) -> bool: ...
