"""TLS, on uvloop and on asyncio's own loop, with certificates made for the run."""

import pytest

from tests import rig
from tests.tls.certificates import Certificates


def pytest_asyncio_loop_factories(config, item):
    return rig.UVLOOP if item.get_closest_marker("uvloop_only") else rig.BOTH_LOOPS


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def commands():
    """The commands as processes; killed at the end."""
    processes = rig.Processes()
    yield processes
    processes.end()
