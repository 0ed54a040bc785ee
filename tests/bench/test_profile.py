"""``python -m bench.profile``: what it reads from tools is what they wrote, and each command says what it found."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.profile import symbols, syscalls
from bench.profile.perf import output_of
from bench.profile.relay import TO_AGENT, TO_PROXY, Counting
from bench.profile.symbols import readable
from bench.profile.syscalls import read_perf, read_strace
from tests.rig import ROOT


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("__pyx_f_10backstream_5_loop_9LoopState_set_deadline", "backstream._loop.LoopState.set_deadline"),
        (
            "__pyx_pw_10backstream_5_http_7_server_16ServerConnection_11buffer_updated",
            "backstream._http._server.ServerConnection.buffer_updated",
        ),
        ("__pyx_tp_new_10backstream_7_stream_Stream", "backstream._stream.Stream.tp_new"),
        (
            "main;__pyx_f_10backstream_5_loop_monotonic;clock_gettime 12",
            "main;backstream._loop.monotonic;clock_gettime 12",
        ),
        ("PyTuple_New", "PyTuple_New"),
    ],
)
def test_symbols_are_told_as_their_author_knows_them(symbol: str, name: str) -> None:
    assert readable(symbol) == name


def test_a_build_with_symbols_that_fails_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(argv: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(1, argv)

    monkeypatch.setattr(symbols, "_BUILT", tmp_path / "built")
    monkeypatch.setattr(symbols.subprocess, "run", fail)
    with pytest.raises(BenchError, match="could not be built with symbols"):
        symbols.build()
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo first >&2; echo 'tracefs is not mounted' >&2; exit 129", "perf list failed: tracefs is not mounted"),
        ("exit 1", "perf list failed: .* non-zero exit status 1"),
    ],
)
def test_tracepoints_that_perf_cannot_list_are_told_in_a_line(
    script: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    perf = tmp_path / "perf"
    perf.write_text(f"#!/bin/sh\n{script}\n")
    perf.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match=reason):
        syscalls.tracepoints()


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["sleep", "60"], "sleep 60 took more than 0 s"),
        (["no-such-tool", "-x"], "no-such-tool -x could not be started"),
    ],
)
def test_a_tool_that_hangs_or_is_absent_is_told(argv: list[str], reason: str) -> None:
    with pytest.raises(BenchError, match=reason):
        output_of(argv, timeout=0.1)


def test_calls_that_perf_counted_are_read() -> None:
    text = "# started\n\n20,,raw_syscalls:sys_enter,100,100.00,,\n12,,syscalls:sys_enter_read,100,100.00,,\n"
    text += "0,,syscalls:sys_enter_poll,100,100.00,,\n<not supported>,,syscalls:sys_enter_x,0,100.00,,\n"
    assert read_perf(text) == {"read": 12, "others": 8}


def test_calls_that_strace_counted_are_read(tmp_path: Path) -> None:
    file = tmp_path / "strace.txt"
    file.write_text(
        "% time     seconds  usecs/call     calls    errors syscall\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        " 60.00    0.000060           1        41           sendto\n"
        " 40.00    0.000040           1        40         3 read\n"
        "------ ----------- ----------- --------- --------- ----------------\n"
        "100.00    0.000100           1        81         3 total\n"
    )
    assert read_strace(file) == {"sendto": 41, "read": 40}


def test_the_relay_counts_messages_and_frames_however_they_are_cut() -> None:
    data = b"\0\0\3\0\1\0\0\0\1abc"
    window = b"\0\0\4\4\0\0\0\0\1\0\0\0\7"
    message = data + window
    # A message in two fragments, and a ping between them (RFC 6455 §5.4).
    stream = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"
    stream += b"\x02\x05" + message[:5] + b"\x89\x00" + bytes([0x80, len(message) - 5]) + message[5:]
    counting = Counting(TO_AGENT)
    for at in range(len(stream)):
        counting.feed(stream[at : at + 1])
    assert counting.counts == {"messages": 1, "bytes": 25, "DATA": 1, "WINDOW": 1, "control frames": 1}


def test_the_relay_reads_what_the_agent_masks() -> None:
    counting = Counting(TO_PROXY)
    frame = b"\0\0\0\x09\0\0\0\0\0"
    mask = b"\1\2\3\4"
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(frame))
    counting.feed(b"GET /ws HTTP/1.1\r\n\r\n" + bytes([0x82, 0x80 | len(frame)]) + mask + masked)
    assert counting.counts == {"messages": 1, "bytes": 9, "PING": 1}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["frames", "--seconds", "1", "--connections", "4"], ("REQUEST", "RESPONSE", "DATA")),
        (["allocations", "--no-places", "--requests", "100"], ("proxy", "agent", "calls of allocators per request")),
        (["syscalls", "--seconds", "1", "--connections", "4"], ("proxy", "agent", "calls per request")),
    ],
)
def test_a_command_says_what_it_found(command: list[str], expected: tuple[str, ...]) -> None:
    argv = [sys.executable, "-m", "bench.profile", *command]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert result.returncode == 0, result.stderr
    if not result.stdout.startswith("skipped: "):
        assert all(word in result.stdout for word in expected), result.stdout
