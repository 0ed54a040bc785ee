"""Raw bytes at a proxy; on uvloop, as the command has it. What the libraries do is pinned on both loops."""

from tests import rig


def pytest_asyncio_loop_factories(config, item):
    return rig.BOTH_LOOPS if item.path.name == "test_libraries.py" else rig.UVLOOP
