"""The bench's own Cython, compiled when it is needed."""

from pathlib import Path

import pytest

from bench import compiled
from bench.errors import BenchError


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.delitem(compiled.sys.modules, "bench.services._line", raising=False)
    with pytest.raises(BenchError, match=r"needs Cython and a C compiler: pip install -e '\.\[bench\]'"):
        compiled.load("bench.services._line")
