"""The bench's contenders: what is written for them, what is said where they are absent, and that they answer."""

import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.contenders import Contender, Direct, Endpoint, binaries
from bench.contenders.nginx import NginxProxy
from bench.contenders.others import others, others_for_small
from bench.contenders.proxies import envoy_config, haproxy_config
from bench.contenders.tunnels import frp_configs, rathole_configs
from bench.context import Context, Options, start_bulk_backend
from bench.errors import BenchError
from bench.net import wait_until_answering
from bench.processes import Fleet
from bench.scenarios.websocket import UPGRADE

KEYS = ["nginx", *(contender.key for contender in others_for_small())]


def contender_of(key: str) -> Contender:
    return next(contender for contender in (NginxProxy(), *others_for_small()) if contender.key == key)


@pytest.fixture
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A lookup of its own: what a test gives or hides is forgotten."""
    monkeypatch.setattr(binaries, "_given", {})
    forget()
    yield
    forget()


def forget() -> None:
    binaries.find.cache_clear()
    binaries.version.cache_clear()


@pytest.fixture
def nothing_installed(nothing_given: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(binaries, "_ELSEWHERE", ())
    monkeypatch.setattr("bench.contenders.python.find_spec", lambda name: None)
    forget()


def executable(path: Path, says: str) -> str:
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with Context(Options(), tmp_path).fleet() as fleet:
        yield fleet


def test_keys_differ() -> None:
    assert len(set(KEYS)) == len(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_what_is_absent_says_how_to_install_it(key: str, fleet: Fleet, nothing_installed: None) -> None:
    contender = contender_of(key)
    reason = contender.missing(fleet)
    assert reason is not None
    assert "\n" not in reason
    assert contender.install in reason
    assert bool(contender.install) == (key != "cloudflared")


def test_every_command_stands_on_the_page(fleet: Fleet) -> None:
    page = Path(__file__, "../../../docs/how-to/bench.md").resolve().read_text()
    for key in KEYS:
        contender = contender_of(key)
        assert f"| `{key.removesuffix('-upstream')}` |" in page
        assert contender.install in page or key == "sish"


def test_a_binary_that_was_given_is_used_instead_of_that_on_path(nothing_given: None, tmp_path: Path) -> None:
    path = executable(tmp_path / "mine", "haproxy version 9.8.7-mine, of today")
    assert binaries.take(["nginx", f"haproxy={path}", "frp"]) == ["nginx", "frp"]
    assert binaries.find("haproxy") == path
    assert contender_of("haproxy").version() == "9.8.7-mine"


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("hproxy=/bin/true", "no contender has a binary named hproxy"),
        ("haproxy=/nowhere/haproxy", "no such executable"),
    ],
)
def test_a_binary_that_is_wrong_is_refused(argument: str, reason: str, nothing_given: None) -> None:
    with pytest.raises(BenchError, match=reason):
        binaries.take([argument])


def test_a_version_that_is_not_said_is_unknown(nothing_given: None, tmp_path: Path) -> None:
    binaries.given("bore", executable(tmp_path / "bore", "none of your business"))
    assert contender_of("bore").version() is None


def test_haproxy_has_one_thread_and_speaks_tls_where_asked() -> None:
    plain = haproxy_config(1234, Endpoint(5678, {}))
    assert "nbthread 1\n" in plain
    assert "bind 127.0.0.1:1234 backlog 4096\n" in plain
    assert "server service 127.0.0.1:5678\n" in plain
    tls = haproxy_config(1234, Endpoint(5678, {}, "/ca.pem"), "/pair.pem")
    assert "ssl crt /pair.pem\n" in tls
    assert "ssl verify required ca-file /ca.pem" in tls


def test_envoy_listens_and_forwards_where_it_should() -> None:
    resources = json.loads(envoy_config(1234, 5678))["static_resources"]
    assert resources["listeners"][0]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 1234}
    cluster = resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert cluster["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 5678}


def test_frp_and_rathole_agree_on_where_they_meet() -> None:
    server, client = frp_configs(1, 2, 3, tls=False)
    assert "bindPort = 1\n" in server
    assert "serverPort = 1\n" in client
    assert "remotePort = 2\n" in client
    assert "localPort = 3\n" in client
    assert "tls.enable = false\n" in client
    server, client = rathole_configs(1, 2, 3)
    assert 'bind_addr = "127.0.0.1:1"\n' in server
    assert 'bind_addr = "127.0.0.1:2"\n' in server
    assert 'remote_addr = "127.0.0.1:1"\n' in client
    assert 'local_addr = "127.0.0.1:3"\n' in client


def test_only_those_with_the_ability_are_taken() -> None:
    everybody = {contender.key for contender in others()}
    assert everybody - {contender.key for contender in others(websockets=True)} == {"httpx"}
    assert everybody - {contender.key for contender in others(credit=True)} == {"websockets", "sish"}


def test_brief_ones_take_one_short_turn_and_none_in_a_smoke_run(tmp_path: Path) -> None:
    full = Options.for_run(quick=False, duration=None, repeat=None, contenders=())
    brief = full.of(Endpoint(1, {}, brief=True))
    assert (brief.duration, brief.bulk_bytes) < (full.duration, full.bulk_bytes)
    assert full.of(Endpoint(1, {})) == full
    quick = Options.for_run(quick=True, duration=None, repeat=None, contenders=())
    assert Context(quick, tmp_path).beside(others()) == []


class _Dies(Contender):
    key = name = "dies"

    def start(self, fleet: Fleet, backend: Endpoint) -> Endpoint:
        return Endpoint(1, {"proxy": fleet.spawn("dies", [sys.executable, "-c", "raise SystemExit(3)"]).pid})


def test_a_contender_that_dies_leaves_the_next_one_alone(tmp_path: Path) -> None:
    context = Context(Options(), tmp_path)
    with context.fleet() as fleet:
        backend = start_bulk_backend(fleet)
        dead, alive = context.cases(fleet, [_Dies(), Direct("direct")], backend, lambda endpoint: {})
    assert dead.row.failed is not None
    assert "ended with status 3" in dead.row.failed
    assert alive.row.failed is None
    assert alive.endpoint is not None


@pytest.mark.parametrize("key", KEYS)
def test_what_is_installed_answers_and_says_its_version(key: str, fleet: Fleet) -> None:
    contender = contender_of(key)
    if reason := contender.missing(fleet):
        pytest.skip(reason)
    endpoint = contender.start(fleet, start_bulk_backend(fleet))
    wait_until_answering(endpoint.port, key, fleet.check, timeout=40)
    assert "proxy" in endpoint.pids
    assert contender.version()


@pytest.mark.parametrize("key", [contender.key for contender in others(websockets=True)])
def test_what_is_installed_carries_websockets(key: str, fleet: Fleet) -> None:
    contender = next(each for each in others(UPGRADE, websockets=True) if each.key == key)
    if reason := contender.missing(fleet):
        pytest.skip(reason)
    endpoint = contender.start(fleet, start_bulk_backend(fleet))
    wait_until_answering(endpoint.port, key, fleet.check, timeout=40)
    echo = [sys.executable, "-m", "bench.clients.echo", str(endpoint.port), "2", "1"]
    result = json.loads(fleet.run("echo", echo, timeout=40).strip().splitlines()[-1])
    assert result["messages"] > 0
    assert not result["errors"]
