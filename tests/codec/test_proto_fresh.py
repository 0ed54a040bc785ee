"""The committed code in `backstream/_proto/` is what `proto/` gives, and agrees with errors.py."""

import subprocess
import sys
from pathlib import Path

from backstream._proto import tunnel_pb2
from backstream.errors import ErrorCode

ROOT = Path(__file__).parents[2]


def test_generated_files_are_fresh() -> None:
    check = subprocess.run(
        [sys.executable, "proto/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert check.returncode == 0, check.stderr


def test_the_schema_names_every_error_code_that_travels() -> None:
    travelling = {code.name: code.value for code in ErrorCode if code < ErrorCode.SESSION_LOST}
    assert dict(tunnel_pb2.ErrorCode.items()) == travelling
