"""Fuzzers over the parts that read what strangers send; ``python -m fuzz`` runs them.

A target is a module with `one(data)`: it does with `data` what a peer may do, and raises where a rule is broken.
`corpus/TARGET/` has inputs to begin with, among them each that once broke a rule: the test suite tries them all.
"""

TARGETS = ("codec", "seed", "session", "seed_session", "server", "upstream", "websocket")
