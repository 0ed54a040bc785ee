"""Each program in examples/ runs as its first lines say, and does what they promise."""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosedOK, InvalidStatus
from websockets.sync.client import connect

from tests.rig import Program, free_port

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SECONDS = 20


Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    programs: list[Program] = []

    def start(name: str, *arguments: str) -> Program:
        where = name if name == "-m" else EXAMPLES / name
        programs.append(Program(["-W", "error", where, *arguments], env=os.environ | {"PYTHONPATH": str(ROOT)}))
        return programs[-1]

    yield start
    for program in reversed(programs):
        program.end()


@pytest.fixture
def proxy(start: Start) -> str:
    """host:port of examples/proxy.py."""
    return start("proxy.py", "127.0.0.1:0").wait_for(r"listening on http://(\S+)").group(1)


@pytest.fixture
def client(proxy: str) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"http://{proxy}", headers={"x-backstream-client-id": "demo"}, timeout=SECONDS
    ) as client:
        yield client


def test_every_example_is_tried_here() -> None:
    source = Path(__file__).read_text()
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert names
    assert [name for name in names if f'"{name}"' not in source] == []


def test_the_proxy_takes_only_agents_that_it_knows(proxy: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        connect(
            f"ws://{proxy}/ws",
            subprotocols=["backstream.v1"],  # type: ignore[list-item]
            additional_headers={"x-backstream-client-id": "stranger"},
            proxy=None,
        )
    assert refused.value.response.status_code == 403


def test_the_asgi_agent_serves_its_application(proxy: str, client: httpx.Client, start: Start) -> None:
    agent = start("agent_asgi.py", f"ws://{proxy}/ws")
    agent.wait_for("^connected$")
    response = client.get("/some/path?x=1")
    assert (response.status_code, response.text) == (200, "GET /some/path reached the application\n")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    status, output = agent.stop(signal.SIGINT)
    assert (status, output) == (0, "")
    response = client.get("/")
    assert response.status_code == 503


def test_a_program_calls_its_agent_and_reads_the_answer_as_it_comes(start: Start) -> None:
    program = start("call_agent.py")
    for line in ("^agent demo: connected$", "^200$", "^ONE$", "^TWO$", "^THREE$"):
        program.wait_for(line)
    assert program.process.wait(SECONDS) == 0


def test_the_proxy_in_fastapi_serves_agents_beside_the_applications_routes(start: Start) -> None:
    port = free_port()
    module = "proxy_in_fastapi.py".removesuffix(".py")
    arguments = ("--app-dir", str(EXAMPLES), "--ws", "websockets-sansio", "--port", str(port), f"{module}:app")
    program = start("-m", "uvicorn", *arguments)
    program.wait_for("Application startup complete")
    start("agent_asgi.py", f"ws://127.0.0.1:{port}/tunnel/ws").wait_for("^connected$")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
        (agent,) = client.get("/agents").json()
        assert agent["id"] == "demo" and agent["streams"] == 0
        response = client.get("/tunnel/x", headers={"x-backstream-client-id": "demo"})
        assert response.text == "GET /tunnel/x reached the application\n"
        assert client.get("/ask/demo").json() == {"status": 200, "text": "GET / reached the application\n"}
        assert client.get("/ask/nobody").status_code in (422, 503)


class Service(http.server.BaseHTTPRequestHandler):
    """What `python -m http.server` is made of: a plain HTTP/1.1 service."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        answer = f"{self.path} {hashlib.sha256(body).hexdigest()}".encode()
        self.send_response(201)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_upstream_agent_forwards_and_drains(proxy: str, client: httpx.Client, start: Start, service: str) -> None:
    agent = start("agent_upstream.py", f"ws://{proxy}/ws", service)
    agent.wait_for("^connected$")
    body = bytes(range(256)) * 1000
    response = client.post("/put/here", content=body)
    assert (response.status_code, response.text) == (201, f"/put/here {hashlib.sha256(body).hexdigest()}")
    assert agent.stop(signal.SIGTERM) == (0, "")


def test_the_handler_sends_back_what_it_gets(proxy: str, client: httpx.Client, start: Start) -> None:
    start("agent_handler.py", f"ws://{proxy}/ws").wait_for("^connected$")
    body = bytes(range(256)) * 20_000
    for _ in range(3):
        assert client.post("/", content=body).content == body
    assert client.get("/").content == b""
    assert client.get("/refused").status_code == 503


def test_both_in_one_makes_its_request_and_ends() -> None:
    result = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "both_in_one.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert (result.returncode, result.stdout) == (0, "line 0\nline 1\nline 2\n")
    assert result.stderr == ""


def connected(start: Start, name: str, proxy: str) -> Program:
    agent = start(name, f"ws://{proxy}/ws")
    agent.wait_for("^connected$")
    return agent


def test_fastapi_serves_reads_and_writes_its_items(proxy: str, client: httpx.Client, start: Start) -> None:
    connected(start, "fastapi_app.py", proxy)
    assert client.get("/items/1").json() == {"name": "spoon", "price": 2.5}
    assert client.put("/items/2", json={"name": "fork", "price": 3}).status_code == 201
    assert client.get("/items/2").json()["name"] == "fork"
    assert client.put("/items/3", json={"name": "knife"}).status_code == 422
    assert client.get("/items/4").json() == {"detail": "there is no item 4"}


def test_flask_streams_both_ways_from_a_program_without_asyncio(proxy: str, client: httpx.Client, start: Start) -> None:
    program = connected(start, "flask_app.py", proxy)
    with client.stream("GET", "/countdown/2") as response:
        assert list(response.iter_lines()) == ["2", "1", "lift-off"]
    assert client.post("/count", content=iter([bytes(100_000)] * 3)).json() == {"bytes": 300_000}
    assert program.stop(signal.SIGINT) == (0, "")


def test_the_chat_streams_token_by_token_and_stops_when_its_client_leaves(
    proxy: str, client: httpx.Client, start: Start
) -> None:
    chat = connected(start, "sse_chat.py", proxy)
    with client.stream("POST", "/chat", content="tell me of tunnels.") as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = [line for line in response.iter_lines() if line]
    assert lines[0] == 'data: {"token": "You"}' and lines[-1] == "data: [DONE]"
    assert [line for line in lines if "tunnels" in line]
    with client.stream("POST", "/chat", content="a long story " * 50) as response:
        assert next(response.iter_lines()) == 'data: {"token": "You"}'
    chat.wait_for(r"^the client left after \d+ tokens$")


def test_the_websocket_echoes_in_capitals_until_bye(proxy: str, start: Start) -> None:
    connected(start, "websocket_echo.py", proxy)
    with connect(f"ws://{proxy}/echo", additional_headers={"x-backstream-client-id": "demo"}, proxy=None) as websocket:
        websocket.send("hello")
        assert websocket.recv() == "HELLO"
        websocket.send("bye")
        with pytest.raises(ConnectionClosedOK) as closed:
            websocket.recv()
    assert closed.value.rcvd is not None and closed.value.rcvd.reason == "see you"


def test_an_upload_is_told_of_while_it_comes(proxy: str, client: httpx.Client, start: Start) -> None:
    connected(start, "upload_progress.py", proxy)
    size, halfway = 3_000_000, threading.Event()

    def body() -> Iterator[bytes]:
        yield bytes(size // 2)
        assert halfway.wait(SECONDS)
        yield bytes(size // 2)

    seen: list[int] = []

    def watch() -> None:
        with client.stream("GET", "/progress/big") as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    seen.append(int(line.removeprefix("data: ")))
                    if seen[-1] >= size // 2:
                        halfway.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    response = client.put("/files/big", content=body())
    watcher.join(SECONDS)
    assert response.status_code == 201
    assert response.json() == {"bytes": size, "sha256": hashlib.sha256(bytes(size)).hexdigest()}
    assert seen == sorted(seen) and size // 2 in seen and seen[-1] == size


def test_the_proxy_for_moving_over_names_who_speaks_the_old_wire(start: Start) -> None:
    program = start("migrate_from_go.py", "127.0.0.1:0")
    port = program.wait_for(r"listening on http://127.0.0.1:(\d+)").group(1)
    program.wait_for("^on the old wire: nobody$")
    with connect(f"ws://127.0.0.1:{port}/ws", additional_headers={"x-backstream-client-id": "old"}, proxy=None):
        program.wait_for("^on the old wire: old$")
