"""Drift between two models, against a sum by hand, and the files of texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from proactor.evaluation.drift import Drift, Scores, read_texts
from proactor.files import SourceError
from tests.engine.engines import load, prompts, write_folder


def test_numbers_by_hand() -> None:
    trained = Scores(torch.tensor([-1.0, -2.0, -3.0, -0.5]), torch.tensor([1, 2, 3, 4]))
    serving = Scores(torch.tensor([-1.5, -1.0, -3.0, -0.75]), torch.tensor([1, 9, 3, 8]))
    drift = Drift.between(trained, serving)
    assert drift == Drift(tokens=4, mean=0.4375, largest=1.0, shift=0.0625, changed=2)
    assert "0.4375 nats apart in the mean, at most 1.000" in str(drift) and "2 of 4 (50.00%)" in str(drift)


def test_a_model_agrees_with_itself_and_decides_as_it_samples(tmp_path: Path) -> None:
    from proactor.engine import Sampling

    engine, ids = load(write_folder(tmp_path / "model")), prompts(3)
    scores = Scores.of(engine, ids)
    assert Drift.between(scores, Scores.of(engine, ids)) == Drift(len(scores.choices), 0.0, 0.0, 0.0, 0)
    prefixes = [one[:end] for one in ids for end in range(1, len(one))]
    greedy = engine.sample(prefixes, Sampling(temperature=0, max_tokens=1))
    assert scores.choices.tolist() == [group.samples[0].token_ids[0] for group in greedy]
    bare = engine.greedy(ids, adapter=False)
    assert torch.cat(bare).tolist() != scores.choices.tolist(), "the adapter decides nothing"
    with pytest.raises(SourceError, match="none has two tokens"):
        Scores.of(engine, [[1], []])


def test_texts(tmp_path: Path) -> None:
    plain, rows = tmp_path / "texts.txt", tmp_path / "texts.jsonl"
    plain.write_text('one\n\n{"text": "two"}\n')
    assert read_texts(plain) == ["one", '{"text": "two"}']
    messages = '[{"role": "user", "content": "a"}]'
    rows.write_text('{"text": "one"}\n{"messages": ' + messages + "}\n")
    assert read_texts(rows) == ["one", [{"role": "user", "content": "a"}]]
    rows.write_text('{"text": "one"}\n{"texts": 3}\n')
    with pytest.raises(
        SourceError, match=r'texts\.jsonl:2: should be an object with text or messages, not {"te'
    ):
        read_texts(rows)
    rows.write_text("{\n")
    with pytest.raises(SourceError, match=r"texts\.jsonl:1: not JSON"):
        read_texts(rows)
    plain.write_text(" \n")
    with pytest.raises(SourceError, match="holds no text"):
        read_texts(plain)
