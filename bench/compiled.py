"""The bench's own Cython: compiled when it is first needed, into a cache directory, and again when it has changed.

It is no part of the installed package, so setup.py leaves it out: only who measures needs it. Needed: Cython (the extra
``bench``), setuptools and a C compiler; without them a measurement is skipped.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from bench.errors import BenchError

INSTALL = "needs Cython and a C compiler: pip install -e '.[bench]', apt-get install gcc python3-dev"


def cache_directory() -> Path:
    """Of this Python alone: what it compiles is for no other."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "backstream-bench", sys.implementation.cache_tag)


def load(name: str) -> ModuleType:
    """The module ``bench.…`` of a ``.pyx`` file. BenchError when it can't be compiled here."""
    if name in sys.modules:
        return sys.modules[name]
    source = Path(__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".pyx").resolve()
    try:
        from pyximport import pyxbuild

        library = pyxbuild.pyx_to_dll(str(source), pyxbuild_dir=str(cache_directory()))
    # Of distutils and of compilers: all that differs is the text.
    except (Exception, SystemExit) as error:
        raise BenchError(f"{INSTALL} ({source.name}: {error})") from error
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module
