"""Small requests in an open loop: at a fixed rate, whatever became of those before, and without coordinated omission.

``python -m bench.clients.open_loop PORT CONNECTIONS RATE SECONDS`` prints one line of JSON. A latency counts from
when its request was due, so that one which had to wait for a free connection behind a slow answer has that wait in
its own. The loop is Cython (_open_loop.pyx): a Python loop takes all of a core for 30,000 requests a second, and of
the two that measure that would be one; h2load's fixed rate counts from when a request was sent, which leaves the wait
out.

Prints the requests answered, lost (the answer was cut or not 200) and unanswered (10 s after the end), the seconds of
the run, and p50, p99, p99.9 and the longest in µs; one that is unanswered counts as 10 s.
"""

import argparse
import json
import time
from collections.abc import Sequence

from bench import compiled
from bench.clients.percentiles import percentiles
from bench.clients.raw import request
from bench.routes import SMALL

GRACE = 10.0
"""Seconds to wait for answers after the last request was due."""


def summary(latencies: Sequence[int], rate: float) -> dict[str, float]:
    """Of the latencies in ns that `OpenLoop.run` returns."""
    answered = [latency / 1e9 for latency in latencies if latency >= 0]
    unanswered = sum(latency == -2 for latency in latencies)
    seconds = len(latencies) / rate
    longest = max((index / rate + latency / 1e9 for index, latency in enumerate(latencies) if latency >= 0), default=0)
    return {
        "requests": len(answered),
        "lost": len(latencies) - len(answered) - unanswered,
        "unanswered": unanswered,
        "seconds": max(seconds, longest),
        **percentiles(answered + [GRACE] * unanswered),
    }


def load(port: int, connections: int, rate: float, seconds: float, *, every: bool = False) -> dict[str, object]:
    loop = compiled.load("bench.clients._open_loop").OpenLoop(
        port, connections, rate, int(rate * seconds), request("GET", "/small"), SMALL, int(GRACE * 1e9)
    )
    if every:
        print("ready", flush=True)
    cpu = time.process_time()
    latencies = loop.run()
    result: dict[str, object] = {**summary(latencies, rate), "cpu_seconds": time.process_time() - cpu}
    return {**result, "begin_ns": loop.begin_ns, "latencies": list(latencies)} if every else result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.clients.open_loop")
    parser.add_argument("port", type=int)
    parser.add_argument("connections", type=int)
    parser.add_argument("rate", type=float)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--every", action="store_true", help="every latency, and a line before the first request")
    print(json.dumps(load(**vars(parser.parse_args()))), flush=True)


if __name__ == "__main__":
    main()
