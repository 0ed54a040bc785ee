"""What a log record is about: the id, session, stream and request that it carries, the same on both sides."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest

import backstream
from backstream import logs, streams
from backstream.errors import ErrorCode
from tests.rig import ID, LIMIT, Recorder, Upstream, full_listener, http_only, ok_app, request, tunnel, until


@pytest.fixture
def records():
    """The records so far, as the JSON lines that they become."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logs.JsonLinesFormatter())
    logger = logging.getLogger("backstream")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


def saying(records, words):
    (found,) = (record for record in records() if words in record["message"])
    return found


async def test_both_sides_have_one_name_for_a_session(records) -> None:
    async with tunnel(ok_app) as pair:
        next(iter(pair.proxy.agents)).abort("for the test")
        await until(lambda: sum("connected from" in record["message"] for record in records()) == 3)
        names = {link.session_name for link in pair.agents[0].sessions}
    by_words: dict[str, list[str]] = {}
    for record in records():
        if "connected" in record["message"]:
            assert record["id"] == ID
            by_words.setdefault(record["logger"], []).append(record["session"])
    agents, proxies = by_words["backstream.agent"], by_words["backstream.proxy"]
    assert set(agents) == set(proxies) and len(set(agents)) == 2
    assert names <= set(agents)
    assert {name.rpartition("-")[0] for name in agents} == {pair.agents[0]._instance[:4].hex()}


async def test_a_failure_in_an_application_names_the_request_as_the_access_log_does(records) -> None:
    @http_only
    async def app(scope, receive, send):
        raise LookupError("on purpose")

    async with tunnel(app, proxy={"access_log": True}) as pair:
        got = await pair.get("/broken", lines=["X-Request-ID: abc-123"])
        assert got.status == 500
        (session,) = {link.session_name for link in pair.agents[0].sessions}
    failed, access = saying(records, "the application failed"), saying(records, "GET /broken 500")
    for record in (failed, access):
        expected = {"id": ID, "session": session, "stream": 1, "request": "abc-123"}
        assert {name: record[name] for name in expected} == expected
    assert failed["level"] == "error" and "LookupError: on purpose" in failed["exc_info"]


async def test_failures_of_an_upstream_name_the_request(records) -> None:
    async with Upstream(Recorder(b"rubbish\r\n\r\n")) as upstream:
        url = upstream.url
        async with tunnel(upstream=url) as pair:
            got = await pair.get()
            assert got.status == 502
    async with tunnel(upstream=url) as pair:
        assert (await pair.get()).status == 502
    for words in ("sent a malformed answer", "cannot be reached"):
        record = saying(records, words)
        assert (record["id"], record["stream"]) == (ID, 1) and record["session"] and len(record["request"]) > 10


async def test_an_application_that_fails_behind_its_sessions_end_is_logged_with_that_session(caplog) -> None:
    entered, told, go_on = (asyncio.Event() for _ in range(3))

    @http_only
    async def app(scope, receive, send):
        entered.set()
        while (await receive())["type"] != "http.disconnect":
            pass
        told.set()
        await go_on.wait()
        raise LookupError("on purpose")

    def failures():
        return [record for record in caplog.records if "failed after its client had gone" in record.getMessage()]

    caplog.set_level(logging.DEBUG, "backstream.agent")
    async with tunnel(app, check=False) as pair, await pair.open() as wire:
        # A POST, which is not tried again on the next session.
        await wire.send(request(method="POST", lines=["X-Request-ID: abc-123"], body=b""))
        await asyncio.wait_for(entered.wait(), LIMIT)
        (link,) = pair.agents[0].sessions
        next(iter(pair.proxy.agents)).abort("for the test")
        await asyncio.wait_for(told.wait(), LIMIT)
        await until(lambda: link not in pair.agents[0].sessions)
        go_on.set()
        await until(failures)
    (failed,) = failures()
    assert (failed.id, failed.session, failed.stream, failed.request) == (ID, link.session_name, 1, "abc-123")
    assert failed.exc_info[0] is LookupError


async def test_an_upstream_that_cannot_be_reached_when_the_session_is_lost_is_logged_and_gives_its_place_back(
    records,
) -> None:
    with full_listener() as url:
        async with tunnel(upstream=url, connect_timeout=1.0, upstream_connections=1, check=False) as pair:
            service = pair.agents[0]._service
            async with await pair.open() as wire:
                await wire.send(request())
                await until(lambda: service.connections == 1)
                (link,) = pair.agents[0].sessions
                next(iter(pair.proxy.agents)).abort("for the test")
            await until(lambda: pair.agents[0].sessions and link not in pair.agents[0].sessions)
            await pair.connected()
            assert service.connections == 1
            # It waits for the pool's only place, and has it when the first is given up.
            got = await pair.get()
            assert got.status == 504 and b"the upstream cannot be reached" in got.body
            assert service.connections == 0
            (other,) = pair.agents[0].sessions
    found = [record for record in records() if "cannot be reached" in record["message"]]
    assert [(record["id"], record["session"]) for record in found] == [
        (ID, link.session_name),
        (ID, other.session_name),
    ]


async def test_a_request_without_an_agent_has_neither_session_nor_stream(records) -> None:
    async with tunnel(agents=0, proxy={"access_log": True, "agent_wait": 0.0}) as pair:
        assert (await pair.get()).status == 503
    record = saying(records, "GET / 503")
    assert record["id"] == ID and record["request"] and "session" not in record and "stream" not in record


async def test_what_an_agent_says_while_it_is_not_connected_has_its_id(records) -> None:
    async with tunnel(agents=0) as pair:
        agent = await pair.agent(ok_app)
        await pair.proxy.close()
        await until(lambda: any("next try" in record["message"] for record in records()))
        await agent.close()
    for words in ("is leaving", "next try", "stopped"):
        found = [r for r in records() if words in r["message"] and r["logger"] == "backstream.agent"]
        assert found and all(record["id"] == ID for record in found), words


@pytest.mark.parametrize("how", ["refused", "given up", "silent", "lost"])
async def test_a_request_that_fails_at_an_agent_names_its_session_and_stream(records, how) -> None:
    def give_up(stream: streams.Stream, head: backstream.RequestHead, end: bool) -> backstream.Handler | None:
        if how == "given up":
            streams.reset(stream, ErrorCode.APP_ERROR, "given up")
        elif how == "lost":
            pair.agents[0].sessions[0].abort("gone")
        return None if how == "refused" else backstream.Handler()

    limits = {"request_timeout": 0.1} if how == "silent" else {}
    async with tunnel(handler=give_up, proxy={"access_log": True} | limits, check=False) as pair:
        (session,) = {link.session_name for link in pair.agents[0].sessions}
        for number in (1, 2):
            status = (await pair.get(f"/{number}", method="POST")).status
            if how == "lost":
                break
    assert status == {"refused": 503, "given up": 502, "silent": 504, "lost": 502}[how]
    for number in (1, 2)[: 1 if how == "lost" else 2]:
        record = saying(records, f"POST /{number} {status}")
        assert (record["session"], record["stream"]) == (session, 2 * number - 1)
