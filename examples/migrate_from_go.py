"""A proxy for the time of moving over from grepplabs/backstream: it serves that project's agents and ours at once, and
says which ids still have only the old kind.

Run it with `python examples/migrate_from_go.py [HOST:PORT]` in the place of the old proxy. Agents of the original dial
it as they dialled that; exchange them one by one for `backstream agent`. When nobody is named any more,
`ProxySettings(session=SessionSettings(wire="native"))` closes the door. The other way round works as well: our agent
speaks to the original's proxy until that is exchanged.
"""

import asyncio
import sys

import backstream

EVERY_SECONDS = 1.0


def still_old(proxy: backstream.Proxy) -> list[str]:
    """Ids that no agent of the native wire holds, in order."""
    wires: dict[str, set[str]] = {}
    for agent in proxy.agents:
        wires.setdefault(agent.id, set()).add(agent.wire)
    return sorted(client_id for client_id, spoken in wires.items() if "native" not in spoken)


async def main(listen: str) -> None:
    settings = backstream.ProxySettings(listen=listen)
    async with backstream.Proxy(settings) as proxy:
        print(f"listening on http://{proxy.address[0]}:{proxy.address[1]}", flush=True)
        told: list[str] | None = None
        while True:
            old = still_old(proxy)
            if old != told:
                print("on the old wire:", ", ".join(old) or "nobody", flush=True)
                told = old
            await asyncio.sleep(EVERY_SECONDS)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8080"))
    except KeyboardInterrupt:
        pass
