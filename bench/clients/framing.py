"""Counts the body of a chunked message as it comes, at a cost per chunk and not per byte."""


class ChunkCounter:
    """Fed what is received; `body` is the bytes of body announced, `done` says whether the end came."""

    __slots__ = ("_last", "_partial", "_skip", "body", "done")

    def __init__(self) -> None:
        self.body = 0
        self.done = False
        self._skip = 0  # bytes of the current chunk still to come, its CRLF included
        self._last = False  # the chunk of size 0 was seen: trailers until an empty line
        self._partial = b""  # a line that the buffer's end cut

    def feed(self, buffer: bytearray, start: int, end: int) -> int:
        """Take ``buffer[start:end]``; returns where the message ended, or `end`. ValueError: bad size."""
        position = start
        while position < end and not self.done:
            if self._skip:
                step = min(self._skip, end - position)
                position += step
                self._skip -= step
                continue
            newline = buffer.find(b"\n", position, end)
            if newline < 0:
                self._partial += buffer[position:end]
                return end
            line = (self._partial + buffer[position:newline]).strip()
            self._partial = b""
            position = newline + 1
            if self._last:
                self.done = not line
                continue
            size = int(line.split(b";")[0], 16)
            if size:
                self.body += size
                self._skip = size + 2
            else:
                self._last = True
        return position
