"""What cannot be read raises HeadError or FrameError and nothing else; nothing is read behind the input."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from backstream import _message_codec
from backstream._messages import ResponseHead
from backstream.errors import ErrorCode, FrameError, HeadError, StreamError
from tests.codec import mutate
from tests.codec.heads import BYTES, FIXED32, FIXED64, KINDS, SAMPLES, VARINT, Kind, member, split, varint

ROOT = Path(__file__).parents[2]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
VALUES: dict[int, Any] = {VARINT: 1, BYTES: b"http", FIXED64: bytes(8), FIXED32: bytes(4)}


def agrees(kind: Kind, payload: bytes) -> bool:
    """Decodes; what it gives the runtime must give too. False where it was refused."""
    try:
        ours = kind.unpack(payload)
    except HeadError:
        return False
    assert ours == kind.parse(payload)
    return True


@EVERY_KIND
def test_a_payload_cut_at_any_byte_is_refused_or_a_shorter_one(kind: Kind) -> None:
    whole = kind.pack(SAMPLES[kind.name])
    borders = {0}
    for _, _, encoded in split(whole):
        borders.add(max(borders) + len(encoded))
    for cut in range(len(whole)):
        if cut in borders:
            agrees(kind, whole[:cut])
        else:
            with pytest.raises(DecodeError):
                kind.parse(whole[:cut])
            with pytest.raises(HeadError):
                kind.unpack(whole[:cut])


@EVERY_KIND
@pytest.mark.parametrize("length", [1, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_length_that_lies_is_refused(kind: Kind, length: int) -> None:
    whole = kind.pack(SAMPLES[kind.name])
    for number in [*(f.number for f in kind.runtime.DESCRIPTOR.fields if _wire_type(f) == BYTES), 99]:
        with pytest.raises(HeadError):
            kind.unpack(whole + varint(number << 3 | BYTES) + varint(length))


def test_a_length_inside_a_field_may_not_reach_out_of_the_field() -> None:
    inner = varint(1 << 3 | BYTES) + varint(6) + b"abc"
    assert len(inner) == 5
    with pytest.raises(HeadError):
        _message_codec.unpack_trailers(member(1, BYTES, inner) + b"xxxxxxxx")


OVERLONG = [
    pytest.param(b"\xff" * 10, id="ten_bytes_without_an_end"),
    pytest.param(b"\xff" * 9 + b"\x02", id="a_65th_bit"),
    pytest.param(b"\x80" * 10 + b"\x00", id="eleven_bytes"),
    pytest.param(b"\xff" * 200, id="two_hundred_bytes"),
    pytest.param(b"\x80", id="no_end"),
    pytest.param(b"", id="nothing"),
]


@EVERY_KIND
@pytest.mark.parametrize("number", OVERLONG)
def test_an_overlong_number_is_refused_as_a_value_a_length_or_a_tag(kind: Kind, number: bytes) -> None:
    whole = kind.pack(SAMPLES[kind.name])
    tails = [varint(99 << 3 | VARINT) + number, varint(99 << 3 | BYTES) + number]
    tails += [varint(f.number << 3 | _wire_type(f)) + number for f in kind.runtime.DESCRIPTOR.fields]
    if number:
        tails.append(number)
    for tail in tails:
        with pytest.raises(HeadError):
            kind.unpack(whole + tail)


@EVERY_KIND
def test_a_number_of_more_than_32_bits_where_32_are_meant_is_refused(kind: Kind) -> None:
    narrow = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_ENUM)
    for field in kind.runtime.DESCRIPTOR.fields:
        if field.type in narrow:
            with pytest.raises(HeadError):
                kind.unpack(kind.pack(SAMPLES[kind.name]) + member(field.number, VARINT, 2**32))


@EVERY_KIND
def test_a_member_of_the_wrong_wire_type_is_refused(kind: Kind) -> None:
    whole = kind.pack(SAMPLES[kind.name])
    for field in kind.runtime.DESCRIPTOR.fields:
        for wire_type, value in VALUES.items():
            if wire_type != _wire_type(field):
                with pytest.raises(HeadError):
                    kind.unpack(whole + member(field.number, wire_type, value))


@pytest.mark.parametrize("wire_type", [3, 4, 6, 7])
@EVERY_KIND
def test_groups_which_proto3_cannot_write_and_unknown_wire_types_are_refused(kind: Kind, wire_type: int) -> None:
    for number in (1, 99):
        with pytest.raises(HeadError):
            kind.unpack(kind.pack(SAMPLES[kind.name]) + varint(number << 3 | wire_type) + bytes(8))


@pytest.mark.parametrize("tag", [0, 1, 2, 5, 7, 2**32, 2**32 + 8, 2**64 - 8])
@EVERY_KIND
def test_a_member_number_of_0_or_beyond_29_bits_is_refused(kind: Kind, tag: int) -> None:
    with pytest.raises(HeadError):
        kind.unpack(kind.pack(SAMPLES[kind.name]) + varint(tag) + bytes(9))


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"ok\xe2\x82"])
@EVERY_KIND
def test_text_that_is_not_utf_8_is_refused(kind: Kind, text: bytes) -> None:
    for field in kind.runtime.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            with pytest.raises(HeadError):
                kind.unpack(kind.pack(SAMPLES[kind.name]) + member(field.number, BYTES, text))


def test_a_head_of_more_than_4096_fields_is_refused() -> None:
    fields = ((b"a", b""),) * 4096
    payload = _message_codec.pack_response(ResponseHead(status=200, fields=fields))
    assert len(_message_codec.unpack_response(payload).fields) == 4096
    with pytest.raises(HeadError, match="more than 4096 fields"):
        _message_codec.unpack_response(
            _message_codec.pack_response(ResponseHead(status=200, fields=(*fields, (b"a", b""))))
        )


def test_a_malformed_head_is_an_error_of_the_stream_with_protocol_error() -> None:
    with pytest.raises(StreamError) as raised:
        _message_codec.unpack_request(b"\xff")
    assert isinstance(raised.value, HeadError)
    assert raised.value.code == ErrorCode.PROTOCOL_ERROR


def test_ten_thousand_damaged_payloads_are_refused_or_read_as_the_runtime_reads_them() -> None:
    read = sum(agrees(kind, payload) for kind, payload in mutate.payloads(10_000, seed=1))
    assert 500 < read < 9500  # both ways out were taken


def test_damaged_messages_are_split_into_their_frames_or_refused() -> None:
    read = 0
    for message in mutate.messages(5000, seed=1):
        try:
            frames = _message_codec.unpack_frames(message)
        except FrameError:
            continue
        read += 1
        assert (
            b"".join(_message_codec.pack_frame(k, stream, payload, flags) for k, flags, stream, payload in frames)
            == message
        )
    assert 500 < read < 4500


# --- frames ---


def test_a_frame_cut_at_any_byte_is_refused() -> None:
    whole = _message_codec.pack_frame(1, 7, b"payload")
    first = _message_codec.pack_frame(0, 1, b"before")
    for cut in range(1, len(whole)):
        with pytest.raises(FrameError):
            _message_codec.unpack_frames(first + whole[:cut])


@pytest.mark.parametrize("length", [1, 8, 255, 256, 65536, 2**24 - 1])
def test_a_frame_that_runs_past_its_message_is_refused(length: int) -> None:
    header = length.to_bytes(3, "big") + bytes((0, 0)) + (1).to_bytes(4, "big")
    with pytest.raises(FrameError):
        _message_codec.unpack_frames(header + bytes(min(length - 1, 4096)))


@pytest.mark.parametrize("stream", [0, 1, 2**31 - 1])
def test_a_frame_with_the_reserved_bit_is_refused(stream: int) -> None:
    header = bytes(5) + (stream | 2**31).to_bytes(4, "big")
    with pytest.raises(FrameError) as raised:
        _message_codec.unpack_frames(header)
    assert (raised.value.code, raised.value.close_code) == (ErrorCode.PROTOCOL_ERROR, 1002)


def test_unknown_types_and_flags_are_no_error_of_a_frame() -> None:
    assert _message_codec.unpack_frames(_message_codec.pack_frame(0xEE, 5, b"x", 0xF0)) == [(0xEE, 0xF0, 5, b"x")]


# --- out of bounds ---


def _guarded(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.codec.guard_pages", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64")
    or sys.implementation.name != "cpython"
    or bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    or not sys.platform.startswith("linux"),
    reason="lays out a bytes object by hand",
)
def test_decoding_reads_nothing_behind_its_input() -> None:
    control = _guarded("--control")
    assert control.returncode == -signal.SIGSEGV, "the guard page does not guard"
    check = _guarded()
    assert check.returncode == 0, check.stderr
    decoded, refused = map(int, check.stdout.split())
    assert decoded > 1000 and refused > 5000


def _wire_type(field: Any) -> int:
    texts = (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE)
    return BYTES if field.type in texts else VARINT
