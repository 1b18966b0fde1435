"""Public corpora, known by the keys of their records."""

from __future__ import annotations

from collections.abc import Collection

from proactor.transcripts.mapping import Form

SIGNATURES: tuple[tuple[Form, frozenset[str]], ...] = (
    ("abcd", frozenset({"delexed", "original", "scenario"})),
    ("abcd", frozenset({"flow", "scenario", "turns"})),
    ("sgd", frozenset({"services", "turns"})),
    ("star", frozenset({"Events", "Scenario"})),
    ("star", frozenset({"tasks", "domains", "turns"})),
    ("multiwoz", frozenset({"goal", "log"})),
    ("multiwoz", frozenset({"goal", "turns", "actions"})),
    ("taskmaster4", frozenset({"utterances", "vertical"})),
    ("proactivebench", frozenset({"obs", "help_needed"})),
    ("multidogo", frozenset({"conversationId", "turnNumber", "utterance"})),
)
"""Corpora by keys of their records."""


def corpus_of(keys: Collection[str]) -> Form | None:
    """The corpus of a record with these keys; None where it is of none."""
    return next((form for form, known in SIGNATURES if known <= set(keys)), None)
