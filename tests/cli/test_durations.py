"""Text to values: Go durations, sizes, addresses and upstreams, and back."""

import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backstream.config import (
    Upstream,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_size,
    parse_upstream,
)
from backstream.errors import ConfigurationError

NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,
    "\u03bcs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
LONGEST = 2**63 - 1
# What Go says it takes: "[-+]?", then one or more of "[0-9]*(\.[0-9]*)?[a-z]+" with a digit in each.
GRAMMAR = re.compile(r"[-+]?(?:0|(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:ns|us|µs|μs|ms|s|m|h))+)")

digits = st.text("0123456789", min_size=1, max_size=8)
term = st.tuples(digits | st.just(""), st.none() | digits | st.just(""), st.sampled_from(sorted(NANOSECONDS)))
terms = st.lists(term.filter(lambda part: bool(part[0] or part[1])), min_size=1, max_size=5)


@given(st.sampled_from(["", "+", "-"]), terms)
def test_a_duration_is_the_sum_of_its_terms_cut_to_nanoseconds(
    sign: str, parts: list[tuple[str, str | None, str]]
) -> None:
    text, total = sign, 0
    for whole, fraction, unit in parts:
        text += whole + ("" if fraction is None else f".{fraction}") + unit
        total += int(Fraction(f"{whole or 0}.{fraction or 0}") * NANOSECONDS[unit])
    if total <= LONGEST:
        assert parse_duration(text) == (-total if sign == "-" else total) / 10**9
    else:
        with pytest.raises(ConfigurationError, match="too long"):
            parse_duration(text)


@given(st.text("0123456789.+-hmsnuµμ e\n") | st.text())
@example("1s\n")
@example("１s")
@example("0x1s")
@example("1_0s")
@example("infs")
def test_what_go_does_not_take_is_refused_in_one_line(text: str) -> None:
    if GRAMMAR.fullmatch(text):
        assert isinstance(parse_duration(text), float)
        return
    with pytest.raises(ConfigurationError) as caught:
        parse_duration(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("-0", 0.0),
        ("1h2m3.5s", 3723.5),
        ("300ms", 0.3),
        ("-1s", -1.0),
        ("+1.5h", 5400.0),
        (".5s", 0.5),
        ("1.s", 1.0),
        ("9223372036854775807ns", LONGEST / 10**9),
        ("-9223372036854775808ns", -(2**63) / 10**9),
        ("0" * 5000 + "1s", 1.0),
        ("1." + "0" * 5000 + "s", 1.0),
    ],
)
def test_examples_of_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["9223372036854775808ns", "-9223372036854775809ns", "2562048h", "9" * 5000 + "s", "1" * 5000 + "h"],
)
def test_a_duration_beyond_64_bits_of_nanoseconds_is_too_long(text: str) -> None:
    with pytest.raises(ConfigurationError, match="too long"):
        parse_duration(text)


@given(st.integers(0, 2**52))
def test_a_formatted_duration_is_read_back(nanoseconds: int) -> None:
    seconds = nanoseconds / 10**9
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9)
    assert parse_duration(format_duration(-seconds)) == pytest.approx(-seconds, abs=1e-9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (3, "3s"), (300, "5m"), (0.1, "100ms"), (3723.5, "1h2m3.5s"), (1e-6, "1us"), (-90, "-1m30s")],
)
def test_durations_are_shown_as_people_write_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 2**60))
def test_a_formatted_size_is_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5MiB", "1MB", "1 2", "KiB", "0x10", "１", "9" * 5000])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", ("127.0.0.1", 8080)),
        ("[::1]:80", ("::1", 80)),
        (":8080", ("", 8080)),
        ("localhost:0", ("localhost", 0)),
        ("my-host.example:65535", ("my-host.example", 65535)),
    ],
)
def test_examples_of_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "8080",
        "host",
        "host:",
        "host:-1",
        "host:65536",
        "host:http",
        "host:８０",
        "::1:80",
        "[::1]",
        "[::1]80",
        "[]:80",
        "[host]:80",
        "a b:80",
        "a/b:80",
        "http://host:80",
        "host:80\n",
        "host:0000080",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_address(text)


@given(st.text())
def test_no_text_makes_an_address_or_an_upstream_fail_otherwise(text: str) -> None:
    for parse in (parse_address, parse_upstream):
        try:
            parse(text)
        except ConfigurationError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("text", "upstream"),
    [
        ("http://127.0.0.1:3000", Upstream("127.0.0.1", 3000, None)),
        ("http://service/", Upstream("service", 80, None)),
        ("http://[::1]:3000", Upstream("::1", 3000, None)),
        ("http://[::1]", Upstream("::1", 80, None)),
        ("https://service", Upstream("service", 443, None, tls=True)),
        ("https://127.0.0.1:8443/", Upstream("127.0.0.1", 8443, None, tls=True)),
        ("unix:/run/service.sock", Upstream("localhost", 80, "/run/service.sock")),
    ],
)
def test_examples_of_upstreams(text: str, upstream: Upstream) -> None:
    assert parse_upstream(text) == upstream


@pytest.mark.parametrize(
    "text",
    [
        "",
        "service:80",
        "ftp://a",
        "https://",
        "https://a:0",
        "http://",
        "http://a:0",
        "http://a:x",
        "http://a/path",
        "http://a?q",
        "http://a#",
        "http://[::1",
        "unix:relative",
        "unix:",
        "http://a b",
        "http://a\n:80",
    ],
)
def test_what_is_no_upstream_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_upstream(text)


def test_a_password_in_an_url_is_not_repeated_in_the_message() -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_upstream("http://user:secret@host:80")
    assert "secret" not in str(caught.value)
