"""What all tests share."""

import signal
from pathlib import Path

import pytest

# A shell starts what runs in its background with SIGINT ignored, and so would be what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

try:
    import backstream._codec
except ImportError as error:
    # Tests run on ./backstream: an install that isn't editable leaves the folder without its extensions.
    pytest.exit(f"backstream is not built here ({error}): pip install -e '.[test]'", returncode=4)

if Path(backstream._codec.__file__).parent != Path(__file__).parents[1] / "backstream":
    # pytest has loaded the plugin of an installed copy before it looked here.
    pytest.exit(f"backstream comes from {backstream._codec.__file__}: pip install -e '.[test]'", returncode=4)
