"""Faults, on uvloop unless a test asks for both loops."""

import pytest

from tests import rig


def pytest_asyncio_loop_factories(config, item):
    return rig.BOTH_LOOPS if item.get_closest_marker("both_loops") else rig.UVLOOP


@pytest.fixture
def commands():
    """The commands as processes; killed at the end."""
    processes = rig.Processes()
    yield processes
    processes.end()
