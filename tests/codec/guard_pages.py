"""Proves that decoding reads nothing behind its input: each input ends where a page without access begins.

Run as a program, since a read too far is a SIGSEGV. A `bytes` object is laid into anonymous memory by hand, so
that its last byte is the last one before the forbidden page (the NUL that CPython keeps behind a bytes object is
what is left out: nothing that takes a length may look at it). `--control` reads one byte too far, which has to
crash.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import sys

PAGE = mmap.PAGESIZE
SIZE = 64 * PAGE
HEADER = bytes.__basicsize__ - 1
PROT_NONE = 0


class Fence:
    """Memory whose end is guarded."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, SIZE + PAGE)
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.end = ctypes.addressof(self._anchor) + SIZE
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(self.end), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")

    def hold(self, data: bytes) -> bytes:
        """A bytes object equal to `data` that ends at the fence; the one before it is gone then."""
        start = self.end - HEADER - len(data)
        # The original's header: the reference count (never to reach 0), the type, the size, the hash.
        ctypes.memmove(start, id(data), HEADER + len(data))
        ctypes.c_ssize_t.from_address(start).value = 1 << 20
        held: bytes = ctypes.cast(start, ctypes.py_object).value
        return held


def seed_payloads() -> list[bytes]:
    """Messages of the seed wire and the events in them."""
    from backstream import _seed_codec
    from tests.codec.heads import SAMPLES

    packed = [
        _seed_codec.pack_request(_seed_codec.make_id(), SAMPLES["request"], b"body"),
        _seed_codec.pack_response(_seed_codec.make_id(), SAMPLES["response"], b"body"),
    ]
    return packed + [_seed_codec.unpack(each)[2] for each in packed]


def main() -> None:
    from backstream import _callbacks, _flow, _message_codec, _seed_codec, _session
    from backstream.errors import FrameError, HeadError
    from tests.codec import mutate
    from tests.codec.heads import KINDS, SAMPLES

    fence = Fence()
    assert fence.hold(b"x" * 100) == b"x" * 100
    if "--control" in sys.argv:
        ctypes.string_at(fence.end, 1)
        return
    decoded = refused = 0

    def check(decode: object, data: bytes) -> None:
        nonlocal decoded, refused
        try:
            decode(fence.hold(data))  # type: ignore[operator]
            decoded += 1
        except (HeadError, FrameError):
            refused += 1

    for kind in KINDS:
        whole = kind.pack(SAMPLES[kind.name])
        for cut in range(len(whole) + 1):
            check(kind.unpack, whole[:cut])
            check(_message_codec.unpack_frames, _message_codec.pack_frame(1, 1, whole)[:cut])
    for kind, payload in mutate.payloads(10_000, seed=2):
        check(kind.unpack, payload)
    for message in mutate.messages(3000, seed=3):
        check(_message_codec.unpack_frames, message)
        owner = _callbacks.Owner()
        budget = _flow.WindowBudget(0)
        session = _session.Session(owner, False, SAMPLES["hello"], budget, 1 << 16, 1 << 16)
        _callbacks.receive(session, fence.hold(message))
    choose = random.Random(4)
    for whole in seed_payloads():
        for cut in range(len(whole) + 1):
            for unpack in (_seed_codec.unpack, _seed_codec.unpack_request, _seed_codec.unpack_response):
                check(unpack, whole[:cut])
        for _ in range(1000):
            spoilt = bytearray(whole)
            for _ in range(choose.randrange(1, 4)):
                spoilt[choose.randrange(len(spoilt))] = choose.randrange(256)
            for unpack in (_seed_codec.unpack, _seed_codec.unpack_request, _seed_codec.unpack_response):
                check(unpack, bytes(spoilt))
    print(decoded, refused)


if __name__ == "__main__":
    main()
