"""The pre-training of the small model: how long it lasts and which weights it leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from proactor.config_base import ConfigError, Pieces, Pretrain, SmallModel
from proactor.dialogue.prompt import PromptEncoder, PromptStyle
from proactor.engine import ChatFormat
from proactor.sources import load
from proactor.training.model_folder import hold_out
from proactor.training.pretrain import fit_line, loss_of, pretrain, steps_of
from proactor.training.small_model import build_model, train_tokenizer
from proactor.training.token_rows import collate, held_out_row
from tests.proactor.runs import OPTIONS

CORPUS = load("synthetic", split="train", limit=24, **OPTIONS)
TRAIN, HELD_OUT = CORPUS.dialogues[:20], CORPUS.dialogues[20:]


def pretrained(size: SmallModel, **how: Any) -> tuple[float, list[tuple[int, float]]]:
    """A model after its pre-training: the held-out loss of its weights, and the checks."""
    tokenizer = train_tokenizer((t.text for d in CORPUS.dialogues for t in d.turns), size.vocabulary)
    encoder = PromptEncoder(ChatFormat(tokenizer), CORPUS.catalog, PromptStyle(instructions=""))
    model = build_model(tokenizer, size)
    history = pretrain(model, encoder, TRAIN, HELD_OUT, size, **{"seconds": 600.0, "check_every": 2, **how})
    model.set_attn_implementation("sdpa")
    rows = [held_out_row(encoder, d, size) for d in HELD_OUT]
    with torch.no_grad():
        return float(loss_of(model, *collate(rows, tokenizer.pad_token_id, 0.0))), history


def size(**changes: Any) -> SmallModel:
    small = {"hidden": 32, "layers": 2, "intermediate": 64, "vocabulary": 300, "batch": 4}
    return SmallModel.model_validate(small | changes)


def test_it_ends_after_its_steps_and_checks_the_last() -> None:
    _, history = pretrained(size(), steps=5)
    assert [step for step, _ in history] == [2, 4, 5]
    _, history = pretrained(size(), steps=10**6, seconds=1e-9)
    assert [step for step, _ in history] == [0]


def test_a_pace_that_is_fast_enough_decides_nothing() -> None:
    """The same steps end in the same model to the last bit, however long they may take."""
    one, other = (pretrained(size(), steps=6, seconds=seconds) for seconds in (1e4, 1e9))
    assert one == other


@pytest.mark.parametrize(
    ("history", "steps", "cut"),
    [
        ([(40, 0.576)], 400, True),
        ([(50, 0.9), (100, 0.5), (130, 0.45)], 400, True),
        ([(50, 0.9), (400, 0.5)], 400, False),
        ([(50, 0.5), *((step, 0.6) for step in (100, 150, 200, 250))], 400, False),
        ([(50, 0.9)], None, False),
    ],
    ids=["first check", "still falling", "all steps", "stopped falling", "by time"],
)
def test_a_model_that_time_cut_short_is_told(
    history: list[tuple[int, float]], steps: int | None, cut: bool
) -> None:
    made = steps_of(history, Pretrain(steps=steps, seconds=7))
    assert (made.made, made.wanted, made.seconds, made.cut_short) == (history[-1][0], steps, 7, cut)
    assert ("its time was over" in fit_line(history, made)) == cut


@pytest.mark.parametrize("rates", [{}, {"lr": 3.0, "muon_lr": 3.0}], ids=["learns", "diverges"])
def test_the_best_weights_are_left_and_not_the_last(rates: dict[str, float]) -> None:
    loss, history = pretrained(size(**rates), steps=12, patience=3)
    best = min(loss for _, loss in history)
    assert loss == pytest.approx(best, rel=0.02)  # checks are in bfloat16
    if rates:
        assert history[-1][1] > 1.5 * best
        assert history[-1][0] < 12, "it stops where nothing is learnt"


def test_what_is_held_out_has_an_answer_that_is_known() -> None:
    """A dialogue whose windows are all unknown has a loss of 0 from the first step on."""
    tokenizer = train_tokenizer((t.text for d in CORPUS.dialogues for t in d.turns), 300)
    encoder = PromptEncoder(ChatFormat(tokenizer), CORPUS.catalog, PromptStyle(instructions=""))
    acts = [d for d in CORPUS.dialogues if d.references]
    last = acts[1].references[0]
    everywhere = {"coverage": (1, len(acts[0].turns)), "ready": None, "null_reason": "never_ready"}
    unknown = last.model_copy(update=everywhere | {"value_turns": {}, "observed_trigger": None})
    masked = acts[0].model_copy(update={"references": (unknown,), "withdrawn": (), "id": "masked"})
    held_out, others = hold_out([masked, *acts], encoder, size())
    assert held_out == acts[:1] and others == [masked, *acts[1:]]
    for few in ([], acts[:1], [masked], [masked, masked]):
        with pytest.raises(ConfigError, match=f"^pretrain: {len(few)} dialogues to train on"):
            hold_out(few, encoder, size())


@pytest.mark.parametrize(
    ("pieces", "longest"), [("words", "content"), ("lines", '{"choice": "action", "content": "')]
)
def test_a_token_is_a_word_or_what_stands_between_digits(pieces: Pieces, longest: str) -> None:
    line = '{"choice": "action", "content": "12 -3"}'
    tokenizer = train_tokenizer([line] * 50, 400, pieces)
    tokens = [tokenizer.decode([i]) for i in tokenizer(line)["input_ids"]]
    assert "".join(tokens) == line and max(tokens, key=len) == longest
    assert {"1", "2", "-", "3"} <= set(tokens)
