"""What every contender serves, however it is built, and how the clients ask for it.

``GET /small`` (14 bytes), ``GET /bytes/N`` (Content-Length), ``GET /chunked/N`` (N bytes, no length),
``GET /endless`` (chunked, until the client leaves), ``POST /sink`` (answers with the number of bytes
received). Imported by processes under measurement: keep it free of imports.
"""

CLIENT_ID = "bench"
CLIENT_ID_HEADER = "x-backstream-client-id"

SMALL = b"Hello, world!\n"
MIB = 1 << 20
GIB = 1 << 30
ENDLESS = 1 << 50
"""Bytes; no run gets to its end."""
