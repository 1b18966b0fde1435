"""A decision scored from cached pages: equal to `score` of the whole dialogue."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from proactor.calibration.live import complete, score_turn
from proactor.calibration.probabilities import answers, score
from proactor.calibration.score_table import score_table
from proactor.dialogue import Status
from proactor.dialogue.prompt import PromptEncoder, PromptStyle
from proactor.engine import Engine
from proactor.sources import load
from tests.proactor.runs import OPTIONS

CORPUS = load("synthetic", split="dev", limit=2, **OPTIONS)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.load(tiny_model, deterministic=True, kv_tokens=8192)


@pytest.fixture(scope="module")
def encoder(engine: Engine) -> PromptEncoder:
    assert engine.chat is not None
    return PromptEncoder(engine.chat, CORPUS.catalog, PromptStyle(instructions=""))


@pytest.mark.parametrize("floor", [0.0, 0.02, 0.4])
def test_every_action_at_the_floor_has_its_exact_probability(
    engine: Engine, encoder: PromptEncoder, floor: float
) -> None:
    dialogue = CORPUS.dialogues[0]
    known = answers(encoder.chat, encoder.catalog.offered_in(dialogue))
    [whole] = score(engine, encoder, [dialogue])
    found = 0
    for turn in whole.probabilities.turns:
        prompt = encoder.prompt(dialogue, turn.turn)
        live = asyncio.run(score_turn(engine, prompt, known, floor))
        wanted = {(Status.READY, t): p for t, p in turn.tools.items() if p >= floor}
        wanted |= {(Status.PENDING, t): p for t, p in turn.pending.items() if p >= floor}
        assert live.actions == wanted, "in deterministic mode to the last bit"
        found += len(wanted)
        for (status, tool), opening in live.openings.items():
            assert status is not Status.READY or opening == whole.openings[turn.turn, tool]
        assert live.wait == turn.wait or turn.wait <= live.wait < floor
        assert live.nodes == len(known.edges) or (floor and live.nodes < len(known.edges))
    assert found or floor == 0.4


def test_the_values_are_those_of_a_score_table(engine: Engine, encoder: PromptEncoder) -> None:
    table, _ = score_table(engine, encoder, CORPUS.dialogues, floor=0.05)
    dialogues = {d.id: d for d in CORPUS.dialogues}
    assert table.rows
    for row in table.rows:
        dialogue = dialogues[row.dialogue]
        known = answers(encoder.chat, encoder.catalog.offered_in(dialogue))
        prompt = encoder.prompt(dialogue, row.turn)
        live = asyncio.run(score_turn(engine, prompt, known, 0.05))
        values, _ = asyncio.run(complete(engine, encoder.chat, prompt, live.openings, 64))
        assert live.actions[Status.READY, row.tool] == row.probability
        assert dict(values[Status.READY, row.tool] or {}) == row.values
