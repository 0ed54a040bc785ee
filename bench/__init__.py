"""Benchmarks of backstream beside nginx, on loopback: ``python -m bench --help``.

One file for each scenario, one for each contender; every number in the table was taken in the same run on the
same machine.
"""
