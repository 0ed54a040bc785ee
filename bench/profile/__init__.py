"""Where the time, the allocations, the system calls and the frames go: ``python -m bench.profile COMMAND``.

Each command starts a tunnel of its own, loads it, looks at one of its processes and prints what it saw. Nothing here
compares contenders: that is what ``python -m bench`` does.
"""
