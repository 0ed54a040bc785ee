"""docs/reference/errors.md says what clients really get, code by code, and leaves out no status of the proxy's."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest

import backstream
from backstream import streams
from backstream.errors import ErrorCode
from tests import pages
from tests.rig import ID, Wire, ok_app, request, tunnel, until

PAGE = "docs/reference/errors.md"
SOURCES = (
    "proxy.py",
    "_exchange.pyx",
    "asgi.py",
    *(f"_http/_{name}.pyx" for name in ("server", "app_connection", "front_end", "request", "routing", "forwarding")),
    *(f"_http/_{name}.pyx" for name in ("trust", "final_recipient")),
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


def test_every_text_in_the_code_is_on_the_page() -> None:
    """But for those of 400, of which there are many: the page says "and the like"."""
    page = (pages.ROOT / PAGE).read_text()
    text = "\n".join((pages.ROOT / "backstream" / name).read_text() for name in SOURCES)
    text = (
        text[: text.index("cdef class ResponseReader")] + (pages.ROOT / "backstream" / "_seed_session.pyx").read_text()
    )
    found = [
        *re.findall(r'_fail\(\s*\d{3},\s*"\w+",\s*f?"([^"]*)"', text),
        *re.findall(r'MessageError\(\s*(?!400)\d{3},\s*f?"([^"]*)"', text),
        *re.findall(
            r'StreamError\((?:NOT_CARRIED|TOO_LARGE|BUDGET_SPENT), "(the (?:request|agent|memory)[^"]*)"', text
        ),
    ]
    assert len(found) > 25
    for words in found:
        parts = [part.strip() for part in re.split(r"\{[^}]*\}", words)]
        missing = [part for part in parts if part and part not in page]
        assert not missing or "SUBPROTOCOL" in words, words


ROWS = pages.table(PAGE, "## By status")


def row_with(words: str) -> list[str]:
    (row,) = (row for row in ROWS if words in row[1])
    return row


REFUSALS: list[tuple[str, dict[str, Any], bytes]] = [
    ("has all the connections it takes", {"max_connections": 1}, b""),
    ("has all the connections that one address may have", {"max_connections_per_address": 1}, b""),
    ("this port is for agents", {"agent_listen": "127.0.0.1:0"}, request()),
    ("header x-backstream-client-id is required", {}, request(client_id=None)),
    ("CONNECT is not served here", {}, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"),
    ("no agent has this id yet", {"agent_wait": 0.0}, request(client_id="other")),
    ("came through this proxy before", {"via_name": "here"}, request(lines=["Via: 1.1 here"])),
    (
        "agents connect at /ws",
        {},
        request(lines=["Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Protocol: backstream.v1"]),
    ),
]


@pytest.mark.parametrize(("words", "settings", "sent"), REFUSALS, ids=[words for words, _, _ in REFUSALS])
async def test_an_answer_of_the_proxys_own_is_as_its_row_says(
    words: str, settings: dict[str, Any], sent: bytes
) -> None:
    row = row_with(words)
    async with tunnel(ok_app, proxy=settings) as pair, await pair.open() as first:
        assert (await first.get()).status == 200
        async with await Wire.connect(pair.proxy.agent_address) as wire:
            if sent:
                await wire.send(sent)
            got = await wire.answer()
    assert (str(got.status), words in got.body.decode()) == (row[0], True)
    assert f"error={plain(row[2])}; leg={row[3]};" in got.get("proxy-status").decode()


async def test_a_refusal_by_the_only_agent_and_a_lack_of_room_are_told_apart() -> None:
    def factory(stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler | None:
        return None if head.target == b"/refused" else backstream.Handler()

    async with tunnel(handler=factory, session=backstream.SessionSettings(max_streams=1)) as pair:
        refused = await pair.get("/refused")
        async with await pair.open() as wire:
            await wire.send(request("/held"))
            async with await pair.open() as other:
                while not next(iter(pair.proxy.agents)).stream_count:
                    await other.send(request(client_id=None))
                    await other.answer()
                await other.send(request())
                full = await other.answer()
    for words, got in (("every agent of this id refused it", refused), ("is at its limit", full)):
        row = next(row for row in ROWS if words in row[1])
        assert (str(got.status), got.body.decode().strip()) == (row[0], f"{plain(row[1])} (id {ID})")
        assert f"error={plain(row[2])}; leg={row[3]};" in got.get("proxy-status").decode()


async def test_what_a_program_is_told_of_one_agent_is_as_its_row_says() -> None:
    held = []

    def factory(stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler:
        held.append(stream)
        return backstream.Handler()

    async with tunnel(handler=factory, session=backstream.SessionSettings(max_streams=1), check=False) as pair:
        (link,) = pair.proxy.agents
        waiting = asyncio.create_task(link.request("GET", "/"))
        await until(lambda: held)
        failures = []
        for _ in range(2):
            with pytest.raises(backstream.RequestFailed) as caught:
                await link.request("GET", "/")
            failures.append(caught.value)
            link.retire("for the test")
        await pair.proxy.close()
        with pytest.raises(backstream.RequestFailed) as caught:
            await waiting
        failures.append(caught.value)
    for error in failures:
        row = next(row for row in ROWS if row[1] == f"`{error}`")
        assert (str(error.status), error.cause, error.leg) == (row[0], plain(row[2]), row[3])
    texts = ["this agent is at its limit", "this agent takes no more requests", "the proxy has stopped"]
    assert [str(error) for error in failures] == texts


async def test_a_head_that_fits_into_no_frame_is_as_its_row_says() -> None:
    row = row_with("the request's head exceeds 131072 bytes")
    settings = {"max_head_size": 131072, "max_target_size": 131072}
    async with tunnel(ok_app, proxy=settings) as pair:
        got = await pair.get("/" + "x" * 130900)
    assert str(got.status) == row[0] and b"exceeds 131072 bytes" in got.body
    assert f"error={plain(row[2])}; leg={row[3]};" in got.get("proxy-status").decode()
