"""The bench's raw clients against its own service: what they count is what was sent."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.clients import raw
from bench.net import free_port, wait_until_answering

MIB = 1 << 20


def _alive(process: subprocess.Popen[bytes]) -> None:
    assert process.poll() is None, "the service has ended"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    number = free_port()
    argv = [sys.executable, "-m", "bench.services.service", str(number)]
    with subprocess.Popen(argv, cwd=Path(__file__).parents[2]) as process:
        try:
            wait_until_answering(number, "bench service", lambda: _alive(process), timeout=30)
            yield number
        finally:
            process.kill()


@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_bodies_at_once_carry_as_many_bytes_together_as_were_asked_for(
    port: int, direction: str, chunked: bool
) -> None:
    result = raw.bulk(port, direction, 8 * MIB, chunked=chunked, streams=3, bodies=8)
    assert result["bytes"] == 8 * MIB


def test_bytes_that_no_body_carries_are_an_error(port: int) -> None:
    with pytest.raises(ConnectionError, match="99 bytes arrived of 100"):
        raw.bulk(port, "down", 100, chunked=False, bodies=3)


@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_the_service_says_how_many_bytes_its_sinks_have_received(port: int, chunked: bool) -> None:
    before = raw.received(port, "127.0.0.1")
    raw.upload(port, 3 * MIB + 7, chunked=chunked)
    after = raw.received(port, "127.0.0.1")
    assert after["bytes"] - before["bytes"] == 3 * MIB + 7
    assert after["nanoseconds"] > before["nanoseconds"]


def test_the_first_byte_of_an_event_is_waited_for_again_and_again(port: int) -> None:
    result = raw.first(port, 0.1)
    assert result["requests"] >= 1
    assert 0 < result["p50"] <= result["p99"] <= result["longest"]
