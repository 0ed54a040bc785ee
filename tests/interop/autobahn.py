"""`python -m tests.interop.autobahn WSTEST`: Autobahn's test suite against an echo in three places, side by side.

WSTEST is the command of the package autobahntestsuite, which runs on Python 2.7 only; that is why pytest does not run
it, and `test_websocket_conformance.py` is the table for every day. The places: the package `websockets` by itself, the
same server through the tunnel, and an application in the agent. Exit status 1 where the tunnel changed a verdict.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import uvloop
import websockets

from tests.interop.test_websocket_conformance import echo_app, echo_handler
from tests.rig import ID, tunnel

LARGEST = 32 * 1024 * 1024
LIMITS = ["9.*"]
COMPRESSION = ["12.*", "13.*"]


@asynccontextmanager
async def with_the_id(address: tuple[str, int]) -> AsyncIterator[int]:
    """A port that adds the client id to each connection's first request, which Autobahn's client can't."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except OSError:
            writer.transport.abort()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proxy_reader, proxy_writer = await asyncio.open_connection(*address)
        try:
            proxy_writer.write(await reader.readuntil(b"\r\n") + f"x-backstream-client-id: {ID}\r\n".encode())
            await asyncio.gather(copy(reader, proxy_writer), copy(proxy_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            proxy_writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


async def run(wstest: list[str], cases: list[str], excluded: list[str], folder: Path) -> int:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(
            websockets.serve(echo_handler, "127.0.0.1", 0, max_size=LARGEST, ping_interval=None)
        )
        port = server.sockets[0].getsockname()[1]
        through = await stack.enter_async_context(tunnel(upstream=f"http://127.0.0.1:{port}", check=False))
        asgi = await stack.enter_async_context(tunnel(echo_app, check=False, websocket_max_message=LARGEST))
        ports = {
            "direct": port,
            "upstream": await stack.enter_async_context(with_the_id(through.address)),
            "asgi": await stack.enter_async_context(with_the_id(asgi.address)),
        }
        spec = folder / "spec.json"
        spec.write_text(
            json.dumps(
                {
                    "outdir": str(folder),
                    "servers": [{"agent": name, "url": f"ws://127.0.0.1:{each}"} for name, each in ports.items()],
                    "cases": cases,
                    "exclude-cases": excluded,
                    "exclude-agent-cases": {"asgi": COMPRESSION},
                }
            )
        )
        with (folder / "log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *wstest, "-m", "fuzzingclient", "-s", str(spec), stdout=log, stderr=log
            )
            await process.wait()
    if process.returncode or not (folder / "index.json").exists():
        print((folder / "log").read_text(errors="replace")[-2000:], file=sys.stderr)
        return 2
    index = json.loads((folder / "index.json").read_text())
    verdicts = {
        name: {number: f"{case['behavior']}/{case['behaviorClose']}" for number, case in index.get(name, {}).items()}
        for name in ports
    }
    for name in ports:
        counts = Counter(verdicts[name].values())
        print(f"{name:>8}: {sum(counts.values())} cases: {', '.join(f'{n} {v}' for v, n in counts.most_common())}")
    changed = 0
    for number in sorted(verdicts["direct"], key=lambda text: [int(part) for part in text.split(".")]):
        each = {name: verdicts[name].get(number, "-") for name in ports}
        if any("OK" not in v.split("/")[0] and "INFO" not in v and v != "-" for v in each.values()):
            print(f"{number:>8}: {each}")
        changed += each["upstream"].startswith("FAILED") != each["direct"].startswith("FAILED")
    print(f"verdicts that the tunnel changed: {changed}")
    return 1 if changed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.autobahn", description=__doc__)
    parser.add_argument("wstest", metavar="WSTEST", help="the command, with its arguments if it has any")
    parser.add_argument("--cases", default="*", help="such as 1.*,7.1.* (default: all)")
    parser.add_argument("--all", action="store_true", help="also what takes minutes: limits and compression")
    arguments = parser.parse_args()
    excluded = [] if arguments.all else LIMITS + COMPRESSION
    with tempfile.TemporaryDirectory() as folder:
        return uvloop.run(run(shlex.split(arguments.wstest), arguments.cases.split(","), excluded, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
