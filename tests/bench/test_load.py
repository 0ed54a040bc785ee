"""What a load of small requests takes for an answer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench import load, net
from bench.context import Context, Options
from bench.errors import BenchError
from bench.routes import SMALL


@contextmanager
def answering(status: int, body: bytes) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join(10)


@pytest.mark.parametrize(("status", "body"), [(502, SMALL), (200, b"Hello, nobody\n")])
def test_a_warm_up_with_another_answer_fails(status: int, body: bytes) -> None:
    with answering(status, body) as port, pytest.raises(BenchError, match=f"it answered its warm-up with {status}"):
        net.warm_up(port, "it", 5)


def test_a_warm_up_with_the_right_answer_is_none() -> None:
    with answering(200, SMALL) as port:
        net.warm_up(port, "it", 0.05)


@pytest.mark.parametrize(("received", "enough"), [(10 * len(SMALL), True), (10 * len(SMALL) - 1, False)])
def test_wrk_must_have_received_the_bytes_of_all_answers(
    received: int, enough: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrk = tmp_path / "wrk"
    told = f'{{"requests": 10, "seconds": 1, "p50": 1, "p99": 2, "errors": 0, "bytes": {received}}}'
    wrk.write_text(f"#!/bin/sh\necho '{told}'\n")
    wrk.chmod(0o755)
    monkeypatch.setattr(load.shutil, "which", lambda name: str(wrk))
    with Context(Options(), tmp_path).fleet() as fleet:
        if enough:
            assert load.load(fleet, 1, 1, 1)["requests"] == 10
        else:
            with pytest.raises(BenchError, match="139 bytes are too few for 10 answers"):
                load.load(fleet, 1, 1, 1)
