"""What all tests share."""

import pytest

try:
    import backstream._codec  # noqa: F401
except ImportError as error:
    # Tests run on ./backstream: an install that isn't editable leaves the folder without its extensions.
    pytest.exit(f"backstream is not built here ({error}): pip install -e '.[test]'", returncode=4)
