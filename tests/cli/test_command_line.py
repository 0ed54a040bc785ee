"""Flags, environment and TOML file: who wins, and what a mistake costs."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backstream import cli
from backstream.config import AgentSettings, ProxySettings

Run = Callable[..., subprocess.CompletedProcess[str]]
Parse = Callable[..., Any]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_without_flags_the_settings_are_the_defaults(parse: Parse) -> None:
    assert parse("proxy") == ProxySettings()
    assert parse("agent", "--client-id", "web") == AgentSettings(client_id="web")


def test_flags_become_settings(parse: Parse) -> None:
    settings = parse(
        "proxy",
        *("--listen", "[::1]:80", "--request-timeout", "1m2.5s", "--max-request-timeout", "0"),
        *("--max-agents", "7", "--access-log", "--initial-window", "128KiB", "--ping-interval", "500ms"),
    )
    assert settings.listen == "[::1]:80"
    assert settings.request_timeout == 62.5
    assert settings.max_request_timeout == 0
    assert settings.max_agents == 7
    assert settings.access_log is True
    assert settings.session.initial_window == 131072
    assert settings.session.ping_interval == 0.5


def test_the_flag_wins_over_the_variable_over_the_file_over_the_default(parse: Parse, tmp_path: Path) -> None:
    text = '[proxy]\nrequest-timeout = "4s"\nidle-timeout = 60\nmax-agents = 5\naccess-log = true\n'
    file = write(tmp_path / "backstream.toml", text)
    settings = parse(
        "proxy",
        *("--config", file, "--request-timeout", "6s", "--no-access-log"),
        BACKSTREAM_REQUEST_TIMEOUT="5s",
        BACKSTREAM_MAX_AGENTS="6",
    )
    assert settings.request_timeout == 6
    assert settings.max_agents == 6
    assert settings.idle_timeout == 60
    assert settings.header_timeout == ProxySettings().header_timeout
    assert settings.access_log is False


def test_everything_can_come_from_the_environment(parse: Parse, tmp_path: Path) -> None:
    file = write(tmp_path / "backstream.toml", '[agent]\nmax-frame-size = "32KiB"\n[proxy]\nlisten = ":1"\n')
    settings = parse(
        "agent",
        BACKSTREAM_CONFIG=file,
        BACKSTREAM_CLIENT_ID="web",
        BACKSTREAM_UPSTREAM="http://127.0.0.1:3000",
        BACKSTREAM_PING_INTERVAL="5s",
    )
    assert settings.client_id == "web"
    assert settings.upstream == "http://127.0.0.1:3000"
    assert settings.session.ping_interval == 5.0
    assert settings.session.max_frame_size == 32768


def test_what_is_required_may_stand_in_the_file(parse: Parse, tmp_path: Path) -> None:
    file = write(tmp_path / "backstream.toml", '[agent]\nclient-id = "web"\n')
    assert parse("agent", "--config", file).client_id == "web"


@pytest.mark.parametrize("name", ["proxy", "agent", "demo"])
def test_every_flag_has_a_variable_and_a_place_in_the_help(name: str, run: Run) -> None:
    done = run(name, "--help", COLUMNS="200")
    assert done.returncode == 0 and done.stderr == ""
    for param in cli.cli.commands[name].params:
        assert param.name is not None
        assert "--" + param.name.replace("_", "-") in done.stdout
        assert param.envvar == f"BACKSTREAM_{param.name.upper()}" or param.name == "once"


def test_the_help_says_units_defaults_and_headings(run: Run) -> None:
    shown = " ".join(run("proxy", "--help").stdout.split())
    for words in (
        "Where to listen:",
        "Time limits:",
        "[default: 3s]",
        "0: no limit",
        "[default: 5m]",
        "[proxy]",
    ):
        assert words in shown
    shown = " ".join(run("agent", "--help").stdout.split())
    for words in ("What to serve:", "[required]", "MODULE:ATTR", "[default: 100ms]"):
        assert words in shown


def test_the_command_alone_says_what_there_is(run: Run) -> None:
    done = run()
    assert done.returncode == 0
    for word in ("proxy", "agent", "demo", "--version"):
        assert word in done.stdout


def test_the_version_is_one_line(run: Run) -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("backstream ") and done.stdout.count("\n") == 1


WRONG = [
    (["prox"], "No such command"),
    (["--nonsense"], "--nonsense"),
    (["proxy", "--lisen", ":1"], "--listen"),
    (["proxy", "extra"], "extra"),
    (["proxy", "--listen"], "--listen"),
    (["proxy", "--listen", "8080"], "not an address"),
    (["proxy", "--request-timeout", "3"], "a unit is missing"),
    (["proxy", "--request-timeout", "-1s"], "at least 0"),
    (["proxy", "--idle-timeout", "0"], "more than 0"),
    (["proxy", "--max-agents", "many"], "not a whole number"),
    (["proxy", "--max-agents", "0"], "at least 1"),
    (["proxy", "--max-frame-size", "1MiB"], "from 16KiB to 128KiB"),
    (["proxy", "--max-head-size", "1MB"], "not a size"),
    (["proxy", "--agent-path", "ws"], "--agent-path must be a path"),
    (["proxy", "--ping-interval", "30s"], "--ping-timeout (21s) must be more than --ping-interval (30s)"),
    (["proxy", "--log-format", "xml"], "xml"),
    (["proxy", "--log-level", "loud"], "loud"),
    (["proxy", "--config", "absent.toml"], "cannot read absent.toml"),
    (["agent"], "--client-id"),
    (["agent", "--client-id", "web"], "one of --app and --upstream is needed"),
    (["agent", "--client-id", "web", "--app", "a:b", "--upstream", "http://a"], "exclude each other"),
    (["agent", "--client-id", "web", "--app", "main"], "--app must be module:attribute"),
    (["agent", "--client-id", "web", "--app", "a:b", "--app-dir", "absent"], "absent"),
    (["agent", "--client-id", "a\nb", "--app", "a:b"], "--client-id must be"),
    (
        ["agent", "--client-id", "web", "--upstream", "localhost:80"],
        "--upstream: 'localhost:80' is not a URL",
    ),
    (["agent", "--client-id", "web", "--app", "a:b", "--proxy-url", "http://a"], "--proxy-url: 'http://a'"),
    (["agent", "--client-id", "web", "--app", "a:b", "--interface", "asgi2"], "must be one of auto, asgi3, wsgi"),
    (["agent", "--client-id", "web", "--app", "a:b", "--lifespan", "no"], "must be one of auto, on, off"),
    (["agent", "--client-id", "web", "--app", "a:b", "--root-path", "shop/"], "--root-path must be a path"),
    (["agent", "--client-id", "web", "--upstream", "http://a", "--factory"], "--factory needs an application"),
    (["agent", "--client-id", "web", "--upstream", "http://a", "--reload"], "--reload needs --app"),
    (["agent", "--client-id", "web", "--app", "a:b", "--reload-dir", "."], "--reload-dir needs --reload"),
    (["demo", "--listen", "nowhere"], "not an address"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: " ".join(value)[:60])
def test_a_mistake_costs_one_line_and_status_2(arguments: list[str], words: str, run: Run) -> None:
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
    assert done.stderr.startswith("backstream")
    assert words in done.stderr


def test_a_mistake_in_the_environment_names_the_variable(run: Run) -> None:
    done = run("proxy", BACKSTREAM_IDLE_TIMEOUT="soon")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "BACKSTREAM_IDLE_TIMEOUT" in done.stderr and "'soon' is not a duration" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[proxy\n", "is not TOML"),
        ("[proxi]\n", "'proxi' is not one of the tables [proxy], [agent], [demo]"),
        ("proxy = 1\n", "'proxy' must be a table"),
        ('listen = ":1"\n', "'listen' is not one of the tables"),
        ('[proxy]\nlisten-on = ":1"\n', "unknown key 'listen-on' in [proxy]"),
        ("[proxy]\nidle_timeout = 5\n", "did you mean 'idle-timeout'?"),
        ("[proxy]\nconfig = 'x'\n", "unknown key 'config'"),
        ("[agent]\nmax-agents = 5\n", "unknown key 'max-agents' in [agent]"),
        ('[proxy]\nidle-timeout = "soon"\n', "idle-timeout in [proxy]: 'soon' is not a duration"),
        ("[proxy]\nidle-timeout = nan\n", "idle-timeout in [proxy]: it must be a finite number"),
        ("[proxy]\nmax-agents = true\n", "max-agents in [proxy]: it must be a number"),
        ("[proxy]\nmax-agents = 1.5\n", "max-agents in [proxy]: it must be a number"),
        ("[proxy]\nlisten = 8080\n", "listen in [proxy]: it must be a string"),
        ('[proxy]\nlisten = "8080"\n', "listen in [proxy]: '8080' is not an address"),
        ("[proxy]\naccess-log = 1\n", "access-log in [proxy]: it must be true or false"),
        ("[proxy]\nlog-level = 3\n", "log-level in [proxy]: it must be a string"),
        ("[proxy]\nlog-level = 'loud'\n", "log-level in [proxy]:"),
        ("[proxy]\nmax-agents = [1]\n", "max-agents in [proxy]: it must be a number"),
    ],
)
def test_a_mistake_in_the_file_names_the_file_and_the_key(text: str, words: str, tmp_path: Path, run: Run) -> None:
    write(tmp_path / "my.toml", text)
    done = run("proxy", "--config", "my.toml")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "my.toml" in done.stderr and words in done.stderr


def test_a_file_that_is_not_text_is_a_mistake_too(tmp_path: Path, run: Run) -> None:
    (tmp_path / "my.toml").write_bytes(b"\xff\xfe")
    done = run("proxy", "--config", "my.toml")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "is not TOML" in done.stderr


def test_a_variable_that_is_empty_counts_as_not_set(parse: Parse) -> None:
    assert parse("proxy", BACKSTREAM_LISTEN="", BACKSTREAM_MAX_AGENTS="") == ProxySettings()


def test_a_list_is_a_repeated_flag_a_variable_with_commas_or_an_array(parse: Parse, tmp_path: Path) -> None:
    config = write(tmp_path / "settings.toml", '[proxy]\nupgrade = ["of-file", "too"]\n')
    empty = write(tmp_path / "empty.toml", "[proxy]\nupgrade = []\n")
    assert parse("proxy").upgrade == ("websocket",)
    assert parse("proxy", "--upgrade", "a", "--upgrade", "b").upgrade == ("a", "b")
    assert parse("proxy", "--config", config).upgrade == ("of-file", "too")
    assert parse("proxy", "--config", empty).upgrade == ()
    assert parse("proxy", "--config", config, BACKSTREAM_UPGRADE="websocket, other").upgrade == ("websocket", "other")
    assert parse("proxy", "--config", config, "--upgrade", "a").upgrade == ("a",)


@pytest.mark.parametrize(
    ("value", "words"),
    [('"websocket"', "it must be an array"), ("[1]", "it must be a string"), ('["h2c"]', "never 'h2c'")],
)
def test_a_list_in_the_file_that_is_none_is_refused(run: Run, tmp_path: Path, value: str, words: str) -> None:
    result = run("proxy", "--config", write(tmp_path / "settings.toml", f"[proxy]\nupgrade = {value}\n"))
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
