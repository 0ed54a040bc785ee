"""The seed wire's codec, held to what the original wrote and to the protobuf runtime."""

import base64
import json
import string
import uuid
from typing import Any
from urllib.parse import unquote

import pytest
from google.protobuf import json_format
from google.protobuf.struct_pb2 import ListValue
from hypothesis import example, given
from hypothesis import strategies as st

from backstream import RequestHead, ResponseHead, _seed_codec
from backstream._messages import Body
from backstream._proto import seed_pb2
from backstream.errors import HeadError
from tests.codec.heads import member
from tests.codec.test_proto_seed import EVENTS, MESSAGES, payload_of

TYPE = {"NOTIFY": 0, "REQUEST": 1, "RESPONSE": 2}


def fields_of(headers: dict[str, list[str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, values in headers.items() for value in values]


def in_order(headers: dict[str, list[str]], payload: bytes) -> dict[str, list[str]]:
    """An event's headers in the order in which they were written."""
    names = sorted(headers, key=lambda name: payload.find(b"\x0a" + bytes([len(name)]) + name.encode()))
    return {name: headers[name] for name in names}


@pytest.mark.parametrize("entry", MESSAGES, ids=lambda entry: f"{entry['codec']}-{entry['decoded']['type']}")
def test_a_captured_message_is_read_as_it_was_meant(entry: dict[str, Any]) -> None:
    as_json, meant = entry["codec"] == "json", entry["decoded"]
    message_id, kind, data = _seed_codec.unpack(payload_of(entry), as_json)
    assert (message_id.decode(), kind) == (meant["id"], TYPE[meant["type"]])
    event = meant["event"]
    if kind == TYPE["RESPONSE"]:
        status, fields, _, body = _seed_codec.unpack_response(data, as_json)
        assert status == event.get("statusCode", 0)
    else:
        method, target, fields, length, body = _seed_codec.unpack_request(data, as_json)
        assert method.decode() == event["method"]
        escaped = event["rawPath"].replace(" ", "%20").replace("€", "%E2%82%AC")
        assert target.decode() == escaped + ("?" + event["rawQuery"] if event["rawQuery"] else "")
        assert length == int(event["headers"].get("Content-Length", ["-1"])[0])
    kept = {name: values for name, values in event.get("headers", {}).items() if name != "Content-Length"}
    assert sorted(fields) == sorted(fields_of(kept))
    assert body == base64.b64decode(event.get("body_b64", ""))


@pytest.mark.parametrize("entry", MESSAGES, ids=lambda entry: f"{entry['codec']}-{entry['decoded']['type']}")
def test_a_captured_message_is_written_to_the_byte(entry: dict[str, Any]) -> None:
    codec, meant = entry["codec"], entry["decoded"]
    payload, event = payload_of(entry), meant["event"]
    message_id = meant["id"].encode()
    if not event.get("headers") and not event.get("method") and not event.get("statusCode"):
        assert _seed_codec.pack(message_id, TYPE[meant["type"]], b"", codec == "json") == payload
        return
    body = base64.b64decode(event["body_b64"])
    headers = event["headers"]
    if codec == "proto":
        # Go writes a map in any order, so the fields are given in the one that it chose.
        headers = in_order(headers, payload)
        if "Content-Length" in headers and list(headers)[-1] != "Content-Length":
            # Ours is last.
            headers["Content-Length"] = headers.pop("Content-Length")
            kind = EVENTS[meant["type"]]
            assert kind.FromString(_event(payload)) == kind.FromString(_event(_written(meant, headers, body, codec)))
            return
    assert _written(meant, headers, body, codec) == payload, message_id


def _event(payload: bytes) -> bytes:
    data: bytes = seed_pb2.Message.FromString(payload).data
    return data


def _written(meant: dict[str, Any], headers: dict[str, list[str]], body: bytes, codec: str) -> bytes:
    event = meant["event"]
    sized = "Content-Length" in headers
    fields = tuple(fields_of({name: values for name, values in headers.items() if name != "Content-Length"}))
    if meant["type"] == "RESPONSE":
        answer = ResponseHead(status=event["statusCode"], fields=fields)
        return _seed_codec.pack_response(meant["id"].encode(), answer, body, codec == "json")
    path = event["rawPath"].replace(" ", "%20").replace("€", "%E2%82%AC")
    target = path + ("?" + event["rawQuery"] if event["rawQuery"] else "")
    head = RequestHead(
        method=event["method"].encode(),
        target=target.encode(),
        fields=fields,
        body=Body.SIZED if sized else Body.NONE,
        length=len(body) if sized else 0,
    )
    return _seed_codec.pack_request(meant["id"].encode(), head, body, codec == "json")


# --- against the runtime ---

TOKENS = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=12)
NAMES = TOKENS.filter(
    lambda name: (
        name.lower()
        not in {
            "te",
            "expect",
            "trailer",
            "host",
            "upgrade",
            "connection",
            "keep-alive",
            "content-length",
            "proxy-connection",
            "transfer-encoding",
        }
    )
)
VALUES = st.text(
    st.characters(min_codepoint=0x20, exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=20
).map(lambda text: text.strip(" \t"))
HEADERS = st.dictionaries(NAMES, st.lists(VALUES, min_size=1, max_size=3), max_size=5)
PATHS = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#?%"), max_size=12
) | st.sampled_from(["a%20b", "a%2Fb%20c", "%e2", "%E2%82%AC", "%", "%zz", "%FF", "%41", "x%25y"])
QUERIES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="#"), max_size=12)
IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
CODECS = st.booleans()


def listed(values: list[str]) -> ListValue:
    result = ListValue()
    result.extend(values)
    return result


def encoded(message: Any, as_json: bool) -> bytes:
    return json_format.MessageToJson(message).encode() if as_json else message.SerializeToString()


@given(IDS, TOKENS, HEADERS, st.text(max_size=20), QUERIES, st.binary(max_size=300), CODECS)
def test_a_request_written_by_the_runtime_is_read(
    message_id: str,
    method: str,
    headers: dict[str, list[str]],
    path: str,
    query: str,
    body: bytes,
    as_json: bool,
) -> None:
    if method == "CONNECT":
        return
    event = seed_pb2.EventHTTPRequest(
        method=method,
        rawPath="/" + path,
        rawQuery=query,
        headers={name: listed(values) for name, values in headers.items()},
        body=body,
    )
    message = seed_pb2.Message(id=message_id, type=seed_pb2.Message.REQUEST, data=encoded(event, as_json))
    if len(message_id.encode()) > 128:
        return
    found_id, kind, data = _seed_codec.unpack(encoded(message, as_json), as_json)
    assert (found_id.decode(), kind) == (message_id, 1)
    found_method, target, fields, _, found_body = _seed_codec.unpack_request(data, as_json)
    assert (found_method.decode(), found_body) == (method, body)
    assert sorted(fields) == sorted(fields_of(headers))
    found_path, _, found_query = target.decode().partition("?")
    assert found_query == query
    assert all(0x21 <= ord(char) <= 0x7E and char not in '#?"<>\\^`{|}' for char in found_path)
    if "%" not in path:
        assert unquote(found_path, errors="strict") == "/" + path


@pytest.mark.parametrize("path", ["/a%2541", "/a%41", "/%252e%252e/x", "/%25252e", "/%25%32%65", "/100%25", "/%25"])
@pytest.mark.parametrize("as_json", [False, True])
def test_no_path_comes_out_as_another_one_with_its_escapes_undone(path: str, as_json: bool) -> None:
    packed = _seed_codec.pack_request(b"i", RequestHead(method=b"GET", target=path.encode()), b"", as_json)
    assert _seed_codec.unpack_request(_seed_codec.unpack(packed, as_json)[2], as_json)[1].decode() == path


@given(TOKENS, HEADERS, PATHS, QUERIES, st.none() | st.binary(max_size=300), CODECS)
@example("GET", {}, "a%20b", "", None, False)
def test_a_request_comes_back_as_it_was_written_and_the_runtime_reads_the_same(
    method: str, headers: dict[str, list[str]], path: str, query: str, body: bytes | None, as_json: bool
) -> None:
    if method == "CONNECT":
        return
    target = f"/{path}" + (f"?{query}" if query else "")
    fields = tuple(fields_of(headers))
    head = RequestHead(
        method=method.encode(),
        target=target.encode(),
        fields=fields,
        body=Body.NONE if body is None else Body.SIZED,
        length=len(body or b""),
    )
    packed = _seed_codec.pack_request(_seed_codec.make_id(), head, body or b"", as_json)
    message = seed_pb2.Message()
    event = seed_pb2.EventHTTPRequest()
    if as_json:
        json_format.Parse(packed, message)
        json_format.Parse(message.data, event)
        assert packed.startswith(b'{"id":"') and b'", "type":"REQUEST", "data":"' in packed
    else:
        message.ParseFromString(packed)
        event.ParseFromString(message.data)
        # Canonical: the runtime writes the members in the same order, and nothing else.
        assert len(packed) == len(message.SerializeToString()) and len(message.data) == len(event.SerializeToString())
    _, _, data = _seed_codec.unpack(packed, as_json)
    found = _seed_codec.unpack_request(data, as_json)
    assert found[0] == method.encode() and found[4] == (body or b"")
    assert sorted(found[2]) == sorted(fields)
    assert found[3] == (-1 if body is None else len(body))
    assert event.rawQuery == query
    for name, values in event.headers.items():
        assert name == "-".join(part[:1].upper() + part[1:].lower() for part in name.split("-"))
        if name != "Content-Length":
            assert list(values) == [
                value for key, each in headers.items() if key.lower() == name.lower() for value in each
            ]


@given(st.integers(100, 999), HEADERS, st.binary(max_size=300), CODECS)
def test_a_response_comes_back_as_it_was_written_and_the_runtime_reads_the_same(
    status: int, headers: dict[str, list[str]], body: bytes, as_json: bool
) -> None:
    head = ResponseHead(status=status, fields=tuple(fields_of(headers)))
    packed = _seed_codec.pack_response(b"i", head, body, as_json)
    message = seed_pb2.Message()
    event = seed_pb2.EventHTTPResponse()
    if as_json:
        json_format.Parse(packed, message)
        json_format.Parse(message.data, event)
    else:
        message.ParseFromString(packed)
        event.ParseFromString(message.data)
        assert len(packed) == len(message.SerializeToString())
    assert (event.statusCode, event.body) == (status, body)
    assert message.type == seed_pb2.Message.RESPONSE
    found = _seed_codec.unpack_response(_seed_codec.unpack(packed, as_json)[2], as_json)
    assert found[0] == status and found[3] == body and sorted(found[1]) == sorted(head.fields)


PATH_CASES = [
    # (target's path, what travels), by Go 1.26's net/url
    ("/test", "/test"),
    ("/x%20y/%E2%82%AC", "/x y/€"),
    ("/a%2Fb%20c", "/a%2Fb%20c"),  # an escaped slash is none
    ("/a%2fb", "/a%2fb"),
    ("/%e2%82%ac", "/%e2%82%ac"),  # Go escapes in upper case
    ("/a(b)!*'", "/a(b)!*'"),
    ("/a%28b", "/a(b"),
    ("/a(%20", "/a(%20"),  # Go would have escaped the bracket
    ("/a%7Eb", "/a%7Eb"),
    ("/100%25", "/100%"),
    ("/100%", "/100%"),
    ("/a%2541", "/a%2541"),  # Go would send /a%41, which is what it sends for /a%41
    ("/%252e%252E/x", "/%252e%252E/x"),
    ("/%FF", "/%FF"),  # no text: the original fails there
    ("/a[b]", "/a[b]"),
    ("/%5Bb%5D", "/[b]"),
    ("/a;b,c=d$e&f+g:@", "/a;b,c=d$e&f+g:@"),
    ("//x", "//x"),
    ("*", "*"),
]


@pytest.mark.parametrize(("path", "travels"), PATH_CASES)
def test_a_path_travels_in_the_spelling_that_go_gives_it(path: str, travels: str) -> None:
    packed = _seed_codec.pack_request(b"i", RequestHead(method=b"OPTIONS", target=path.encode()))
    event = seed_pb2.EventHTTPRequest.FromString(_seed_codec.unpack(packed)[2])
    assert event.rawPath == travels


@pytest.mark.parametrize(
    ("raw", "query", "target"),
    [
        ("/x y/€", "", "/x%20y/%E2%82%AC"),
        ("/a%2Fb%20c", "q=%2f", "/a%2Fb%20c?q=%2f"),
        ("/100%", "", "/100%25"),
        ("/%4", "", "/%254"),
        ("/a?b#c", "d#e f", "/a%3Fb%23c?d%23e%20f"),
        ("", "", "/"),
        ("a/b", "", "/a/b"),
        ("*", "", "*"),
        ("*", "q", "/*?q"),
        ("/\r\n\0", "\r\n", "/%0D%0A%00?%0D%0A"),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_may_not_stand_in_a_target_is_escaped_once(raw: str, query: str, target: str, as_json: bool) -> None:
    event = seed_pb2.EventHTTPRequest(method="OPTIONS", rawPath=raw, rawQuery=query)
    assert _seed_codec.unpack_request(encoded(event, as_json), as_json)[1].decode() == target


@pytest.mark.parametrize("as_json", [False, True])
def test_fields_of_the_connection_stay_and_a_length_is_told_apart(as_json: bool) -> None:
    names = [
        "Host",
        "Connection",
        "TE",
        "Expect",
        "Trailer",
        "Transfer-Encoding",
        "keep-alive",
        "Upgrade",
        "content-LENGTH",
    ]
    event = seed_pb2.EventHTTPResponse(statusCode=200, headers={name: listed(["12"]) for name in names})
    event.headers["X-A"].extend([" b ", ""])
    assert _seed_codec.unpack_response(encoded(event, as_json), as_json) == (
        200,
        ((b"x-a", b"b"), (b"x-a", b"")),
        12,
        b"",
    )


@pytest.mark.parametrize("as_json", [False, True])
def test_fields_that_connection_names_stay_too(as_json: bool) -> None:
    event = seed_pb2.EventHTTPRequest(method="GET", rawPath="/")
    names = ["X-A", "x-b", "X-Kept", "Forwarded", "X-Forwarded-For", "X-Backstream-Client-Id", "Via", "Close"]
    for name in names:
        event.headers[name].extend(["1"])
    event.headers["Connection"].extend(["close, X-a ,x-B", "Forwarded,X-FORWARDED-For,x-backstream-client-id,via"])
    fields = _seed_codec.unpack_request(encoded(event, as_json), as_json)[2]
    assert {name for name, _ in fields} == {
        b"x-kept",
        b"forwarded",
        b"x-forwarded-for",
        b"x-backstream-client-id",
        b"via",
    }


def test_of_two_entries_with_one_key_the_last_one_holds_as_in_every_map() -> None:
    def entry(key: bytes, value: bytes) -> bytes:
        return member(2, 2, member(1, 2, key) + member(2, 2, member(1, 2, member(3, 2, value))))

    data = member(1, 0, 200) + entry(b"A", b"1") + entry(b"a", b"2") + entry(b"B", b"3") + entry(b"A", b"4")
    assert _seed_codec.unpack_response(data)[1] == ((b"a", b"2"), (b"b", b"3"), (b"a", b"4"))
    assert list(seed_pb2.EventHTTPResponse.FromString(data).headers["A"]) == ["4"]


def test_bytes_that_are_no_text_are_written_as_latin_1() -> None:
    head = ResponseHead(status=200, fields=((b"x", b"caf\xe9"), (b"y", "é".encode())))
    for as_json in (False, True):
        data = _seed_codec.unpack(_seed_codec.pack_response(b"i", head, b"", as_json), as_json)[2]
        assert _seed_codec.unpack_response(data, as_json)[1] == ((b"x", "café".encode()), (b"y", "é".encode()))


def value_of(number: int, wire_type: int, value: Any) -> bytes:
    """An EventHTTPResponse with one field, whose value is a google.protobuf.Value with that member."""
    listed = member(1, 2, member(number, wire_type, value))
    return member(1, 0, 200) + member(2, 2, member(1, 2, b"A") + member(2, 2, listed))


BAD_RESPONSES = {
    "a value that is a number": value_of(2, 1, bytes(8)),
    "a value that is null": value_of(1, 0, 0),
    "a value that is true": value_of(4, 0, 1),
    "a value that is nothing": member(2, 2, member(1, 2, b"A") + member(2, 2, member(1, 2, b""))),
    "a value that is not UTF-8": value_of(3, 2, b"\xff"),
    "a value with a line end": value_of(3, 2, b"a\r\nb: c"),
    "a value with NUL": value_of(3, 2, b"\0"),
    "a name with a blank": member(2, 2, member(1, 2, b"A b") + member(2, 2, member(1, 2, member(3, 2, b"")))),
    "an empty name": member(2, 2, member(2, 2, member(1, 2, member(3, 2, b"x")))),
    "a status that is bytes": member(1, 2, b"x"),
    "a body that is a number": member(3, 0, 1),
    "a length past the end": b"\x1a\x05abc",
    "a group": b"\x23\x24",
    "fields beyond any limit": b"".join(
        member(2, 2, member(1, 2, b"n%d" % at) + member(2, 2, member(1, 2, member(3, 2, b"v")))) for at in range(1001)
    ),
    "fields without values, beyond any limit": b"".join(member(2, 2, member(1, 2, b"n%d" % at)) for at in range(1001)),
    "fields of too many bytes": member(
        2, 2, member(1, 2, b"A") + member(2, 2, member(1, 2, member(3, 2, b"v" * 131072)))
    ),
}


@pytest.mark.parametrize("data", BAD_RESPONSES.values(), ids=BAD_RESPONSES.keys())
def test_a_malformed_response_is_refused(data: bytes) -> None:
    with pytest.raises(HeadError):
        _seed_codec.unpack_response(data)


BAD_JSON = {
    "no JSON": b"{",
    "no object": b"[]",
    "not UTF-8": b'{"statusCode":200, "x":"\xff"}',
    "UTF-16": '{"statusCode":200}'.encode("utf-16"),
    "a name twice": b'{"statusCode":200, "statusCode":200}',
    "a status that is text": b'{"statusCode":"abc"}',
    "a status that is no whole number": b'{"statusCode":200.5}',
    "a status with two signs": b'{"statusCode":"--5"}',
    "values beyond any limit": b'{"statusCode":200,"x":[' + b"[]," * 300_000 + b"[]]}",
    "a status that is true": b'{"statusCode":true}',
    "NaN": b'{"statusCode":NaN}',
    "headers that are a list": b'{"headers":[]}',
    "values that are a string": b'{"headers":{"A":"b"}}',
    "a value that is a number": b'{"headers":{"A":[1]}}',
    "a value that is half a pair": b'{"headers":{"A":["\\ud800"]}}',
    "a body that is no base64": b'{"body":"a*b="}',
    "a body that is a number": b'{"body":1}',
    "nested without end": b'{"x":' + b"[" * 100_000,
    "a number without end": b'{"statusCode":' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=BAD_JSON.keys())
def test_a_malformed_document_is_refused(data: bytes) -> None:
    with pytest.raises(HeadError):
        _seed_codec.unpack_response(data, True)


@pytest.mark.parametrize(
    "data",
    [
        b'{"id":1}',
        b'{"type":"OTHER"}',
        b'{"type":3}',
        b'{"type":[]}',
        b'{"data":"*"}',
        b'{"id":"' + b"x" * 129 + b'"}',
    ],
)
def test_a_malformed_message_in_json_is_refused(data: bytes) -> None:
    with pytest.raises(HeadError):
        _seed_codec.unpack(data, True)


@pytest.mark.parametrize(
    "data", [b"\x0a\x02\xff\xff", b"\x10\x03", b"\x10\xff\xff\xff\xff\xff\x01", b"\x08\x01", b"\x0a"]
)
def test_a_malformed_message_is_refused(data: bytes) -> None:
    with pytest.raises(HeadError):
        _seed_codec.unpack(data)


@pytest.mark.parametrize(
    ("document", "body"),
    [
        ('{"body":"_-8="}', b"\xff\xef"),
        ('{"body":"/+8"}', b"\xff\xef"),
        ('{"body":null, "headers":null, "statusCode":null}', b""),
        ('{"body":"", "unknown":{"a":[1.5]}}', b""),
    ],
)
def test_json_is_read_as_freely_as_protojson_allows(document: str, body: bytes) -> None:
    assert _seed_codec.unpack_response(document.encode(), True)[3] == body


def test_a_status_may_be_written_in_all_ways_of_protojson() -> None:
    for text in ("200", '"200"', "200.0", "2e2"):
        assert _seed_codec.unpack_response(f'{{"statusCode":{text}}}'.encode(), True)[0] == 200
    for text in ("-1", "1000000", '"-5"'):
        assert _seed_codec.unpack_response(f'{{"statusCode":{text}}}'.encode(), True)[0] == 1000


def test_ids_are_uuids_of_version_4_and_never_the_same() -> None:
    made = [_seed_codec.make_id().decode() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(uuid.UUID(each).version == 4 and str(uuid.UUID(each)) == each for each in made)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for as_json in (False, True):
        for unpack in (_seed_codec.unpack, _seed_codec.unpack_request, _seed_codec.unpack_response):
            try:
                unpack(data, as_json)
            except HeadError:
                pass


def test_an_event_packed_for_a_notification_is_a_whole_request() -> None:
    head = RequestHead(method=b"POST", target=b"/x?y=1", fields=((b"a", b"b"),))
    event = seed_pb2.EventHTTPRequest.FromString(_seed_codec.pack_event(head, b"body"))
    assert (event.method, event.rawPath, event.rawQuery, event.body) == ("POST", "/x", "y=1", b"body")
    assert json.loads(_seed_codec.pack_event(head, b"", True))["method"] == "POST"
