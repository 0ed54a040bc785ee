"""Small helpers on loopback sockets."""

import http.client
import socket
import ssl
import time
from collections.abc import Callable

from bench.errors import BenchError
from bench.routes import CLIENT_ID, CLIENT_ID_HEADER, HOST, SMALL


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int, ca: str = "") -> bool:
    """Whether ``GET /small`` gives what it should, over TLS if there is a `ca` to verify it with."""
    connection = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=ssl.create_default_context(cafile=ca))
        if ca
        else http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    )
    try:
        connection.request("GET", "/small", headers={"host": HOST, CLIENT_ID_HEADER: CLIENT_ID})
        response = connection.getresponse()
        return response.status == 200 and response.read() == SMALL
    except (OSError, http.client.HTTPException):
        return False
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
