"""Messages of the seed wire and events in them: the first byte says which of them the rest is, and in what encoding.

What is refused raises HeadError and nothing else. What is taken of protobuf is what its runtime reads, and what is
taken at all survives being written and read again.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from backstream import RequestHead, ResponseHead, _message_codec, _seed_codec
from backstream._messages import Body
from backstream._proto import seed_pb2
from backstream.errors import HeadError

DROPPED = frozenset(
    (
        *("host", "upgrade", "connection", "keep-alive", "content-length", "proxy-connection", "transfer-encoding"),
        *("te", "expect", "trailer"),
    )
)


def one(data: bytes) -> None:
    if not data:
        return
    as_json, kind, rest = bool(data[0] & 1), (data[0] >> 1) % 3, data[1:]
    try:
        if kind == 0:
            message(rest, as_json)
        elif kind == 1:
            request(rest, as_json)
        else:
            response(rest, as_json)
    except HeadError:
        pass


def message(data: bytes, as_json: bool) -> None:
    found = message_id, kind, event = _seed_codec.unpack(data, as_json)
    if not as_json:
        theirs = read(seed_pb2.Message, data)
        assert (message_id.decode(), kind, event) == (theirs.id, theirs.type, theirs.data)
    packed = _seed_codec.pack(message_id, kind, event, as_json)
    assert _seed_codec.unpack(packed, as_json) == found


def request(data: bytes, as_json: bool) -> None:
    method, target, fields, length, body = _seed_codec.unpack_request(data, as_json)
    if not as_json:
        theirs = read(seed_pb2.EventHTTPRequest, data)
        assert (method.decode(), body) == (theirs.method, theirs.body)
        check_fields(fields, theirs)
    head = RequestHead(method=method, target=target, fields=fields)
    # It is a head of the native wire.
    assert _message_codec.unpack_request(_message_codec.pack_request(head)) == head
    again = _seed_codec.unpack(_seed_codec.pack_request(b"i", head, body, as_json), as_json)[2]
    same = _seed_codec.unpack_request(again, as_json)
    assert (same[0], sorted(same[2]), same[4]) == (method, sorted(fields), body)
    if length == len(body):
        sized = RequestHead(method=method, target=target, fields=fields, body=Body.SIZED, length=length)
        again = _seed_codec.unpack(_seed_codec.pack_request(b"i", sized, body, as_json), as_json)[2]
        assert _seed_codec.unpack_request(again, as_json)[3] == length


def response(data: bytes, as_json: bool) -> None:
    status, fields, _, body = _seed_codec.unpack_response(data, as_json)
    if not as_json:
        theirs = read(seed_pb2.EventHTTPResponse, data)
        assert body == theirs.body
        assert status == theirs.statusCode or (status == 1000 and not 0 <= theirs.statusCode <= 999)
        check_fields(fields, theirs)
    if 100 <= status <= 999 and status != 101:
        head = ResponseHead(status=status, fields=fields)
        assert _message_codec.unpack_response(_message_codec.pack_response(head)) == head
        again = _seed_codec.unpack(_seed_codec.pack_response(b"i", head, body, as_json), as_json)[2]
        same = _seed_codec.unpack_response(again, as_json)
        assert (same[0], sorted(same[1]), same[3]) == (status, sorted(fields), body)


def read(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise AssertionError(f"protobuf does not read what was taken of {data!r}") from None


def check_fields(ours: tuple[tuple[bytes, bytes], ...], theirs: Any) -> None:
    if len(UnknownFieldSet(theirs)):
        # Python's runtime passes over a whole entry of a map that has a member it doesn't know; Go's and ours do not.
        return
    meant = [
        (name.lower().encode(), value.strip(" \t").encode())
        for name, values in theirs.headers.items()
        for value in values
        if name.lower() not in DROPPED
    ]
    assert sorted(ours) == sorted(meant), (ours, meant)


def seeds() -> dict[str, bytes]:
    fields = ((b"x-a", b"1"), (b"x-a", b"2"), (b"content-type", "café".encode()))
    asked = RequestHead(method=b"PUT", target=b"/a%20b/%2F?q=%41", fields=fields, body=Body.SIZED, length=4)
    answered = ResponseHead(status=404, fields=fields, body=Body.SIZED, length=4)
    made = {}
    for as_json in (False, True):
        packed = _seed_codec.pack_request(b"0d572c39-3e39-400b-aaa1-2104a8057b1c", asked, b"body", as_json)
        answer = _seed_codec.pack_response(b"an id", answered, b"body", as_json)
        codec = "json" if as_json else "proto"
        made[f"a message in {codec}"] = bytes([as_json]) + packed
        made[f"a request in {codec}"] = bytes([2 + as_json]) + _seed_codec.unpack(packed, as_json)[2]
        made[f"a response in {codec}"] = bytes([4 + as_json]) + _seed_codec.unpack(answer, as_json)[2]
    return made
