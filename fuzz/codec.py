"""Payloads and frames: the first byte says which kind, the rest is read as one.

What is refused raises HeadError or FrameError and nothing else. What is taken is what the protobuf runtime reads, and
survives being written and read again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from backstream import _codec, _message_codec
from backstream._messages import Body
from backstream._proto import tunnel_pb2
from backstream.errors import FrameError, HeadError


@dataclass(frozen=True)
class Kind:
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]
    message: type[Message]


KINDS = [
    Kind(_message_codec.pack_request, _message_codec.unpack_request, tunnel_pb2.RequestHead),
    Kind(_message_codec.pack_response, _message_codec.unpack_response, tunnel_pb2.ResponseHead),
    Kind(_message_codec.pack_trailers, _message_codec.unpack_trailers, tunnel_pb2.Trailers),
    Kind(_message_codec.pack_reset, _message_codec.unpack_reset, tunnel_pb2.Reset),
    Kind(_message_codec.pack_goaway, _message_codec.unpack_goaway, tunnel_pb2.GoAway),
    Kind(_codec.encode_hello, _codec.decode_hello, tunnel_pb2.Hello),
    Kind(_message_codec.pack_notify, _message_codec.unpack_notify, tunnel_pb2.Notify),
]


def one(data: bytes) -> None:
    if not data:
        return
    kind, rest = data[0] % (len(KINDS) + 1), data[1:]
    if kind < len(KINDS):
        payload(KINDS[kind], rest)
    else:
        frames(rest)


def payload(kind: Kind, data: bytes) -> None:
    try:
        value = kind.unpack(data)
    except HeadError:
        return
    try:
        message = kind.message.FromString(data)
    except DecodeError:
        raise AssertionError(f"protobuf does not read what became {value}") from None
    if isinstance(value, tuple):
        assert value == pairs(message.fields), (value, message)  # type: ignore[attr-defined]
    else:
        for name in type(value).__dataclass_fields__:
            ours, theirs = getattr(value, name), getattr(message, "id" if name == "client_id" else name)
            if name == "fields":
                theirs = pairs(theirs)
            elif name == "capabilities":
                theirs = tuple(theirs)
            elif name == "http_major":
                theirs = theirs or 1
            assert ours == theirs, f"{name}: {ours!r} is {theirs!r} for protobuf"
    packed = kind.pack(value)
    assert kind.unpack(packed) == value, "written and read again it is another"
    assert kind.pack(kind.unpack(packed)) == packed


def pairs(fields: Any) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((field.name, field.value) for field in fields)


def frames(data: bytes) -> None:
    try:
        found = _message_codec.unpack_frames(data)
    except FrameError:
        return
    again = b"".join(_message_codec.pack_frame(kind, stream, body, flags) for kind, flags, stream, body in found)
    assert again == data


def seeds() -> dict[str, bytes]:
    """Inputs to begin with, one of each kind."""
    from backstream._messages import GoAway, Hello, Notify, RequestHead, Reset, ResponseHead

    values: list[Any] = [
        RequestHead(
            method=b"POST",
            target=b"/a?b=%41",
            authority=b"[::1]:80",
            fields=((b"accept", b"*/*"), (b"te", b"trailers"), (b"expect", b"100-continue")),
            body=Body.SIZED,
            length=300,
            time_budget_ms=3000,
            peer=b"127.0.0.1:5000",
            client_id=b"svc",
            prefix=b"/t",
        ),
        ResponseHead(status=200, reason=b"OK", fields=((b"a", b""), (b"b", b"\xe9 c")), body=Body.CHUNKED),
        ((b"x-sum", b"1"), (b"x-sum", b"2")),
        Reset(code=8, message="gé"),
        GoAway(last_stream=5, code=1, message="why", retry_after_ms=200),
        Hello(software="a", instance=bytes(16), generation=3, initial_window=65536, capabilities=("ping", "x")),
        Notify(content_type="text/plain", data=b"\x00\xff"),
    ]
    found = {f"kind-{number}": bytes([number]) + KINDS[number].pack(value) for number, value in enumerate(values)}
    upgrade = RequestHead(method=b"GET", target=b"/", peer=b"[2001:db8::1]:443", upgrade=b"websocket", scheme=b"https")
    found["upgrade"] = bytes([0]) + KINDS[0].pack(upgrade)
    found["switch"] = bytes([1]) + KINDS[1].pack(ResponseHead(status=101, upgrade=b"websocket"))
    found["frames"] = bytes([len(KINDS)]) + b"".join(
        _message_codec.pack_frame(kind, stream, bytes(size), flags)
        for kind, stream, size, flags in ((6, 0, 3, 0), (0, 1, 5, 1), (4, 1, 4, 0), (200, 7, 0, 255))
    )
    return found
