"""Frames and WebSocket messages for a request, or a MiB, in each direction: what passes relay.py on its way."""

import json
import sys
from collections.abc import Iterator

from bench.processes import Fleet, Spawned, read_line
from bench.profile import tunnel
from bench.profile.relay import FRAMES


class Relay:
    """A process of relay.py, between a proxy and its agent."""

    def __init__(self, processes: Fleet) -> None:
        self._processes = processes
        self._spawned: Spawned

    def start(self, proxy: int) -> int:
        """Returns the port to dial in place of the proxy's."""
        argv = [sys.executable, "-m", "bench.profile.relay", str(proxy)]
        self._spawned = self._processes.spawn("relay", argv, pipes=True)
        return int(read_line(self._spawned, timeout=30))

    def take(self) -> dict[str, dict[str, int]]:
        """What has passed since it was asked last, by direction and kind."""
        pipe = self._spawned.process.stdin
        assert pipe is not None
        pipe.write(b"\n")
        pipe.flush()
        found: dict[str, dict[str, int]] = json.loads(read_line(self._spawned, timeout=30))
        return found


def report(load: str, seconds: int, connections: int) -> Iterator[str]:
    """Lines with what passed in each direction, for a request or a MiB."""
    with tunnel.fleet() as processes:
        relay = Relay(processes)
        subject = tunnel.start(processes, relay=relay.start)
        tunnel.put_load(processes, subject.port, load, 1, connections)
        relay.take()
        done = tunnel.put_load(processes, subject.port, load, seconds, connections)
        found = relay.take()
    told = f"{load}, {connections} connections" if load == "small" else load
    yield f"{told}: {done}; per {done.unit}"
    for direction, counts in found.items():
        messages = counts.get("messages", 0)
        frames = sum(counts.get(kind, 0) for kind in FRAMES)
        yield (
            f"  {direction}: {messages / done.count:.3f} messages, {frames / done.count:.3f} frames "
            f"({frames / max(messages, 1):.1f} in a message), {counts.get('bytes', 0) / done.count:,.0f} bytes"
        )
        for kind in FRAMES:
            if counts.get(kind):
                yield f"    {counts[kind] / done.count:8.3f}  {kind}"
