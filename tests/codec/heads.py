"""Valid messages of the wire for hypothesis, and the protobuf runtime's view of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.message import Message
from hypothesis import strategies as st

from backstream import _codec, _message_codec
from backstream._messages import Body, Fields, GoAway, Hello, Notify, RequestHead, Reset, ResponseHead
from backstream._proto import tunnel_pb2

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

TOKEN = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
LOWER = bytes(c for c in TOKEN if not 0x41 <= c <= 0x5A)
VALUE = bytes(c for c in range(256) if c == 9 or 0x20 <= c != 0x7F)
TARGET = bytes(c for c in range(0x21, 0x7F) if c != ord("#"))
REG_NAME = b"-._~!$&'()*+;=0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

NEVER_TRAVELS = (
    b"host",
    b"upgrade",
    b"connection",
    b"keep-alive",
    b"content-length",
    b"proxy-connection",
    b"transfer-encoding",
)
RESTRICTED = (b"te", b"expect")


def over(alphabet: bytes, least: int = 0, most: int = 40) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(list(alphabet)), min_size=least, max_size=most).map(bytes)


U32 = st.integers(0, 2**32 - 1)
U63 = st.integers(0, 2**63 - 1)
U64 = st.integers(0, 2**64 - 1)
NAMES = over(LOWER, 1).filter(lambda name: name not in NEVER_TRAVELS + RESTRICTED)
COMMON: Fields = ((b"expect", b"100-Continue"), (b"cookie", b"a=1"), (b"x", b""))


def _lists(common: Fields) -> st.SearchStrategy[Fields]:
    return st.lists(st.one_of(st.tuples(NAMES, over(VALUE)), st.sampled_from(common)), max_size=6).map(tuple)


FIELDS = _lists(COMMON)
REQUEST_FIELDS = _lists(((b"te", b"trailers"), *COMMON))
PORTS = st.one_of(st.just(b""), st.integers(0, 65535).map(lambda port: b":%d" % port))
HOSTS = st.one_of(
    over(REG_NAME, 1),
    st.ip_addresses(v=4).map(lambda ip: str(ip).encode()),
    st.ip_addresses(v=6).map(lambda ip: b"[%s]" % str(ip).encode()),
    st.just(b"%41b%2Fc"),
)
AUTHORITIES = st.one_of(st.just(b""), st.tuples(HOSTS, PORTS).map(b"".join))
PEERS = st.one_of(
    st.just(b""),
    st.tuples(HOSTS.filter(lambda host: host[:1] == b"["), st.just(b":443")).map(b"".join),
    st.tuples(st.ip_addresses(v=4), st.integers(1, 65535)).map(lambda it: f"{it[0]}:{it[1]}".encode()),
)
PATHS = over(TARGET).map(lambda rest: b"/" + rest)
BODIES = st.one_of(
    st.just((Body.NONE, 0)),
    st.just((Body.CHUNKED, 0)),
    U63.map(lambda length: (Body.SIZED, length)),
)
TEXTS = st.text(max_size=30)


def is_switchable(token: bytes) -> bool:
    return token.lower() not in (b"h2c", b"h2", b"http", b"tls")


@st.composite
def request_heads(draw: st.DrawFn) -> RequestHead:
    body, length = draw(BODIES)
    method, target = draw(
        st.one_of(
            st.just((b"OPTIONS", b"*")),
            st.tuples(over(TOKEN, 1).filter(lambda method: method != b"CONNECT"), PATHS),
        )
    )
    return RequestHead(
        method=method,
        target=target,
        authority=draw(AUTHORITIES),
        scheme=draw(st.sampled_from([b"http", b"https"])),
        http_minor=draw(U32),
        http_major=draw(U32.filter(lambda major: major != 0)),
        fields=draw(REQUEST_FIELDS),
        body=body,
        length=length,
        time_budget_ms=draw(U64),
        peer=draw(PEERS),
        upgrade=b"" if body else draw(over(TOKEN).filter(is_switchable)),
        client_id=draw(over(bytes(range(0x21, 0x7F)), 0, 128)),
        prefix=draw(st.one_of(st.just(b""), PATHS)),
    )


@st.composite
def response_heads(draw: st.DrawFn) -> ResponseHead:
    body, length = draw(BODIES)
    status = draw(st.integers(100, 999))
    return ResponseHead(
        status=status,
        reason=draw(over(VALUE)),
        fields=draw(FIELDS),
        body=body,
        length=length,
        upgrade=draw(over(TOKEN, 1).filter(is_switchable)) if status == 101 else b"",
    )


RESETS = st.builds(Reset, code=U32, message=TEXTS)
GOAWAYS = st.builds(GoAway, last_stream=U32, code=U32, message=TEXTS, retry_after_ms=U32)
NOTIFIES = st.builds(Notify, content_type=TEXTS, data=st.binary())
HELLOS = st.builds(
    Hello,
    version=U32,
    software=TEXTS,
    instance=st.binary(max_size=20),
    generation=U64,
    initial_window=U32,
    max_frame_size=U32,
    max_streams=U32,
    capabilities=st.lists(TEXTS, max_size=4).map(tuple),
)


def _fields(pairs: Fields) -> list[tunnel_pb2.Field]:
    return [tunnel_pb2.Field(name=name, value=value) for name, value in pairs]


def _pairs(fields: Any) -> Fields:
    return tuple((field.name, field.value) for field in fields)


def request_out(head: RequestHead) -> Message:
    return tunnel_pb2.RequestHead(
        method=head.method,
        target=head.target,
        authority=head.authority,
        scheme=head.scheme,
        http_minor=head.http_minor,
        fields=_fields(head.fields),
        body=cast(Any, int(head.body)),
        length=head.length,
        time_budget_ms=head.time_budget_ms,
        peer=head.peer,
        upgrade=head.upgrade,
        id=head.client_id,
        prefix=head.prefix,
        http_major=0 if head.http_major == 1 else head.http_major,
    )


def request_in(head: Any) -> RequestHead:
    return RequestHead(
        method=head.method,
        target=head.target,
        authority=head.authority,
        scheme=head.scheme,
        http_minor=head.http_minor,
        http_major=head.http_major or 1,
        fields=_pairs(head.fields),
        body=Body(head.body),
        length=head.length,
        time_budget_ms=head.time_budget_ms,
        peer=head.peer,
        upgrade=head.upgrade,
        client_id=head.id,
        prefix=head.prefix,
    )


def response_out(head: ResponseHead) -> Message:
    return tunnel_pb2.ResponseHead(
        status=head.status,
        reason=head.reason,
        fields=_fields(head.fields),
        body=cast(Any, int(head.body)),
        length=head.length,
        upgrade=head.upgrade,
    )


def response_in(head: Any) -> ResponseHead:
    return ResponseHead(
        status=head.status,
        reason=head.reason,
        fields=_pairs(head.fields),
        body=Body(head.body),
        length=head.length,
        upgrade=head.upgrade,
    )


@dataclass(frozen=True)
class Kind:
    """One message of the wire: how it is made, and both codecs of it."""

    name: str
    values: st.SearchStrategy[Any]
    runtime: type[Message]
    to_runtime: Callable[[Any], Message]
    from_runtime: Callable[[Any], Any]
    pack: Callable[[Any], bytes]
    unpack: Callable[[bytes], Any]

    def parse(self, payload: bytes) -> Any:
        """What the protobuf runtime makes of it; raises DecodeError."""
        message = self.runtime()
        message.ParseFromString(payload)
        return self.from_runtime(message)


KINDS = (
    Kind(
        "request",
        request_heads(),
        tunnel_pb2.RequestHead,
        request_out,
        request_in,
        _message_codec.pack_request,
        _message_codec.unpack_request,
    ),
    Kind(
        "response",
        response_heads(),
        tunnel_pb2.ResponseHead,
        response_out,
        response_in,
        _message_codec.pack_response,
        _message_codec.unpack_response,
    ),
    Kind(
        "trailers",
        FIELDS,
        tunnel_pb2.Trailers,
        lambda pairs: tunnel_pb2.Trailers(fields=_fields(pairs)),
        lambda message: _pairs(message.fields),
        _message_codec.pack_trailers,
        _message_codec.unpack_trailers,
    ),
    Kind(
        "reset",
        RESETS,
        tunnel_pb2.Reset,
        lambda it: tunnel_pb2.Reset(code=it.code, message=it.message),
        lambda it: Reset(code=it.code, message=it.message),
        _message_codec.pack_reset,
        _message_codec.unpack_reset,
    ),
    Kind(
        "goaway",
        GOAWAYS,
        tunnel_pb2.GoAway,
        lambda it: tunnel_pb2.GoAway(
            last_stream=it.last_stream, code=it.code, message=it.message, retry_after_ms=it.retry_after_ms
        ),
        lambda it: GoAway(
            last_stream=it.last_stream, code=it.code, message=it.message, retry_after_ms=it.retry_after_ms
        ),
        _message_codec.pack_goaway,
        _message_codec.unpack_goaway,
    ),
    Kind(
        "notify",
        NOTIFIES,
        tunnel_pb2.Notify,
        lambda it: tunnel_pb2.Notify(content_type=it.content_type, data=it.data),
        lambda it: Notify(content_type=it.content_type, data=it.data),
        _message_codec.pack_notify,
        _message_codec.unpack_notify,
    ),
    Kind(
        "hello",
        HELLOS,
        tunnel_pb2.Hello,
        lambda it: tunnel_pb2.Hello(
            version=it.version,
            software=it.software,
            instance=it.instance,
            generation=it.generation,
            initial_window=it.initial_window,
            max_frame_size=it.max_frame_size,
            max_streams=it.max_streams,
            capabilities=it.capabilities,
        ),
        lambda it: Hello(
            version=it.version,
            software=it.software,
            instance=it.instance,
            generation=it.generation,
            initial_window=it.initial_window,
            max_frame_size=it.max_frame_size,
            max_streams=it.max_streams,
            capabilities=tuple(it.capabilities),
        ),
        _codec.encode_hello,
        _codec.decode_hello,
    ),
)
KIND = {kind.name: kind for kind in KINDS}

SAMPLES: dict[str, Any] = {
    "request": RequestHead(
        method=b"PROPFIND",
        target=b"/a/%2Fb?q=1&r",
        authority=b"[2001:db8::1]:8443",
        scheme=b"https",
        http_minor=1,
        fields=((b"accept", b"*/*"), (b"cookie", b"a=1"), (b"te", b"trailers"), (b"x", b"")),
        body=Body.SIZED,
        length=70_000,
        time_budget_ms=3000,
        peer=b"192.0.2.1:50000",
        client_id=b"agent-1",
        prefix=b"/base",
    ),
    "response": ResponseHead(
        status=200,
        reason=b"Fine \xe9",
        fields=((b"content-type", b"text/plain"), (b"set-cookie", b"a"), (b"set-cookie", b"b")),
        body=Body.SIZED,
        length=2**40,
    ),
    "trailers": ((b"grpc-status", b"0"), (b"x-checksum", b"\xff")),
    "reset": Reset(code=33, message="nobody listens · zu"),
    "goaway": GoAway(last_stream=4001, code=11, message="calm", retry_after_ms=500),
    "notify": Notify(content_type="application/json", data=b"\x00\x01{}"),
    "hello": Hello(
        software="backstream/1",
        instance=bytes(range(16)),
        generation=2**40,
        initial_window=65536,
        max_frame_size=65536,
        max_streams=1000,
        capabilities=("ping", "x"),
    ),
}
"""One value of each message with most members set."""


# --- members as bytes --------------------------------------------------------------------------------------


def varint(value: int, width: int = 0) -> bytes:
    """A varint; `width` pads it with bytes that say nothing, which protobuf allows up to ten."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    while len(out) < width:
        out[-1] |= 0x80
        out.append(0)
    return bytes(out)


def member(number: int, wire_type: int, value: Any) -> bytes:
    """One encoded member; `value` is an int for VARINT, bytes otherwise."""
    tag = varint(number << 3 | wire_type)
    if wire_type == VARINT:
        return tag + varint(value)
    if wire_type == BYTES:
        return tag + varint(len(value)) + bytes(value)
    assert len(value) == {FIXED64: 8, FIXED32: 4}[wire_type]
    return tag + bytes(value)


def split(payload: bytes) -> list[tuple[int, int, bytes]]:
    """The members of a valid payload as (number, wire type, encoded)."""

    def read(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = payload[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value, at

    members = []
    at = 0
    while at < len(payload):
        start = at
        tag, at = read(at)
        value, at = read(at)
        if tag & 7 == BYTES:
            at += value
        else:
            assert tag & 7 == VARINT
        members.append((tag >> 3, tag & 7, payload[start:at]))
    return members
