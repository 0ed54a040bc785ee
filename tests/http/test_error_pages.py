"""What an error looks like: Proxy-Status in RFC 9209's words, text or RFC 9457's JSON as the client likes it."""

import json
import re
from pathlib import Path

import httpx
import pytest

from backstream import _exchange
from backstream._callbacks import reset
from backstream._http._error_pages import error_page, prefers_json
from tests import rig

# RFC 9209 §2.3
REGISTERED = {
    *("dns_timeout", "dns_error", "destination_not_found", "destination_unavailable", "destination_ip_prohibited"),
    *("destination_ip_unroutable", "connection_refused", "connection_terminated", "connection_timeout"),
    *("connection_read_timeout", "connection_write_timeout", "connection_limit_reached", "tls_protocol_error"),
    *("tls_certificate_error", "tls_alert_received", "http_request_error", "http_request_denied"),
    *("http_response_incomplete", "http_response_header_section_size", "http_response_header_size"),
    *("http_response_body_size", "http_response_trailer_section_size", "http_response_trailer_size"),
    *("http_response_transfer_coding", "http_response_content_coding", "http_response_timeout"),
    *("http_upgrade_failed", "http_protocol_error", "proxy_internal_response", "proxy_internal_error"),
    *("proxy_configuration_error", "proxy_loop_detected"),
}
SOURCES = Path(_exchange.__file__).parent


@pytest.mark.parametrize("name", ["_exchange.pyx", *(f"_http/{p.name}" for p in (SOURCES / "_http").glob("*.py*"))])
def test_every_cause_in_the_sources_is_a_registered_one(name: str) -> None:
    if not name.endswith((".py", ".pyx")):
        return
    text = (SOURCES / name).read_text()
    words = set(re.findall(r'"((?:dns|destination|connection|tls|http|proxy)_[a-z_]+)"', text)) - {"proxy_protocol"}
    assert words <= REGISTERED, words - REGISTERED
    assert words or name != "_exchange.pyx"


@pytest.mark.parametrize(
    ("accept", "json_"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", True),
        ("application/problem+json", True),
        ("Application/JSON", True),
        ("application/*", True),
        ("application/json, text/plain, */*", True),
        ("text/plain, application/json", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/json;q=0.5, text/plain", False),
        ("application/json, text/plain;q=0.5", True),
        ("application/json;q=0.5, text/*;q=0.4", True),
        ("application/json;q=0", False),
        ("application/json;q=0, */*", False),
        ("application/problem+json;q=0.1, application/json;q=0, text/plain;q=0.05", True),
        ("text/plain;q=0, */*;q=0.5", True),
        ("image/png, */*;q=0.1", False),
        ("application/json;q=1.5", False),
        ("application/json;q=0.1234", False),
        ("application/json;q=x", False),
        ("application/json;version=2", False),
        ("application/json ; q=0.9 , text/plain ;q=0.8", True),
        (",,;q=1,/", False),
    ],
)
def test_which_accept_prefers_json(accept: str, json_: bool) -> None:
    assert prefers_json(accept.encode()) is json_


async def test_a_client_that_prefers_json_gets_problem_details() -> None:
    async with rig.tunnel(rig.ok_app) as tunnel, httpx.AsyncClient(base_url=tunnel.url) as client:
        headers = {"accept": "application/json", "x-backstream-client-id": "no-one"}
        answer = await client.get("/", headers=headers)
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == answer.status_code
        assert problem["title"] == answer.reason_phrase
        assert problem["type"] == "about:blank"
        assert problem["leg"] in ("proxy", "session") and problem["error"] in REGISTERED
        assert "no-one" in problem["detail"]
        # Before there is an id, too, and with several lines of it.
        lines = [("accept", "text/plain;q=0.5"), ("accept", "application/json")]
        answer = await client.get("/", headers=lines)
        assert (answer.status_code, answer.json()["error"]) == (400, "http_request_error")
        answer = await client.get("/", headers={"x-backstream-client-id": "no-one"})
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"


async def test_a_request_that_cannot_be_read_gets_text_whatever_the_one_before_it_preferred() -> None:
    async with rig.tunnel(rig.ok_app) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request(lines=["Accept: application/json"]))
        assert (await wire.answer()).status == 200
        await wire.send(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\nbad line\r\n\r\n")
        answer = await wire.answer()
        assert (answer.status, answer.get("content-type")) == (400, b"text/plain; charset=utf-8")


async def test_json_follows_the_request_also_when_the_service_fails_late() -> None:
    async with (
        rig.Upstream(rig.always(b"nonsense\r\n\r\n")) as upstream,
        rig.tunnel(upstream=upstream.url) as tunnel,
        await tunnel.open() as wire,
    ):
        await wire.send(rig.request(lines=["Accept: application/json"]))
        answer = await wire.answer()
        assert (answer.status, json.loads(answer.body)["leg"]) == (502, "service")
        await wire.send(rig.request(method="HEAD", lines=["Accept: application/json"]))
        head = await wire.answer("HEAD")
        assert (head.status, head.get("content-type")) == (502, b"application/problem+json")


async def test_what_an_agent_says_forges_no_line() -> None:
    def handler(stream, head, end):
        reset(stream, 2, 'a\r\nset-cookie: b\\"c\u00e9\0' + "x" * 2000)

    async with rig.tunnel(handler=handler, check=False) as tunnel, await tunnel.open() as wire:
        await wire.send(rig.request())
        answer = await wire.answer()
        assert answer.status == 502
        assert answer.get("set-cookie") is None
        assert b'details="a??set-cookie: b\\\\\\"c??xxx' in (answer.get("proxy-status") or b"")
        assert answer.body.count(b"\n") == 1 and len(answer.body) < 600


def test_fields_that_go_with_a_status() -> None:
    lines, _ = error_page(503, "destination_unavailable", "why", "session")
    assert "retry-after: 1" in lines
    lines, _ = error_page(426, "http_upgrade_failed", "why", "client")
    assert "upgrade: websocket" in lines and "sec-websocket-version: 13" in lines
    lines, body = error_page(405, "http_request_denied", 'a "why"', "client", trace=True)
    assert any(line.startswith("allow: ") and line.endswith(", TRACE") for line in lines)
    assert 'proxy-status: backstream; error=http_request_denied; leg=client; details="a \\"why\\""' in lines
    assert body == b'a "why"\n'
