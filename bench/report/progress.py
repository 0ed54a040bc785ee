"""How far a run is: one line that is written anew on a terminal, plain lines elsewhere."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

_CLEAR = "\r\x1b[K"
SHARES: Mapping[str, float] = {
    "small": 6,
    "bulk": 5,
    "mixed": 5,
    "sse": 5,
    "agents": 2,
    "stalled": 2,
    "idle": 3,
    "rate": 2,
    "connections": 4,
    "recovery": 7,
    "wan": 11,
}
"""Roughly how much of a run each scenario takes, of those that are not like most: those have 1, some half a minute."""


class Progress:
    """Of scenarios and their turns; times are of the monotonic clock."""

    def __init__(self, scenarios: Sequence[str], stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._scenarios = list(scenarios)
        self._begin = time.monotonic()
        self._current = ""
        self._before = 0.0
        self._turns = (0, 0)
        self._shown = False

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._begin

    def scenario(self, name: str) -> None:
        """The next one begins."""
        self._before += _share(self._current) if self._current else 0.0
        self._current = name
        self._turns = (0, 0)
        if self._terminal:
            self._rewrite("")
        else:
            self.say(f"{name} ({_clock(self.elapsed)})")

    def planned(self, turns: int) -> None:
        """So many turns come, beside those that came already."""
        done, _ = self._turns
        self._turns = (done, done + turns)

    def turn(self, title: str, contender: str, number: int, of: int) -> None:
        """A turn begins."""
        if self._terminal:
            self._rewrite(f"{title}, {contender}, turn {number}/{of}")

    def turn_ended(self, title: str, contender: str, number: int, of: int, told: str) -> None:
        done, planned = self._turns
        self._turns = (done + 1, max(planned, done + 1))
        if not self._terminal:
            remaining = self.remaining()
            left = f", about {_clock(remaining)} left" if remaining is not None else ""
            self.say(f"  {title}, {contender}, turn {number}/{of}{told} ({_clock(self.elapsed)}{left})")

    def status(self, text: str) -> None:
        """What happens between turns."""
        if self._terminal:
            self._rewrite(text)
        else:
            self.say(f"  {text}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.close()
        print(text, file=self._stream, flush=True)

    def remaining(self) -> float | None:
        """Seconds that are left if it goes on as until now; None while that is a mere guess."""
        whole = sum(map(_share, self._scenarios))
        done, planned = self._turns
        gone = self._before + _share(self._current) * (done / planned if planned else 0.0)
        if not whole or gone / whole < 0.05:
            return None
        return max(0.0, self.elapsed * (whole - gone) / gone)

    def close(self) -> None:
        """Leave the terminal's line empty."""
        if self._shown:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._shown = False

    def _rewrite(self, text: str) -> None:
        remaining = self.remaining()
        left = f"{_clock(self.elapsed)}, {'about ' + _clock(remaining) if remaining is not None else '?'} left"
        line = f"[{left}] {self._current}" + (f": {text}" if text else "")
        self._stream.write(_CLEAR + line[: shutil.get_terminal_size().columns - 1])
        self._stream.flush()
        self._shown = True


def _share(name: str) -> float:
    return SHARES.get(name, 1.0)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
