"""Logs of the commands: stdlib logging to stderr, for people on a terminal and as JSON lines elsewhere.

The library only ever logs to `backstream.proxy`, `backstream.agent`, `backstream.session` and `backstream.access`
and configures nothing; `configure` is for the commands. What a record is about travels in `extra=` (`id`,
`session`, `stream` and whatever else helps) and is shown in both formats: as `key=value` behind the message, or
as members.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from pythonjsonlogger.json import JsonFormatter

__all__ = ["FORMATS", "LEVELS", "HumanFormatter", "JsonLinesFormatter", "configure"]

LogFormat = Literal["auto", "human", "json"]
FORMATS: Final = ("auto", "human", "json")
LEVELS: Final = ("debug", "info", "warning", "error")

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# Text from the network must neither begin a line of its own nor steer a terminal.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


def _text(value: object) -> str:
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("latin-1")
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


class HumanFormatter(logging.Formatter):
    """One line like `12:00:01.250 INFO  proxy: agent connected  id=web session=3`; tracebacks follow it."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        name = record.name.removeprefix("backstream.")
        message = record.getMessage().translate(_CONTROLS)
        line = f"{moment}.{int(record.msecs):03d} {record.levelname:<5} {name}: {message}"
        extras = " ".join(
            f"{key}={_quoted(_text(value))}"
            for key, value in vars(record).items()
            if key not in _STANDARD and value is not None
        )
        if extras:
            line += f"  {extras}"
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line += f"\n{record.exc_text}"
        if record.stack_info:
            line += f"\n{self.formatStack(record.stack_info)}"
        return line


def _quoted(text: str) -> str:
    text = text.translate(_CONTROLS)
    return f'"{text}"' if not text or " " in text else text


class JsonLinesFormatter(JsonFormatter):
    """One JSON object per line: `time` (RFC 3339, UTC), `level`, `logger`, `message`, then the extras."""

    def __init__(self) -> None:
        super().__init__(json_default=_text)

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        log_data["time"] = moment.replace("+00:00", "Z")
        log_data["level"] = record.levelname.lower()
        log_data["logger"] = record.name
        log_data["message"] = record.getMessage()
        for key, value in vars(record).items():
            if key not in _STANDARD and value is not None:
                log_data.setdefault(key, value)
        log_data.update(message_dict)


def configure(format: LogFormat = "auto", level: str = "info", stream: TextIO | None = None) -> bool:
    """Send the process's logs to `stream` (stderr unless given), replacing what was configured before.

    `auto` is `human` on a terminal and `json` elsewhere; `level` is one of LEVELS. Returns whether it came to
    `json`. Raises ValueError for a format or level that does not exist.
    """
    if format not in FORMATS:
        raise ValueError(f"unknown log format {format!r}")
    if level not in LEVELS:
        raise ValueError(f"unknown log level {level!r}")
    stream = sys.stderr if stream is None else stream
    human = format == "human" or (format == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(HumanFormatter() if human else JsonLinesFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # Access lines have a switch of their own: who asked for them gets them at any level.
    logging.getLogger("backstream.access").setLevel(logging.INFO)
    # Otherwise picows logs each connection at INFO.
    logging.getLogger("picows").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    return not human
