"""The commands at work: they serve, drain, close and fail, with real processes, sockets and signals."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import environment

Run = Callable[..., subprocess.CompletedProcess[str]]
Start = Callable[..., Any]

APP = """
import asyncio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            event = (await receive())["type"]
            await send({"type": event + ".complete"})
            if event == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"begun\\n", "more_body": True})
    if scope["path"] == "/slow":
        await receive()
        await asyncio.sleep(1)
    if scope["path"] == "/endless":
        await receive()
        await asyncio.sleep(3600)
    await send({"type": "http.response.body", "body": b"ended\\n"})
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def request(port: int, target: str = "/", client_id: str = "web") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    fields = f"Host: x\r\nx-backstream-client-id: {client_id}\r\nConnection: close\r\n"
    client.sendall(f"GET {target} HTTP/1.1\r\n{fields}\r\n".encode())
    return client


def read_until(client: socket.socket, words: bytes) -> bytes:
    """What comes up to `words`, or to the end when they do not come."""
    got = b""
    while words not in got:
        piece = client.recv(65536)
        if not piece:
            break
        got += piece
    return got


def read_all(client: socket.socket) -> bytes:
    got = b""
    while piece := client.recv(65536):
        got += piece
    return got


def rest_of(client: socket.socket) -> bytes:
    """What comes before the connection ends, by a reset too."""
    got = b""
    try:
        while piece := client.recv(65536):
            got += piece
    except ConnectionError:
        pass
    return got


async def until_answered(port: int, target: str = "/") -> bytes:
    """The first answer of 200; the agent may take a moment to connect."""
    async with asyncio.timeout(20):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(
                f"GET {target} HTTP/1.1\r\nHost: x\r\nx-backstream-client-id: web\r\nConnection: close\r\n\r\n".encode()
            )
            answer = await reader.read(-1)
            writer.close()
            await writer.wait_closed()
            if answer.startswith(b"HTTP/1.1 200"):
                return answer
            await asyncio.sleep(0.05)


@pytest.fixture
def tunnel(start: Start, tmp_path: Path) -> tuple[Any, Any, int]:
    """A proxy and an agent with APP, connected: (proxy, agent, the proxy's port)."""
    (tmp_path / "service.py").write_text(APP)
    port = free_port()
    proxy = start("proxy", "--listen", f"127.0.0.1:{port}", "--drain-timeout", "10s", "--access-log")
    proxy.wait_for("listening")
    agent = start(
        "agent",
        *("--proxy-url", f"ws://127.0.0.1:{port}/ws", "--client-id", "web", "--app", "service:app"),
        *("--drain-timeout", "10s"),
    )
    asyncio.run(until_answered(port))
    return proxy, agent, port


def test_a_request_goes_through_both_commands(tunnel: tuple[Any, Any, int]) -> None:
    _, _, port = tunnel
    with request(port) as client:
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 200") and b"begun" in answer and b"ended" in answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("which", ["proxy", "agent"])
def test_a_signal_lets_a_running_response_end_and_exits_0(
    which: str, number: signal.Signals, tunnel: tuple[Any, Any, int]
) -> None:
    proxy, agent, port = tunnel
    command = proxy if which == "proxy" else agent
    with request(port, "/slow") as client:
        assert b"begun" in read_until(client, b"begun\n")
        command.signal(number)
        rest = read_all(client)
        assert b"ended" in rest and rest.endswith(b"0\r\n\r\n")
    assert command.status() == 0
    assert "Traceback" not in command.output()


@pytest.mark.parametrize("which", ["proxy", "agent"])
def test_a_second_signal_closes_at_once(which: str, tunnel: tuple[Any, Any, int]) -> None:
    proxy, agent, port = tunnel
    command = proxy if which == "proxy" else agent
    with request(port, "/endless") as client:
        assert b"begun" in read_until(client, b"begun\n")
        command.signal(signal.SIGTERM)
        command.wait_for("draining")
        command.signal(signal.SIGTERM)
        # Well below the drain limit of 10 s; what the client gets must not look complete.
        assert command.status(5) == 128 + signal.SIGTERM
        assert not rest_of(client).endswith(b"0\r\n\r\n")
    assert "Traceback" not in command.output()


def test_an_idle_proxy_drains_at_once(start: Start) -> None:
    proxy = start("proxy", "--listen", "127.0.0.1:0", "--drain-timeout", "60s")
    proxy.wait_for("listening")
    proxy.signal(signal.SIGTERM)
    assert proxy.status(10) == 0


def test_an_agent_without_a_proxy_still_ends_on_a_signal(start: Start, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(APP)
    agent = start(
        "agent",
        *("--proxy-url", f"ws://127.0.0.1:{free_port()}/ws", "--client-id", "web", "--app", "service:app"),
    )
    agent.wait_for("127.0.0.1")
    agent.signal(signal.SIGTERM)
    assert agent.status(10) == 0
    assert "Traceback" not in agent.output()


def test_a_port_in_use_costs_one_line_and_status_1(run: Run) -> None:
    with taken_port() as port:
        done = run("proxy", "--listen", f"127.0.0.1:{port}", "--log-level", "error", "--log-format", "human")
        assert done.returncode == 1
        assert done.stderr == f"backstream proxy: cannot listen on 127.0.0.1:{port}: address already in use\n"


def test_the_agents_port_in_use_is_the_one_named(run: Run) -> None:
    with taken_port() as port:
        flags = ("--listen", f"127.0.0.1:{free_port()}", "--agent-listen", f"127.0.0.1:{port}")
        done = run("proxy", *flags, "--log-level", "error", "--log-format", "human")
    assert done.returncode == 1
    assert done.stderr == f"backstream proxy: cannot listen on 127.0.0.1:{port}: address already in use\n"


def test_an_address_that_is_not_ours_costs_one_line_and_status_1(run: Run) -> None:
    done = run("proxy", "--listen", "192.0.2.1:8080", "--log-level", "error", "--log-format", "human")
    assert done.returncode == 1
    assert done.stderr == "backstream proxy: cannot listen on 192.0.2.1:8080: cannot assign requested address\n"


@pytest.mark.parametrize(
    ("app", "words"),
    [("absent:app", "absent"), ("service:missing", "missing"), ("service:number", "number")],
)
def test_an_app_that_cannot_be_loaded_costs_one_line_and_status_2(
    app: str, words: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "service.py").write_text("number = 3\n")
    done = run("agent", "--client-id", "web", "--app", app, "--log-level", "error")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and words in done.stderr


def test_the_app_is_looked_for_in_app_dir(start: Start, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "service.py").write_text(APP)
    port = free_port()
    start("proxy", "--listen", f"127.0.0.1:{port}").wait_for("listening")
    start(
        "agent",
        *("--proxy-url", f"ws://127.0.0.1:{port}/ws", "--client-id", "web"),
        *("--app", "service:app", "--app-dir", "inner"),
    )
    assert b"ended" in asyncio.run(until_answered(port))


WSGI_FACTORY = """
def make():
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "4")])
        return [environ["SCRIPT_NAME"].encode()]

    return app
"""


def test_a_wsgi_application_is_made_by_its_factory_and_told_its_root_path(start: Start, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(WSGI_FACTORY)
    port = free_port()
    start("proxy", "--listen", f"127.0.0.1:{port}").wait_for("listening")
    agent = start(
        "agent",
        *("--proxy-url", f"ws://127.0.0.1:{port}/ws", "--client-id", "web", "--app", "service:make", "--factory"),
        *("--interface", "wsgi", "--lifespan", "off", "--root-path", "/abc"),
    )
    assert asyncio.run(until_answered(port)).endswith(b"/abc")
    agent.signal(signal.SIGTERM)
    assert agent.status() == 0


def test_a_thread_that_hangs_does_not_hold_the_process_up(start: Start, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(
        "import time\n\ndef app(environ, start_response):\n    start_response('200 OK', [])(b'begun')\n"
        "    time.sleep(3600)\n"
    )
    port = free_port()
    start("proxy", "--listen", f"127.0.0.1:{port}").wait_for("listening")
    agent = start(
        "agent",
        *("--proxy-url", f"ws://127.0.0.1:{port}/ws", "--client-id", "web", "--app", "service:app"),
        *("--drain-timeout", "100ms"),
    )
    agent.wait_for("connected to")
    with request(port) as client:
        assert b"begun" in read_until(client, b"begun")
        agent.signal(signal.SIGTERM)
        assert agent.status() == 0


def reloading(start: Start, port: int, *arguments: str) -> Any:
    return start(
        "agent",
        *("--proxy-url", f"ws://127.0.0.1:{port}/ws", "--client-id", "web", "--app", "service:app", "--reload"),
        *arguments,
    )


def version(number: int) -> str:
    return APP.replace("ended", f"version {number}")


async def until_version(port: int, number: int) -> None:
    async with asyncio.timeout(20):
        while f"version {number}".encode() not in await until_answered(port):
            await asyncio.sleep(0.05)


def test_a_change_to_the_application_starts_it_again_whatever_runs(start: Start, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(version(1))
    port = free_port()
    start("proxy", "--listen", f"127.0.0.1:{port}").wait_for("listening")
    agent = reloading(start, port)
    asyncio.run(until_version(port, 1))
    with request(port, "/endless") as client:
        assert b"begun" in read_until(client, b"begun")
        (tmp_path / "service.py").write_text(version(2))
        agent.wait_for("service.py changed")
        asyncio.run(until_version(port, 2))
    # A process that does not come up waits for the next change.
    (tmp_path / "service.py").write_text("no python")
    agent.wait_for("SyntaxError")
    (tmp_path / "service.py").write_text(version(3))
    asyncio.run(until_version(port, 3))
    agent.signal(signal.SIGINT)
    assert agent.status() == 0
    assert "Traceback (most recent call last)" not in agent.output().rpartition("connected to")[2]


def test_with_reload_signals_drain_and_then_close(start: Start, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(APP)
    port = free_port()
    start("proxy", "--listen", f"127.0.0.1:{port}").wait_for("listening")
    agent = reloading(start, port, "--reload-dir", ".")
    agent.wait_for("connected to")
    with request(port, "/endless") as client:
        assert b"begun" in read_until(client, b"begun")
        agent.signal(signal.SIGTERM)
        agent.wait_for("draining")
        agent.signal(signal.SIGTERM)
        assert agent.status() == 128 + signal.SIGTERM


def test_logs_are_json_lines_when_nobody_looks(start: Start) -> None:
    proxy = start("proxy", "--listen", "127.0.0.1:0")
    proxy.wait_for("listening")
    proxy.signal(signal.SIGTERM)
    assert proxy.status() == 0
    records = [json.loads(line) for line in proxy.output().splitlines()]
    assert {record["logger"] for record in records} == {"backstream.proxy"}
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)


def test_an_access_line_is_logged_per_request(tunnel: tuple[Any, Any, int]) -> None:
    proxy, _, port = tunnel
    with request(port, "/counted") as client:
        read_all(client)
    line = json.loads(proxy.wait_for("/counted").string)
    assert line["logger"] == "backstream.access" and line["id"] == "web"


def test_the_soft_limit_of_open_files_is_raised(start: Start) -> None:
    resource = pytest.importorskip("resource")
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = min(hard, 256)
    code = (
        f"import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({low}, {hard}));"
        "from backstream import cli; cli._prepare('auto', 'info');"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == [str(hard), str(hard)], done.stderr


def test_the_demo_makes_its_own_request_shows_the_answer_and_exits_0(run: Run) -> None:
    done = run("demo", "--once")
    assert done.returncode == 0, done.stderr
    assert "curl -H 'x-backstream-client-id: demo' http://127.0.0.1:" in done.stdout
    assert "Hello from behind the tunnel!" in done.stdout
    assert done.stderr == ""


def test_the_demo_prints_what_to_type_serves_it_and_ends_on_ctrl_c(start: Start) -> None:
    demo = start("demo", "--listen", "127.0.0.1:0")
    match = demo.wait_for(r"curl -H 'x-backstream-client-id: demo' http://127\.0\.0\.1:(\d+)/$")
    with request(int(match.group(1)), "/", "demo") as client:
        assert b"Hello from behind the tunnel!" in read_all(client)
    with request(int(match.group(1)), "/nothing", "demo") as client:
        assert read_all(client).startswith(b"HTTP/1.1 404")
    demo.signal(signal.SIGINT)
    assert demo.status() == 0
    assert "Traceback" not in demo.output()


def test_the_demo_streams_and_echoes(start: Start) -> None:
    demo = start("demo", "--listen", "127.0.0.1:0")
    port = int(demo.wait_for(r"http://127\.0\.0\.1:(\d+)/$").group(1))
    with request(port, "/stream", "demo") as client:
        assert b"tick 10" not in read_until(client, b"tick 2\n")
        assert b"tick 10\n" in read_all(client)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        head = b"POST /echo HTTP/1.1\r\nHost: x\r\nx-backstream-client-id: demo\r\nContent-Length: 8\r\n\r\n"
        client.sendall(head + b"half")
        # The first half comes back while the second is still to be sent.
        assert b"half" in read_until(client, b"half")
        client.sendall(b"more")
        assert b"more" in read_until(client, b"0\r\n\r\n")


def test_the_demos_port_in_use_costs_one_line_and_status_1(run: Run) -> None:
    with taken_port() as port:
        done = run("demo", "--listen", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in done.stderr
    assert "--listen" in done.stderr


# --- failures in logs that are JSON -------------------------------------------------------------------------


def records_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_port_in_use_is_a_record_where_the_logs_are_json(run: Run) -> None:
    with taken_port() as port:
        done = run("proxy", "--listen", f"127.0.0.1:{port}", "--log-level", "error")
        hint = run("demo", "--listen", f"127.0.0.1:{port}")
    assert (done.returncode, hint.returncode) == (1, 1)
    (record,), (demo,) = records_of(done), records_of(hint)
    assert (record["level"], record["logger"]) == ("error", "backstream.proxy")
    assert record["message"] == f"cannot listen on 127.0.0.1:{port}: address already in use"
    assert demo["logger"] == "backstream.demo" and "--listen" in demo["message"]


def test_what_fails_behind_the_logs_beginning_is_a_record_of_them(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import framework_that_is_not_there\n")
    for arguments, status, words in (
        (["proxy", "--tls-cert", "absent.pem", "--tls-key", "absent.pem"], 2, "--tls-cert: cannot read absent.pem"),
        (["agent", "--client-id", "web", "--app", "absent:app"], 2, "there is no module absent"),
        (["agent", "--client-id", "web", "--app", "broken:app"], 1, "framework_that_is_not_there"),
    ):
        done = run(*arguments)
        assert done.returncode == status
        *_, record = records_of(done)
        assert record["level"] == "error"
        assert words in record["message"] + record.get("exc_info", "")


def test_an_exception_where_the_logs_are_for_people_is_a_traceback(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import framework_that_is_not_there\n")
    done = run("agent", "--client-id", "web", "--app", "broken:app", "--log-format", "human")
    assert done.returncode == 1
    assert "No module named 'framework_that_is_not_there'" in done.stderr.splitlines()[-1]


# --- SIGHUP -------------------------------------------------------------------------------------------------


def test_sighup_ends_nobody_who_has_nothing_to_read_again(tunnel: tuple[Any, Any, int]) -> None:
    proxy, agent, port = tunnel
    for command in (proxy, agent):
        command.signal(signal.SIGHUP)
        command.wait_for("to be read again")
    with request(port) as client:
        assert b"ended" in read_all(client)


def test_sighup_ends_no_demo(start: Start) -> None:
    demo = start("demo", "--listen", "127.0.0.1:0", "--log-level", "info")
    demo.wait_for("curl")
    demo.signal(signal.SIGHUP)
    demo.wait_for("SIGHUP: there is nothing to read again")
    demo.signal(signal.SIGINT)
    assert demo.status() == 0


def test_with_reload_sighup_drains(start: Start, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(APP)
    port = free_port()
    start("proxy", "--listen", f"127.0.0.1:{port}").wait_for("listening")
    agent = reloading(start, port)
    agent.wait_for("connected to")
    agent.signal(signal.SIGHUP)
    assert agent.status() == 0
    assert "drained" in agent.output()


IN_TERMINAL = """
import os, pty, signal, sys
ignore, *arguments = sys.argv[1:]
child, terminal = pty.fork()
if child == 0:
    if ignore == "nohup":
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.execv(sys.executable, [sys.executable, "-m", "backstream", *arguments])
seen = b""
while b"listening" not in seen:
    seen += os.read(terminal, 4096)
os.close(terminal)
if ignore == "nohup":
    os.kill(child, signal.SIGHUP)
    os.kill(child, signal.SIGHUP)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("ignore", ["", "nohup"])
def test_the_end_of_its_terminal_drains_a_command_but_for_nohup(ignore: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_TERMINAL, ignore, "proxy", "--listen", "127.0.0.1:0"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=40,
    )
    assert done.returncode == 0, done.stderr
    # 120: it ended by itself, and Python could not write its last log lines to the terminal that is gone.
    assert done.stdout.strip() in ("0", "120"), done.stderr


# --- variables ----------------------------------------------------------------------------------------------


def test_variables_that_nothing_reads_are_one_warning(start: Start) -> None:
    proxy = start(
        *("proxy", "--listen", "127.0.0.1:0"),
        BACKSTREAM_LISEN=":80",
        BACKSTREAM_TOKEN="secret",
        BACKSTREAM_CLIENT_ID="an agent's",
        BACKSTREAM_SERVICE_HOST="10.0.0.1",
        BACKSTREAM_SERVICE_PORT_HTTP="80",
        BACKSTREAM_PORT="tcp://10.0.0.1:80",
        BACKSTREAM_PROXY_PORT_80_TCP_ADDR="10.0.0.1",
    )
    line = proxy.wait_for("that nothing here reads").string
    proxy.wait_for("listening")
    record = json.loads(line)
    assert record["level"] == "warning"
    assert record["message"].endswith(": BACKSTREAM_LISEN (did you mean BACKSTREAM_LISTEN?), BACKSTREAM_TOKEN")
    proxy.signal(signal.SIGTERM)
    assert proxy.status() == 0
    said = proxy.output()
    assert said.count("that nothing here reads") == 1 and "secret" not in said
