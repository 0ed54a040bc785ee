"""The grammar of heads: what may stand in each member, byte by byte."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backstream import _message_codec
from backstream._messages import Body, RequestHead, ResponseHead
from backstream.errors import HeadError
from tests.codec.heads import KIND, LOWER, NEVER_TRAVELS, TARGET, TOKEN, VALUE, VARINT, member

REQUEST = RequestHead(method=b"GET", target=b"/")
RESPONSE = ResponseHead(status=200)


def request_is_taken(**members: Any) -> bool:
    """Whether a request with these members is decoded (unchanged) rather than refused."""
    head = replace(REQUEST, **members)
    # The runtime writes it: it has no grammar of its own.
    payload = KIND["request"].to_runtime(head).SerializeToString()
    try:
        assert _message_codec.unpack_request(payload) == head
    except HeadError:
        return False
    return True


def response_is_taken(**members: Any) -> bool:
    head = replace(RESPONSE, **members)
    payload = KIND["response"].to_runtime(head).SerializeToString()
    try:
        assert _message_codec.unpack_response(payload) == head
    except HeadError:
        return False
    return True


def trailers_are_taken(name: bytes, value: bytes) -> bool:
    payload = KIND["trailers"].to_runtime(((name, value),)).SerializeToString()
    try:
        assert _message_codec.unpack_trailers(payload) == ((name, value),)
    except HeadError:
        return False
    return True


EVERY_BYTE = [bytes((c,)) for c in range(256)]


def test_a_method_is_a_token() -> None:
    for byte in EVERY_BYTE:
        assert request_is_taken(method=b"A" + byte) == (byte in TOKEN), byte
    assert request_is_taken(method=b"m-search")
    assert not request_is_taken(method=b"")


def test_connect_does_not_travel() -> None:
    assert not request_is_taken(method=b"CONNECT")
    assert request_is_taken(method=b"CONNECTED")
    assert request_is_taken(method=b"connect")  # methods are case-sensitive: another one


def test_a_target_is_a_star_or_begins_with_a_slash() -> None:
    assert request_is_taken(method=b"OPTIONS", target=b"*")
    for method in (b"GET", b"options", b"OPTIONSX", b"HEAD"):
        assert not request_is_taken(method=method, target=b"*"), method
    for target in (b"", b"**", b"*/", b"a", b"?a", b"http://a/", b"a.example:443", b" /"):
        assert not request_is_taken(target=target), target


def test_a_target_has_visible_ascii_but_no_number_sign_and_is_kept_byte_for_byte() -> None:
    for byte in EVERY_BYTE:
        assert request_is_taken(target=b"/" + byte) == (byte in TARGET), byte
    for target in (b"//", b"/%zz%2F%2f", b"/a/../b", b"/?a=[1]|{2}^`", b"/\\"):
        assert request_is_taken(target=target), target


@pytest.mark.parametrize(
    "authority",
    [
        b"",
        b"a",
        b"example.org",
        b"example.org:80",
        b"example.org:",
        b"EXAMPLE.org:00080",
        b"192.0.2.1:1",
        b"[::]",
        b"[::1]",
        b"[2001:db8::1]:443",
        b"[::ffff:192.0.2.1]",
        b"%41.example",
        b"a_b.~-!$&'()*+;=",
    ],
)
def test_an_authority_may_be(authority: bytes) -> None:
    assert request_is_taken(authority=authority)


@pytest.mark.parametrize(
    "authority",
    [
        b":80",
        b"a:b",
        b"a:80:80",
        b"a:-1",
        b"a:123456",
        b"a b",
        b"a/b",
        b"a?b",
        b"a#b",
        b"u@a",
        b"a,b",
        b"a\\b",
        b"a%4",
        b"a%",
        b"a%zz",
        b"\xe4",
        b"a\x00",
        b"a\r\n",
        b"[::1",
        b"::1",
        b"[::1]80",
        b"[::1]:x",
        b"[]",
        b"[:]",
        b"[::g]",
        b"[::1%25eth0]",
        b"[",
        b"]",
    ],
)
def test_an_authority_may_not_be(authority: bytes) -> None:
    assert not request_is_taken(authority=authority)


def test_a_scheme_is_http_or_https() -> None:
    assert request_is_taken(scheme=b"http")
    assert request_is_taken(scheme=b"https")
    for scheme in (b"", b"HTTP", b"httpx", b"htt", b"ws", b"ftp", b"http "):
        assert not request_is_taken(scheme=scheme), scheme


@pytest.mark.parametrize("peer", [b"", b"192.0.2.1:1", b"192.0.2.1:65535", b"[2001:db8::1]:50000", b"[::1]:1"])
def test_a_peer_may_be(peer: bytes) -> None:
    assert request_is_taken(peer=peer)


@pytest.mark.parametrize(
    "peer",
    [
        b"192.0.2.1",
        b"192.0.2.1:",
        b":",
        b"localhost:80",
        b"192.0.2.1:80 ",
        b"192.0.2.1:80\n",
        b"192.0.2.1,192.0.2.2:80",
        b"unix:/run/x",
        b"[fe80::1%eth0]:80",
        b"1" * 64 + b":1",
        b"\xff:1",
        b'192.0.2.1:80"',
    ],
)
def test_a_peer_may_not_be(peer: bytes) -> None:
    assert not request_is_taken(peer=peer)


@pytest.mark.parametrize(
    "peer",
    [b":80", b"abc:80", b"192.0.2.1:99999", b"1.2.3:80", b"999.1.1.1:80", b"::1:80", b"[::1:80", b"]:1"],
)
def test_a_peer_is_ip_and_port(peer: bytes) -> None:
    assert not request_is_taken(peer=peer)


def test_an_upgrade_is_a_token_and_stands_on_requests_without_a_body() -> None:
    for byte in EVERY_BYTE:
        assert request_is_taken(upgrade=b"a" + byte) == (byte in TOKEN), byte
    assert not request_is_taken(upgrade=b"websocket", body=Body.CHUNKED)
    assert not request_is_taken(upgrade=b"websocket", body=Body.SIZED, length=1)
    assert not request_is_taken(upgrade=b"websocket", body=Body.SIZED)


def test_a_client_id_has_at_most_128_visible_bytes() -> None:
    assert request_is_taken(client_id=b"")
    assert request_is_taken(client_id=b"x" * 128)
    assert not request_is_taken(client_id=b"x" * 129)
    for byte in EVERY_BYTE:
        assert request_is_taken(client_id=b"a" + byte) == (0x21 <= byte[0] <= 0x7E), byte


def test_a_prefix_is_a_path() -> None:
    assert request_is_taken(prefix=b"/base/a")
    for prefix in (b"*", b"a", b"/a b", b"/a#", b"/\x80"):
        assert not request_is_taken(prefix=prefix), prefix


def test_a_name_is_a_lower_case_token() -> None:
    for byte in EVERY_BYTE:
        taken = byte in LOWER
        assert request_is_taken(fields=((b"x" + byte, b""),)) == taken, byte
        assert response_is_taken(fields=((b"x" + byte, b""),)) == taken, byte
        assert trailers_are_taken(b"x" + byte, b"") == taken, byte
    assert not trailers_are_taken(b"", b"v")
    assert not trailers_are_taken(b":path", b"/")


def test_values_and_reasons_are_tab_space_visible_and_obs_text_bytes() -> None:
    for byte in EVERY_BYTE:
        taken = byte in VALUE
        assert request_is_taken(fields=((b"x", b"a" + byte),)) == taken, byte
        assert response_is_taken(fields=((b"x", b"a" + byte),)) == taken, byte
        assert response_is_taken(reason=b"a" + byte) == taken, byte
        assert trailers_are_taken(b"x", b"a" + byte) == taken, byte


def test_a_values_bytes_are_held_to_that_at_every_place_of_it() -> None:
    for size in range(1, 26):
        for at in range(size):
            for byte in (b"\0", b"\t", b"\n", b"\r", b"\x1f", b" ", b"~", b"\x7f", b"\x80", b"\xff"):
                for others in (b"a", b"\t", b"\xff"):
                    value = others * at + byte + others * (size - at - 1)
                    assert trailers_are_taken(b"x", value) == (byte in VALUE), value


@pytest.mark.parametrize("name", NEVER_TRAVELS)
def test_what_frames_or_belongs_to_a_connection_never_travels_as_a_field(name: bytes) -> None:
    assert not request_is_taken(fields=((name, b"1"),))
    assert not response_is_taken(fields=((b"a", b"b"), (name, b"1")))
    assert not trailers_are_taken(name, b"1")
    assert request_is_taken(fields=((name + b"s", b"1"), (b"x-" + name, b"1")))


def test_te_says_trailers_and_expect_100_continue_and_nothing_else() -> None:
    assert request_is_taken(fields=((b"te", b"trailers"), (b"expect", b"100-continue")))
    assert request_is_taken(fields=((b"te", b"Trailers"), (b"expect", b"100-Continue")))
    for value in (b"", b"gzip", b"trailers, gzip", b"trailers;q=1", b" trailers"):
        assert not request_is_taken(fields=((b"te", value),)), value
    for value in (b"", b"100-continue, x", b"200-ok"):
        assert not request_is_taken(fields=((b"expect", value),)), value


def test_te_travels_in_a_requests_head_only() -> None:
    assert not response_is_taken(fields=((b"te", b"trailers"),))
    assert not response_is_taken(fields=((b"a", b"b"), (b"te", b"gzip")))
    assert not trailers_are_taken(b"te", b"trailers")


def test_a_body_is_of_one_of_three_kinds_and_a_length_goes_with_a_sized_one() -> None:
    for taken, base, body, length in (
        (request_is_taken, _message_codec.pack_request(REQUEST), 7, 8),
        (response_is_taken, _message_codec.pack_response(RESPONSE), 4, 5),
    ):
        assert taken(body=Body.SIZED, length=0)
        assert taken(body=Body.SIZED, length=2**63 - 1)
        assert not taken(body=Body.SIZED, length=2**63)
        assert not taken(body=Body.NONE, length=1)
        assert not taken(body=Body.CHUNKED, length=1)
        unpack = _message_codec.unpack_request if taken is request_is_taken else _message_codec.unpack_response
        for unknown in (3, 255, 2**32 - 1, 2**64 - 1):
            with pytest.raises(HeadError):
                unpack(base + member(body, VARINT, unknown))
        with pytest.raises(HeadError):
            unpack(base + member(length, VARINT, 5))


def test_a_status_is_100_to_999() -> None:
    for status in (0, 1, 99, 1000, 65636, 2**32 - 1):
        assert not response_is_taken(status=status), status
    for status in (100, 102, 200, 304, 599, 600, 999):
        assert response_is_taken(status=status), status


def test_101_and_an_upgrade_come_together() -> None:
    assert response_is_taken(status=101, upgrade=b"websocket")
    assert not response_is_taken(status=101)
    assert not response_is_taken(status=200, upgrade=b"websocket")
    assert not response_is_taken(status=101, upgrade=b"a b")


def test_a_request_needs_its_method_target_and_scheme_and_a_response_its_status() -> None:
    for missing in ("method", "target", "scheme"):
        assert not request_is_taken(**{missing: b""})
    with pytest.raises(HeadError):
        _message_codec.unpack_response(b"")
