"""Raw bytes at a proxy; on uvloop, as the command has it."""

from tests import rig


def pytest_asyncio_loop_factories(config, item):
    return rig.UVLOOP
