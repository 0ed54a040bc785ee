"""A real forward proxy for tests: pproxy in a process of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.rig import LIMIT, free_port


class Forward:
    """pproxy as a process, for HTTP and SOCKS5 on one port; what passes it is in its output."""

    def __init__(self, port: int, process: subprocess.Popen[str]) -> None:
        self.port = port
        self.process = process

    def url(self, scheme: str, credentials: str = "") -> str:
        return f"{scheme}://{credentials}127.0.0.1:{self.port}"

    async def passed(self, words: str) -> None:
        """Waits for it to say that a connection to `words` passed."""
        async with asyncio.timeout(LIMIT):
            while words not in await asyncio.to_thread(self.process.stdout.readline):
                pass


@contextmanager
def forward(credentials: str = "") -> Iterator[Forward]:
    port = free_port()
    listen = f"http+socks5://127.0.0.1:{port}" + (f"#{credentials}" if credentials else "")
    process = subprocess.Popen(
        [sys.executable, "-c", PPROXY, listen],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield Forward(port, process)
    finally:
        process.kill()
        process.communicate()


# Its own command asks for a current event loop, which newer Pythons do not have unless somebody sets one.
PPROXY = """
import asyncio, pproxy, sys

async def main():
    say = lambda line: print(line, flush=True)
    await pproxy.Server(sys.argv[1]).start_server({"rserver": [pproxy.DIRECT], "verbose": say})
    say("ready")
    await asyncio.Event().wait()

asyncio.run(main())
"""
