"""The table of raw cases: what a row says, and whether what was seen is an outcome that it allows.

The rows are the TOML files in `table/`, one for each kind; their form is described in `table/README.md`. Nothing here
knows sockets: `play.py` plays a row through a tunnel and fills in a `Seen`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig import ID, Message

FOLDER = Path(__file__).parent / "table"

US = f"Host: svc.example\r\nx-backstream-client-id: {ID}\r\n"
REFUSALS = [*range(400, 432), 501, 505]
"""What may be said to a request that goes nowhere."""

POISON = b"POISON"
"""Stands in bytes that are no part of any answer: no client may ever see it."""

Step = str | dict[str, Any]
Outcome = dict[str, Any]

NAMED: dict[str, Outcome] = {
    "served": {"status": [200], "upstream": 1},
    "refused": {"status": REFUSALS, "heads": 0, "answers": 1},
    "broken": {"status": [0, *REFUSALS], "upstream": 0, "max_answers": 1},
    "closed": {"status": [0], "upstream": 0},
    "cut": {"status": [0, 200], "cut": True},
}

STEPS = {"bytes", "client", "upstream", "pause", "end", "hold", "gone", "reused"}
OUTCOME_KEYS = {
    *(
        "status",
        "answers",
        "max_answers",
        "body",
        "cut",
        "pending",
        "has",
        "lacks",
        "matches",
        "version",
        "interim",
        "closed",
    ),
    *("upstream", "heads", "max_heads", "got", "method", "target", "passes", "drops", "trailers", "once"),
}


@dataclass
class Row:
    """One case: what the client sends, what the upstream answers, and the outcomes that the rules allow."""

    id: str
    kind: str
    rule: str
    allow: list[Outcome]
    send: list[Step]
    answer: list[Step] | None = None
    early: bool = False
    keeps: bool = False
    closes: bool = False
    probe: bool = True
    alone: bool = False
    rounds: int = 1
    methods: list[str] = field(default_factory=list)

    def expand(self, text: str, index: int = 0) -> bytes:
        """The bytes that a text of this row stands for."""
        poison = f"{POISON.decode()} of {self.id}"
        for name, value in {
            "{more}": "GET /{row}/more HTTP/1.1\r\n{us}\r\n",
            "{poison}": f"HTTP/1.1 200 OK\r\nX-Evil: {poison}\r\nContent-Length: {len(poison)}\r\n\r\n{poison}",
            "{us}": US,
            "{id}": f"x-backstream-client-id: {ID}\r\n",
            "{row}": self.id,
            "{round}": str(index),
        }.items():
            text = text.replace(name, value)
        text = re.sub(r"\{([^{}]+)\*(\d+)\}", lambda m: _times(m[1], int(m[2])), text, flags=re.S)
        return text.encode("latin-1")


def _times(text: str, count: int) -> str:
    if text == "bytes":
        return "".join(map(chr, range(256))) * count
    if "#" in text:
        return "".join(text.replace("#", str(number)) for number in range(count))
    return text * count


def load() -> list[Row]:
    """Every row of every file. Raises ValueError where one is not as `table/README.md` says."""
    rows = [row for path in sorted(FOLDER.glob("*.toml")) for row in _load_file(path)]
    ids = [row.id for row in rows]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise ValueError(f"rows of one id: {sorted(twice)}")
    return rows


def _load_file(path: Path) -> Iterator[Row]:
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["row"]:
        try:
            yield _row(path.stem, entry)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path.name}, row {entry.get('id')}: {error}") from error


def _row(kind: str, entry: dict[str, Any]) -> Row:
    if not re.fullmatch(r"[a-z0-9-]+", entry["id"]):
        raise ValueError("an id is made of a-z, 0-9 and -")
    entry.setdefault("send", "GET /{row} HTTP/1.1\r\n{us}\r\n")
    for name in ("send", "answer"):
        if isinstance(entry.get(name), str):
            entry[name] = [entry[name]]
        for step in entry.get(name, ()):
            if not isinstance(step, str) and (len(step) != 1 or not step.keys() <= STEPS):
                raise ValueError(f"no step: {step}")
    if "methods" not in entry:
        first = next(text for step in entry["send"] if (text := step if isinstance(step, str) else step.get("bytes")))
        entry["methods"] = [first.split(" ")[0]]
    allow = entry.pop("allow")
    outcomes = [_outcome(each) for each in (allow if isinstance(allow, list) else [allow])]
    for outcome in outcomes:
        if (
            "answer" in entry
            and outcome["status"] == [200]
            and not {"body", "cut", "pending", "answers"} & outcome.keys()
        ):
            raise ValueError("an outcome with the upstream's answer says its body")
    if "rule" not in entry or not re.match(r"(RFC \d{4}|Ours|CVE|CWE)", entry["rule"]):
        raise ValueError("a rule begins with its RFC and section, a CVE or CWE, or with Ours")
    return Row(kind=kind, allow=outcomes, **entry)


def _outcome(said: int | str | Outcome) -> Outcome:
    if isinstance(said, int):
        own: Outcome = {"status": [said], "answers": 1}
        return own | {"heads": 0} if said < 500 or said in (501, 505) else own
    if isinstance(said, str):
        return NAMED[said]
    if not said.keys() <= OUTCOME_KEYS:
        raise ValueError(f"an outcome knows no {sorted(said.keys() - OUTCOME_KEYS)}")
    outcome = {"status": [200], "upstream": 1} | said
    if not isinstance(outcome["status"], list):
        outcome["status"] = [outcome["status"]]
    return outcome


@dataclass
class Seen:
    """What came of a row."""

    answers: list[Message] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    requests: list[Message] = field(default_factory=list)
    """At the upstream, whole or not."""
    closed: bool = False
    probed: bool = False
    """A further request on the same connection was answered."""
    pending: bool = False
    raw: bytes = b""
    wrong: list[str] = field(default_factory=list)
    """What no row allows."""

    def __str__(self) -> str:
        answers = [f"{m.status}{'' if m.complete else ' cut'} {m.body[:40]!r}" for m in self.answers]
        requests = [f"{m.start.decode('latin-1')[:60]}{'' if m.complete else ' (cut)'}" for m in self.requests]
        return (
            f"answers {answers}, interim {self.interim[:8]}, "
            f"{'closed' if self.closed else 'kept' if self.probed else 'left'}, upstream got {requests}"
        )


def verdict(row: Row, seen: Seen) -> str:
    """Why the row does not hold; empty where it does."""
    wrong = list(seen.wrong)
    if row.keeps and not seen.probed:
        wrong.append("the connection should have been kept")
    if row.closes and not seen.closed:
        wrong.append("the connection should have been closed")
    whys = [misfit(row, outcome, seen) for outcome in row.allow]
    if all(whys):
        wrong.append(" | ".join(whys))
    return f"{'; '.join(wrong)}: {seen} [{row.rule}]" if wrong else ""


def misfit(row: Row, want: Outcome, seen: Seen) -> str:
    """Why this is not what was seen; empty where it is."""
    first = seen.answers[0] if seen.answers else None
    status = first.status if first else 0
    if status not in want["status"]:
        return f"status {status}, not {want['status'] if len(want['status']) < 9 else 'a refusal'}"
    if "answers" in want:
        counted = want["answers"]
        if counted != ([m.status for m in seen.answers] if isinstance(counted, list) else len(seen.answers)):
            return f"answers {[m.status for m in seen.answers]}, not {counted}"
        if "cut" not in want and not all(m.complete for m in seen.answers):
            return "an answer is cut"
    if len(seen.answers) > want.get("max_answers", 1000):
        return "more answers than one"
    if want.get("pending"):
        if not seen.pending:
            return f"{want['pending']!r} did not come, or the answer ended"
    elif want.get("cut"):
        if first and first.complete:
            return "it looks whole"
        if first and not want.get("body", "").encode("latin-1").startswith(first.body) and "body" in want:
            return f"body {first.body[:60]!r} is no part of {want['body'][:60]!r}"
    elif first:
        if not first.complete:
            return "the answer is cut"
        if row.answer is None and status == 200 and row.methods[0] != "HEAD" and row.rounds == 1:
            if first.body not in [default_answer(request) for request in seen.requests]:
                return f"body {first.body[:60]!r} is not the answer to what came upstream"
        elif "body" in want and first.body != (body := row.expand(want["body"])):
            return f"body {first.body[:60]!r} ({len(first.body)} bytes), not {body[:60]!r} ({len(body)})"
    if first and (why := _fields(want, first, "has", "lacks", "matches")):
        return f"answer: {why}"
    if want.get("closed") and not seen.closed:
        return "the connection was left open"
    if first and "version" in want and not first.start.startswith(b"HTTP/" + want["version"].encode()):
        return f"version in {first.start!r}"
    if "interim" in want and seen.interim != want["interim"]:
        return f"interim {seen.interim[:20]}, not {want['interim']}"
    return _upstream_misfit(row, want, seen)


def _upstream_misfit(row: Row, want: Outcome, seen: Seen) -> str:
    whole = [m for m in seen.requests if m.complete]
    count = want.get("upstream")
    low, high = count if isinstance(count, list) else (count, count)
    if low is not None and not low <= len(whole) <= high:
        return f"{len(whole)} whole requests upstream, not {count}"
    if "heads" in want and len(seen.requests) != want["heads"]:
        return f"{len(seen.requests)} heads upstream, not {want['heads']}"
    if len(seen.requests) > want.get("max_heads", 10_000):
        return f"{len(seen.requests)} heads upstream"
    if want.get("once") and len({m.target for m in seen.requests}) != len(seen.requests):
        return "a request reached the upstream twice"
    asked = {"got", "target", "method", "passes", "drops", "trailers"} & want.keys()
    if not asked:
        return ""
    if not seen.requests:
        return "nothing upstream"
    first = seen.requests[0]
    if "got" in want and first.body != row.expand(want["got"]):
        return f"body upstream {first.body[:60]!r} ({len(first.body)} bytes)"
    for name in ("target", "method"):
        if name in want and getattr(first, name) != row.expand(want[name]):
            return f"{name} upstream {getattr(first, name)[:80]!r}"
    if "trailers" in want and [name.lower().decode() for name, _ in first.trailers] != want["trailers"]:
        return f"trailers upstream {first.trailers}"
    why = _fields(want, first, "passes", "drops", "matches-upstream")
    return f"upstream: {why}" if why else ""


def _fields(want: Outcome, message: Message, has: str, lacks: str, matches: str) -> str:
    """has: lines that must be there, those of one name in their order and no others; lacks: names."""
    lines: dict[str, list[bytes]] = {}
    for line in want.get(has, ()):
        name, _, value = line.partition(":")
        lines.setdefault(name.lower(), []).append(value.strip(" ").encode("latin-1"))
    for name, values in lines.items():
        if message.all(name) != values:
            return f"{name} is {message.all(name)}, not {values}"
    for name in want.get(lacks, ()):
        if message.all(name):
            return f"{name} is {message.all(name)}"
    for line in want.get(matches, ()):
        name, _, pattern = line.partition(":")
        if not any(re.fullmatch(pattern.strip().encode("latin-1"), value, re.S) for value in message.all(name)):
            return f"{name} is {message.all(name)}, not {pattern}"
    return ""


def default_answer(request: Message) -> bytes:
    """What the upstream answers where a row does not say it."""
    return b"%b %b %d" % (request.method, request.target, len(request.body))


REQUEST_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [\x21\x22\x24-\x7e]+ HTTP/1\.1")
STATUS_LINE = re.compile(rb"HTTP/1\.1 [1-9][0-9]{2} [\t\x20-\x7e\x80-\xff]*")
VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?")


def faults(message: Message, *, of_request: bool) -> list[str]:
    """What a strict reader finds wrong with a head that we sent (RFC 9112 §2-§6), whatever the row allows."""
    found = []
    if not (REQUEST_LINE if of_request else STATUS_LINE).fullmatch(message.start):
        found.append(f"start line {message.start[:80]!r}")
    for name, value in [*message.fields, *message.trailers]:
        if not VALUE.fullmatch(value):
            found.append(f"value of {name!r}: {value[:60]!r}")
    lengths, codings = message.all("content-length"), message.all("transfer-encoding")
    if len(lengths) + len(codings) > 1 or (lengths and not re.fullmatch(rb"[0-9]{1,19}", lengths[0])):
        found.append(f"framing {lengths} {codings}")
    if codings and codings != [b"chunked"]:
        found.append(f"coding {codings}")
    if of_request:
        if len(message.all("host")) != 1:
            found.append(f"Host {message.all('host')}")
        hops = ("keep-alive", "proxy-connection", "x-backstream-secret")
    else:
        if (lengths or codings) and (message.status < 200 or message.status == 204):
            found.append(f"framing of a {message.status}")
        hops = ("keep-alive", "proxy-connection")
    found += [f"{name} is of one hop only" for name in hops if message.all(name)]
    return found
