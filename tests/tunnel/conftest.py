"""Everything in here runs on uvloop and on asyncio's own loop, except what tests processes of its own."""

from tests import rig


def pytest_asyncio_loop_factories(config, item):
    return rig.UVLOOP if item.get_closest_marker("uvloop_only") else rig.BOTH_LOOPS
