"""Both formats: what a record says arrives, and nothing in it can forge another."""

import io
import json
import logging
import re
from collections.abc import Iterator

import pytest

from backstream import logs


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in ("picows", "backstream.access"):
        logging.getLogger(name).setLevel(logging.NOTSET)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_auto_is_human_on_a_terminal_and_json_elsewhere() -> None:
    for stream, human in ((Terminal(), True), (io.StringIO(), False)):
        logs.configure("auto", stream=stream)
        logging.getLogger("backstream.proxy").info("hello")
        assert lines(stream)[0].startswith("{") is not human


def test_a_json_line_holds_time_level_logger_message_and_extras() -> None:
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    extra = {"id": "web", "session": 3, "stream": 5, "seconds": 0.25, "raw": b"\xe9"}
    logging.getLogger("backstream.agent").info("sent %d bytes", 7, extra=extra)
    record = json.loads(stream.getvalue())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    assert record == {
        "level": "info",
        "logger": "backstream.agent",
        "message": "sent 7 bytes",
        "id": "web",
        "session": 3,
        "stream": 5,
        "seconds": 0.25,
        "raw": "é",
    }


def test_a_human_line_ends_with_the_extras() -> None:
    stream = io.StringIO()
    logs.configure("human", stream=stream)
    logging.getLogger("backstream.proxy").warning("gone", extra={"id": "my web", "session": 3, "cause": None})
    assert re.fullmatch(r'\d\d:\d\d:\d\d\.\d{3} WARNING proxy: gone  id="my web" session=3\n', stream.getvalue())


@pytest.mark.parametrize("format", ["human", "json"])
def test_an_exception_comes_with_its_traceback(format: logs.LogFormat) -> None:
    stream = io.StringIO()
    logs.configure(format, stream=stream)
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("backstream.agent").exception("the application failed")
    assert "Traceback" in stream.getvalue() and "RuntimeError: broken" in stream.getvalue()
    if format == "json":
        assert len(lines(stream)) == 1
        assert "RuntimeError" in json.loads(stream.getvalue())["exc_info"]


@pytest.mark.parametrize("format", ["human", "json"])
@pytest.mark.parametrize("rubbish", ["a\nb", "a\r\nb", "\x1b[2J", "\x9b2J", "\u2028", "\x00"])
def test_text_from_the_network_forges_no_line_and_no_escape(format: logs.LogFormat, rubbish: str) -> None:
    stream = io.StringIO()
    logs.configure(format, stream=stream)
    logging.getLogger("backstream.access").info("GET %s", rubbish, extra={"id": rubbish})
    assert stream.getvalue().count("\n") == 1
    assert rubbish not in stream.getvalue()
    if format == "json":
        assert json.loads(stream.getvalue())["id"] == rubbish


def test_access_lines_come_at_any_level_and_picows_keeps_quiet() -> None:
    stream = io.StringIO()
    logs.configure("human", "error", stream)
    logging.getLogger("backstream.access").info("GET /")
    logging.getLogger("backstream.proxy").warning("not shown")
    logging.getLogger("picows.1").info("connected")
    assert [line.split(": ")[1] for line in lines(stream)] == ["GET /"]


def test_configuring_twice_writes_once() -> None:
    stream = io.StringIO()
    logs.configure("human", stream=stream)
    logs.configure("human", stream=stream)
    logging.getLogger("backstream.proxy").info("hello")
    assert len(lines(stream)) == 1


def test_the_configured_stream_is_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("json")
    logging.getLogger("backstream.proxy").info("hello")
    shown = capsys.readouterr()
    assert shown.out == "" and "hello" in shown.err


def test_an_unknown_format_or_level_is_refused() -> None:
    with pytest.raises(ValueError):
        logs.configure("xml")  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        logs.configure("json", "loud")
