"""What every client says of its latencies."""


def percentiles(latencies: list[float]) -> dict[str, float]:
    """p50, p99, p99.9 (as ``p999``) and the longest of some seconds, in microseconds; sorts them."""
    latencies.sort()
    last = len(latencies) - 1
    return {
        name: latencies[min(last, int(len(latencies) * part))] * 1e6 if latencies else 0.0
        for name, part in (("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("longest", 1.0))
    }
