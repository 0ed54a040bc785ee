"""The seed wire's schema, held to messages captured from the original implementation."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, unknown_fields
from google.protobuf.message import Message as AnyMessage

from backstream._proto import seed_pb2

CAPTURED = json.loads((Path(__file__).parents[1] / "data" / "seed-wire.json").read_text())
MESSAGES = [entry for entry in CAPTURED if "decoded" in entry]
EVENTS: dict[str, type[AnyMessage]] = {
    "REQUEST": seed_pb2.EventHTTPRequest,
    "RESPONSE": seed_pb2.EventHTTPResponse,
}


def read(kind: type[AnyMessage], payload: bytes, codec: str) -> Any:
    """The message in `payload`, which may not hold anything that the schema doesn't know."""
    if not payload:
        return kind()  # the answer of a handler that failed, in JSON too, where nothing is not a document
    if codec == "json":
        return json_format.Parse(payload, kind())
    message = kind.FromString(payload)
    assert len(unknown_fields.UnknownFieldSet(message)) == 0
    return message


def write(message: AnyMessage, codec: str) -> bytes:
    return message.SerializeToString() if codec == "proto" else json_format.MessageToJson(message).encode()


def payload_of(entry: dict[str, Any]) -> bytes:
    return base64.b64decode(entry["payload_b64"]) if entry["codec"] == "proto" else entry["payload"].encode()


def as_captured(event: Any) -> dict[str, Any]:
    """`event` in the shape that the capture has it decoded in."""
    names = [name for name in event.DESCRIPTOR.fields_by_name if name not in ("headers", "body")]
    headers = {name: list(values) for name, values in event.headers.items()}
    body = base64.b64encode(event.body).decode()
    return {"headers": headers, "body_b64": body, **{name: getattr(event, name) for name in names}}


def test_the_capture_holds_both_encodings_and_both_directions() -> None:
    assert len(MESSAGES) == 42
    assert {(entry["codec"], entry["decoded"]["type"]) for entry in MESSAGES} == {
        (codec, kind) for codec in ("proto", "json") for kind in ("REQUEST", "RESPONSE")
    }


@pytest.mark.parametrize("entry", MESSAGES, ids=lambda entry: f"{entry['codec']}-{entry['decoded']['type']}")
def test_a_captured_message_reads_as_it_was_meant(entry: dict[str, Any]) -> None:
    codec, meant = entry["codec"], entry["decoded"]
    message = read(seed_pb2.Message, payload_of(entry), codec)
    kind = seed_pb2.Message.Type.Name(message.type)
    event = read(EVENTS[kind], message.data, codec)

    assert (message.id, kind) == (meant["id"], meant["type"])
    if "undecodable" in meant["event"]:  # protojson has no empty document; read() says what it stands for
        assert event == EVENTS[kind]()
    else:
        assert as_captured(event) == meant["event"]


@pytest.mark.parametrize("entry", MESSAGES, ids=lambda entry: f"{entry['codec']}-{entry['decoded']['type']}")
def test_a_captured_message_survives_being_written_again(entry: dict[str, Any]) -> None:
    codec = entry["codec"]
    message = read(seed_pb2.Message, payload_of(entry), codec)
    event = read(EVENTS[seed_pb2.Message.Type.Name(message.type)], message.data, codec)

    again = read(seed_pb2.Message, write(message, codec), codec)
    assert again == message
    assert read(type(event), write(event, codec), codec) == event
