"""The service of the tests in this folder: an ASGI application in the agents' processes.

It notes each request in the file that FAULTS_JOURNAL names, when it comes and when its client has gone: one line each,
written at once, so that a test can count what reached a service, one that was killed included.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

JOURNAL = os.environ.get("FAULTS_JOURNAL")
BLOCK = bytes(range(256)) * 256


def note(word: str, scope) -> None:
    if JOURNAL is not None:
        with Path(JOURNAL).open("ab", buffering=0) as journal:
            journal.write(f"{word} {scope['method']} {scope['path']} {os.getpid()}\n".encode())


class Gone(Exception):
    """The client has left."""


async def pieces(receive):
    """The body as it comes."""
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise Gone
        yield event["body"]
        if not event["more_body"]:
            return


async def until_gone(receive) -> None:
    async for _ in pieces(receive):
        pass
    await receive()
    raise Gone


async def begin(send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def more(send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def end(send, body: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": body})


# --- what there is to ask for; anything may follow, to tell one request from another: /ok/17 ---


async def ok(scope, receive, send) -> None:
    await begin(send)
    await end(send, b"%d" % os.getpid())


async def slow(scope, receive, send) -> None:
    """As ok, after a while in which the process may end."""
    await asyncio.sleep(0.01)
    await ok(scope, receive, send)


async def echo(scope, receive, send) -> None:
    """Every piece back as it comes: the response lasts as long as the request."""
    await begin(send)
    async for piece in pieces(receive):
        await more(send, piece)
    await end(send)


async def upload(scope, receive, send) -> None:
    """The hash of the body, once it is whole."""
    seen = hashlib.sha256()
    async for piece in pieces(receive):
        seen.update(piece)
    await begin(send)
    await end(send, seen.hexdigest().encode())


async def endless(scope, receive, send) -> None:
    await begin(send)
    while True:
        await more(send, BLOCK)


async def begun(scope, receive, send) -> None:
    """The first piece of a response that does not go on."""
    await begin(send)
    await more(send, b"begun")
    await until_gone(receive)


async def silent(scope, receive, send) -> None:
    """No answer."""
    await until_gone(receive)


async def deaf(scope, receive, send) -> None:
    """No answer, and nothing of the body is taken."""
    await asyncio.Event().wait()


PATHS: dict[str, Callable[..., Awaitable[None]]] = {
    "": ok,
    "ok": ok,
    "slow": slow,
    "echo": echo,
    "upload": upload,
    "endless": endless,
    "begun": begun,
    "silent": silent,
    "deaf": deaf,
}


async def app(scope, receive, send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError
    note("came", scope)
    try:
        await PATHS[scope["path"].split("/")[1]](scope, receive, send)
    except (Gone, OSError):
        note("gone", scope)
