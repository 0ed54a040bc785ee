"""Flask and Django as WSGI applications behind the tunnel: each does here what it does on another WSGI server."""

from __future__ import annotations

import gc
import hashlib
import importlib
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from backstream.pytest_plugin import MakeTunnel

MEBIBYTE = 1024 * 1024


@pytest.fixture(params=["flask_app", "django_wsgi_app"])
def app(request: pytest.FixtureRequest) -> Iterator[Any]:
    from django.test import override_settings

    module = importlib.import_module(f"tests.interop.frameworks.{request.param}")
    made = module.build()
    if "django" in request.param:
        with override_settings(ROOT_URLCONF=module.__name__):
            yield made
    else:
        yield made


@pytest.fixture(autouse=True)
def collect_files_left_open() -> Iterator[None]:
    yield
    with warnings.catch_warnings():
        # Both leave the temporary file of an upload to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_a_json_view_gets_path_query_and_fields(app: Any, backstream_tunnel: MakeTunnel) -> None:
    client = backstream_tunnel(app).client
    for _ in range(3):
        response = client.get("/json/caf%C3%A9", params={"q": "a b&c"}, headers={"x-a": "1"})
        assert response.status_code == 200
        assert response.json() == {"name": "café", "q": "a b&c", "x": "1"}
        assert response.headers["x-url"].startswith(f"http://127.0.0.1:{client.base_url.port}/json/caf")


def test_a_stream_comes_whole(app: Any, backstream_tunnel: MakeTunnel) -> None:
    client = backstream_tunnel(app).client
    response = client.get("/stream")
    assert response.text == "line 0\nline 1\nline 2\n"
    assert response.headers["transfer-encoding"] == "chunked"


def test_an_upload_is_read_whole(app: Any, backstream_tunnel: MakeTunnel) -> None:
    body = bytes(range(256)) * 4096 * 3 + b"the end"
    client = backstream_tunnel(app).client
    response = client.post("/upload", content=body)
    assert response.json() == {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def test_an_upload_without_a_length_is_read_whole(backstream_tunnel: MakeTunnel) -> None:
    # Not by Django, which takes no length for an empty body.
    app = importlib.import_module("tests.interop.frameworks.flask_app").build()

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 100_000

    client = backstream_tunnel(app).client
    response = client.post("/upload", content=pieces())
    assert response.json()["size"] == 2_000_000


def test_a_form_with_a_file_is_parsed(app: Any, backstream_tunnel: MakeTunnel) -> None:
    client = backstream_tunnel(app).client
    files = {"file": ("name.bin", b"f" * 3 * MEBIBYTE)}
    response = client.post("/form", files=files, data={"field": "value"})
    assert response.json() == {"name": "name.bin", "size": 3 * MEBIBYTE, "field": "value"}


def test_cookies_go_both_ways(app: Any, backstream_tunnel: MakeTunnel) -> None:
    client = backstream_tunnel(app).client
    assert (client.get("/cookies")).json() == {}
    assert (client.get("/cookies")).json() == {"one": "1", "two": "2"}


def test_an_upload_that_nobody_reads_does_not_hold_up_the_answer(app: Any, backstream_tunnel: MakeTunnel) -> None:
    client = backstream_tunnel(app).client
    response = client.post("/nowhere", content=b"x" * MEBIBYTE)
    assert response.status_code == 404
    response = client.get("/json/n", params={"q": "1"}, headers={"x-a": "1"})
    assert response.status_code == 200


def test_a_view_that_raises_is_500_alone(app: Any, backstream_tunnel: MakeTunnel) -> None:
    client = backstream_tunnel(app).client
    assert (client.get("/broken")).status_code == 500
    response = client.head("/json/n", params={"q": "1"}, headers={"x-a": "1"})
    assert (response.status_code, response.content) == (200, b"")
