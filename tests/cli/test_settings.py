"""The settings' dataclasses: defaults that work, and no value that cannot."""

import dataclasses
import math

import pytest

from backstream.config import AgentSettings, Option, ProxySettings, SessionSettings
from backstream.errors import ConfigurationError


def test_the_defaults_are_valid_and_frozen() -> None:
    settings = ProxySettings()
    assert settings.session == SessionSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.listen = ":1"  # type: ignore[misc]


def test_an_agent_needs_an_id() -> None:
    with pytest.raises(TypeError, match="client_id"):
        AgentSettings()  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [ProxySettings, AgentSettings, SessionSettings])
def test_every_setting_has_an_option_or_holds_some(kind: type) -> None:
    for item in dataclasses.fields(kind):
        assert item.name == "session" or isinstance(item.metadata["option"], Option)


@pytest.mark.parametrize(
    ("kind", "values", "words"),
    [
        (SessionSettings, {"max_frame_size": 1024}, "max_frame_size must be from 16KiB to 128KiB"),
        (SessionSettings, {"initial_window": 0}, "initial_window must be at least 1"),
        (SessionSettings, {"initial_window": 2**25}, "initial_window .* must not be more than max_window"),
        (SessionSettings, {"ping_timeout": 10.0}, "ping_timeout .* must be more than ping_interval"),
        (SessionSettings, {"ping_interval": 0}, "ping_interval must be more than 0"),
        (SessionSettings, {"max_streams": -1}, "max_streams must be at least 1"),
        (ProxySettings, {"listen": "8080"}, "listen: .* is not an address"),
        (ProxySettings, {"listen": None}, "listen must be a string"),
        (ProxySettings, {"agent_listen": "127.0.0.1:8080"}, "agent_listen must differ from listen"),
        (ProxySettings, {"agent_path": "ws"}, "agent_path must be a path"),
        (ProxySettings, {"agent_path": "/ws?x"}, "agent_path must be a path"),
        (AgentSettings, {"header": ("Authorization",)}, "header must be like 'NAME: VALUE'"),
        (AgentSettings, {"header": ("a b: c",)}, "header must be like 'NAME: VALUE'"),
        (AgentSettings, {"header": ("a: b\r\nc: d",)}, "header must be like 'NAME: VALUE'"),
        (AgentSettings, {"header": ("Host: a",)}, "header must not name Host"),
        (AgentSettings, {"header": ("Sec-WebSocket-Key: a",)}, "header must not name Sec-WebSocket-Key"),
        (ProxySettings, {"upgrade": "websocket"}, "upgrade must be a tuple"),
        (ProxySettings, {"upgrade": ("websocket", 1)}, "upgrade must be a string"),
        (ProxySettings, {"upgrade": ("H2C",)}, "upgrade must name protocols .* never 'H2C'"),
        (ProxySettings, {"upgrade": ("HTTP/2.0",)}, "upgrade must name protocols .* never 'HTTP/2.0'"),
        (ProxySettings, {"upgrade": ("tls",)}, "upgrade must name protocols .* never 'tls'"),
        (ProxySettings, {"upgrade": ("TLS/1.3",)}, "upgrade must name protocols .* never 'TLS/1.3'"),
        (ProxySettings, {"upgrade": ("a, b",)}, "upgrade must name protocols"),
        (ProxySettings, {"upgrade": ("",)}, "upgrade must name protocols"),
        (ProxySettings, {"request_timeout": -1.0}, "request_timeout must be at least 0"),
        (ProxySettings, {"request_timeout": math.nan}, "request_timeout must be a finite number"),
        (ProxySettings, {"request_timeout": "3s"}, "request_timeout must be a number"),
        (ProxySettings, {"request_timeout": 1e12}, "request_timeout must be at most"),
        (ProxySettings, {"max_agents": 0}, "max_agents must be at least 1"),
        (ProxySettings, {"max_agents": True}, "max_agents must be a number"),
        (ProxySettings, {"max_agents": 1.5}, "max_agents must be a number"),
        (ProxySettings, {"access_log": "yes"}, "access_log must be true or false"),
        (ProxySettings, {"tls_cert": "a.pem"}, "tls_cert needs tls_key"),
        (ProxySettings, {"tls_key": "a.pem"}, "tls_key needs tls_cert"),
        (ProxySettings, {"tls_client_ca": "a.pem"}, "tls_client_ca needs tls_cert and tls_key"),
        (ProxySettings, {"session": {}}, "session must be a SessionSettings"),
        (AgentSettings, {"client_id": ""}, "client_id must be 1 to 128"),
        (AgentSettings, {"client_id": "a\r\nb"}, "client_id must be 1 to 128"),
        (AgentSettings, {"client_id": " a"}, "client_id must be 1 to 128"),
        (AgentSettings, {"client_id": "é"}, "client_id must be 1 to 128"),
        (AgentSettings, {"proxy_url": "http://a/ws"}, "proxy_url: .* ws://HOST:PORT/PATH"),
        (AgentSettings, {"proxy_url": "ws://a:0/ws"}, "proxy_url: .* no valid port"),
        (AgentSettings, {"proxy_url": "ws://a..b/ws"}, "proxy_url: .* has no valid host and port"),
        (AgentSettings, {"upstream": f"http://{'x' * 64}.example"}, "upstream: .* has no valid host and port"),
        (AgentSettings, {"proxy_url": "ws://u:p@a/ws"}, "proxy_url: .* must not have a user name"),
        (AgentSettings, {"proxy_url": "wss://a", "client_cert": "a.pem"}, "client_cert needs client_key"),
        (AgentSettings, {"proxy_url": "wss://a", "client_key": "a.pem"}, "client_key needs client_cert"),
        (AgentSettings, {"ca": "a.pem"}, "ca needs a proxy_url that begins with wss://"),
        (AgentSettings, {"client_cert": "a", "client_key": "b"}, "client_cert needs a proxy_url .* wss://"),
        (AgentSettings, {"upstream_ca": "a.pem"}, "upstream_ca needs an upstream that begins with https://"),
        (AgentSettings, {"upstream": "http://a", "upstream_ca": "b"}, "upstream_ca needs an upstream .* https://"),
        (AgentSettings, {"app": "main"}, "app must be module:attribute"),
        (AgentSettings, {"upstream": "ftp://a"}, "upstream: .* is not a URL of the form"),
        (AgentSettings, {"app": "a:b", "upstream": "http://a"}, "app and upstream exclude each other"),
        (AgentSettings, {"reconnect_min": 4.0}, "reconnect_min .* must not be more than reconnect_max"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(kind: type, values: dict[str, object], words: str) -> None:
    required = {"client_id": "web"} if kind is AgentSettings else {}
    with pytest.raises(ConfigurationError, match=words) as caught:
        kind(**(required | values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["ws://proxy/ws", "wss://proxy.example:8443/a/b?c=d", "ws://[::1]:8080/ws"])
def test_examples_of_proxy_urls(text: str) -> None:
    assert AgentSettings(client_id="web", proxy_url=text).proxy_url == text
