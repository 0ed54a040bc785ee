"""The pytest plugin: what its fixtures give, in this run and in one of a user's."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import backstream
from backstream.functions import Request, Response
from backstream.pytest_plugin import MakeTunnel
from tests.rig import ROOT, ok_app

SECONDS = 50


def wsgi(environ, start_response):
    start_response("200 OK", [("X-Interface", "wsgi")])
    return [environ["PATH_INFO"].encode()]


async def function(request: Request) -> Response:
    return Response(await request.body(), headers={"x-interface": "function"})


@pytest.fixture
def backstream_app():
    return wsgi


def test_the_client_reaches_the_application(backstream_client) -> None:
    response = backstream_client.get("/a/path")
    assert (response.status_code, response.text, response.headers["x-interface"]) == (200, "/a/path", "wsgi")
    assert "via" in response.headers


def test_tunnels_do_not_know_of_each_other(backstream_tunnel: MakeTunnel) -> None:
    one = backstream_tunnel(wsgi)
    two = backstream_tunnel(function, client_id="other", request_timeout=5)
    assert one.url != two.url and two.headers == {"x-backstream-client-id": "other"}
    assert one.client.get("/x").headers["x-interface"] == "wsgi"
    assert two.client.post("/", content=b"body").text == "body"
    assert two.client.get("/", headers=one.headers).status_code == 503
    assert two.agent.settings.request_timeout == 5


async def test_asynchronous_tests_have_a_client_too(backstream_tunnel: MakeTunnel) -> None:
    tunnel = backstream_tunnel(ok_app, proxy={"route_path": ("/t/{id}/",)})
    async with tunnel.async_client() as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(10)))
        assert [answer.text for answer in answers] == ["ok"] * 10
        assert (await client.get("/t/test/x", headers={"x-backstream-client-id": "test"})).status_code == 200


def test_an_application_can_be_named(backstream_tunnel: MakeTunnel, backstream_client) -> None:
    outer = backstream_tunnel("tests.rig:ok_app")
    assert outer.client.get("/").text == "ok"
    # An upstream, here another tunnel, where the id is the same.
    upstream = backstream_tunnel(str(backstream_client.base_url))
    assert upstream.client.get("/x").text == "/x"


def test_what_cannot_start_fails_where_it_is_made(backstream_tunnel: MakeTunnel) -> None:
    with pytest.raises(backstream.ConfigurationError, match="there is no module nowhere"):
        backstream_tunnel("nowhere:app")
    with pytest.raises(TypeError):
        backstream_tunnel(ok_app, nonsense=1)


def test_nothing_is_left_of_a_closed_tunnel(backstream_tunnel: MakeTunnel) -> None:
    with backstream_tunnel(wsgi) as tunnel:
        assert tunnel.client.get("/").status_code == 200
    tunnel.close()
    assert not any(thread.name == "backstream tunnel" for thread in threading.enumerate())


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def test_without_an_application_the_client_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text("def test_it(backstream_client):\n    pass\n")
    done = run(tmp_path)
    assert done.returncode == 1 and "write a fixture backstream_app" in done.stdout
