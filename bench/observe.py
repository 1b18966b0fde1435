"""An agent at work: the latency of a decision, what is computed for it, and many conversations at once.

    python -m bench.observe [RUN] [--conversations 100] [--results DIR]

First one dialogue of 40 turns, heard turn by turn: median latency, and model rows over tokens read (the
dialogue, the boards, the answers drawn or scored). Then as many such dialogues at once through one engine:
decisions a second, latency at the median and the 99th percentile. Both without thresholds, and with
thresholds that nothing reaches.

Without RUN (a run's folder) the model has random weights, two layers and a tokenizer of its own: it shows the
cost of everything around the model.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench.records import add_results, say, stamp, write_record
from proactor.agent import Agent, Decision
from proactor.calibration.thresholds import Thresholds
from proactor.catalogs import write_catalog
from proactor.config import SmallModel
from proactor.dialogue import Dialogue, Turn
from proactor.sources import load
from proactor.training.small_model import build_model, train_tokenizer

TURNS = 40
SIZE = SmallModel(hidden=64, layers=2, heads=2, kv_heads=1, intermediate=128, vocabulary=600, context=4096)
OPTIONS: dict[str, Any] = {"size": 60, "min_turns": 4, "max_turns": 8, "tools": 3}


def main(argv: Sequence[str] | None = None) -> None:
    """Run, print and write the record."""
    parser = argparse.ArgumentParser(description="an agent at work")
    parser.add_argument(
        "run", nargs="?", type=Path, help="a run's folder; default: a model with random weights"
    )
    parser.add_argument("--conversations", type=int, default=100)
    parser.add_argument("--turns", type=int, default=TURNS)
    add_results(parser)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        never = Path(scratch) / "never.json"
        never.write_text(Thresholds().model_dump_json())
        run = options.run or random_run(Path(scratch))
        adapter = "best" if options.run else "none"
        record: dict[str, Any] = {**stamp(), "run": str(options.run or "random weights")}
        for name, chosen in (("greedy", {"greedy": True}), ("thresholds", {"thresholds": never})):
            agent = Agent.load(run, adapter=adapter, log=None, **chosen)
            record[name] = measure(agent, options.conversations, options.turns)
            say(f"{name}: {record[name]}")
            agent.engine.release()
    write_record(options.results, "observe", record)


def random_run(folder: Path) -> Path:
    """The folder of a run whose model has random weights."""
    corpus = load("synthetic", split="train", limit=24, **OPTIONS)
    tokenizer = train_tokenizer((t.text for d in corpus.dialogues for t in d.turns), SIZE.vocabulary)
    build_model(tokenizer, SIZE).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    run = folder / "run"
    run.mkdir()
    config = {
        "name": "run",
        "model": str(folder / "model"),
        "engine": {"kv_tokens": 262144},
        "prompt": {"instructions": ""},
        "eval": {"max_tokens": 16},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    write_catalog(corpus.catalog, run / "catalog.json")
    return run


def long_dialogue(name: str, turns: int, seed: int) -> Dialogue:
    """A dialogue of ``turns`` turns, of the texts of synthetic ones."""
    texts = [
        turn.text for d in load("synthetic", limit=24, seed=seed, **OPTIONS).dialogues for turn in d.turns
    ]
    spoken = (
        Turn(index=i + 1, speaker="agent" if i % 2 else "user", text=texts[(i + seed) % len(texts)])
        for i in range(turns)
    )
    return Dialogue(id=name, turns=tuple(spoken))


def measure(agent: Agent, conversations: int, turns: int) -> dict[str, float]:
    """Latency, rows over tokens and throughput of one agent."""
    hear_at_once(agent, [long_dialogue("warm", 4, 0)])
    dialogue = long_dialogue("alone", turns, 1)
    before, drawn = agent.engine.counters()["rows_computed"], agent.counters["answer_tokens"]
    decisions, _ = hear_at_once(agent, [dialogue])
    rows = agent.engine.counters()["rows_computed"] - before
    encoder = agent.encoder
    trunk = encoder.trunk(dialogue)
    boards = sum(len(encoder.prompt(dialogue, d.turn)) - trunk.ends[d.turn] for d in decisions)
    said = trunk.ends[decisions[-1].turn] - trunk.ends[0]  # the system message was read by the first dialogue
    read = said + boards + agent.counters["answer_tokens"] - drawn
    many, seconds = hear_at_once(
        agent, [long_dialogue(f"c{i}", turns, i % 8 + 2) for i in range(conversations)]
    )
    latencies = [d.seconds * 1000 for d in many]
    return {
        "turns": turns,
        "median_ms": statistics.median(d.seconds * 1000 for d in decisions),
        "rows_over_tokens_read": rows / read,
        "dropped_turns": agent.counters["dropped_turns"],
        "conversations": conversations,
        "decisions_per_second": len(many) / seconds,
        "at_once_median_ms": statistics.median(latencies),
        "at_once_p99_ms": float(np.percentile(latencies, 99)),
    }


def hear_at_once(agent: Agent, dialogues: Sequence[Dialogue]) -> tuple[list[Decision], float]:
    """The decisions of all dialogues, heard at once, and the seconds they took."""

    async def hear(dialogue: Dialogue) -> list[Decision]:
        return [
            decision
            for turn in dialogue.turns
            if (decision := await agent.observe_async(dialogue.id, turn)).decided
        ]

    async def every() -> list[list[Decision]]:
        return await asyncio.gather(*map(hear, dialogues))

    began = time.perf_counter()
    heard = asyncio.run(every())
    return [decision for decisions in heard for decision in decisions], time.perf_counter() - began


if __name__ == "__main__":
    main()
