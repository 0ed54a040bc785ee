"""An agent that forwards to an HTTP service beside it, on uvloop, and drains when it is told to end.

Run it with `python examples/agent_upstream.py [PROXY-URL [UPSTREAM]]` while a proxy and the service listen.
"""

import asyncio
import signal
import sys

import uvloop

import backstream


async def main(proxy_url: str, upstream: str) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    settings = backstream.AgentSettings(proxy_url=proxy_url, client_id="demo", upstream=upstream)
    async with backstream.Agent(settings) as agent:
        await agent.wait_connected()
        print("connected", flush=True)
        await stop.wait()
        await agent.drain()  # requests that run may end, for `drain_timeout` seconds


if __name__ == "__main__":
    arguments = sys.argv[1:] + ["ws://127.0.0.1:8080/ws", "http://127.0.0.1:9000"][len(sys.argv) - 1 :]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(arguments[0], arguments[1]))
