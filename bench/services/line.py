"""A long line between two network namespaces, for kernels that have no netem.

``python -m bench.services.line NEAR FAR RTT_MS LOSS_PERCENT [MBIT]`` makes a TUN device in each of two namespaces that
exist, with addresses 10.199.0.1 and 10.199.0.2, says ``ready``, and carries packets between them until its standard
input is closed; then it says how many were carried, lost and dropped. Each direction has half the round trip as delay,
loses each packet with the same chance, and carries so many Mbit/s (1,000), before which as much may wait as it carries
in a round trip. What is random is the same in each run. A packet is at most 0.1 ms late (_line.pyx). Only root can do
this.
"""

import fcntl
import json
import os
import struct
import subprocess
import sys

from bench import compiled
from bench.routes import MIB

NEAR, FAR = "10.199.0.1", "10.199.0.2"
MBIT = 1000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x1, 0x1000
_LEAST_QUEUE = MIB
"""Bytes that may wait for a line however short."""
_TXQUEUE = 10_000
"""Packets that may wait for this process: only the line itself is to lose any."""


def _device(namespace: str, address: str, peer: str) -> int:
    """A TUN device in the namespace; returns its descriptor."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    name = f"bench{os.getpid() % 100_000}{address[-1]}"
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    for command in (
        f"ip link set {name} netns {namespace}",
        f"ip -n {namespace} link set lo up",
        f"ip -n {namespace} address add {address} peer {peer} dev {name}",
        f"ip -n {namespace} link set {name} mtu 1500 txqueuelen {_TXQUEUE} up",
    ):
        subprocess.run(command.split(), check=True, timeout=10)
    return descriptor


def main() -> None:
    near, far, round_trip, loss = sys.argv[1:5]
    rate = float(sys.argv[5] if len(sys.argv) > 5 else MBIT) * 1e6 / 8
    line = compiled.load("bench.services._line").Line(
        _device(near, NEAR, FAR),
        _device(far, FAR, NEAR),
        int(float(round_trip) * 1e6 / 2),
        float(loss) / 100,
        rate,
        max(_LEAST_QUEUE, int(rate * float(round_trip) / 1e3)),
        1,
    )
    print("ready", flush=True)
    print(json.dumps(line.run(0)), flush=True)


if __name__ == "__main__":
    main()
