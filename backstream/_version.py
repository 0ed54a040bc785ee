"""The version, as the package's metadata has it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("backstream")
except PackageNotFoundError:  # built in place and never installed
    __version__ = "0.0.0"

SOFTWARE = f"backstream/{__version__}"
"""What HELLO and the error pages call this program."""
