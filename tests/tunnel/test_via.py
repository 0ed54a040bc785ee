"""Agents behind a forward proxy: HTTP CONNECT and SOCKS5, with and without a password, by flag and by environment."""

from __future__ import annotations

import asyncio
import socket

import pytest

import backstream
from backstream._via import choose_via
from backstream.config import parse_proxy_url, parse_via
from tests.forward import forward
from tests.rig import ID, LIMIT, Wire, free_port, ok_app, request, tunnel, until

VARIABLES = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"]


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No forward proxy of this machine's."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def agent_for(url: str, **settings) -> backstream.Agent:
    settings = {"reconnect_min": 0.02, "reconnect_max": 0.1, "refused_max": 0.1} | settings
    return backstream.Agent(backstream.AgentSettings(proxy_url=url, client_id=ID, **settings), ok_app)


def url_of(pair, host="127.0.0.1") -> str:
    return f"ws://{host}:{pair.address[1]}/ws"


@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h"])
@pytest.mark.parametrize("credentials", ["", "user:secret"])
async def test_an_agent_comes_through_a_forward_proxy(scheme, credentials) -> None:
    with forward(credentials) as through:
        async with tunnel(agents=0) as pair:
            via = through.url(scheme, credentials and credentials + "@")
            async with agent_for(url_of(pair, "localhost"), via=via):
                await pair.connected()
                await through.passed(f"{pair.address[1]}")
                assert (await pair.get()).body == b"ok"


@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("credentials", ["", "user:wrong@", "user:s%65cre%74@"])
async def test_the_password_is_checked_and_never_logged(scheme, credentials, caplog) -> None:
    caplog.set_level("INFO")
    with forward("user:secret") as through:
        async with tunnel(agents=0) as pair, agent_for(url_of(pair), via=through.url(scheme, credentials)) as agent:
            if "s%65" in credentials:
                await asyncio.wait_for(agent.wait_connected(), LIMIT)
            else:
                await until(lambda: f"the forward proxy {through.url(scheme)} refused the connection" in caplog.text)
                assert not agent.connected
    assert "wrong" not in caplog.text and "secret" not in caplog.text


async def test_a_forward_proxy_that_is_away_is_a_failed_dial(caplog) -> None:
    port = free_port()
    async with tunnel(agents=0) as pair:
        for scheme in ("http", "socks5"):
            async with agent_for(url_of(pair), via=f"{scheme}://127.0.0.1:{port}") as agent:
                words = f"the forward proxy {scheme}://127.0.0.1:{port} cannot be reached: Connection refused"
                await until(lambda words=words: words in caplog.text)
                assert not agent.connected
    assert "Traceback" not in caplog.text


async def test_a_forward_proxy_that_says_nothing_costs_the_connect_timeout_and_no_socket(caplog) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        via = f"http://127.0.0.1:{silent.getsockname()[1]}"
        async with tunnel(agents=0) as pair, agent_for(url_of(pair), via=via, connect_timeout=0.1):
            await until(lambda: caplog.text.count("within 0.1 s") >= 2)


@pytest.mark.parametrize(
    ("environment", "url", "expected"),
    [
        ({}, "wss://proxy.example/ws", None),
        ({"HTTPS_PROXY": "http://a:1"}, "wss://proxy.example/ws", "http://a:1"),
        ({"HTTPS_PROXY": "http://a:1"}, "ws://proxy.example/ws", None),
        ({"HTTP_PROXY": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "ws://proxy.example/ws", "http://a:1"),
        ({"ALL_PROXY": "socks5://a"}, "ws://proxy.example/ws", "socks5://a:1080"),
        ({"ALL_PROXY": "socks5h://a", "HTTPS_PROXY": "http://b"}, "wss://proxy.example/ws", "http://b:3128"),
        ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "wss://proxy.example/ws", "http://a:1"),
        ({"HTTPS_PROXY": "a:1"}, "wss://proxy.example/ws", "http://a:1"),
        ({"HTTPS_PROXY": "http://u:p@[::1]:1/"}, "wss://proxy.example/ws", "http://[::1]:1"),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "other,.example"}, "wss://proxy.example/ws", None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "example"}, "wss://proxy.example/ws", None),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "proxy.example:444"}, "wss://proxy.example/ws", "http://a:1"),
        ({"HTTPS_PROXY": "http://a:1", "NO_PROXY": "proxy.example:443"}, "wss://proxy.example/ws", None),
        ({"HTTPS_PROXY": "http://a:1", "no_proxy": "*"}, "wss://proxy.example/ws", None),
        ({"HTTP_PROXY": "http://a:1"}, "ws://127.0.0.1:8080/ws", None),
        ({"HTTP_PROXY": "http://a:1"}, "ws://[::1]:8080/ws", None),
        ({"HTTP_PROXY": "http://a:1"}, "ws://localhost:8080/ws", None),
        ({"HTTP_PROXY": ""}, "ws://proxy.example/ws", None),
    ],
)
async def test_the_environment_is_read_as_curl_and_go_do(environment, url, expected, monkeypatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    via = choose_via(None, parse_proxy_url(url))
    assert (str(via) if via is not None else None) == expected


async def test_what_is_set_comes_before_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://a:1")
    url = parse_proxy_url("ws://proxy.example/ws")
    assert choose_via("direct", url) is None
    assert str(choose_via("socks5://b:2", url)) == "socks5://b:2"


async def test_the_environments_forward_proxy_is_used_at_each_dial(monkeypatch, caplog) -> None:
    # A name that only the forward proxy can look up: it is not asked for here.
    monkeypatch.setenv("HTTP_PROXY", "https://user:secret@a:1")
    async with agent_for("ws://nowhere.invalid/ws") as agent:
        await until(lambda: "the environment names cannot be used" in caplog.text)
        with forward() as through:
            monkeypatch.setenv("HTTP_PROXY", through.url("socks5h"))
            await through.passed("nowhere.invalid")
        assert not agent.connected
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a:1",
        "https://a:1",
        "ftp://a:1",
        "http://",
        "http://:1",
        "http://a:x",
        "http://a:0x1",
        "http://a:1/path",
        "http://a:1?q",
        "http://@a:1",
        "http://:secret@a:1",
        "http://us er:secret@a:1",
        "socks5://a b:1",
    ],
)
def test_what_is_no_forward_proxy_is_refused_without_its_password(text) -> None:
    with pytest.raises(backstream.ConfigurationError) as raised:
        backstream.AgentSettings(client_id=ID, app="a:b", via=text)
    assert str(raised.value).startswith("via: ") and "secret" not in str(raised.value)


def test_a_forward_proxy_as_text_has_no_password() -> None:
    via = parse_via("socks5h://user:p%40ss@proxy.example")
    assert (via.user, via.password) == ("user", "p%40ss")
    assert f"{via}" == "socks5h://proxy.example:1080"


async def test_clients_are_not_concerned(monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with tunnel(ok_app) as pair, await Wire.connect(pair.address) as wire:
        await wire.send(request())
        assert (await wire.answer()).status == 200
