"""What RFC 6455 forbids ends a session as other errors do: GOAWAY with the reason, then the close frame, both ways."""

from __future__ import annotations

import pytest

from backstream._message_codec import unpack_goaway
from backstream.errors import ErrorCode
from tests.frames import BINARY, CLOSE, PING, Received, frame, read_frame
from tests.rig import Wire, make_agent, ok_app, tunnel, until
from tests.session.wire import GOAWAY, HELLO, frames_of
from tests.tunnel.played_proxy import played_proxies
from tests.tunnel.test_hostile_agents import HANDSHAKE

FORBIDDEN = {
    "a_message_of_262145_bytes": (lambda masked: frame(BINARY, bytes(262_145), masked=masked), 1009, "26214"),
    "a_huge_length": (lambda masked: frame(BINARY, b"", masked=masked, length=2**62, form=64), 1009, "exceeding"),
    "an_opcode_that_is_none": (lambda masked: frame(3, b"x", masked=masked), 1002, "opcode"),
    "the_wrong_side_masks": (lambda masked: frame(BINARY, b"x", masked=not masked), 1002, "masked"),
    "a_ping_of_126_bytes": (lambda masked: frame(PING, bytes(126), masked=masked), 1002, "125"),
    "a_ping_in_fragments": (lambda masked: frame(PING, fin=False, masked=masked), 1002, "fragmented"),
    "a_length_that_is_not_the_shortest": (lambda masked: frame(BINARY, b"x", form=16, masked=masked), 1002, "16-bit"),
}


def check(got: list[Received], code: int, words: str) -> None:
    """GOAWAY is the last thing said before the close frame."""
    assert got[-1].opcode == CLOSE and got[-1].code == code
    said = [sent for each in got if each.opcode == BINARY for sent in frames_of(each.payload)]
    assert said[0].type == HELLO and said[-1].type == GOAWAY
    goaway = unpack_goaway(said[-1].payload)
    assert goaway.code == ErrorCode.PROTOCOL_ERROR and words in goaway.message


@pytest.mark.parametrize(("make", "code", "words"), FORBIDDEN.values(), ids=FORBIDDEN)
async def test_an_agent_that_breaks_a_rule_of_websockets_is_told_so(make, code: int, words: str, caplog) -> None:
    caplog.set_level("INFO", "backstream.session")
    async with tunnel(ok_app) as pair, await Wire.connect(pair.address) as wire:
        await wire.send(HANDSHAKE)
        await wire.until(b"\r\n\r\n")
        await wire.send(make(True))
        got = [await read_frame(wire)]
        while got[-1].opcode != CLOSE:
            got.append(await read_frame(wire))
        check(got, code, words)
        assert any(words in record.getMessage() for record in caplog.records if record.name == "backstream.session")
        assert (await wire.rest())[0] == b""
        assert (await pair.get()).status == 200


@pytest.mark.parametrize(("make", "code", "words"), FORBIDDEN.values(), ids=FORBIDDEN)
async def test_a_proxy_that_breaks_a_rule_of_websockets_is_told_so(make, code: int, words: str) -> None:
    async with played_proxies() as proxies, make_agent(proxies.url, ok_app) as agent:
        peer = await proxies.next()
        await peer.greet()
        await agent.wait_connected()
        await peer.wire.send(make(False))
        got = [await peer.frame()]
        while got[-1].opcode != CLOSE:
            got.append(await peer.frame())
        check(got, code, words)
        # It comes back, as after any session that was lost.
        await (await proxies.next()).greet()
        await until(lambda: agent.connected)
