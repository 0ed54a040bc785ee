"""Durations as Go writes them, and sizes in bytes: text to number and back."""

from __future__ import annotations

import re
from typing import Final

from backstream.config._text import shown
from backstream.errors import ConfigurationError

KiB: Final = 1024
MiB: Final = 1024 * KiB


_UNITS: Final = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # micro sign
    "\u03bcs": 10**3,  # Greek letter mu
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_TERM: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_MAX_NANOSECONDS: Final = 2**63 - 1


def _bad_duration(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{shown(text)} is not a duration: {why} (write it like 1h2m3.5s, 300ms or 0)")


def parse_duration(text: str) -> float:
    """The seconds that a Go duration says: `1h2m3.5s`, `300ms`, `-1s`, `0`.

    The grammar is that of Go's `time.ParseDuration`, its limits too: 64 bits of nanoseconds, about 292 years,
    and what is below one nanosecond is cut off. Raises ConfigurationError for anything else.
    """
    rest = text[1:] if text[:1] in ("+", "-") else text
    negative = text.startswith("-")
    if rest == "0":
        return 0.0
    if not rest:
        raise _bad_duration(text, "there is no number")
    total = 0
    position = 0
    while position < len(rest):
        match = _TERM.match(rest, position)
        assert match is not None  # every part of the pattern is optional
        whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
        if not whole and not fraction:
            raise _bad_duration(text, "a number is missing")
        if not unit:
            raise _bad_duration(text, "a unit is missing (ns, us, ms, s, m, h)")
        scale = _UNITS.get(unit)
        if scale is None:
            raise _bad_duration(text, f"unknown unit {shown(unit)}")
        # The text may come from a request: never make a number out of more digits than can matter.
        digits = whole.lstrip("0")
        if len(digits) > 19:
            raise _bad_duration(text, "it is too long")
        fraction = fraction[:40]
        total += int(digits or "0") * scale
        if fraction:
            total += int(fraction) * scale // 10 ** len(fraction)
        if total > _MAX_NANOSECONDS + negative:
            raise _bad_duration(text, "it is too long")
        position = match.end()
    return (-total if negative else total) / 10**9


def format_duration(seconds: float) -> str:
    """`seconds` as a Go duration, in the usual short form that `parse_duration` reads back."""
    nanoseconds = round(abs(seconds) * 10**9)
    if not nanoseconds:
        return "0"
    sign = "-" if seconds < 0 else ""
    if nanoseconds < 10**9:
        for unit, scale in (("ms", 10**6), ("us", 10**3)):
            if nanoseconds % scale == 0:
                return f"{sign}{nanoseconds // scale}{unit}"
        return f"{sign}{nanoseconds}ns"
    minutes, left = divmod(nanoseconds, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    whole, part = divmod(left, 10**9)
    text = f"{hours}h" if hours else ""
    text += f"{minutes}m" if minutes else ""
    if left:
        text += f"{whole}.{part:09d}".rstrip("0").rstrip(".") + "s"
    return sign + text


_SIZE: Final = re.compile(r"([0-9]{1,19})\s*(B|KiB|MiB|GiB|TiB)?", re.IGNORECASE | re.ASCII)
_SIZES: Final = {"b": 1, "kib": KiB, "mib": MiB, "gib": 1024 * MiB, "tib": 1024 * 1024 * MiB}


def parse_size(text: str) -> int:
    """The bytes that a size says: `65536`, `64KiB`, `16 MiB`. Raises ConfigurationError for anything else."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{shown(text)} is not a size (write it like 65536, 64KiB or 16MiB)")
    return int(match.group(1)) * _SIZES[(match.group(2) or "b").lower()]


def format_size(size: int) -> str:
    """`size` in bytes as `parse_size` reads it, in the largest unit that divides it."""
    for unit, scale in (("GiB", 1024 * MiB), ("MiB", MiB), ("KiB", KiB)):
        if size and size % scale == 0:
            return f"{size // scale}{unit}"
    return str(size)
