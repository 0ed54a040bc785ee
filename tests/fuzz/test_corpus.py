"""Every input of the fuzzers' corpora, among them all that once broke a rule, keeps the rules of its target."""

from __future__ import annotations

import importlib

import pytest

from fuzz import TARGETS, corpus


# The targets bring their own loop, so no test's must run.
@pytest.mark.parametrize("target", TARGETS)
def test_a_targets_corpus_breaks_no_rule(target: str) -> None:
    one = importlib.import_module(f"fuzz.{target}").one
    inputs = corpus.inputs(target)
    assert len(inputs) > 5
    for data in inputs:
        try:
            one(data)
        except Exception as error:
            raise AssertionError(f"the rules of {target} are broken by {data!r}") from error
