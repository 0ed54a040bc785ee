"""What can go wrong in a run: one exception, whose text goes into the table."""


class BenchError(Exception):
    """A contender did not start, a client failed, or an answer was wrong."""
