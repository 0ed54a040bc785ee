"""``python -m fuzz.engine TARGET [LIBFUZZER'S OPTIONS]``: one target under atheris, as `fuzz.__main__` starts it.

Runs where the extensions are those of build.py and the sanitizers are loaded.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from pathlib import Path

import atheris

_COMPARISONS = ("cmp1", "cmp2", "cmp4", "cmp8", "const_cmp1", "const_cmp2", "const_cmp4", "const_cmp8", "switch")


def attach_coverage() -> None:
    """Tells libFuzzer, which is inside atheris, of the extensions' branches and comparisons."""
    (core,) = Path(atheris.__file__).parent.glob("core_with_libfuzzer*.so")
    fuzzer, coverage = ctypes.CDLL(str(core)), ctypes.CDLL(os.environ["FUZZ_COVERAGE"])
    addresses = [ctypes.cast(fuzzer[f"__sanitizer_cov_trace_{name}"], ctypes.c_void_p) for name in _COMPARISONS]
    coverage.coverage_attach(
        fuzzer["__sanitizer_cov_8bit_counters_init"],
        fuzzer["__sanitizer_cov_pcs_init"],
        (ctypes.c_void_p * len(addresses))(*addresses),
    )


def main() -> None:
    name, *options = sys.argv[1:]
    one = importlib.import_module(f"fuzz.{name}").one
    attach_coverage()
    atheris.Setup([name, *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
