"""The settings of a session."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from backstream.config._options import SESSIONS, check, option
from backstream.config._units import KiB, MiB, format_duration, format_size
from backstream.errors import ConfigurationError

MAX_WINDOW: Final = 2**31 - 1
"""The largest credit that a WINDOW frame can carry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """What holds inside one session, the WebSocket between an agent and a proxy; the same on both sides."""

    initial_window: int = field(
        default=64 * KiB,
        metadata=option(
            "size",
            SESSIONS,
            "Bytes of a new stream's body that the peer may send before they are read.",
            least=1,
            most=MAX_WINDOW,
        ),
    )
    """Bytes of credit per stream and direction at its start. Small enough that a thousand stalled streams
    cost 64 MiB, large enough that most bodies fit at once."""

    max_window: int = field(
        default=16 * MiB,
        metadata=option("size", SESSIONS, "How far the window of a fast stream may grow.", least=1, most=MAX_WINDOW),
    )
    """Bytes. 16 MiB fill 1 Gbit/s at a round trip of 130 ms."""

    upgraded_max_window: int = field(
        default=MiB,
        metadata=option(
            "size", SESSIONS, "How far the window of an upgraded stream may grow.", least=1, most=MAX_WINDOW
        ),
    )
    """Bytes. Upgraded streams (WebSockets) are many, long-lived and seldom bulk."""

    window_budget: int = field(
        default=256 * MiB,
        metadata=option("size", SESSIONS, "Memory that all grown windows of this process share."),
    )
    """Bytes. When it is spent, streams stay at `initial_window`; 0 lets none grow."""

    max_frame_size: int = field(
        default=64 * KiB,
        metadata=option("size", SESSIONS, "Largest DATA frame that the peer may send.", least=16 * KiB, most=128 * KiB),
    )
    """Bytes of payload, 16 to 128 KiB. Larger frames cost fewer calls, smaller ones hold up neighbours
    less."""

    max_streams: int = field(
        default=1000,
        metadata=option("count", SESSIONS, "Requests that may be open at once on one session."),
    )
    """Streams. An agent takes no more; a proxy opens no more, whatever its agents would take."""

    ping_interval: float = field(
        default=10.0,
        metadata=option("duration", SESSIONS, "How often the peer is pinged.", above_zero=True),
    )
    """Seconds. Often enough to keep NAT and firewall entries alive (the shortest usual ones last 30 s)."""

    ping_timeout: float = field(
        default=21.0,
        metadata=option("duration", SESSIONS, "Silence after which the peer counts as dead.", above_zero=True),
    )
    """Seconds without a byte, more than `ping_interval`. Two pings and a little may be lost."""

    hello_timeout: float = field(
        default=5.0,
        metadata=option("duration", SESSIONS, "How long to wait for the peer's first frame (HELLO).", above_zero=True),
    )
    """Seconds. The frame follows the handshake directly; a peer that takes longer is none."""

    message_timeout: float = field(
        default=10.0,
        metadata=option(
            "duration", SESSIONS, "How long to wait for the rest of a fragmented message.", above_zero=True
        ),
    )
    """Seconds from a WebSocket message's first fragment to its last, so that nobody holds 256 KiB for
    ever."""

    wire: str = field(
        default="auto",
        metadata=option(
            "text",
            SESSIONS,
            "What to speak: auto is the native wire where the peer takes it, else that of the original.",
            metavar="auto|native|seed",
            choices=("auto", "native", "seed"),
        ),
    )
    """A proxy on auto takes agents of both kinds on one port; an agent falls back. `native` refuses the seed wire,
    which is the original implementation's, `seed` speaks nothing else."""

    seed_codec: str = field(
        default="proto",
        metadata=option(
            "text",
            SESSIONS,
            "Encoding on the seed wire until the peer has spoken; it is followed from then on.",
            metavar="proto|json",
            choices=("proto", "json"),
        ),
    )
    """Nothing in the handshake tells it, and the proxy speaks first, so it has to know what its agents are set to."""

    seed_max_message: int = field(
        default=10 * MiB,
        metadata=option(
            "size",
            SESSIONS,
            "Largest message on the seed wire, which holds a whole body.",
            least=64 * KiB,
            most=10 * MiB,
        ),
    )
    """Bytes. Peers of the original take 10 MiB; in JSON a body takes up 16/9 of its size."""

    seed_budget: int = field(
        default=256 * MiB,
        metadata=option(
            "size",
            SESSIONS,
            "Memory that all bodies on the seed wire share, beyond 64KiB each.",
            least=256 * KiB,
        ),
    )
    """Bytes, at least four times `seed_max_message`: one session gets at most a quarter while others hold some."""

    def __post_init__(self) -> None:
        check(self)
        if self.seed_budget < 4 * self.seed_max_message:
            raise ConfigurationError(
                f"seed_budget ({format_size(self.seed_budget)}) must be at least four times seed_max_message "
                f"({format_size(self.seed_max_message)})"
            )
        if self.initial_window > self.max_window:
            raise ConfigurationError(
                f"initial_window ({format_size(self.initial_window)}) must not be more than max_window "
                f"({format_size(self.max_window)})"
            )
        if self.ping_timeout <= self.ping_interval:
            raise ConfigurationError(
                f"ping_timeout ({format_duration(self.ping_timeout)}) must be more than ping_interval "
                f"({format_duration(self.ping_interval)})"
            )


def check_session(session: object) -> None:
    if not isinstance(session, SessionSettings):
        raise ConfigurationError(f"session must be a SessionSettings, not {session!r}")
