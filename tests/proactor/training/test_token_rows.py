"""Rows of the pre-training: what each segment holds, sees and weighs."""

from __future__ import annotations

import pytest
import torch

from proactor.config_base import SmallModel
from proactor.dialogue.prompt import PromptEncoder, PromptStyle
from proactor.engine import ChatFormat
from proactor.sources import load
from proactor.training.pretrain import attend
from proactor.training.small_model import train_tokenizer
from proactor.training.token_rows import BLOCK, GIVEN, collate, held_out_row, row
from tests.proactor.runs import OPTIONS

CORPUS = load("synthetic", split="train", limit=24, **OPTIONS)


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    tokenizer = train_tokenizer((t.text for d in CORPUS.dialogues for t in d.turns), 420)
    return PromptEncoder(ChatFormat(tokenizer), CORPUS.catalog, PromptStyle(instructions=""))


def segments(encoder: PromptEncoder, ids: list[int], segment: list[int]) -> list[str]:
    return [
        encoder.chat.tokenizer.decode([i for i, s in zip(ids, segment, strict=True) if s == number])
        for number in range(max(segment) + 1)
    ]


def test_a_value_is_the_same_tokens_wherever_it_stands(encoder: PromptEncoder) -> None:
    encode = encoder.chat.tokenizer.encode
    value = encode("call mom at 5 pm")
    for text in ("remind me to call mom at 5 pm.", '"task":"call mom at 5 pm"', "(call mom at 5 pm)"):
        ids = encode(text)
        assert any(ids[i : i + len(value)] == value for i in range(len(ids))), text


def test_a_held_out_row_has_every_decision_once(encoder: PromptEncoder) -> None:
    dialogue = CORPUS.dialogues[0]
    got = held_out_row(encoder, dialogue, SmallModel())
    assert len(got.trunk_seen) == 1 + len(dialogue.decision_turns)
    assert set(got.weight) == {0.0, 1.0}
    assert len(got.ids) == len(got.positions) == len(got.segment) == len(got.weight)
    assert all(text.rstrip().endswith("<|im_end|>") for text in segments(encoder, got.ids, got.segment)[1:])


def test_copies_are_spans_of_what_the_decision_sees(encoder: PromptEncoder) -> None:
    for dialogue in CORPUS.dialogues:
        got = row(encoder, dialogue, SmallModel(copy_tokens=9, waiting_share=1.0))
        trunk = encoder.trunk(dialogue).ids
        for number in range(2, len(got.trunk_seen), 2):
            at = [i for i, s in enumerate(got.segment) if s == number]
            span, seen = [got.ids[i] for i in at], got.trunk_seen[number]
            assert any(trunk[i : i + 9] == span for i in range(seen - 8))
            assert [got.weight[i] for i in at] == [0.0] * GIVEN + [1.0] * (9 - GIVEN)
            assert got.positions[at[0]] == seen


def test_waiting_points_left_out_are_made_up_for_in_weight(encoder: PromptEncoder) -> None:
    def weights(share: float) -> tuple[float, float]:
        waiting = acting = 0.0
        for seed in range(20):
            size = SmallModel(copy_tokens=0, waiting_share=share, seed=seed)
            for dialogue in CORPUS.dialogues:
                got = row(encoder, dialogue, size)
                for number in range(1, len(got.trunk_seen)):
                    trained = [
                        w for w, s in zip(got.weight, got.segment, strict=True) if s == number and w > 0
                    ]
                    if len(trained) <= len(encoder.answer(())):
                        waiting += sum(trained)
                    else:
                        acting += sum(trained)
        return waiting, acting

    (all_waiting, all_acting), (some_waiting, some_acting) = weights(1.0), weights(0.4)
    assert some_acting == all_acting
    assert some_waiting == pytest.approx(all_waiting, rel=0.1) and some_waiting != all_waiting


def test_a_batch_sees_its_own_segment_and_the_trunk_before_it(encoder: PromptEncoder) -> None:
    rows = [row(encoder, d, SmallModel()) for d in CORPUS.dialogues[:3]]
    inputs, labels, weights = collate(rows, pad=0, text_weight=0.25)
    length = max(len(r.ids) for r in rows)
    assert length <= labels.shape[1] < length + BLOCK and labels.shape[1] % BLOCK == 0
    mask = inputs["attention_mask"][:, 0] == 0
    for b, r in enumerate(rows):
        for i, number in enumerate(r.segment):
            seen = {
                j
                for j in range(len(r.ids))
                if (r.segment[j] == number and j <= i) or (r.segment[j] == 0 and j < r.trunk_seen[number])
            }
            if number == 0:
                seen = set(range(i + 1))
            assert set(mask[b, i].nonzero()[:, 0].tolist()) == seen
        for i in range(len(r.ids) - 1):
            inside = r.segment[i] == r.segment[i + 1]
            assert int(labels[b, i]) == (r.ids[i + 1] if inside else -100)
            if inside:
                assert float(weights[b, i]) == (0.25 if r.segment[i] == 0 else pytest.approx(r.weight[i + 1]))


def test_attention_by_products_equals_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 9, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, 9, 8, generator=generator)
    mask = torch.zeros(2, 1, 9, 9).masked_fill_(
        torch.ones(9, 9).triu(1).bool(), torch.finfo(torch.float32).min
    )
    got, _ = attend(None, q, k, v, mask, scaling=0.3)
    want = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), attn_mask=mask, scale=0.3
    ).transpose(1, 2)
    assert got.shape == want.shape and torch.allclose(got.float(), want, atol=0.03)
    assert not torch.allclose(got.float(), want.flip(2), atol=0.03)
