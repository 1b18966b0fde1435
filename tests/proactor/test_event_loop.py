"""Coroutines run to their end, with and without an event loop that is running already."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from proactor.annotation import annotate
from proactor.annotation.log_oracle import LogOracle
from proactor.event_loop import run_to_end
from proactor.sources import load
from proactor.training.loop import train
from tests.proactor.runs import config


async def answer(value: int) -> int:
    await asyncio.sleep(0)
    if value < 0:
        raise LookupError("below 0")
    return value + 1


def test_with_and_without_a_running_loop() -> None:
    async def notebook(value: int) -> int:
        return run_to_end(answer(value))

    assert run_to_end(answer(1)) == asyncio.run(notebook(1)) == 2
    with pytest.raises(LookupError, match="below 0"):
        run_to_end(answer(-1))
    with pytest.raises(LookupError, match="below 0"):
        asyncio.run(notebook(-1))


def test_transcripts_are_annotated_in_a_notebook(tmp_path: Path) -> None:
    corpus = load("synthetic", None, limit=2, size=40)

    async def notebook() -> int:
        report = annotate(corpus.dialogues, corpus.catalog, LogOracle(), tmp_path / "out")
        return int(report["dialogues"]["kept"])

    assert asyncio.run(notebook()) == 2


def test_judged_training_in_a_notebook_and_in_a_thread(tiny_model: Path, tmp_path: Path) -> None:
    judged = ("reward=custom_ruler", "reward_options={judge: rule}", "sft=null", "grpo.steps=1")
    summaries = []

    async def notebook() -> None:
        summaries.append(train(config(tmp_path, tiny_model, "name=notebook", *judged)))

    asyncio.run(notebook())
    run = config(tmp_path, tiny_model, "name=thread", *judged)
    thread = threading.Thread(target=lambda: summaries.append(train(run)))
    thread.start()
    thread.join()
    first, second = summaries
    assert first["after"] == second["after"]
