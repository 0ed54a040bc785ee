"""What belongs to one hop stays there; Via, loops, Max-Forwards, TRACE and OPTIONS (RFC 9110 §7.6, §9.3.7, §9.3.8)."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests import rig

METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"


@asynccontextmanager
async def recorded(answer: bytes = rig.OK, **proxy: Any) -> AsyncIterator[tuple[rig.Tunnel, list[rig.Message]]]:
    """A tunnel to an upstream that gives this answer, and the requests that it saw."""
    recorder = rig.Recorder(answer)
    async with rig.Upstream(recorder) as upstream, rig.tunnel(upstream=upstream.url, proxy=proxy) as tunnel:
        yield tunnel, recorder.seen


# --- hop by hop ---


async def test_a_requests_fields_of_this_hop_stay_here() -> None:
    async with recorded() as (tunnel, seen):
        await tunnel.get(
            lines=[
                *("Connection: keep-alive, X-Hop, x-other", "X-Hop: 1", "x-OTHER: 2", "Keep-Alive: timeout=5"),
                *("Proxy-Connection: keep-alive", "TE: gzip", "X-End: 3", "Upgrade: h2c", "Connection: Upgrade"),
            ]
        )
    names = [name for name, _ in seen[0].fields]
    assert names == [b"host", b"x-backstream-client-id", b"x-end", b"via", b"forwarded", b"x-request-id"]


async def test_a_responses_fields_of_this_hop_stay_here() -> None:
    lines = b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: a\r\nProxy-Connection: a\r\nTE: a\r\nHost: b\r\nX-End: 3\r\n"
    async with recorded(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + lines + b"\r\n") as (tunnel, _):
        answer = await tunnel.get()
    names = sorted(name for name, _ in answer.fields)
    assert names == [b"content-length", b"date", b"via", b"x-end", b"x-request-id"]


@pytest.mark.parametrize(
    "named", ["content-length", "transfer-encoding", "host", "x-backstream-client-id", "x-backstream-request-timeout"]
)
async def test_naming_a_framing_or_routing_field_in_connection_does_no_harm(named: str) -> None:
    lines = [f"Connection: {named}", "x-backstream-request-timeout: 7s"]
    async with recorded() as (tunnel, seen):
        answer = await tunnel.get(method="POST", body=b"hello", lines=lines)
        assert answer.status == 200
        chunked = [*lines, "Transfer-Encoding: chunked"]
        async with await tunnel.open() as wire:
            await wire.send(rig.request(method="POST", lines=chunked) + rig.chunked(b"hello"))
            assert (await wire.answer()).status == 200
    assert [request.body for request in seen] == [b"hello", b"hello"]
    assert [request.get("host") for request in seen] == [b"service.example"] * 2
    assert [request.get("x-backstream-request-timeout") for request in seen] == [b"7s"] * 2


# --- Via and loops ---


async def test_via_names_the_proxy_and_the_version_it_was_spoken_to_in() -> None:
    async with recorded(via_name="edge") as (tunnel, seen):
        answer = await tunnel.get(lines=["Via: 1.1 first, 1.0 second (a, b)"])
        assert answer.get("via") == b"1.1 edge"
        await tunnel.get(version="1.0")
    assert seen[0].all("via") == [b"1.1 first, 1.0 second (a, b)", b"1.1 edge"]
    assert seen[1].all("via") == [b"1.0 edge"]


async def test_a_responses_via_is_added_to() -> None:
    inner = b"HTTP/1.1 200 OK\r\nVia: 1.1 inner\r\nContent-Length: 0\r\n\r\n"
    async with recorded(inner, via_name="edge") as (tunnel, _):
        assert (await tunnel.get()).all("via") == [b"1.1 inner", b"1.1 edge"]


async def test_each_process_has_a_name_of_its_own() -> None:
    async with recorded() as (one, _), recorded() as (other, _):
        names = {(await tunnel.get()).get("via") for tunnel in (one, other, one)}
    assert len(names) == 2
    assert all(name and name.startswith(b"1.1 backstream-") for name in names)


async def test_a_loop_through_ourselves_ends_with_508() -> None:
    async with rig.tunnel(agents=0) as tunnel:
        await tunnel.agent(upstream=tunnel.url)
        answer = await tunnel.get()
        assert answer.status == 508
        assert b"error=proxy_loop_detected; leg=proxy" in (answer.get("proxy-status") or b"")
        await rig.until(lambda: not any(tunnel.counts().values()))
        assert sum(link.served for link in tunnel.proxy.agents) == 1


async def test_two_proxies_behind_one_another_are_no_loop() -> None:
    async with rig.tunnel(rig.ok_app) as inner, rig.tunnel(upstream=inner.url) as outer:
        answer = await outer.get()
        assert answer.body == b"ok"
        assert len(answer.all("via")) == 2


@pytest.mark.parametrize(
    ("via", "loops"),
    [
        ("1.1 edge", True),
        ("HTTP/1.1 edge", True),
        ("1.1 a, 2\tedge (x)", True),
        ("1.1 a (b (c) \\) edge), 1.1 edge", True),
        ("1.1 edge(x)", True),
        ("1.1 edges", False),
        ("1.1 the edge", False),
        ("edge 1.1", False),
        ("1.1 a (1.1 edge, 1.1 edge)", False),
        ("1.1 a (x, 1.1 edge", False),
        ("1.1 edge:80", False),
        ("(\\", False),
    ],
)
async def test_only_our_own_name_in_via_makes_a_loop(via: str, loops: bool) -> None:
    async with recorded(via_name="edge") as (tunnel, seen):
        answer = await tunnel.get(lines=[f"Via: {via}"])
    assert answer.status == (508 if loops else 200)
    assert len(seen) == (not loops)


# --- Max-Forwards ---


@pytest.mark.parametrize(("said", "next_"), [("1", b"0"), ("10", b"9"), ("007", b"6"), ("9" * 18, b"9" * 17 + b"8")])
async def test_max_forwards_is_counted_down(said: str, next_: bytes) -> None:
    async with recorded(trace=True) as (tunnel, seen):
        for method in ("OPTIONS", "TRACE"):
            assert (await tunnel.get(method=method, lines=[f"Max-Forwards: {said}"])).status == 200
    assert [request.get("max-forwards") for request in seen] == [next_, next_]


async def test_max_forwards_0_ends_here_and_the_connection_lives_on() -> None:
    async with recorded(trace=True) as (tunnel, seen), await tunnel.open() as wire:
        await wire.send(rig.request("/a", method="OPTIONS", lines=["Max-Forwards: 0"]))
        answer = await wire.answer()
        assert (answer.status, answer.body, answer.get("allow")) == (200, b"", METHODS + b", TRACE")
        secrets = ["Cookie: a=b", "Authorization: Basic eA==", "Proxy-Authorization: Basic eA=="]
        await wire.send(rig.request("/a?b", method="TRACE", lines=["Max-Forwards: 0", "X-A: b", "TE: gzip", *secrets]))
        answer = await wire.answer()
        assert (answer.status, answer.get("content-type")) == (200, b"message/http")
        assert answer.body == (
            b"TRACE /a?b HTTP/1.1\r\nhost: service.example\r\nx-backstream-client-id: svc\r\nmax-forwards: 0\r\n"
            b"x-a: b\r\nte: gzip\r\n\r\n"
        )
        assert seen == []
        assert (await wire.get()).status == 200


async def test_max_forwards_is_of_no_account_to_other_methods() -> None:
    async with recorded() as (tunnel, seen):
        for said in ("0", "x"):
            assert (await tunnel.get(lines=[f"Max-Forwards: {said}"])).status == 200
    assert [request.get("max-forwards") for request in seen] == [b"0", b"x"]


@pytest.mark.parametrize("said", ["", "-1", "1.0", "x", "9" * 19, "1\r\nMax-Forwards: 1"])
async def test_max_forwards_that_is_no_number_is_400(said: str) -> None:
    async with recorded() as (tunnel, seen):
        assert (await tunnel.get(method="OPTIONS", lines=[f"Max-Forwards: {said}"])).status == 400
    assert seen == []


# --- TRACE, CONNECT, OPTIONS ---


async def test_trace_is_405_unless_it_is_chosen() -> None:
    async with recorded() as (tunnel, seen), await tunnel.open() as wire:
        await wire.send(rig.request(method="TRACE"))
        answer = await wire.answer()
        assert (answer.status, answer.get("allow")) == (405, METHODS)
        assert (await wire.get()).status == 200
    assert [request.method for request in seen] == [b"GET"]


async def test_trace_by_choice_reaches_the_service_and_has_no_body() -> None:
    async with recorded(trace=True) as (tunnel, seen):
        assert (await tunnel.get(method="TRACE")).status == 200
        assert (await tunnel.get(method="TRACE", body=b"x")).status == 400
    assert [request.method for request in seen] == [b"TRACE"]


async def test_connect_is_405_and_ends_the_connection() -> None:
    async with recorded() as (tunnel, seen), await tunnel.open() as wire:
        await wire.send(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n" + rig.request())
        answer = await wire.answer()
        assert (answer.status, answer.get("allow"), answer.keeps_alive) == (405, METHODS, False)
        with contextlib.suppress(ConnectionError):
            assert (await wire.rest())[0] == b""
    assert seen == []


async def test_options_of_everything_goes_to_the_service_that_is_named() -> None:
    async with recorded() as (tunnel, seen):
        assert (await tunnel.get("*", method="OPTIONS")).body == b"ok"
        assert (await tunnel.get("http://service.example", method="OPTIONS")).body == b"ok"
    assert [request.target for request in seen] == [b"*", b"*"]


async def test_options_of_everything_without_an_id_is_the_proxys_to_answer() -> None:
    async with recorded(route_host=("{id}.example",)) as (tunnel, seen):
        answer = await tunnel.get("*", method="OPTIONS", client_id=None, lines=[])
        assert answer.status in (422, 503)
    async with recorded() as (tunnel, seen):
        answer = await tunnel.get("*", method="OPTIONS", client_id=None)
        assert (answer.status, answer.get("allow"), answer.get("content-length")) == (200, METHODS, b"0")
        assert (await tunnel.get("*", client_id=None)).status == 400
    assert seen == []
