"""What a `Handler` does with its stream: answer it, send and take body bytes, give it up.

Functions rather than methods, since the stream itself belongs to the session and is handled in C; they may be called
from the event loop's thread only, inside a `Handler`'s methods or later. On a stream that has ended they do nothing.
"""

from backstream._callbacks import consume, end, is_closed, reset, respond, room, write
from backstream._stream import Stream

__all__ = ["Stream", "consume", "end", "is_closed", "reset", "respond", "room", "write"]
