"""The bench's own Cython, compiled when it is needed."""

import sys
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


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "bench.services._line", raising=False)
    return tmp_path / "backstream-bench"


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_cache_that_others_may_write_to_is_refused(mode: int, cache: Path) -> None:
    cache.mkdir()
    cache.chmod(mode)
    with pytest.raises(BenchError, match="nobody else may write to"):
        compiled.load("bench.services._line")


def test_a_cache_that_is_a_link_is_refused(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BenchError, match="must be a directory of yours"):
        compiled.load("bench.services._line")


def test_a_library_that_is_broken_is_removed(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / "broken.so"
    library.write_bytes(b"\x7fELF")
    monkeypatch.setattr(compiled, "_compile", lambda source: str(library))
    with pytest.raises(BenchError, match="is broken, and removed"):
        compiled.load("bench.services._line")
    assert not library.exists()


def test_a_run_that_is_ended_while_it_compiles_ends(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def end(source: Path) -> str:
        raise SystemExit(143)

    monkeypatch.setattr(compiled, "_compile", end)
    with pytest.raises(SystemExit):
        compiled.load("bench.services._line")


def test_a_relative_cache_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("", "cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", given)
        assert compiled._cache_home() == tmp_path / ".cache"
