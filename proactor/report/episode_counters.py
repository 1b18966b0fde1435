"""Rows of a report for what a run in an environment counted, added over its training steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from proactor.report.counters import CounterRow
from proactor.report.numbers import number

SENTENCES = {
    "episodes": ("Episodes", "played in training"),
    "tokens_sampled": ("Tokens", "drawn by the agent in them"),
    "groups_with_spread": ("Groups with spread", "their episodes earned different rewards"),
    "groups_without_spread": ("Groups without spread", "nothing to learn from"),
    "groups_redrawn": ("Groups drawn again", "since they had no spread"),
    "groups_too_small": ("Groups too small", "fewer than two episodes were left: not trained on"),
    "episodes_failed": ("Episodes failed", "their environment failed: not trained on"),
    "episodes_without_turns": ("Episodes without turns", "ended before the first: not trained on"),
    "demonstrations": ("Demonstrations", "of the expert, each time that stage A learned from one"),
    "user/requests": ("Questions to the user", "asked of the model that plays the user and judges"),
    "user/nonsense": ("Answers of the user without sense", 'counted as "Maybe." or as no score'),
}
"""(name, sentence) of counters by their key in a row."""
MORE = ("left_out_", "host/", "omit/", "sand/", "user/")
"""Beginnings of the keys of other counters, shown under their own names."""


def episode_counters(rows: Sequence[Mapping[str, Any]]) -> list[CounterRow]:
    """The counters that any row has, added over the steps."""
    totals: dict[str, float] = {}
    for row in rows:
        if row.get("kind") not in ("sft", "grpo", "sand"):
            continue
        for key, value in row.items():
            if (key in SENTENCES or key.startswith(MORE)) and isinstance(value, int | float):
                totals[key] = totals.get(key, 0.0) + value
    known = [
        (name, number(totals[key], 0), sentence)
        for key, (name, sentence) in SENTENCES.items()
        if key in totals
    ]
    more = [(_name(key), number(totals[key], 0), "") for key in sorted(totals.keys() - SENTENCES.keys())]
    return [*known, *more]


def _name(key: str) -> str:
    text = key.replace("host/", "host: ").replace("_", " ").replace("/", " · ")
    return text[:1].upper() + text[1:]
