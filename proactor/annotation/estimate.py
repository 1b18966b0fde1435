"""What an annotation will cost, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proactor.annotation.driver import offered
from proactor.annotation.oracle import Oracle, OracleRequest
from proactor.annotation.prompt import parts
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog
from proactor.sources.corpus import sample

COUNTED = 200
"""Dialogues whose tokens are counted; the rest is extrapolated."""
ANSWER = 60
"""Tokens of one answer, assumed [INFERRED]."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """``naive``: prompt tokens when the dialogue is sent again for each turn, what an endpoint bills.
    ``shared``: when it is computed once.
    ``price``: naive and answers at the given prices, in their currency; None without prices.
    """

    dialogues: int
    questions: int
    naive: int
    shared: int
    answers: int
    price: float | None

    def __str__(self) -> str:
        told = f"{self.dialogues} dialogues, {self.questions} questions"
        if self.naive:
            told += f": about {self.naive:,} prompt tokens ({self.shared:,} when each dialogue is computed once) and {self.answers:,} of answers"
        return told if self.price is None else f"{told}; about {self.price:,.2f}"


def estimate(
    dialogues: Sequence[Dialogue],
    catalog: Catalog,
    oracle: Oracle,
    price_in: float | None = None,
    price_out: float | None = None,
    *,
    brief: bool = False,
) -> Estimate:
    """Tokens of annotating ``dialogues``; prices are for a million tokens."""
    questions = sum(len(d.decision_turns) for d in dialogues)
    counted = sample(dialogues, lambda d: d.id, COUNTED, 0)
    naive = shared = asked = 0
    for dialogue in counted:
        turns = dialogue.decision_turns
        if not turns:
            continue
        system, text, leaf = parts(OracleRequest(dialogue, turns[0], offered(dialogue, catalog)), brief)
        trunk, question = oracle.tokens(system) + oracle.tokens(text), oracle.tokens(leaf)
        naive += len(turns) * (trunk + question)
        shared += trunk + len(turns) * question
        asked += len(turns)
    scale = questions / asked if asked else 0.0
    answers = questions * ANSWER if naive else 0
    price = None
    if price_in is not None or price_out is not None:
        price = (naive * scale * (price_in or 0.0) + answers * (price_out or 0.0)) / 1e6
    return Estimate(len(dialogues), questions, round(naive * scale), round(shared * scale), answers, price)
