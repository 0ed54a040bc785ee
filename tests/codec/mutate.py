"""Random damage to valid input, the same with every seed."""

from __future__ import annotations

import random
from collections.abc import Iterator

from backstream import _message_codec
from backstream._messages import RequestHead
from tests.codec.heads import KINDS, SAMPLES, Kind


def damaged(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to four bytes flipped, set, cut, doubled, moved or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            out.append(rng.randrange(256))
        at = rng.randrange(len(out))
        other = rng.randrange(len(out))
        match rng.randrange(8):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 3:
                del out[at:]
            case 4:
                del out[min(at, other) : max(at, other)]
            case 5:
                out[at:at] = rng.randbytes(rng.randint(1, 4))
            case 6:
                out[at:at] = out[min(at, other) : max(at, other)]
            case _:
                out[at:at] = b"\xff" * rng.randint(1, 11)
    return bytes(out)


def payloads(count: int, seed: int) -> Iterator[tuple[Kind, bytes]]:
    """`count` damaged payloads, of each kind in turn."""
    rng = random.Random(seed)
    sources = {kind.name: [kind.pack(SAMPLES[kind.name])] for kind in KINDS}
    sources["request"].append(
        _message_codec.pack_request(RequestHead(method=b"GET", target=b"/", upgrade=b"websocket"))
    )
    for i in range(count):
        kind = KINDS[i % len(KINDS)]
        yield kind, damaged(rng.choice(sources[kind.name]), rng)


def messages(count: int, seed: int) -> Iterator[bytes]:
    """`count` damaged messages of a few frames."""
    rng = random.Random(seed)
    source = b"".join(
        _message_codec.pack_frame(kind, stream, kinds.pack(SAMPLES[kinds.name]), rng.randrange(4))
        for kind, stream, kinds in ((6, 0, KINDS[6]), (1, 1, KINDS[0]), (2, 1, KINDS[1]), (5, 1, KINDS[3]))
    ) + _message_codec.pack_frame(0, 1, b"body")
    for _ in range(count):
        yield damaged(source, rng)
