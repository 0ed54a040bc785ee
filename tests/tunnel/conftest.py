"""Everything in here runs on uvloop and on asyncio's own loop."""

from tests import rig


def pytest_asyncio_loop_factories(config, item):
    return rig.BOTH_LOOPS
