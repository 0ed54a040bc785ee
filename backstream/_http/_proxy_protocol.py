"""The PROXY protocol, versions 1 and 2: what a load balancer says before everything else of who connected to it.

Read strictly (the HAProxy project's proxy-protocol.txt, §2 and §5): a byte that can't belong to a header is an error at
once, never the beginning of something else. Additional values of version 2 (TLVs) are skipped.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple

from backstream._http.errors import MessageError

V1_BEGIN: Final = b"PROXY "
V1_MOST: Final = 107
"""Bytes of the longest line, its CRLF included."""
V1_LINE: Final = re.compile(rb"PROXY (TCP[46]) ([0-9A-Fa-f:.]+) ([0-9A-Fa-f:.]+) (0|[1-9]\d{0,4}) (0|[1-9]\d{0,4})")
V1_UNKNOWN: Final = re.compile(rb"PROXY UNKNOWN( [\x20-\x7e]*)?")
V2_BEGIN: Final = b"\r\n\r\n\0\r\nQUIT\n"
V2_HEAD: Final = 16
"""Bytes before what its length counts."""
LOCAL: Final = 0x20
PROXY: Final = 0x21
UNSPECIFIED: Final = 0x00
TCP4: Final = 0x11
TCP6: Final = 0x21


class ProxyHeader(NamedTuple):
    """A whole header."""

    size: int
    """Bytes that it takes."""
    source: tuple[str, int] | None
    """(host, port) of the client; None: the connection is the load balancer's own, or it does not know."""


def read_proxy_header(data: bytes) -> ProxyHeader | None:
    """The header that `data` begins with, or None while it may still become one. Raises MessageError otherwise."""
    if data[:1] == b"P":
        return _read_v1(data)
    return _read_v2(data)


def _malformed(what: str) -> MessageError:
    return MessageError(400, f"malformed PROXY header: {what}")


def _read_v1(data: bytes) -> ProxyHeader | None:
    begin = data[: len(V1_BEGIN)]
    if begin != V1_BEGIN[: len(begin)]:
        raise _malformed("it is neither version 1 nor 2")
    end = data.find(b"\r", 0, V1_MOST - 1)
    if end < 0:
        if len(data) >= V1_MOST - 1 or b"\n" in data:
            raise _malformed("a line that does not end")
        return None
    if len(data) < end + 2:
        return None
    line = data[:end]
    if data[end + 1 : end + 2] != b"\n":
        raise _malformed("a CR without its LF")
    if V1_UNKNOWN.fullmatch(line):
        return ProxyHeader(end + 2, None)
    match = V1_LINE.fullmatch(line)
    if match is None:
        raise _malformed("a line that is none")
    family, source, destination = match[1], match[2].decode(), match[3].decode()
    kind = ipaddress.IPv4Address if family == b"TCP4" else ipaddress.IPv6Address
    try:
        kind(destination)
        host = str(kind(source))
    except ValueError:
        raise _malformed("an address that is none") from None
    port = int(match[4])
    if port > 65535 or int(match[5]) > 65535:
        raise _malformed("a port that is none")
    return ProxyHeader(end + 2, (host, port))


def _read_v2(data: bytes) -> ProxyHeader | None:
    begin = data[: len(V2_BEGIN)]
    if begin != V2_BEGIN[: len(begin)]:
        raise _malformed("it is neither version 1 nor 2")
    if len(data) > 12 and data[12] not in (LOCAL, PROXY):
        raise _malformed("another version or command")
    if len(data) > 13 and data[12] == PROXY and data[13] not in (UNSPECIFIED, TCP4, TCP6):
        raise _malformed("neither TCP over IPv4 nor over IPv6")
    if len(data) < V2_HEAD:
        return None
    size = V2_HEAD + int.from_bytes(data[14:16], "big")
    family = data[13] if data[12] == PROXY else UNSPECIFIED
    least = {UNSPECIFIED: 0, TCP4: 12, TCP6: 36}[family]
    if size < V2_HEAD + least:
        raise _malformed("it is too short for its addresses")
    if len(data) < size:
        return None
    addresses = data[V2_HEAD:size]
    if family == UNSPECIFIED:
        return ProxyHeader(size, None)
    if family == TCP4:
        return ProxyHeader(size, (str(ipaddress.IPv4Address(addresses[:4])), int.from_bytes(addresses[8:10], "big")))
    return ProxyHeader(size, (str(ipaddress.IPv6Address(addresses[:16])), int.from_bytes(addresses[32:34], "big")))
