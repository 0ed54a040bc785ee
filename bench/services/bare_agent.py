"""An agent whose service is a bare handler of the library: ``python -m bench.services.bare_agent PROXY-URL``.

What the tunnel itself costs, with no ASGI above it: the handler is called per stream and answers at once, without a
task. ``--check`` only says, by its exit status, whether it can run.
"""

from __future__ import annotations

import asyncio
import signal
import sys

from bench.routes import CLIENT_ID, SMALL


def check() -> str | None:
    """Why this can't run, in a line; None if it can."""
    try:
        import backstream  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


async def serve(proxy_url: str) -> None:
    """Answers every request with the small body until SIGTERM."""
    import backstream
    from backstream import streams

    head = backstream.ResponseHead(
        status=200,
        fields=((b"content-type", b"text/plain"),),
        body=backstream.Body.SIZED,
        length=len(SMALL),
    )

    class Small(backstream.Handler):
        """Takes the request as it comes; its answer is out already."""

    handler = Small()

    def answer(stream: streams.Stream, request: backstream.RequestHead, end: bool) -> Small:
        streams.respond(stream, head)
        streams.write(stream, SMALL)
        streams.end(stream)
        return handler

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = backstream.AgentSettings(proxy_url=proxy_url, client_id=CLIENT_ID)
    async with backstream.Agent(settings, handler=answer):
        await stop.wait()


def main() -> None:
    """Runs it on uvloop."""
    reason = check()
    if reason is not None:
        sys.exit(reason)
    if "--check" in sys.argv:
        return
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(sys.argv[1]))


if __name__ == "__main__":
    main()
