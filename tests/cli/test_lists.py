"""Settings that take many values: repeated flags, commas in the environment, arrays in the file."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backstream.config import ProxySettings, parse_host_route, parse_path_route
from backstream.errors import ConfigurationError

Run = Callable[..., subprocess.CompletedProcess[str]]
Parse = Callable[..., Any]


def test_a_flag_may_be_given_again(parse: Parse) -> None:
    settings = parse("proxy", "--route-host", "{id}.a.example", "--trust-forwarded", "::1", "--route-host", "b=c")
    assert settings == ProxySettings(route_host=("{id}.a.example", "b=c"), trust_forwarded=("::1",))


def test_commas_stand_between_the_values_of_a_variable(parse: Parse) -> None:
    settings = parse("proxy", BACKSTREAM_TRUST_FORWARDED="10.0.0.0/8, 192.0.2.1,,::1 ", BACKSTREAM_ROUTE_PATH="")
    assert settings == ProxySettings(trust_forwarded=("10.0.0.0/8", "192.0.2.1", "::1"))


def test_the_file_has_arrays(parse: Parse, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[proxy]\nroute-path = ["/t/{id}/", "/a/=b"]\nproxy-protocol = []\n')
    assert parse("proxy", "--config", str(file)) == ProxySettings(route_path=("/t/{id}/", "/a/=b"))


def test_the_flags_replace_the_variable_and_the_variable_the_file(parse: Parse, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('[proxy]\nroute-path = ["/file/{id}/"]\n')
    arguments = ("proxy", "--config", str(file))
    assert parse(*arguments).route_path == ("/file/{id}/",)
    assert parse(*arguments, BACKSTREAM_ROUTE_PATH="/env/{id}/").route_path == ("/env/{id}/",)
    assert parse(*arguments, "--route-path", "/flag/{id}/").route_path == ("/flag/{id}/",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trust-forwarded", "10.0.0.1/8"], "'--trust-forwarded': '10.0.0.1/8' is not a network"),
        (["--trust-forwarded", "::1", "--trust-forwarded", "x"], "'x' is not a network"),
        (["--proxy-protocol", ""], "is not a network"),
        (["--route-host", "*.example"], "--route-host: '*.example' is not a host route"),
        (["--route-path", "/t/"], "--route-path: '/t/' is not a path route"),
        (["--route-host", "a=b", "--route-host", "A=c"], "--route-host: 'A=c' names another id for the same place"),
        (["--default-id", "a b"], "--default-id must be 1 to 128 visible ASCII characters"),
        (["--via-name", "a b"], "--via-name must be a name like edge-1"),
    ],
)
def test_a_mistake_costs_one_line(arguments: list[str], words: str, run: Run) -> None:
    done = run("proxy", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and words in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('trust-forwarded = "::1"', "trust-forwarded in [proxy]: it must be an array"),
        ("trust-forwarded = [1]", "trust-forwarded in [proxy]: it must be a string"),
        ('trust-forwarded = ["x"]', "trust-forwarded in [proxy]: 'x' is not a network"),
    ],
)
def test_a_mistake_in_the_file_names_its_key(text: str, words: str, tmp_path: Path, run: Run) -> None:
    (tmp_path / "my.toml").write_text(f"[proxy]\n{text}\n")
    done = run("proxy", "--config", "my.toml")
    assert done.returncode == 2 and words in done.stderr, done.stderr


def test_the_help_marks_what_may_be_given_again(run: Run) -> None:
    shown = " ".join(run("proxy", "--help").stdout.split())
    for words in ("--trust-forwarded CIDR...", "--route-host ROUTE...", "Routes:", "Who asked:", "commas"):
        assert words in shown


def test_the_library_takes_tuples_only() -> None:
    with pytest.raises(ConfigurationError, match="route_host must be a tuple"):
        ProxySettings(route_host="{id}.example")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="trust_forwarded must be a string"):
        ProxySettings(trust_forwarded=(1,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("{id}.tunnel.example", ("tunnel.example", None)),
        ("{id}.X", ("x", None)),
        ("www.Example=My-App", ("www.example", "My-App")),
        ("127.0.0.1=a=b", ("127.0.0.1", "a=b")),
    ],
)
def test_examples_of_host_routes(text: str, route: tuple[str, str | None]) -> None:
    assert parse_host_route(text) == route


@pytest.mark.parametrize(
    "text",
    ["", "{id}", "{id}.", "a.{id}.b", "{id}.a=b", "a", "a=", "=b", "a:80=b", "-a=b", "a..b=c", "a=b c", "{id}.a/"],
)
def test_what_is_no_host_route_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_host_route(text)


@pytest.mark.parametrize(
    ("text", "route"),
    [("/{id}/", ("/", None)), ("/t/u/{id}/", ("/t/u/", None)), ("/a/=b", ("/a/", "b")), ("/a%20/=c", ("/a%20/", "c"))],
)
def test_examples_of_path_routes(text: str, route: tuple[str, str | None]) -> None:
    assert parse_path_route(text) == route


@pytest.mark.parametrize(
    "text", ["", "/", "/=a", "/t/{id}", "t/{id}/", "/{id}/t/", "/a=b", "/a/=", "/a//=b", "/a?/=b", "/x{id}/", "/é/=a"]
)
def test_what_is_no_path_route_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_path_route(text)


def test_fields_of_the_handshake_stand_on_lines_of_the_variable_and_may_have_commas(parse: Parse) -> None:
    required = {"BACKSTREAM_CLIENT_ID": "web", "BACKSTREAM_UPSTREAM": "http://a"}
    for text, fields in (
        ("Authorization: Digest a, b=c", ("Authorization: Digest a, b=c",)),
        ("A: b, c\n\n  D: e \n", ("A: b, c", "D: e")),
    ):
        assert parse("agent", **required, BACKSTREAM_HEADER=text).header == fields
