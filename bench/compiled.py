"""The bench's own Cython: compiled when it is first needed, and again when it has changed, into a cache directory.

It is no part of the installed package, so setup.py leaves it out: only who measures needs it. Needed: Cython and
setuptools (the extra ``bench``) and a C compiler; without them a measurement is skipped.
"""

import fcntl
import hashlib
import importlib.util
import os
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
    # Of setuptools and of compilers: they agree on no exception.
    except (Exception, SystemExit) as error:
        raise BenchError(f"{INSTALL} ({source.name}: {error})") from error
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def _compile(source: Path) -> str:
    """The path of the extension module, which is compiled unless there is one of the same text for this Python."""
    from pyximport import pyxbuild

    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    text = hashlib.sha256(source.read_bytes()).hexdigest()[:16]
    directory = base / "backstream-bench" / f"{sys.implementation.cache_tag}-{text}"
    directory.mkdir(parents=True, exist_ok=True)
    with Path(directory, "lock").open("w") as lock:
        # Whoever comes second finds it compiled, and whole.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return str(pyxbuild.pyx_to_dll(str(source), build_in_temp=True, pyxbuild_dir=str(directory)))
