"""A thousand streams at once over one session, aborted at random on both sides: everything is back where it began."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections import Counter

import pytest

import backstream
from tests.rig import (
    ID,
    OK,
    Ended,
    Leaks,
    Message,
    Tunnel,
    Upstream,
    Wire,
    answer,
    begin,
    chunked,
    end,
    more,
    request,
    tunnel,
    until,
)

STREAMS = 1000
BLOCK = bytes(range(256)) * 128  # 32 KiB
SETTINGS = backstream.SessionSettings(max_streams=2 * STREAMS)
"""An aborted stream holds its place until its work has ended, so that there have to be more places than streams."""

KINDS = ("download", "upload", "echo", "silent")
"""What a request asks the service for."""
ENDS = ("whole", "client leaves", "client resets", "service raises", "service stops")
"""How it ends."""


class Plan:
    """What each of the requests does, known to both sides by its number: the same in every run."""

    def __init__(self, seed: int, count: int = STREAMS) -> None:
        self.random = random.Random(seed)
        self.count = count
        self.kinds = [self.random.choice(KINDS) for _ in range(count)]
        self.ends = [self.random.choice(ENDS) for _ in range(count)]
        self.blocks = [self.random.randrange(1, 9) for _ in range(count)]
        self.arrived = 0
        self.all_arrived = asyncio.Event()
        self.running = 0

    def arrive(self) -> None:
        self.arrived += 1
        self.running += 1
        if self.arrived == self.count:
            self.all_arrived.set()

    def verdicts(self) -> Counter[str]:
        """How many requests have to end how."""
        by_end = {"whole": "whole", "client leaves": "left", "client resets": "left"}
        return Counter(by_end.get(how, "cut") for how in self.ends)


class Failed(Exception):
    """Raised by the service on purpose."""


class Service:
    """Waits until all requests are there, then does what the plan says."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError
        if scope["path"] == "/":
            await answer(send)
            return
        number = int(scope["path"][1:])
        self.plan.arrive()
        try:
            await self.serve(number, receive, send)
        except OSError:
            pass
        finally:
            self.plan.running -= 1

    async def serve(self, number: int, receive, send) -> None:
        plan = self.plan
        kind, how, blocks = plan.kinds[number], plan.ends[number], plan.blocks[number]
        fails_at = blocks // 2 if how.startswith("service") else -1
        if kind != "silent":
            await begin(send)
        await plan.all_arrived.wait()
        if kind == "silent" and fails_at < 0:
            while (event := await receive())["type"] != "http.disconnect":
                if how == "whole" and not event["more_body"]:
                    await answer(send, b"heard")
            return
        seen = hashlib.sha256()
        for i in range(blocks):
            if i == fails_at:
                if how == "service raises":
                    raise Failed
                return
            if kind == "download":
                await more(send, BLOCK)
                continue
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            seen.update(event["body"])
            if kind == "echo":
                await more(send, event["body"])
            if not event["more_body"]:
                break
        if kind in ("upload", "echo"):
            while event["more_body"]:
                event = await receive()
                if event["type"] == "http.disconnect":
                    return
                seen.update(event["body"])
                if kind == "echo":
                    await more(send, event["body"])
        await end(send, seen.digest() if kind == "upload" else b"")


class Client:
    """One of the requests, as its client sees it; `verdict` is what became of it."""

    def __init__(self, pair: Tunnel, plan: Plan, number: int) -> None:
        self.pair = pair
        self.plan = plan
        self.number = number

    async def run(self) -> str:
        plan, number = self.plan, self.number
        kind, how = plan.kinds[number], plan.ends[number]
        with_body = kind in ("upload", "echo")
        lines = ["Transfer-Encoding: chunked"] if with_body else []
        async with await self.pair.open() as wire:
            await wire.send(request(f"/{number}", method="POST" if with_body else "GET", lines=lines))
            await plan.all_arrived.wait()
            if how.startswith("client"):
                if with_body:
                    await wire.send(chunked(BLOCK[:20_000], end=False))
                if kind in ("download", "echo"):
                    await wire.exactly(plan.random.randrange(1, 5000))
                if how == "client resets":
                    wire.reset()
                return "left"
            sending = asyncio.create_task(self.send(wire)) if with_body else None
            try:
                got = await wire.answer()
            except Ended:
                return "ended without an answer"
            finally:
                if sending is not None:
                    await asyncio.gather(sending, return_exceptions=True)
        if how.startswith("service"):
            return "cut" if got.status >= 500 or not got.complete else "not cut"
        body = {
            "download": BLOCK * plan.blocks[number],
            "upload": hashlib.sha256(BLOCK * plan.blocks[number]).digest(),
            "echo": BLOCK * plan.blocks[number],
            "silent": b"heard",
        }[kind]
        return "whole" if got.status == 200 and got.complete and got.body == body else "not whole"

    async def send(self, wire: Wire) -> None:
        try:
            for _ in range(self.plan.blocks[self.number]):
                await wire.send(chunked(BLOCK, end=False))
            await wire.send(b"0\r\n\r\n")
        except OSError:
            pass


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_thousand_streams_with_aborts_on_both_sides_leave_nothing_behind(seed: int, caplog) -> None:
    # Logged tracebacks would keep what they came through.
    caplog.set_level(logging.CRITICAL, "backstream.agent")
    plan = Plan(seed)
    async with tunnel(Service(plan), session=SETTINGS, proxy={"session": SETTINGS}) as pair:
        assert (await pair.get()).status == 200
        await until(lambda: pair.proxy.connection_count == 0)
        leaks = Leaks()
        async with asyncio.timeout(40):
            verdicts = await asyncio.gather(*(Client(pair, plan, number).run() for number in range(STREAMS)))
        assert Counter(verdicts) == plan.verdicts()
        await until(lambda: plan.running == 0)
        await until(lambda: pair.proxy.connection_count == 0)
        await pair.settled()
        await leaks.none()
        for agent in pair.agents:
            assert agent._budget.used_bytes == 0
        # One session served them all, and serves on.
        (link,) = pair.proxy.agents
        assert link.served == STREAMS + 1 and len(pair.proxy.agents.by_id(ID.encode())) == 1
        assert (await pair.get()).status == 200


class UpstreamService:
    """The same as an upstream: a service that raises resets its connection, one that stops closes it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    async def __call__(self, wire: Wire, number: int) -> None:
        while True:
            head = await wire.head()
            if head.target == b"/":
                await wire.send(OK)
                continue
            self.plan.arrive()
            try:
                if not await self.serve(wire, head, int(head.target[1:])):
                    return
            finally:
                self.plan.running -= 1

    async def serve(self, wire: Wire, head: Message, number: int) -> bool:
        """Whether the connection may serve another request."""
        plan = self.plan
        kind, how, blocks = plan.kinds[number], plan.ends[number], plan.blocks[number]
        if kind != "silent":
            await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        await plan.all_arrived.wait()
        if how.startswith("service"):
            if kind == "download":
                await wire.send(chunked(*[BLOCK] * (blocks // 2), end=False))
            if how == "service raises":
                wire.reset()
            return False
        if kind == "silent":
            if how != "whole":
                await wire.rest()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nheard")
        elif kind == "download":
            await wire.send(chunked(*[BLOCK] * blocks))
        else:
            seen = hashlib.sha256()
            while piece := await wire.chunk():
                seen.update(piece)
                if kind == "echo":
                    await wire.send(chunked(piece, end=False))
            await wire.line()
            await wire.send(chunked(seen.digest()) if kind == "upload" else b"0\r\n\r\n")
        return True


async def test_hundreds_of_streams_to_an_upstream_with_aborts_on_both_sides_leave_nothing_behind(caplog) -> None:
    plan = Plan(3, 300)
    limits = {"upstream_connections": plan.count, "upstream_idle_timeout": 0.2}
    async with (
        Upstream(UpstreamService(plan)) as upstream,
        tunnel(upstream=upstream.url, session=SETTINGS, proxy={"session": SETTINGS}, **limits) as pair,
    ):
        assert (await pair.get()).status == 200
        await until(lambda: pair.proxy.connection_count == upstream.open == 0)
        leaks = Leaks()
        async with asyncio.timeout(40):
            verdicts = await asyncio.gather(*(Client(pair, plan, number).run() for number in range(plan.count)))
        assert Counter(verdicts) == plan.verdicts()
        await until(lambda: pair.proxy.connection_count == upstream.open == plan.running == 0)
        await pair.settled()
        await leaks.none()
        assert (await pair.get()).status == 200
