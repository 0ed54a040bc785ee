"""Two sessions on the seed wire, joined by two queues of frames, in whatever interleaving hypothesis thinks of.

What must hold at every moment: handlers are called in the order that `StreamHandler` promises, bytes arrive whole or
not at all, what bodies take is booked and within the budget. And at the end, once everything may move again: every
handler has heard how its stream ended, every table is empty, everything is given back.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backstream import _callbacks
from backstream._flow import WindowBudget
from backstream._messages import Body, RequestHead, ResponseHead
from backstream._seed_session import SeedSession
from backstream._stream import Stream
from backstream.errors import ErrorCode, StreamError
from tests.session import wire

PATTERN = bytes(range(251)) * 1700
MAX_MESSAGE = 300_000
SIZES = [0, 5, 65_536, 65_537, 200_000, 400_000]
LIMIT = 10.0
"""Seconds that a request may take."""
SERVICES = [
    *("later", "later", "later", "accept answers", "accept refuses", "accept errs", "accept raises"),
    *("data answers", "data errs", "data raises", "data resets", "end raises", "end answers"),
]


class Heard(_callbacks.Handler):
    """Checks the order of what it is told, on either side."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.stream: Stream | None = None
        self.received = bytearray()
        self.unconsumed = 0
        self.ended = False  # the peer's direction
        self.resets: list[int] = []
        self.gave_up = False

    def hears(self) -> None:
        assert not self.ended and not self.resets and not self.gave_up

    def data_received(self, stream: Stream, data: bytes) -> None:
        self.hears()
        assert data
        self.received += data
        self.unconsumed += len(data)

    def end_received(self, stream: Stream, trailers: Any) -> None:
        self.hears()
        assert trailers == ()
        self.ended = True

    def reset_received(self, stream: Stream, code: int, message: str) -> None:
        assert not self.resets and not self.gave_up
        self.resets.append(code)

    @property
    def live(self) -> bool:
        return self.stream is not None and not _callbacks.is_closed(self.stream)

    def consume(self) -> None:
        assert self.stream is not None
        count, self.unconsumed = self.unconsumed, 0
        _callbacks.consume(self.stream, count)

    def reset(self, code: int) -> None:
        assert self.stream is not None
        _callbacks.reset(self.stream, code, "a reset")
        self.gave_up = True


class Client(Heard):
    """The proxy's end of an exchange."""

    def __init__(self, side: Side, promised: int | None) -> None:
        super().__init__(side)
        self.promised = promised  # bytes still owed of a sized body
        self.written = bytearray()
        self.complete = False
        self.status = 0
        self.service: Service | None = None

    def head_received(self, stream: Stream, head: ResponseHead, interim: bool, end: bool) -> None:
        self.hears()
        assert not self.status and not interim and not self.received
        self.status = head.status

    def data_received(self, stream: Stream, data: bytes) -> None:
        assert self.status
        super().data_received(stream, data)

    def end_received(self, stream: Stream, trailers: Any) -> None:
        assert self.status
        super().end_received(stream, trailers)

    def write(self, count: int) -> None:
        assert self.stream is not None
        if self.promised is not None:
            count = min(count, self.promised)
            self.promised -= count
        while count and (room := _callbacks.room(self.stream)):
            part = PATTERN[len(self.written) :][: min(room, count)]
            self.written += part
            count -= len(part)
            _callbacks.write(self.stream, part)

    def finish(self) -> None:
        assert self.stream is not None
        if self.promised:
            self.write(self.promised)
        self.complete = True
        _callbacks.end(self.stream)


class Service(Heard):
    """The agent's end of an exchange, which does as its kind says."""

    def __init__(self, side: Side, kind: str, stream: Stream, complete: bool) -> None:
        super().__init__(side)
        self.kind = kind
        self.stream = stream
        self.had_no_body = complete
        self.answer: bytes | None = None

    def respond(self, size: int, *, announced: bool = False) -> None:
        """Sends a whole answer, or gives up where it can't be sent."""
        assert self.stream is not None
        head = ResponseHead(status=200, body=Body.SIZED if announced else Body.CHUNKED, length=size if announced else 0)
        try:
            _callbacks.respond(self.stream, head)
        except StreamError:
            self.reset(ErrorCode.TOO_LARGE)
            return
        self.answer = PATTERN[:size]
        for at in range(0, size, 65536):
            _callbacks.write(self.stream, self.answer[at : at + 65536])
        _callbacks.end(self.stream)

    def act(self, when: str) -> None:
        if self.kind == f"{when} answers":
            self.respond(70_000)
        elif self.kind == f"{when} errs":
            raise StreamError(ErrorCode.APP_ERROR, "on purpose")
        elif self.kind == f"{when} raises":
            raise ZeroDivisionError
        elif self.kind == f"{when} resets":
            self.reset(ErrorCode.APP_ERROR)

    def data_received(self, stream: Stream, data: bytes) -> None:
        first = not self.received
        super().data_received(stream, data)
        if first:
            self.act("data")

    def end_received(self, stream: Stream, trailers: Any) -> None:
        super().end_received(stream, trailers)
        self.act("end")

    @property
    def told(self) -> bool:
        """Whether it knows all that it will ever hear."""
        return bool(self.had_no_body or self.ended or self.resets or self.gave_up)


class Side(_callbacks.Owner):
    """One process: a session, its budget, and the frames on their way to it."""

    def __init__(self, is_proxy: bool, json: bool, streams: int, budget: int) -> None:
        self.clock = 1.0
        self.other: Side | None = None
        self.inbox: deque[tuple[int, bool, bytes]] = deque()
        self.message = bytearray()
        self.as_text = False
        self.clients: list[Client] = []  # the proxy's, by the number in their target
        self.services: list[Service] = []
        self.events = 0
        self.defects = 0
        self.congested = False
        self.over = False
        self.budget = WindowBudget(budget)
        hello = wire.hello(max_streams=streams)
        self.session = SeedSession(self, is_proxy, hello, self.budget, json, MAX_MESSAGE, 0 if is_proxy else LIMIT)

    def time(self) -> float:
        return self.clock

    def stream_accepted(self, stream: Stream, head: RequestHead, end: bool) -> Service | None:
        number, kind = head.target.decode().strip("/").split("?")
        service = Service(self, kind.replace("-", " "), stream, end)
        assert self.other is not None
        client = self.other.clients[int(number)]
        assert client.service is None
        if service.kind == "accept refuses":
            return None
        service.act("accept")
        self.services.append(service)
        client.service = service
        return service

    def notify_received(self, content_type: str, data: bytes) -> None:
        assert data == b"an event"
        self.events += 1

    def session_closed(self, code: int, message: str, close_code: int) -> None:
        raise AssertionError(message)

    def handler_failed(self, stream: Stream, error: Exception) -> None:
        assert isinstance(error, ZeroDivisionError)
        self.defects += 1

    def turn(self, limit: int, most: int = 1000) -> bool:
        """Sends what there is, as a carrier does in a turn of its loop."""
        assert self.other is not None
        count = 0
        while count < most and not self.congested and (frame := _callbacks.pull_frame(self.session, limit)):
            self.other.inbox.append(frame)
            count += 1
        _callbacks.end_turn(self.session)
        return count > 0

    def deliver(self) -> bool:
        if not self.inbox:
            return False
        opcode, last, payload = self.inbox.popleft()
        assert (opcode == 0) == bool(self.message), "a message begins where the one before has ended"
        if opcode:
            self.as_text = opcode == 1
        self.message += payload
        if last:
            message = bytes(self.message)
            self.message.clear()
            _callbacks.take(self.session, message, self.as_text)
        return True

    def congest(self, congested: bool) -> None:
        self.congested = congested
        _callbacks.set_congested(self.session, congested)

    def check(self) -> None:
        live = sum(heard.live for heard in (*self.clients, *self.services))
        # One that its answer is still on the way of counts, though its stream is closed.
        assert self.session.stream_count == live and self.session.opened == sum(each.live for each in self.clients)
        assert self.session.accepted >= sum(each.live for each in self.services)
        assert 0 <= _callbacks.budget_used(self.session) == self.budget.used_bytes <= self.budget.total_bytes


class TwoSeedSessions(RuleBasedStateMachine):
    @initialize(
        json=st.tuples(st.booleans(), st.booleans()),
        streams=st.integers(1, 6),
        budgets=st.tuples(*[st.sampled_from([0, 250_000, 1 << 26])] * 2),
    )
    def begin(self, json: Any, streams: int, budgets: Any) -> None:
        self.proxy = Side(True, json[0], streams, budgets[0])
        self.agent = Side(False, json[1], streams, budgets[1])
        self.proxy.other, self.agent.other = self.agent, self.proxy
        self.sides = [self.proxy, self.agent]
        self.notified = 0

    # --- choosing ---

    def writers(self) -> list[Client]:
        return [client for client in self.proxy.clients if client.live and not client.complete]

    def asked(self) -> list[Service]:
        """Services that may answer."""
        return [each for each in self.agent.services if each.live and each.answer is None and each.kind == "later"]

    def holding(self) -> list[Heard]:
        return [each for each in (*self.proxy.clients, *self.agent.services) if each.unconsumed]

    def living(self) -> list[Heard]:
        return [each for each in (*self.proxy.clients, *self.agent.services) if each.live]

    # --- rules ---

    @rule(which=st.integers(0, 1), limit=st.sampled_from([100, 5000, 65536]), most=st.sampled_from([1, 3, 1000]))
    def turn(self, which: int, limit: int, most: int) -> None:
        self.sides[which].turn(limit, most)

    @rule(which=st.integers(0, 1))
    def deliver(self, which: int) -> None:
        self.sides[which].deliver()

    @rule()
    def a_whole_turn(self) -> None:
        for side in self.sides:
            side.turn(65536)
        for side in self.sides:
            while side.deliver():
                pass

    @rule(which=st.integers(0, 1), congested=st.booleans())
    def congest(self, which: int, congested: bool) -> None:
        self.sides[which].congest(congested)

    @rule(seconds=st.sampled_from([0.1, 0.1, 6.0]))
    def time_passes(self, seconds: float) -> None:
        for side in self.sides:
            side.clock += seconds
            _callbacks.expire(side.session, side.clock)

    @rule(service=st.sampled_from(SERVICES), size=st.sampled_from([None, *SIZES]), end=st.booleans())
    def open(self, service: str, size: int | None, end: bool) -> None:
        """size: the length that is announced, None for a chunked body. end: without a body."""
        target = f"/{len(self.proxy.clients)}?{service.replace(' ', '-')}".encode()
        if end:
            head = RequestHead(method=b"GET", target=target)
        elif size is None:
            head = RequestHead(method=b"POST", target=target, body=Body.CHUNKED)
        else:
            head = RequestHead(method=b"POST", target=target, body=Body.SIZED, length=size)
        client = Client(self.proxy, None if end else size)
        could = _callbacks.can_open(self.proxy.session)
        try:
            stream = _callbacks.open_stream(self.proxy.session, head, client, end)
        except StreamError:
            assert size is not None and size > 65536
            return
        assert (stream is not None) == could
        if stream is not None:
            client.stream = stream
            client.complete = end
            self.proxy.clients.append(client)

    @precondition(lambda self: self.writers())
    @rule(draw=st.integers(0, 99), size=st.sampled_from(SIZES), end=st.booleans())
    def write(self, draw: int, size: int, end: bool) -> None:
        client = self.writers()[draw % len(self.writers())]
        client.write(size)
        if end and client.live:
            client.finish()

    @precondition(lambda self: self.asked())
    @rule(draw=st.integers(0, 99), size=st.sampled_from(SIZES), announced=st.booleans())
    def answer(self, draw: int, size: int, announced: bool) -> None:
        self.asked()[draw % len(self.asked())].respond(size, announced=announced)

    @precondition(lambda self: self.holding())
    @rule(draw=st.integers(0, 99))
    def consume(self, draw: int) -> None:
        self.holding()[draw % len(self.holding())].consume()

    @precondition(lambda self: self.living())
    @rule(draw=st.integers(0, 99), really=st.integers(0, 4))
    def reset(self, draw: int, really: int) -> None:
        if not really:
            self.living()[draw % len(self.living())].reset(ErrorCode.CANCEL)

    @rule(which=st.integers(0, 1))
    def notify(self, which: int) -> None:
        self.sides[which].session.notify("", b"an event")
        self.notified += 1

    # --- what must hold ---

    @invariant()
    def what_is_said_above_holds(self) -> None:
        for side in self.sides:
            side.check()
        for client in self.proxy.clients:
            service = client.service
            if service is None:
                continue
            assert client.written.startswith(service.received)
            if service.ended:
                assert client.complete and service.received == client.written
            if client.ended and service.answer is not None and client.status == 200:
                assert client.received == service.answer

    def settle(self) -> None:
        """Everything that can move moves."""
        for side in self.sides:
            side.congest(False)
        for _ in range(10_000):
            moved = False
            for side in self.sides:
                moved = side.turn(65536) or moved
                moved = side.deliver() or moved
            for each in self.holding():
                each.consume()
                moved = True
            if not moved:
                return
        raise AssertionError("it never comes to rest")

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        self.settle()
        for _ in range(2):
            for client in self.writers():
                client.finish()
            self.settle()
            for service in self.asked():
                service.respond(10)
            self.settle()
        self.time_passes(LIMIT + 1)  # for a service that does what it does on data, and got none
        self.settle()
        self.what_is_said_above_holds()
        for client in self.proxy.clients:
            assert not client.live and (client.ended or client.resets or client.gave_up)
        for service in self.agent.services:
            assert not service.live and service.told, service.kind
        for side in self.sides:
            assert side.session.stream_count == side.session.opened == side.session.accepted == 0
            assert side.budget.used_bytes == side.session.queued == 0 and not side.inbox
        assert sum(side.events for side in self.sides) == self.notified


TwoSeedSessions.TestCase.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTwoSeedSessions = TwoSeedSessions.TestCase


def drive(seed: int, steps: int) -> TwoSeedSessions:
    """Many random steps at once: what hypothesis builds up to only seldom, a busy session."""
    rng = random.Random(seed)
    machine = TwoSeedSessions()
    machine.begin(
        json=(rng.random() < 0.3, rng.random() < 0.3),
        streams=rng.choice([3, 10, 30]),
        budgets=(rng.choice([0, 250_000, 1 << 26]), rng.choice([250_000, 1 << 26])),
    )

    def draw() -> int:
        return rng.randrange(100)

    actions: list[tuple[int, Callable[[], object]]] = [
        (20, lambda: machine.turn(rng.randrange(2), rng.choice([100, 5000, 65536]), rng.choice([1, 1000]))),
        (20, lambda: machine.deliver(rng.randrange(2))),
        (15, lambda: machine.a_whole_turn()),
        (3, lambda: machine.congest(rng.randrange(2), rng.random() < 0.4)),
        (5, lambda: machine.time_passes(rng.choice([0.1, 6.0]))),
        (20, lambda: machine.open(rng.choice(SERVICES), rng.choice([None, *SIZES]), rng.random() < 0.3)),
        (20, lambda: machine.write(draw(), rng.choice(SIZES), rng.random() < 0.7) if machine.writers() else None),
        (20, lambda: machine.answer(draw(), rng.choice(SIZES), rng.random() < 0.5) if machine.asked() else None),
        (20, lambda: machine.consume(draw()) if machine.holding() else None),
        (2, lambda: machine.reset(draw(), 0) if machine.living() else None),
        (2, lambda: machine.notify(rng.randrange(2))),
    ]
    weights = [weight for weight, _ in actions]
    for action in rng.choices([action for _, action in actions], weights, k=steps):
        action()
        machine.what_is_said_above_holds()
    machine.teardown()
    return machine


def test_busy_sessions_drain_after_any_interleaving_and_take_every_way() -> None:
    """The second half: without it the tests above could pass by doing nothing."""
    machines = [drive(seed, 300) for seed in range(30)]
    clients = [client for machine in machines for client in machine.proxy.clients]
    services = [service for machine in machines for service in machine.agent.services]
    assert sum(len(each.received) for each in services) > 2_000_000
    assert sum(len(client.received) for client in clients) > 2_000_000
    assert {200, 502, 503} <= {client.status for client in clients}
    assert sum(client.ended for client in clients) > 200 and sum(bool(client.resets) for client in clients) > 20
    ways = Counter((each.kind, each.resets[0] if each.resets else None) for each in services)
    for way in (
        ("accept answers", ErrorCode.NO_ERROR),
        ("data answers", ErrorCode.NO_ERROR),
        ("data errs", ErrorCode.APP_ERROR),
        ("data raises", ErrorCode.INTERNAL),
        ("end raises", ErrorCode.INTERNAL),
        ("later", ErrorCode.TOO_LARGE),
        ("data errs", ErrorCode.TIMEOUT),
    ):
        assert ways[way], (way, ways)
    assert sum(side.defects for machine in machines for side in machine.sides) > 20


@pytest.mark.parametrize("wrong", [_callbacks.end, lambda stream: _callbacks.write(stream, b"x")])
def test_a_body_before_its_head_is_the_services_fault(wrong: Callable[[Stream], None]) -> None:
    machine = TwoSeedSessions()
    machine.begin((False, False), 6, (1 << 26, 1 << 26))
    machine.open("later", None, True)
    machine.a_whole_turn()
    (service,) = machine.agent.services
    assert service.stream is not None
    with pytest.raises(StreamError) as raised:
        wrong(service.stream)
    assert raised.value.code == ErrorCode.INTERNAL and service.live
    service.respond(5)
    machine.settle()
    assert machine.proxy.clients[0].status == 200


# --- what ends all of them at once ---


def test_streams_hear_of_a_session_that_is_lost_whatever_they_wait_for() -> None:
    machine = TwoSeedSessions()
    machine.begin((False, False), 6, (1 << 26, 1 << 26))
    for service in ("later", "accept answers", "data answers"):
        machine.open(service, 200_000, False)
    for client in machine.writers():
        client.finish()
    machine.a_whole_turn()
    machine.sides[1].turn(65536)
    machine.open("later", None, False)
    for side in machine.sides:
        side.session.lost()
    for client in machine.proxy.clients:
        assert client.resets == [ErrorCode.SESSION_LOST] or client.resets == [ErrorCode.REFUSED]
    assert [client.resets for client in machine.proxy.clients][-1] == [ErrorCode.REFUSED]
    assert all(service.told for service in machine.agent.services) and machine.agent.services
    for side in machine.sides:
        side.check()
        assert side.budget.used_bytes == 0 and _callbacks.pull_frame(side.session) is None


def test_a_session_that_is_closed_sends_nothing_more() -> None:
    closed: list[str] = []

    class Owner(Side):
        def session_closed(self, code: int, message: str, close_code: int) -> None:
            closed.append(message)

    side = Owner(True, False, 5, 1 << 20)
    side.session.notify("", b"an event")
    side.session.close(0, "over")
    assert closed == ["over"] and _callbacks.pull_frame(side.session) is None
    with pytest.raises(StreamError) as raised:
        side.session.notify("", b"too late")
    assert raised.value.code == ErrorCode.REFUSED
