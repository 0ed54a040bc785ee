"""A proxy inside a program of one's own, which takes only agents that it knows.

Run it with `python examples/proxy.py [HOST:PORT]`, then an agent: `backstream agent --client-id demo …`.
"""

import asyncio
import sys

import backstream

KNOWN = {"demo": "127.0.0.1"}
"""Where an agent with this id may come from. Another's handshake is answered with 403."""


def authorize(handshake: backstream.Handshake) -> bool:
    host = handshake.address[0] if handshake.address else None
    return handshake.client_id in KNOWN and KNOWN[handshake.client_id] == host


async def main(listen: str) -> None:
    settings = backstream.ProxySettings(listen=listen, request_timeout=10)
    async with backstream.Proxy(settings, authorize=authorize) as proxy:
        host, port = proxy.address
        print(f"listening on http://{host}:{port}", flush=True)
        await proxy.wait_closed()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8080"))
    except KeyboardInterrupt:
        pass
