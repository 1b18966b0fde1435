"""The tokens and the price of an annotation, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proactor.annotation.driver import tools_on_offer
from proactor.annotation.oracle import Oracle, OracleRequest
from proactor.annotation.prompt import parts
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog
from proactor.sources.corpus import sample

COUNTED = 200
"""Dialogues whose tokens are counted; the others are extrapolated."""
ANSWER = 60
"""Tokens of one answer, assumed [INFERRED]."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Counts of tokens.

    ``naive``: prompt tokens where the dialogue is sent again for each turn, as an endpoint bills. ``shared``:
    prompt tokens where it is computed once. ``answers``: tokens of answers. ``price`` of ``naive`` and
    ``answers`` together, in the currency of the prices; None without prices.
    """

    dialogues: int
    questions: int
    naive: int
    shared: int
    answers: int
    price: float | None

    def __str__(self) -> str:
        text = f"{self.dialogues} dialogues, {self.questions} questions"
        if self.naive:
            text += (
                f": about {self.naive:,} prompt tokens ({self.shared:,} when each dialogue is computed once) "
                f"and {self.answers:,} of answers"
            )
        return text if self.price is None else f"{text}; about {self.price:,.2f}"


def estimate(
    dialogues: Sequence[Dialogue],
    catalog: Catalog,
    oracle: Oracle,
    price_in: float | None = None,
    price_out: float | None = None,
    *,
    brief: bool = False,
) -> Estimate:
    """The tokens of annotating ``dialogues``; prices are per million tokens."""
    questions = sum(len(d.decision_turns) for d in dialogues)
    counted = sample(dialogues, lambda d: d.id, COUNTED, 0)
    naive = shared = counted_questions = 0
    for dialogue in counted:
        turns = dialogue.decision_turns
        if not turns:
            continue
        system, text, leaf = parts(
            OracleRequest(dialogue, turns[0], tools_on_offer(dialogue, catalog)), brief
        )
        trunk, question = oracle.tokens(system) + oracle.tokens(text), oracle.tokens(leaf)
        naive += len(turns) * (trunk + question)
        shared += trunk + len(turns) * question
        counted_questions += len(turns)
    scale = questions / counted_questions if counted_questions else 0.0
    answers = questions * ANSWER if naive else 0
    price = None
    if price_in is not None or price_out is not None:
        price = (naive * scale * (price_in or 0.0) + answers * (price_out or 0.0)) / 1e6
    return Estimate(len(dialogues), questions, round(naive * scale), round(shared * scale), answers, price)
