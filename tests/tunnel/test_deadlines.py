"""The loop's deadlines: never early, once, and gone when they are cleared, however often they are put off before."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from backstream._callbacks import Deadline
from backstream._loop import loop_state

FAR = 60.0
"""Seconds; several turns of the wheel."""


class Timed(Deadline):
    def __init__(self) -> None:
        super().__init__()
        self.due: float | None = None
        self.fired: list[float] = []
        self.early = 0.0
        self.done = asyncio.Event()

    def put(self, seconds: float) -> None:
        self.due = time.monotonic() + seconds
        self.done.clear()
        self.set(seconds)

    def drop(self) -> None:
        self.due = None
        self.clear()

    def passed(self) -> None:
        now = time.monotonic()
        assert self.due is not None, "a deadline that was cleared has passed"
        self.early = max(self.early, self.due - now)
        self.due = None
        self.fired.append(now)
        self.done.set()


@pytest.mark.parametrize("before", [(), (0.05,), (FAR,), (0.05, 0.3, FAR), (0.4, 0.05, 0.4)])
async def test_only_the_last_of_several_deadlines_counts(before: tuple[float, ...]) -> None:
    timed = Timed()
    for seconds in before:
        timed.put(seconds)
    timed.put(0.2)
    assert loop_state().deadlines == 1
    async with asyncio.timeout(10):
        await timed.done.wait()
    assert len(timed.fired) == 1 and timed.early <= 0.001
    assert loop_state().deadlines == 0


async def test_deadlines_put_off_brought_forward_and_cleared_at_random_pass_once_and_never_early() -> None:
    chance = random.Random(7)
    members = [Timed() for _ in range(300)]
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        for member in chance.sample(members, 30):
            if chance.random() < 0.2:
                member.drop()
            else:
                member.put(chance.choice([0.0, 0.01, 0.02, 0.05, 0.1, 0.3, FAR]) * (0.5 + chance.random()))
        await asyncio.sleep(0.003)
    assert loop_state().deadlines == sum(member.due is not None for member in members)
    for member in members:
        if member.due is not None and member.due > time.monotonic() + 1:
            member.drop()
    async with asyncio.timeout(10):
        for member in members:
            if member.due is not None:
                await member.done.wait()
    assert max(member.early for member in members) <= 0.001
    assert sum(len(member.fired) for member in members) > 100
    assert loop_state().deadlines == 0
