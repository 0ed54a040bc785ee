"""What h11 spells more narrowly than RFC 9112, in words that it takes, byte for byte as long."""

from __future__ import annotations

import re

_BLANKS_BEFORE_EXTENSION = re.compile(rb"^([0-9A-Fa-f]+)([ \t]+);", re.MULTILINE)


def in_words_of_h11(wire: bytes) -> bytes:
    """Blanks before a chunk's extension (§7.1.1) stand behind its semicolon."""
    return _BLANKS_BEFORE_EXTENSION.sub(rb"\1;\2", wire)
