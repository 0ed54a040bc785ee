"""What a log record is about: the id, session, stream and request that it carries, the same on both sides."""

from __future__ import annotations

import io
import json
import logging

import pytest

import backstream
from backstream import logs, streams
from backstream.errors import ErrorCode
from tests.rig import ID, Recorder, Upstream, http_only, ok_app, tunnel, until


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
