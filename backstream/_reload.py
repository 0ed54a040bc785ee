"""`--reload`: the command in a process of its own, started anew whenever a file below the folders changes.

The watcher keeps no state of the application and imports nothing of it. A signal to it goes to the process, whose exit
status becomes its own; a process that ended by itself (a module that does not import) is started again by the next
change.
"""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

__all__ = ["run"]

logger = logging.getLogger("backstream.agent")

LEAVE_SECONDS: Final = 1.0
"""How long the old process may drain; then it gets its second signal, which closes at once."""
KILL_SECONDS: Final = 5.0
"""And how long it may take over that."""


def run(arguments: Sequence[str], folders: Sequence[Path]) -> int:
    """Runs `backstream` with `arguments` until SIGTERM or SIGINT comes; returns its exit status.

    Raises ImportError where watchfiles is not installed.
    """
    from watchfiles import PythonFilter, watch

    # -B: a .pyc hides a change within the second in which it was written, where the size stays the same.
    command = [sys.executable, "-B", "-m", "backstream", *arguments]
    stop = threading.Event()
    process: subprocess.Popen[bytes] | None = None

    def on_signal(number: int, _: Any) -> None:
        stop.set()
        if process is not None and process.poll() is None:
            # The process has no terminal that could be gone.
            process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    logger.info("watching %s", ", ".join(str(folder) for folder in folders))
    try:
        # A terminal sends its signals to the whole group: in a session of its own the process gets ours alone.
        process = subprocess.Popen(command, start_new_session=True)
        for changes in watch(*folders, watch_filter=PythonFilter(), stop_event=stop, raise_interrupt=False):
            logger.info("%s changed: starting again", ", ".join(sorted({Path(path).name for _, path in changes})[:5]))
            _end(process)
            if stop.is_set():
                break
            process = subprocess.Popen(command, start_new_session=True)
        status = process.wait()  # it drains; a further signal goes to it as well
        return status if status >= 0 else 128 - status
    finally:
        if process is not None:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for seconds in (LEAVE_SECONDS, KILL_SECONDS):
        if process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass
    if process.poll() is None:
        process.kill()
        process.wait()
