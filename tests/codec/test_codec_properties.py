"""The codec against the protobuf runtime, both ways, for every message of the wire."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backstream import _message_codec
from backstream._proto import tunnel_pb2
from backstream.errors import HeadError
from tests.codec.heads import (
    BYTES,
    FIXED32,
    FIXED64,
    KINDS,
    SAMPLES,
    TOKEN,
    VARINT,
    Kind,
    member,
    split,
    varint,
)

EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
THOROUGH = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

# A number that no message has, nor will soon.
UNKNOWN_NUMBERS = st.one_of(st.integers(15, 40), st.sampled_from([2047, 2048, 2**29 - 1]))
UNKNOWN_MEMBERS = st.one_of(
    st.tuples(UNKNOWN_NUMBERS, st.just(VARINT), st.integers(0, 2**64 - 1)),
    st.tuples(UNKNOWN_NUMBERS, st.just(BYTES), st.binary(max_size=200)),
    st.tuples(UNKNOWN_NUMBERS, st.just(FIXED64), st.binary(min_size=8, max_size=8)),
    st.tuples(UNKNOWN_NUMBERS, st.just(FIXED32), st.binary(min_size=4, max_size=4)),
).map(lambda parts: member(*parts))


@EVERY_KIND
@THOROUGH
@given(data=st.data())
def test_what_is_packed_is_byte_for_byte_what_the_runtime_writes(kind: Kind, data: st.DataObject) -> None:
    value = data.draw(kind.values)
    assert kind.pack(value) == kind.to_runtime(value).SerializeToString(deterministic=True)


@EVERY_KIND
@THOROUGH
@given(data=st.data())
def test_what_the_runtime_writes_is_unpacked_whole(kind: Kind, data: st.DataObject) -> None:
    value = data.draw(kind.values)
    assert kind.unpack(kind.to_runtime(value).SerializeToString()) == value


@EVERY_KIND
@THOROUGH
@given(data=st.data())
def test_the_runtime_reads_what_is_packed(kind: Kind, data: st.DataObject) -> None:
    value = data.draw(kind.values)
    assert kind.parse(kind.pack(value)) == value


@EVERY_KIND
def test_a_sample_round_trips(kind: Kind) -> None:
    value = SAMPLES[kind.name]
    payload = kind.pack(value)
    assert payload == kind.to_runtime(value).SerializeToString(deterministic=True)
    assert kind.unpack(payload) == value


@EVERY_KIND
@THOROUGH
@given(data=st.data())
def test_unknown_members_of_every_wire_type_are_passed_over_wherever_they_stand(
    kind: Kind, data: st.DataObject
) -> None:
    value = data.draw(kind.values)
    parts = [encoded for _, _, encoded in split(kind.pack(value))]
    for unknown in data.draw(st.lists(UNKNOWN_MEMBERS, min_size=1, max_size=6)):
        parts.insert(data.draw(st.integers(0, len(parts))), unknown)
    payload = b"".join(parts)
    assert kind.unpack(payload) == value == kind.parse(payload)


def _decoy(draw: Any, kind: Kind, number: int) -> bytes:
    """A member with a readable value that a later one must override."""
    field = kind.runtime.DESCRIPTOR.fields_by_number[number]
    if field.type == FieldDescriptor.TYPE_BYTES:
        return member(number, BYTES, draw(st.binary(max_size=10)))
    if field.type == FieldDescriptor.TYPE_STRING:
        return member(number, BYTES, draw(st.text(max_size=10)).encode())
    if field.type == FieldDescriptor.TYPE_ENUM:
        return member(number, VARINT, draw(st.integers(0, 2)))
    top = 2**64 - 1 if field.type == FieldDescriptor.TYPE_UINT64 else 2**32 - 1
    return member(number, VARINT, draw(st.integers(0, top)))


@EVERY_KIND
@THOROUGH
@given(data=st.data())
def test_members_in_any_order_are_read_and_of_repeats_the_last_one_counts(kind: Kind, data: st.DataObject) -> None:
    value = data.draw(kind.values)
    members = split(kind.pack(value))
    repeated = {f.number for f in kind.runtime.DESCRIPTOR.fields if f.is_repeated}
    shuffled = data.draw(st.permutations(members))
    # Repeated members are lists: among themselves they keep their order.
    in_turn = iter([it for it in members if it[0] in repeated])
    parts = [next(in_turn) if it[0] in repeated else it for it in shuffled]
    singular = sorted({number for number, _, _ in members} - repeated)
    if singular:
        for number in data.draw(st.lists(st.sampled_from(singular), max_size=5)):
            last = max(i for i, it in enumerate(parts) if it[0] == number)
            parts.insert(data.draw(st.integers(0, last)), (number, -1, _decoy(data.draw, kind, number)))
    payload = b"".join(encoded for _, _, encoded in parts)
    assert kind.unpack(payload) == value == kind.parse(payload)


@EVERY_KIND
def test_a_default_that_is_spelt_out_overrides_what_came_before(kind: Kind) -> None:
    sample = SAMPLES[kind.name]
    payload = kind.pack(sample)
    for field in kind.runtime.DESCRIPTOR.fields:
        if field.is_repeated:
            continue
        if field.type in (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING):
            emptied = payload + member(field.number, BYTES, b"")
        else:
            emptied = payload + member(field.number, VARINT, 0)
        try:
            ours = kind.unpack(emptied)
        except HeadError:
            continue  # a member that a head must have
        assert ours == kind.parse(emptied)


@THOROUGH
@given(
    name=st.lists(st.sampled_from(list(b"abcxyz-_")), min_size=1, max_size=9).map(bytes),
    first=st.binary(max_size=9),
    unknown=st.lists(UNKNOWN_MEMBERS, max_size=3),
    turned=st.booleans(),
)
def test_a_field_is_read_with_its_members_turned_round_repeated_and_with_unknown_ones(
    name: bytes, first: bytes, unknown: list[bytes], turned: bool
) -> None:
    parts = [member(1, BYTES, name), member(2, BYTES, first), *unknown, member(2, BYTES, b"last")]
    if turned:
        parts.reverse()
        parts.append(member(2, BYTES, b"last"))
    payload = member(1, BYTES, b"".join(parts))
    assert _message_codec.unpack_trailers(payload) == ((name, b"last"),)
    message = tunnel_pb2.Trailers()
    message.ParseFromString(payload)
    assert [(f.name, f.value) for f in message.fields] == [(name, b"last")]


@pytest.mark.parametrize("width", [2, 3, 4, 5])
def test_numbers_and_lengths_with_idle_bytes_are_read_as_the_runtime_reads_them(width: int) -> None:
    payload = (
        varint(1 << 3 | VARINT, width) + varint(204, width) + varint(2 << 3 | BYTES, width) + varint(2, width) + b"No"
    )
    head = _message_codec.unpack_response(payload)
    assert (head.status, head.reason) == (204, b"No")
    message = tunnel_pb2.ResponseHead()
    message.ParseFromString(payload)
    assert (message.status, message.reason) == (204, b"No")


@THOROUGH
@given(
    frames=st.lists(
        st.tuples(st.integers(0, 255), st.integers(0, 255), st.integers(0, 2**31 - 1), st.binary(max_size=300)),
        max_size=8,
    )
)
def test_frames_round_trip(frames: list[tuple[int, int, int, bytes]]) -> None:
    message = b"".join(
        _message_codec.pack_frame(kind, stream, payload, flags) for kind, flags, stream, payload in frames
    )
    assert _message_codec.unpack_frames(message) == frames


def test_a_frame_header_is_laid_out_as_http_2_has_it() -> None:
    packed = _message_codec.pack_frame(0x7, 0x01020304, b"\xff" * 0x0A0B0C, 0x21)
    assert packed[:9] == bytes.fromhex("0a0b0c 07 21 01020304")
    assert _message_codec.unpack_frames(packed) == [(7, 0x21, 0x01020304, b"\xff" * 0x0A0B0C)]


def test_a_frame_has_at_most_2_to_the_24_less_1_bytes() -> None:
    assert len(_message_codec.pack_frame(0, 1, bytes(2**24 - 1))) == 2**24 + 8
    with pytest.raises(ValueError):
        _message_codec.pack_frame(0, 1, bytes(2**24))


def test_an_empty_payload_is_a_message_of_defaults_where_none_is_required() -> None:
    for kind in KINDS[2:]:
        assert kind.unpack(b"") == kind.parse(b"")
    assert _message_codec.unpack_trailers(b"") == ()


def test_http_major_0_means_1_and_1_is_not_written() -> None:
    head = SAMPLES["request"]
    assert head.http_major == 1
    assert all(number != 14 for number, _, _ in split(_message_codec.pack_request(head)))
    assert _message_codec.unpack_request(_message_codec.pack_request(head) + member(14, VARINT, 1)) == head


def test_many_fields_keep_their_order_and_their_repeats() -> None:
    pairs = tuple((b"x-%d" % (i % 7), TOKEN[i % 50 :]) for i in range(1000))
    assert _message_codec.unpack_trailers(_message_codec.pack_trailers(pairs)) == pairs
