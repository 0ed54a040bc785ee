"""docs/reference/errors.md says what clients really get, code by code, and leaves out no status of the proxy's."""

from __future__ import annotations

import re
from typing import Any

import pytest

import backstream
from backstream import streams
from backstream.errors import ErrorCode
from tests import pages
from tests.rig import tunnel

PAGE = "docs/reference/errors.md"
SOURCES = (
    "proxy.py",
    "_exchange.pyx",
    *(f"_http/_{name}.pyx" for name in ("server", "request", "routing", "forwarding", "trust", "final_recipient")),
    "_http/_handshake.py",
    "_http/_message.pyx",
)


def plain(cell: str) -> str:
    return cell.strip("`")


CODES = pages.table(PAGE, "## By error code")
TRAVELLING = [row for row in CODES if int(row[1]) < ErrorCode.SESSION_LOST]


def test_every_error_code_is_on_the_page() -> None:
    assert {plain(row[0]): int(row[1]) for row in CODES} == {code.name: code.value for code in ErrorCode}


@pytest.mark.parametrize("row", TRAVELLING, ids=lambda row: plain(row[0]))
async def test_a_code_before_the_head_becomes_what_the_page_says(row: list[str]) -> None:
    def give_up(stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler:
        streams.reset(stream, int(row[1]), "given up")
        return backstream.Handler()

    # Two agents: where there is no other, a request that is refused ends as one whose agents are all busy.
    async with tunnel(handler=give_up, agents=2) as pair:
        got = await pair.get()
    assert got.status == int(row[2])
    details = got.get("proxy-status").decode()
    assert f"error={plain(row[3])}; leg={row[4]};" in details
    assert got.body.startswith(b"given up")


async def test_a_lost_session_becomes_what_the_page_says() -> None:
    (row,) = (row for row in CODES if row[1] == "256")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            pair.agents[0].sessions[0].abort("gone")

    async with tunnel(app, check=False) as pair:
        got = await pair.get(method="POST")
    assert got.status == int(row[2])
    assert f"error={plain(row[3])}; leg={row[4]};" in got.get("proxy-status").decode()


def test_every_status_and_cause_in_the_code_is_on_the_page() -> None:
    on_page = {
        (status, plain(cause))
        for heading, at in (("## By status", 2), ("### Answers to agents", 2))
        for row in pages.table(PAGE, heading)
        for status, cause in [(row[0], row[at])]
    }
    text = "\n".join((pages.ROOT / "backstream" / name).read_text() for name in SOURCES)
    requests = text[: text.index("cdef class ResponseReader")]
    found = {
        *re.findall(r'_fail\(\s*(\d{3}),\s*"(\w+)"', text),
        *(
            (status, cause or "http_request_error")
            for status, cause in re.findall(r'MessageError\(\s*(\d{3}),\s*(?:f?"[^"]*"|\w+)(?:,\s*"(\w+)")?', requests)
        ),
        *((status, "http_upgrade_failed") for status in re.findall(r"return (\d{3}), ", text)),
    }
    assert len(found) > 15
    assert sorted(found - on_page) == []
