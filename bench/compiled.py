"""The bench's own Cython: compiled when it is first needed, and again when it has changed, into a cache directory.

It is no part of the installed package, so setup.py leaves it out: only who measures needs it. Needed: Cython and
setuptools (the extra ``bench``) and a C compiler; without them a measurement is skipped.
"""

import fcntl
import hashlib
import importlib.util
import os
import stat
import sys
from pathlib import Path
from types import ModuleType

from bench.errors import BenchError

INSTALL = "needs Cython and a C compiler: pip install -e '.[bench]', apt-get install gcc python3-dev"


def load(name: str) -> ModuleType:
    """The module ``bench.…`` of a ``.pyx`` file. BenchError when it can't be compiled here."""
    if name in sys.modules:
        return sys.modules[name]
    source = Path(__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".pyx").resolve()
    try:
        library = _compile(source)
    except BenchError:
        raise
    # Of setuptools and of compilers: they agree on no exception.
    except Exception as error:
        raise BenchError(f"{INSTALL} ({source.name}: {error})") from error
    try:
        module = _imported(name, library)
    # Whatever a file that was cut short, or is another's, makes the dynamic linker say.
    except Exception as error:
        Path(library).unlink(missing_ok=True)
        raise BenchError(f"{library} is broken, and removed: the next run compiles it anew ({error})") from error
    sys.modules[name] = module
    return module


def _imported(name: str, library: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(source: Path) -> str:
    """The path of the extension module, which is compiled unless there is one of the same text for this Python."""
    from pyximport import pyxbuild

    text = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    cache = _own(_cache_home() / "backstream-bench")
    directory = _own(cache / f"{sys.implementation.cache_tag}-{text}")
    with Path(directory, "lock").open("w") as lock:
        # Whoever comes second finds it compiled, and whole.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return str(pyxbuild.pyx_to_dll(str(source), build_in_temp=True, pyxbuild_dir=str(directory)))


def _cache_home() -> Path:
    """As of the XDG base directories: a relative path counts as none."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


def _own(directory: Path) -> Path:
    """Made where it is absent. BenchError unless it is a directory of ours that nobody else may write to: what lies in
    it is executed.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise BenchError(f"{directory} must be a directory of yours that nobody else may write to")
    return directory
