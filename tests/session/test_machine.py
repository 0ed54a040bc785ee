"""Two sessions joined by two queues of messages, in whatever interleaving hypothesis thinks of.

What must hold at every moment: bytes arrive whole and in order; nobody holds more than it granted and nobody
sends more than it was granted, in grants of some size; the budget is the sum of what windows grew by; a cut answer
never looks complete.
And at the end, once everything may move again: every stream ends, every table is empty, nothing waits for ever.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from backstream import _callbacks
from backstream._flow import WindowBudget
from backstream._messages import Fields, RequestHead, ResponseHead
from backstream._session import Session
from backstream._stream import Stream
from backstream.errors import ErrorCode
from tests.session import wire
from tests.session.wire import DATA, WINDOW, KiB

PATTERN = bytes(range(251)) * 900
OPENINGS = ["get", "chunked", "sized", "upgrade", "head"]
ANSWERS = ["chunked", "sized", "switch", "empty", "interim"]


class Source:
    """Writes one direction of a stream as a good source does: no more than there is room for."""

    def __init__(self, stream: Stream, promised: int | None, offset: int) -> None:
        self.stream = stream
        self.promised = promised  # bytes still owed of a sized body
        self.offset = offset
        self.backlog = 0
        self.written = bytearray()
        self.wants_end = False
        self.trailers: Fields = ()
        self.ended = False

    def add(self, count: int) -> None:
        if self.promised is not None:
            count = min(count, self.promised)
            self.promised -= count
        if not self.wants_end:
            self.backlog += count
            self.pump()

    def finish(self, trailers: Fields = ()) -> None:
        if not self.wants_end:
            self.add(self.promised or 0)
            self.wants_end, self.trailers = True, trailers
            self.pump()

    def pump(self) -> None:
        while self.backlog and (room := _callbacks.room(self.stream)):
            at = (self.offset + len(self.written)) % 251
            part = PATTERN[at : at + min(room, self.backlog)]
            self.backlog -= len(part)
            self.written += part
            _callbacks.write(self.stream, part)
        if self.wants_end and not self.backlog and not self.ended and not _callbacks.is_closed(self.stream):
            self.ended = True
            _callbacks.end(self.stream, self.trailers)

    @property
    def idle(self) -> bool:
        """Whether it has nothing left to do."""
        return _callbacks.is_closed(self.stream) or (not self.backlog and self.ended == self.wants_end)


class Peer(_callbacks.Handler):
    """One side's view of one exchange."""

    def __init__(self, side: Side, exchange: Exchange | None = None) -> None:
        self.side = side
        self.exchange = exchange
        self.stream: Stream | None = None
        self.source: Source | None = None
        self.received = bytearray()
        self.unconsumed = 0
        self.ended = False
        self.trailers: Fields = ()
        self.over = False  # on_reset came
        self.switched = False

    def head_received(self, stream: Stream, head: ResponseHead, interim: bool, end: bool) -> None:
        assert not self.ended and not self.over
        if interim:
            return
        exchange = self.exchange
        assert exchange is not None
        if exchange.head.upgrade:
            assert self.source is not None
            if head.status == 101:
                self.switched = True
            else:
                self.source.finish()

    def data_received(self, stream: Stream, data: bytes) -> None:
        assert not self.ended and not self.over and data
        self.received += data
        self.unconsumed += len(data)

    def end_received(self, stream: Stream, trailers: Fields) -> None:
        assert not self.ended and not self.over
        self.ended = True
        self.trailers = trailers

    def reset_received(self, stream: Stream, code: int, message: str) -> None:
        assert not self.over
        self.over = True

    def writable(self, stream: Stream) -> None:
        if self.source is not None:
            self.source.pump()

    @property
    def closed(self) -> bool:
        return self.stream is None or _callbacks.is_closed(self.stream)

    def consume(self, count: int) -> None:
        if count and self.stream is not None:
            self.unconsumed -= count
            _callbacks.consume(self.stream, count)


class Exchange:
    """One stream, seen from both sides."""

    def __init__(self, head: RequestHead, opener: Peer) -> None:
        self.head = head
        self.opener = opener
        self.server: Peer | None = None
        self.answered = False

    def peers(self) -> list[Peer]:
        return [self.opener] + ([self.server] if self.server else [])


class Side(_callbacks.Owner):
    """One process: a session, its budget, and the messages on their way to it."""

    def __init__(self, is_proxy: bool, hello: Any, budget: int, max_window: int) -> None:
        self.clock = 1.0
        self.inbox: deque[bytes] = deque()
        self.exchanges: dict[int, Exchange] = {}  # both sides' by id, shared with the other side
        self.other: Side | None = None
        self.budget = WindowBudget(budget)
        self.initial = hello.initial_window
        self.sent: dict[int, int] = {}  # DATA bytes by stream
        self.granted: dict[int, int] = {}  # by WINDOW frames that have reached this side
        self.congested = False
        self.over: object = None
        self.session = Session(self, is_proxy, hello, self.budget, max_window, max_window)

    def time(self) -> float:
        return self.clock

    def stream_accepted(self, stream: Stream, head: RequestHead, end: bool) -> Peer:
        exchange = self.exchanges[stream.id]
        peer = Peer(self, exchange)
        peer.stream = stream
        assert head == exchange.head and exchange.server is None
        exchange.server = peer
        return peer

    def session_closed(self, code: int, message: str, close_code: int) -> None:
        self.over = (code, message, close_code)

    # --- the transport ---

    def flush(self, limit: int = 256 * KiB) -> bool:
        assert self.other is not None
        if self.congested:
            return False
        message = _callbacks.pull(self.session, limit)
        if not message:
            return False
        assert len(message) <= 256 * KiB
        for f in wire.frames_of(message):
            if f.type == DATA:
                self.sent[f.stream] = self.sent.get(f.stream, 0) + len(f.payload)
        self.other.inbox.append(message)
        return True

    def deliver(self) -> bool:
        assert self.other is not None
        if not self.inbox:
            return False
        message = self.inbox.popleft()
        for f in wire.frames_of(message):
            if f.type == WINDOW:
                # Smaller ones cost the peer as much as large ones, and are a flood where there are many.
                assert f.value >= min(8192, -(-self.other.initial // 2))
                self.granted[f.stream] = self.granted.get(f.stream, 0) + f.value
        _callbacks.receive(self.session, message)
        return True

    def congest(self, congested: bool) -> None:
        self.congested = congested
        _callbacks.set_congested(self.session, congested)

    # --- what must hold ---

    def check(self) -> None:
        assert self.over is None, self.over
        assert self.other is not None
        grown = live = 0
        for number, exchange in self.exchanges.items():
            for peer in exchange.peers():
                if peer.side is not self:
                    continue
                if not peer.closed:
                    live += 1
                    assert peer.stream is not None
                    window, credit, queued, ungranted = _callbacks.window(peer.stream)
                    assert credit + queued + ungranted == window
                    # A window that was halved takes its part back from what is consumed next.
                    assert min(credit, queued) >= 0 and ungranted >= -window
                    held = _callbacks.budget_bytes(peer.stream)
                    assert queued == peer.unconsumed <= credit + queued <= self.initial + held
                    assert window <= self.initial + held
                    grown += held
            allowed = self.other.initial + self.granted.get(number, 0)
            assert self.sent.get(number, 0) <= allowed
        assert self.session.stream_count == live
        assert self.session.opened + self.session.accepted == live
        assert _callbacks.budget_used(self.session) == self.budget.used_bytes == grown <= self.budget.total_bytes


def check_bytes(exchange: Exchange) -> None:
    if exchange.server is None:
        return
    for sender, receiver in ((exchange.opener, exchange.server), (exchange.server, exchange.opener)):
        written = sender.source.written if sender.source else b""
        assert written.startswith(receiver.received)
        if receiver.ended:
            assert sender.source is None or (sender.source.ended and receiver.received == written)
            assert receiver.trailers == (sender.source.trailers if sender.source else ())


class TwoSessions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sides: list[Side] = []
        self.exchanges: dict[int, Exchange] = {}

    @initialize(
        windows=st.tuples(*[st.sampled_from([512, 1000, 16384, 65536])] * 2),
        frames=st.tuples(*[st.sampled_from([16384, 65536, 131072])] * 2),
        streams=st.tuples(*[st.integers(1, 6)] * 2),
        budgets=st.tuples(*[st.sampled_from([0, 5000, 200_000, 1 << 28])] * 2),
        greeted=st.sampled_from([True, True, True, False]),
    )
    def begin(self, windows: Any, frames: Any, streams: Any, budgets: Any, greeted: bool) -> None:
        for i in range(2):
            hello = wire.hello(initial_window=windows[i], max_frame_size=frames[i], max_streams=streams[i])
            self.sides.append(Side(i == 0, hello, budgets[i], 256 * KiB))
        self.sides[0].other, self.sides[1].other = self.sides[1], self.sides[0]
        for side in self.sides:
            side.exchanges = self.exchanges
            if greeted:
                side.flush()
        if greeted:
            for side in self.sides:
                side.deliver()

    # --- choosing ---

    def pick(self, draw: int, peers: list[Peer]) -> Peer | None:
        return peers[draw % len(peers)] if peers else None

    def live(self) -> list[Peer]:
        return [peer for exchange in self.exchanges.values() for peer in exchange.peers() if not peer.closed]

    def sources(self) -> list[Peer]:
        """Peers that may write now."""
        return [
            peer
            for peer in self.live()
            if peer.source is not None
            and not peer.source.wants_end
            and (not self.exchange_of(peer).head.upgrade or peer is self.exchange_of(peer).server or peer.switched)
        ]

    def exchange_of(self, peer: Peer) -> Exchange:
        assert peer.exchange is not None
        return peer.exchange

    def unanswered(self) -> list[Peer]:
        return [
            exchange.server
            for exchange in self.exchanges.values()
            if exchange.server is not None and not exchange.server.closed and not exchange.answered
        ]

    # --- rules: the network ---

    @rule(which=st.integers(0, 1), limit=st.sampled_from([50, 5000, 32 * KiB, 256 * KiB]))
    def flush(self, which: int, limit: int) -> None:
        self.sides[which].flush(limit)

    @rule(which=st.integers(0, 1))
    def deliver(self, which: int) -> None:
        self.sides[which].deliver()

    @rule()
    def a_whole_turn(self) -> None:
        for side in self.sides:
            while side.flush():
                pass
        for side in self.sides:
            while side.deliver():
                pass

    @rule(which=st.integers(0, 1), congested=st.booleans())
    def congest(self, which: int, congested: bool) -> None:
        self.sides[which].congest(congested)

    @rule(seconds=st.sampled_from([0.001, 0.03, 1.0]), round_trip=st.sampled_from([0.0, 0.001, 0.1]))
    def time_passes(self, seconds: float, round_trip: float) -> None:
        for side in self.sides:
            side.clock += seconds
            side.session.round_trip = round_trip

    # --- rules: streams ---

    @rule(
        which=st.integers(0, 1),
        kind=st.sampled_from(OPENINGS),
        length=st.integers(0, 60_000),
    )
    def open(self, which: int, kind: str, length: int) -> None:
        side = self.sides[which]
        head = {
            "get": wire.GET,
            "head": wire.HEAD,
            "chunked": wire.POST,
            "sized": wire.post(length),
            "upgrade": wire.UPGRADE,
        }[kind]
        peer = Peer(side)
        over = kind in ("get", "head")
        could = _callbacks.can_open(side.session)
        stream = _callbacks.open_stream(side.session, head, peer, over)
        assert (stream is not None) == could
        if stream is None:
            return
        peer.stream = stream
        peer.exchange = self.exchanges[stream.id] = Exchange(head, peer)
        if not over:
            peer.source = Source(stream, length if kind == "sized" else None, stream.id)

    @precondition(lambda self: self.unanswered())
    @rule(
        draw=st.integers(0, 99),
        kind=st.sampled_from(ANSWERS),
        length=st.integers(0, 90_000),
        end=st.booleans(),
    )
    def respond(self, draw: int, kind: str, length: int, end: bool) -> None:
        peer = self.pick(draw, self.unanswered())
        if peer is None or peer.stream is None:
            return
        exchange = self.exchange_of(peer)
        if kind == "interim":
            for _ in range(1 if not exchange.answered else 0):
                self.interim(peer)
            return
        exchange.answered = True
        if kind == "switch" and exchange.head.upgrade:
            peer.source = Source(peer.stream, None, 100)
            _callbacks.respond(peer.stream, wire.SWITCH)
        elif kind == "empty" or exchange.head.method == b"HEAD":
            head = wire.sized(length) if exchange.head.method == b"HEAD" else wire.EMPTY
            _callbacks.respond(peer.stream, head, True)
        elif kind == "sized":
            peer.source = Source(peer.stream, length, 100)
            _callbacks.respond(peer.stream, wire.sized(length))
        else:
            peer.source = Source(peer.stream, None, 100)
            peer.source.wants_end = peer.source.ended = end
            _callbacks.respond(peer.stream, wire.OK, end)

    def interim(self, peer: Peer) -> None:
        count = getattr(peer, "interims", 0)
        if count < 16 and peer.stream is not None:
            peer.interims = count + 1  # type: ignore[attr-defined]
            _callbacks.respond(peer.stream, wire.CONTINUE)

    @precondition(lambda self: self.sources())
    @rule(draw=st.integers(0, 99), count=st.one_of(st.integers(0, 300), st.integers(0, 100_000)))
    def write(self, draw: int, count: int) -> None:
        peer = self.pick(draw, self.sources())
        if peer is not None and peer.source is not None:
            peer.source.add(count)

    @precondition(lambda self: self.sources())
    @rule(draw=st.integers(0, 99), trailers=st.booleans(), really=st.integers(0, 2))
    def end(self, draw: int, trailers: bool, really: int) -> None:
        peer = self.pick(draw, self.sources())
        if not really and peer is not None and peer.source is not None:
            upgraded = self.exchange_of(peer).head.upgrade
            peer.source.finish(((b"x-sum", b"1"), (b"a", b"")) if trailers and not upgraded else ())

    @precondition(lambda self: any(peer.unconsumed for peer in self.live()))
    @rule(draw=st.integers(0, 99), percent=st.integers(1, 100))
    def consume(self, draw: int, percent: int) -> None:
        peer = self.pick(draw, [p for p in self.live() if p.unconsumed])
        if peer is not None:
            peer.consume(-(-peer.unconsumed * percent // 100))

    @precondition(lambda self: self.live())
    @rule(
        draw=st.integers(0, 99),
        really=st.integers(0, 4),
        code=st.sampled_from([ErrorCode.CANCEL, ErrorCode.TIMEOUT, ErrorCode.INTERNAL, ErrorCode.NO_ERROR]),
    )
    def reset(self, draw: int, really: int, code: int) -> None:
        peer = self.pick(draw, self.live())
        if not really and peer is not None and peer.stream is not None:
            _callbacks.reset(peer.stream, code, "a reset")

    @rule(which=st.integers(0, 1), really=st.integers(0, 9))
    def go_away(self, which: int, really: int) -> None:
        if not really:  # seldom: little can be opened after it
            self.sides[which].session.go_away()

    # --- rules: what must move ---

    def settle(self, stalled: Peer | None = None) -> None:
        """Everything that can move moves, but the consumer of `stalled`."""
        for side in self.sides:
            side.congest(False)
        for _ in range(10_000):
            moved = False
            for side in self.sides:
                moved = side.flush() or moved
                moved = side.deliver() or moved
            for peer in self.live():
                if peer is not stalled and peer.unconsumed:
                    peer.consume(peer.unconsumed)
                    moved = True
            for side in self.sides:
                side.clock += 0.001
            if not moved:
                return
            for side in self.sides:
                side.check()
        raise AssertionError("it never comes to rest")

    @precondition(lambda self: len(self.live()) > 1)
    @rule(draw=st.integers(0, 99))
    def a_stalled_stream_never_stops_its_neighbours(self, draw: int) -> None:
        stalled = self.pick(draw, self.live())
        assert stalled is not None
        self.settle(stalled)
        for exchange in self.exchanges.values():
            if stalled in exchange.peers():
                continue
            for peer in exchange.peers():
                if peer.source is not None and not peer.closed:
                    assert peer.source.idle
                    far = exchange.server if peer is exchange.opener else exchange.opener
                    assert far is not None and not far.closed
                    assert far.received == peer.source.written
                    assert far.ended == peer.source.ended

    # --- invariants ---

    @invariant()
    def what_is_said_above_holds(self) -> None:
        for side in self.sides:
            side.check()
        for exchange in self.exchanges.values():
            check_bytes(exchange)

    def teardown(self) -> None:
        if not self.sides:
            return
        self.settle()
        # Sources come to their end, services answer; then all has to drain.
        for _ in range(3):
            for peer in self.unanswered():
                exchange = self.exchange_of(peer)
                assert peer.stream is not None
                exchange.answered = True
                peer.source = Source(peer.stream, None, 100)
                peer.source.wants_end = peer.source.ended = True
                _callbacks.respond(peer.stream, wire.EMPTY, True)
            for peer in self.sources():
                assert peer.source is not None
                peer.source.finish()
            self.settle()
        for exchange in self.exchanges.values():
            check_bytes(exchange)
            for peer in exchange.peers():
                assert peer.closed
                assert peer.source is None or peer.source.idle
        for side in self.sides:
            side.check()
            assert side.session.stream_count == side.session.opened == side.session.accepted == 0
            assert side.budget.used_bytes == 0
            assert not side.inbox and _callbacks.pull(side.session) == b""


TwoSessions.TestCase.settings = settings(
    max_examples=100, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTwoSessions = TwoSessions.TestCase


def drive(seed: int, steps: int) -> TwoSessions:
    """Many random steps at once: what hypothesis builds up to only seldom, a busy session."""
    rng = random.Random(seed)
    machine = TwoSessions()

    def pair(values: list[int]) -> tuple[int, int]:
        return rng.choice(values), rng.choice(values)

    machine.begin(
        windows=pair([512, 1000, 16384, 65536]),
        frames=pair([16384, 65536, 131072]),
        streams=pair([3, 10, 30]),
        budgets=pair([0, 5000, 200_000, 1 << 28]),
        greeted=rng.random() < 0.8,
    )

    def draw() -> int:
        return rng.randrange(100)

    def side() -> int:
        return rng.randrange(2)

    actions: list[tuple[int, Callable[[], None]]] = [
        (20, lambda: machine.flush(which=side(), limit=rng.choice([50, 5000, 32 * KiB, 256 * KiB]))),
        (20, lambda: machine.deliver(which=side())),
        (10, lambda: machine.a_whole_turn()),
        (3, lambda: machine.congest(which=side(), congested=rng.random() < 0.4)),
        (
            3,
            lambda: machine.time_passes(seconds=rng.choice([0.001, 0.03]), round_trip=rng.choice([0.0, 0.1])),
        ),
        (15, lambda: machine.open(which=side(), kind=rng.choice(OPENINGS), length=rng.randrange(60_000))),
        (
            15,
            lambda: machine.respond(
                draw=draw(), kind=rng.choice(ANSWERS), length=rng.randrange(90_000), end=rng.random() < 0.1
            ),
        ),
        (25, lambda: machine.write(draw=draw(), count=rng.choice([1, 300, 5000, 100_000]))),
        (8, lambda: machine.end(draw=draw(), trailers=rng.random() < 0.3, really=0)),
        (25, lambda: machine.consume(draw=draw(), percent=rng.choice([1, 50, 100]))),
        (2, lambda: machine.reset(draw=draw(), really=0, code=rng.choice([0, 2, 8, 32]))),
        (
            1,
            lambda: machine.a_stalled_stream_never_stops_its_neighbours(draw=draw()) if machine.live() else None,
        ),
    ]
    weights = [weight for weight, _ in actions]
    for step, (_, action) in enumerate(rng.choices(actions, weights, k=steps)):
        action()
        if step % 4 == 0:
            machine.what_is_said_above_holds()
        if step == steps - 20 and seed % 3 == 0:
            machine.go_away(which=side(), really=0)
    machine.teardown()
    return machine


@pytest.mark.parametrize("seed", range(40))
def test_a_busy_session_drains_after_any_interleaving(seed: int) -> None:
    machine = drive(seed, steps=500)
    assert machine.exchanges


def test_busy_sessions_take_every_way() -> None:
    """Without this the tests above could pass by doing nothing."""
    peers = [peer for seed in range(40) for it in drive(seed, 500).exchanges.values() for peer in it.peers()]
    assert sum(len(peer.received) for peer in peers) > 10_000_000
    assert sum(peer.ended for peer in peers) > 500
    assert sum(peer.over for peer in peers) > 100
    assert sum(bool(peer.trailers) for peer in peers) > 50
    assert sum(peer.switched for peer in peers) > 20
