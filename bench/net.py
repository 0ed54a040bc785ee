"""Small helpers on sockets. ``python -m bench.net ADDRESS PORT`` waits until somebody listens there, for namespaces."""

import http.client
import socket
import ssl
import sys
import time
from collections.abc import Callable

from bench.errors import BenchError
from bench.routes import CLIENT_ID, CLIENT_ID_HEADER, HOST, SMALL

_HEADERS = {"host": HOST, CLIENT_ID_HEADER: CLIENT_ID}


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _connection(port: int, ca: str) -> http.client.HTTPConnection:
    if ca:
        context = ssl.create_default_context(cafile=ca)
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=context)
    return http.client.HTTPConnection("127.0.0.1", port, timeout=5)


def answers(port: int, ca: str = "") -> bool:
    """Whether ``GET /small`` gives what it should, over TLS if there is a `ca` to verify it with."""
    connection = _connection(port, ca)
    try:
        connection.request("GET", "/small", headers=_HEADERS)
        response = connection.getresponse()
        return response.status == 200 and response.read() == SMALL
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def warm_up(port: int, name: str, seconds: float, *, ca: str = "") -> None:
    """Small requests on one connection for so long; BenchError if one fails or has another answer than it should."""
    connection = _connection(port, ca)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            connection.request("GET", "/small", headers=_HEADERS)
            response = connection.getresponse()
            body = response.read()
            if (response.status, body) != (200, SMALL):
                raise BenchError(f"{name} answered its warm-up with {response.status} {body[:100]!r}")
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"{name} failed in its warm-up: {error!r}") from error
    finally:
        connection.close()


def wait_until_answering(
    port: int, name: str, check: Callable[[], None], *, ca: str = "", timeout: float = 15.0
) -> None:
    """Wait for a contender to serve requests; BenchError after `timeout` seconds, or what `check` raises."""
    deadline = time.monotonic() + timeout
    while not answers(port, ca):
        check()
        if time.monotonic() > deadline:
            raise BenchError(f"{name} did not answer GET /small within {timeout:.0f} s")
        time.sleep(0.05)


def wait_until_listening(
    address: str, port: int, name: str, check: Callable[[], None], *, timeout: float = 15.0
) -> None:
    """Wait for somebody to accept connections; BenchError after `timeout` seconds, or what `check` raises."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((address, port), timeout=1).close()
            return
        except OSError:
            check()
            if time.monotonic() > deadline:
                raise BenchError(f"{name} did not listen within {timeout:.0f} s") from None
            time.sleep(0.02)


if __name__ == "__main__":
    wait_until_listening(sys.argv[1], int(sys.argv[2]), "who is waited for", lambda: None)
