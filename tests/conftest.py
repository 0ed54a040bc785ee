"""What all tests share."""

import signal

import pytest

# A shell starts what runs in its background with SIGINT ignored, and so would be what the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)

try:
    import backstream._codec  # noqa: F401
except ImportError as error:
    # Tests run on ./backstream: an install that isn't editable leaves the folder without its extensions.
    pytest.exit(f"backstream is not built here ({error}): pip install -e '.[test]'", returncode=4)
