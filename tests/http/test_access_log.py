"""The access log has a line for each request, by the id that its answer has: also for those that go nowhere."""

from __future__ import annotations

import logging

import pytest

from tests.rig import Tunnel, ok_app, request, tunnel

LIMITS = {"header_timeout": 0.3, "access_log": True}

REFUSED = {
    "malformed": (b"GET /bad HTTP/1.1\r\nHost: a\r\nX y: 1\r\n\r\n", "GET /bad", 400),
    "a bare LF": (b"POST /lf HTTP/1.1\nHost: a\n\n", "POST /lf", 400),
    "a blank too many": (b"GET /two  HTTP/1.1\r\nHost: a\r\n\r\n", "GET /two", 400),
    "no request line": (b"nonsense\r\n\r\n", "- -", 400),
    "TLS": (b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03", "- -", 400),
    "empty lines": (b"\r\n" * 40, "- -", 400),
    "controls": (b"GET /a\x1b[2J\xe9\\ HTTP/1.1\nHost: a\r\n\r\n", "GET /a\\x1b[2J\\xe9\\\\", 400),
    "an unknown method": (b"BREW /pot HTTP/1.1\r\nHost: a\r\n\r\n", "BREW /pot", 501),
    "another version": (b"GET /two HTTP/2.0\r\nHost: a\r\n\r\n", "GET /two", 505),
    "a coding": (b"POST /gz HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", "POST /gz", 400),
    "a long target": (b"GET /" + b"a" * 99999 + b" HTTP/1.1\r\n\r\n", "GET /" + "a" * 16383, 414),
    "a large head": (b"GET /big HTTP/1.1\r\nX: " + b"a" * 99999 + b"\r\n\r\n", "GET /big", 431),
    "a late head": (b"HEAD /late HTTP/1.1\r\nHost: a\r\n", "HEAD /late", 408),
    "a late line": (b"HEAD /la", "HEAD /la", 408),
}


def access(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "backstream.access"]


async def refused(pair: Tunnel, sent: bytes, before: bytes = b"") -> tuple[int, str]:
    """Status and request id of the answer to a request that is refused, whatever came before it."""
    async with await pair.open() as wire:
        if before:
            await wire.send(before)
            assert (await wire.answer()).status == 200
        await wire.send(sent)
        got = await wire.answer("HEAD" if sent.startswith(b"HEAD ") else "GET")
        return got.status, (got.get("x-request-id") or b"").decode()


@pytest.mark.parametrize("name", REFUSED)
async def test_a_request_whose_head_is_refused_has_a_line(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "backstream.access")
    sent, shown, status = REFUSED[name]
    async with tunnel(ok_app, proxy=LIMITS) as pair:
        got, number = await refused(pair, sent)
        assert got == status
        (line,) = access(caplog)
        assert line.getMessage().startswith(f"127.0.0.1 {shown} {status} ")
        assert vars(line)["request"] == number
        assert (vars(line)["status"], vars(line)["id"]) == (status, "")
        assert (vars(line)["bytes"] == 0) == sent.startswith(b"HEAD ")


async def test_nothing_of_the_request_before_stands_in_the_line_of_one_that_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "backstream.access")
    before = request("/before", lines=["X-Forwarded-For: 9.9.9.9"])
    settings = LIMITS | {"trust_forwarded": ("127.0.0.1",), "x_forwarded": True}
    async with tunnel(ok_app, proxy=settings) as pair:
        _, number = await refused(pair, b"nonsense\r\n\r\n", before)
        first, second = access(caplog)
        assert first.getMessage().startswith("9.9.9.9 GET /before 200 ")
        assert second.getMessage().startswith("127.0.0.1 - - 400 ")
        assert vars(second)["request"] == number != vars(first)["request"]


async def test_a_connection_that_says_nothing_has_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "backstream.access")
    async with tunnel(ok_app, proxy=LIMITS) as pair, await pair.open() as wire:
        assert await wire.rest() == (b"", "fin")
        assert not access(caplog)
