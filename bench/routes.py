"""What every contender serves, however it is built, and how the clients ask for it.

``GET /small`` (14 bytes), ``GET /bytes/N`` (Content-Length), ``GET /chunked/N`` (N bytes, no length), ``GET
/endless`` (chunked, until the client leaves), ``GET /events`` (a Server-Sent Event every 5 ms with the time at which
it was made, until the client leaves; ``/events/N``: N of them), ``POST /sink`` (answers with the number of bytes
received), ``GET /received`` (the bytes that all sinks of the process have received so far, and the time), ``POST
/stall/N`` (reads nothing and answers nothing for N seconds), ``GET /echo`` (a WebSocket whose messages, of up to 125
bytes, come back). Imported by processes under measurement: keep it free of imports.
"""

from time import monotonic_ns

CLIENT_ID = "bench"
HOST = "bench.localhost"
"""What clients ask for: some tunnels find the agent by its first part."""
CLIENT_ID_HEADER = "x-backstream-client-id"

SMALL = b"Hello, world!\n"
MIB = 1 << 20
GIB = 1 << 30
EVENT_SECONDS = 0.005
ENDLESS = 1 << 50
"""Bytes; no run gets to its end."""


def received(count: int) -> bytes:
    """What ``/received`` answers: bytes, and nanoseconds by the clock that all processes of a machine share."""
    return b"%d %d" % (count, monotonic_ns())


def event() -> bytes:
    """An event that says when it was made, by the clock that all processes of a machine share."""
    return b"data: %d\n\n" % monotonic_ns()
