"""What README.md and docs/ tell a newcomer to write and to run works, and their links lead somewhere."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

import backstream
from tests import pages
from tests.rig import free_port

ROOT = pages.ROOT
SECONDS = 20
PYTHON = pages.blocks("python")
PROGRAMS = [block for block in PYTHON if block.file_name is None and "asyncio.run(" in block.text]


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BACKSTREAM_")}
    return clean | {"PYTHONPATH": str(ROOT)}


def run(folder: Path, *arguments: str) -> str:
    """What a program prints. It must end with status 0, and with nothing on stderr."""
    result = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


# --- programs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_every_block_of_python_is_python(block: pages.Block) -> None:
    compile(block.text, str(block), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", PROGRAMS, ids=str)
def test_every_program_runs_and_prints_what_its_page_says(block: pages.Block, tmp_path: Path) -> None:
    printed = run(tmp_path, "-c", block.text)
    outputs = [each for each in pages.blocks("text") if each.page == block.page and each.before == "prints"]
    assert printed == min((each for each in outputs if each.line > block.line), key=lambda each: each.line).text


def test_every_file_of_a_page_is_tried_here() -> None:
    source = Path(__file__).read_text()
    names = [block.file_name for block in PYTHON if block.file_name is not None]
    assert len(names) >= 5
    assert [name for name in names if f'"{name}"' not in source] == []


# --- files that the commands serve --------------------------------------------------------------------------

Serve = Callable[[str], httpx.Client]


class Started:
    """A command that runs until the test ends."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = (folder / f"{arguments[2]}.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=folder,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )

    def end(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)
        self.log.close()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Started]]:
    all: list[Started] = []

    def start(*arguments: str) -> Started:
        all.append(Started(tmp_path, *arguments))
        return all[-1]

    yield start
    for each in reversed(all):
        each.end()


def client_of(port: int, client_id: str) -> httpx.Client:
    return httpx.Client(
        base_url=f"http://127.0.0.1:{port}",
        headers={"x-backstream-client-id": client_id},
        timeout=SECONDS,
        trust_env=False,
    )


def until_served(client: httpx.Client, path: str, *, by: str = "agent") -> httpx.Response:
    """The first answer that is not the proxy's 503, or the first at all where that is what is waited for."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            response = client.get(path)
        except httpx.ConnectError:
            response = None
        if response is not None and (by == "proxy" or response.status_code != 503):
            return response
        assert time.monotonic() < deadline, f"never served: {response}"
        time.sleep(0.02)


@pytest.fixture
def serve(tmp_path: Path, started: Callable[..., Started]) -> Iterator[Serve]:
    """Writes a page's file and serves it with the agent's command line that the page has, but for the proxy's URL."""
    clients: list[httpx.Client] = []

    def serve(file_name: str) -> httpx.Client:
        block = pages.named(file_name)
        (tmp_path / file_name).write_text(block.text)
        app = f"{file_name.removesuffix('.py')}:app"
        arguments = next(
            arguments for there, arguments in pages.commands() if there.page == block.page and app in arguments
        )
        port = free_port()
        started("-m", "backstream", "proxy", "--listen", f"127.0.0.1:{port}")
        started("-m", "backstream", *arguments, "--proxy-url", f"ws://127.0.0.1:{port}/ws", "--reconnect-max", "100ms")
        clients.append(client_of(port, arguments[arguments.index("--client-id") + 1]))
        return clients[-1]

    yield serve
    for client in clients:
        client.close()


def test_the_application_of_the_readme_answers_line_by_line(serve: Serve) -> None:
    response = until_served(serve("hello.py"), "/")
    assert response.text == "line 0\nline 1\nline 2\nline 3\nline 4\n"


def test_the_service_of_the_tutorial_answers_and_ticks(serve: Serve) -> None:
    client = serve("clock.py")
    response = until_served(client, "/")
    assert (response.status_code, response.text) == (200, "done\n")
    with client.stream("GET", "/ticks") as ticking:
        lines = ticking.iter_lines()
        assert [next(lines), next(lines)] == ["tick 1", "tick 2"]


def test_the_application_of_the_asgi_page_does_what_the_page_shows(serve: Serve) -> None:
    client = serve("shop.py")
    response = until_served(client, "/prices/tea")
    assert response.text == '{"name":"tea","price":3,"asked_by":"127.0.0.1"}'
    assert client.get("/prices/milk").status_code == 404
    assert client.post("/count", content=bytes(1_000_000)).json() == {"bytes": 1_000_000}
    assert client.get("/numbers").text == "1\n2\n3\n"


def test_the_guarded_proxy_takes_an_id_from_its_network_only(tmp_path: Path, started: Callable[..., Started]) -> None:
    port = free_port()
    text = pages.named("guarded.py").text
    assert "127.0.0.1:8080" in text
    (tmp_path / "guarded.py").write_text(text.replace("127.0.0.1:8080", f"127.0.0.1:{port}"))
    started("guarded.py", "--", "guarded")
    with client_of(port, "files") as client:
        assert until_served(client, "/", by="proxy").status_code == 503

    def dial(client_id: str) -> int:
        try:
            with connect(
                f"ws://127.0.0.1:{port}/ws",
                subprotocols=["backstream.v1"],  # type: ignore[list-item]
                additional_headers={"x-backstream-client-id": client_id},
                proxy=None,
            ):
                return 101
        except InvalidStatus as refused:
            return refused.response.status_code

    assert [dial("files"), dial("shop"), dial("stranger")] == [101, 403, 403]


def test_the_application_that_embeds_a_proxy_shows_its_agents(tmp_path: Path) -> None:
    text = pages.named("admin.py").text
    assert "127.0.0.1:8080" in text
    (tmp_path / "admin.py").write_text(text.replace("127.0.0.1:8080", "127.0.0.1:0"))
    (tmp_path / "try_it.py").write_text(
        "import asyncio\n"
        "import backstream\n"
        "import admin\n"
        "async def main():\n"
        "    async with admin.lifespan(admin.app):\n"
        "        host, port = admin.app.state.proxy.address\n"
        "        settings = backstream.AgentSettings(proxy_url=f'ws://{host}:{port}/ws', client_id='one')\n"
        "        async with backstream.Agent(settings, handler=lambda *_: None) as agent:\n"
        "            await agent.wait_connected()\n"
        "            while not admin.app.state.proxy.agents.by_id(b'one'):\n"
        "                await asyncio.sleep(0.01)\n"
        "            print(await admin.agents())\n"
        "asyncio.run(main())\n"
    )
    assert run(tmp_path, "try_it.py") == "[{'id': 'one', 'running': 0, 'served': 0}]\n"


def test_the_application_that_a_proxy_is_mounted_in_serves_both(tmp_path: Path, started) -> None:
    for name in ("gateway.py", "hello.py"):
        (tmp_path / name).write_text(pages.named(name).text)
    port = free_port()
    url = f"ws://127.0.0.1:{port}/tunnel/ws"
    started("-m", "uvicorn", "gateway:app", "--port", str(port), "--ws", "websockets-sansio")
    with client_of(port, "hello") as client:
        assert until_served(client, "/agents").json() == []
        arguments = ("--client-id", "hello", "--proxy-url", url, "--app", "hello:app", "--reconnect-max", "100ms")
        started("-m", "backstream", "agent", *arguments)
        assert until_served(client, "/tunnel/").text.splitlines()[-1] == "line 4"
        assert client.get("/agents").json() == ["hello"]
    with pytest.raises(InvalidStatus) as refused:
        connect(
            url,
            subprotocols=["backstream.v1"],  # type: ignore[list-item]
            additional_headers={"x-backstream-client-id": "stranger"},
            proxy=None,
        )
    assert refused.value.response.status_code == 403


# --- links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_to_a_file_and_an_anchor_in_it(page: Path) -> None:
    for link in pages.links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            assert anchor in pages.anchors(target), f"{link}: there is no {anchor}"


def test_every_page_is_in_the_site_and_in_the_readme() -> None:
    readme = set(pages.links(ROOT / "README.md"))
    contents = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert f": {name}\n" in contents, f"mkdocs.yml does not list {name}"
        assert name == "index.md" or f"docs/{name}" in readme, f"README.md does not link to docs/{name}"


def test_the_wsgi_application_of_the_page_is_served(serve: Serve) -> None:
    client = serve("board.py")
    assert until_served(client, "/hello/you").json() == {"hello": "you"}
    assert client.post("/count", content=b"x" * 1_000_000).json() == {"bytes": 1_000_000}
    assert client.get("/numbers").text == "1\n2\n3\n"


# --- a user's tests -----------------------------------------------------------------------------------------


def test_the_tests_of_the_page_on_pytest_pass(tmp_path: Path) -> None:
    for name in ("prices.py", "test_prices.py", "test_tunnels.py"):
        (tmp_path / name).write_text(pages.named(name).text)
    output = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:asyncio")
    assert "3 passed" in output


# --- authorize ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("client_id", "value", "allowed"),
    [
        ("shop", "Bearer 6f1c", True),
        ("shop", "Bearer 6f1d", False),
        ("shop", "Bearer \u00e9", False),
        ("shop", None, False),
        ("other", "Bearer ", False),
        ("other", "Bearer 6f1c", False),
    ],
)
def test_the_token_of_the_page_on_authorize_is_asked_for_whatever_else_comes(
    client_id: str, value: str | None, allowed: bool
) -> None:
    (block,) = (each for each in PYTHON if "TOKENS" in each.text)
    names: dict[str, Any] = {"backstream": backstream}
    exec(compile(block.text, str(block), "exec"), names)
    fields = () if value is None else ((b"authorization", value.encode("latin-1")),)
    verdict = names["authorize"](backstream.Handshake(client_id, ("127.0.0.1", 1), fields))
    assert verdict is allowed


def test_what_docstrings_of_the_examples_name_exists() -> None:
    text = (ROOT / "examples" / "migrate_from_go.py").read_text()
    (made,) = re.findall(r"`(ProxySettings\(.*?\))` closes", " ".join(text.split()))
    settings = eval(made, {name: getattr(backstream, name) for name in ("ProxySettings", "SessionSettings")})
    assert settings.session.wire == "native"
