"""What the Dockerfile sets is a default: whatever a user says comes before it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests import pages

Parse = Callable[..., Any]
TEXT = (pages.ROOT / "Dockerfile").read_text()


def image(folder: Path) -> dict[str, str]:
    """The image's variables of ours; the file that they name lies in `folder`."""
    variables = dict(re.findall(r"(?m)^ENV (BACKSTREAM_\w+)=(\S+)$", TEXT))
    (line,) = re.findall(r"(?m)^RUN (printf .* > \S+)$", TEXT)
    command, _, target = line.rpartition(" > ")
    assert target == variables["BACKSTREAM_CONFIG"]
    made = subprocess.run(["sh", "-c", command], capture_output=True, timeout=10, check=True)
    (folder / "image.toml").write_bytes(made.stdout)
    return variables | {"BACKSTREAM_CONFIG": str(folder / "image.toml")}


def test_the_image_listens_on_every_interface_unless_something_else_is_said(parse: Parse, tmp_path: Path) -> None:
    variables = image(tmp_path)
    (tmp_path / "own.toml").write_text('[proxy]\nlisten = "0.0.0.0:9001"\n')
    assert parse("proxy", **variables).listen == "0.0.0.0:8080"
    assert parse("proxy", "--listen", "0.0.0.0:9000", **variables).listen == "0.0.0.0:9000"
    assert parse("proxy", "--config", str(tmp_path / "own.toml"), **variables).listen == "0.0.0.0:9001"
    assert parse("proxy", **variables, BACKSTREAM_LISTEN="0.0.0.0:9002").listen == "0.0.0.0:9002"
    assert parse("agent", "--client-id", "a", "--upstream", "http://b", **variables).client_id == "a"
