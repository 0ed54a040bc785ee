"""The bench's contenders: what is written for them, what is said where they are absent, and that they answer."""

import json
import stat
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import machine
from bench.contenders import TUNNELS, Contender, Direct, Endpoint, backstream, binaries
from bench.contenders.nginx import NginxProxy
from bench.contenders.others import others, others_for_small
from bench.contenders.proxies import envoy_config, haproxy_config
from bench.contenders.tunnels import Route, frp_configs, rathole_configs, tunnels
from bench.context import Case, Context, Options, start_bulk_backend
from bench.errors import BenchError
from bench.net import wait_until_answering
from bench.processes import Fleet
from bench.report.table import Row
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


def test_another_backstream_tells_its_own_version_and_has_no_bare_handler(
    fleet: Fleet, nothing_given: None, tmp_path: Path
) -> None:
    assert machine.versions()["commit"] != "unknown"
    binaries.take([f"backstream={executable(tmp_path / 'backstream', 'backstream, version 0.0.7')}"])
    backstream.command.cache_clear()
    try:
        found = machine.versions()
        assert (found["backstream"], found["commit"], found["uvloop"]) == ("0.0.7", "unknown", "unknown")
        assert "another backstream was given" in (backstream.BackstreamBare().missing(fleet) or "")
    finally:
        backstream.command.cache_clear()


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


def test_haproxy_does_without_delay_for_events_only() -> None:
    backend = Endpoint(5678, {})
    assert "option http-no-delay" not in haproxy_config(1234, backend)
    assert "  option http-no-delay\n  option splice-auto\n" in haproxy_config(1234, backend, events=True)


def test_envoy_listens_and_forwards_where_it_should() -> None:
    resources = json.loads(envoy_config(1234, 5678))["static_resources"]
    assert resources["listeners"][0]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 1234}
    cluster = resources["clusters"][0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    assert cluster["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 5678}


def test_frp_and_rathole_agree_on_where_they_meet() -> None:
    route = Route(port=2, service=3, address="10.9.8.7", meeting=1)
    server, client = frp_configs(route)
    assert 'bindAddr = "10.9.8.7"\nbindPort = 1\n' in server
    assert 'serverAddr = "10.9.8.7"\n' in client
    assert "serverPort = 1\n" in client
    assert "remotePort = 2\n" in client
    assert "localPort = 3\n" in client
    assert "tls.enable = false\n" in client
    assert "tls.enable = true\n" in frp_configs(replace(route, tls=True))[1]
    server, client = rathole_configs(route)
    assert 'bind_addr = "10.9.8.7:1"\n' in server
    assert 'bind_addr = "127.0.0.1:2"\n' in server
    assert 'remote_addr = "10.9.8.7:1"\n' in client
    assert 'local_addr = "127.0.0.1:3"\n' in client


def test_only_those_with_the_ability_are_taken() -> None:
    everybody = {contender.key for contender in others()}
    assert everybody - {contender.key for contender in others(websockets=True)} == {"httpx"}
    assert everybody - {contender.key for contender in others(credit=True)} == {"websockets", "sish"}


def test_beside_uploads_only_those_that_answer_are_taken() -> None:
    assert {each.key for each in others()} - {each.key for each in others(uploads=True)} == {"uvicorn", "websockets"}


def test_tunnels_are_known_by_their_keys() -> None:
    assert [*(tunnel.key for tunnel in tunnels()), "websockets"] == list(TUNNELS)


def options(*contenders: str, quick: bool = False, repeat: int | None = None) -> Options:
    return Options.for_run(quick=quick, duration=None, repeat=repeat, contenders=contenders)


def test_who_takes_part_where_nobody_says() -> None:
    everyone = ("backstream-app", "nginx-64k", "frp:down", "haproxy")
    assert [key for key in everyone if options().wants(key)] == list(everyone)
    assert [key for key in everyone if options().wants(key, "tunnels")] == ["backstream-app", "nginx-64k", "frp:down"]
    assert [key for key in everyone if options().wants(key, "nearest")] == ["backstream-app", "nginx-64k"]
    assert [key for key in everyone if options(quick=True).wants(key)] == ["backstream-app", "nginx-64k"]


def test_those_that_are_named_take_part_everywhere() -> None:
    for named in (options("haproxy"), options("haproxy", quick=True)):
        assert named.wants("haproxy", "nearest")
        assert not named.wants("nginx", "nearest")


def test_those_for_comparison_take_fewer_turns_unless_their_number_is_said(tmp_path: Path) -> None:
    haproxy, nginx = contender_of("haproxy"), NginxProxy()
    context = Context(options(), tmp_path)
    assert (context.turns_of(haproxy), context.turns_of(nginx)) == (2, None)
    assert options(repeat=7).few == 7
    assert options(quick=True).few == 1


def test_in_some_states_only_the_nearest_take_part(tmp_path: Path) -> None:
    cases = [Case(Row(key, key), None) for key in ("nginx", "frp")]
    states = {"idle": "idle", "up": "uploads"}
    found = Context(options(), tmp_path).in_states(cases, states, lambda state, endpoint: {}, nearest=["up"])
    assert [case.row.key for case in found] == ["nginx:idle", "nginx:up", "frp:idle"]


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


STARTED = ["nginx", "haproxy", "aiohttp", "websockets"]
"""Those that the suite starts: what CI has installed, one of each kind."""


@pytest.mark.parametrize("key", STARTED)
def test_what_is_installed_answers_says_its_version_and_carries_websockets(key: str, fleet: Fleet) -> None:
    contender = NginxProxy(extra=UPGRADE) if key == "nginx" else contender_of(key)
    if reason := contender.missing(fleet):
        pytest.skip(reason)
    endpoint = contender.start(fleet, start_bulk_backend(fleet))
    wait_until_answering(endpoint.port, key, fleet.check, timeout=40)
    assert "proxy" in endpoint.pids
    assert contender.version()
    echo = [sys.executable, "-m", "bench.clients.echo", str(endpoint.port), "2", "1"]
    result = json.loads(fleet.run("echo", echo, timeout=40).strip().splitlines()[-1])
    assert result["messages"] > 0
    assert not result["errors"]
