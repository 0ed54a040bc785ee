"""An input read as a program: each step takes the bytes that it needs, and zeros where there are none left."""

from __future__ import annotations

from itertools import pairwise


class Steps:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return max(len(self._data) - self._at, 0)

    def number(self, limit: int = 256) -> int:
        """0 to `limit` - 1, from one byte."""
        self._at += 1
        return (self._data[self._at - 1] if self._at <= len(self._data) else 0) % limit

    def take(self, count: int) -> bytes:
        """At most `count` bytes."""
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        return self.take(self.left)


def pieces(data: bytes, seed: int) -> list[bytes]:
    """`data` in pieces: whole for 0, byte by byte for 255 (the first 512), else cut at places that `seed` decides."""
    if seed == 0 or len(data) < 2:
        return [data]
    if seed == 255:
        return [data[i : i + 1] for i in range(min(len(data), 512))] + [data[512:]]
    cuts, state = {0, len(data)}, seed
    for _ in range(1 + seed % 8):
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        cuts.add((state >> 8) % len(data))
    places = sorted(cuts)
    return [data[a:b] for a, b in pairwise(places)]
