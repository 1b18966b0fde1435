"""How well an accept-reject model judges ProactiveBench's proposals, beside lines that read next to nothing.

    python -m bench.proactive_bench FOLDER --model MODEL [--steps 120] [--lines N] [--test N] [--seed 0]

FOLDER holds the judged lines (reward_data/train_data.jsonl of github.com/thunlp/ProactiveAgent, Apache-2.0).
A fixed fifth of its streams is held out (3 of 16): lines of one stream are prefixes of each other, so a split
by lines would test on what was learned. The model learns the balanced lines of the other streams. Positive is
a line that people accepted. Beside it stand the majority, always, a bag of words (`Discriminator` over the
words of task and last event), and the model before training.

A line is accepted at log-odds above 0, as a run does it. ``tuned``: the same metrics at the threshold that
has the largest F1 on learned lines (``--tune`` of them). ``auc`` has no threshold: how often an accepted line
scores above a rejected one, ties counting half.

Prints a table, and what an update and a judged line took in processor seconds. Writes
``bench/results/<machine>/proactive-bench-<model>.json``, unless ``--lines`` or ``--test`` cut the data.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.records import add_results, say, stamp, write_record
from proactor.dialogue.event_streams import Judged
from proactor.engine import Engine, LoRA
from proactor.methods.proactive_agent import (
    JudgeTraining,
    RewardModel,
    balanced,
    judge_counts,
    read_labelled,
    training_order,
)
from proactor.methods.stepagent import WORD, Discriminator, Features, place

EPOCHS = 5
"""Of the bag of words."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m bench.proactive_bench")
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=32, help="lines of an update")
    parser.add_argument("--together", type=int, default=8, help="lines of one stream that follow each other")
    parser.add_argument("--lines", type=int, help="learn from the first so many of the balanced lines")
    parser.add_argument("--test", type=int, help="test on so many of the held-out lines, drawn by the seed")
    parser.add_argument("--tune", type=int, default=200, help="learned lines that choose a threshold")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    add_results(parser)
    options = parser.parse_args(arguments)
    if options.tune < 1:
        parser.error("--tune: at least one line")
    train, test, counts = read_labelled(options.data)
    if options.test is not None:
        test = random.Random(options.seed).sample(test, min(options.test, len(test)))
    say(f"{len(train)} lines to learn from, {len(test)} to test on, {dict(counts)}")
    training = JudgeTraining(
        steps=options.steps,
        batch_lines=options.batch,
        together=options.together,
        limit=options.lines,
        seed=options.seed,
    )
    learned = training_order(train, training)[: options.steps * options.batch]
    tune = random.Random(options.seed).sample(learned, min(options.tune, len(learned)))
    systems = lines(train, tune, test, options.seed)
    engine = Engine.load(
        options.model, lora=LoRA(rank=16, alpha=32), seed=options.seed, dtype=options.dtype, kv_tokens=16384
    )
    judge = RewardModel(engine)
    began = time.process_time()
    systems["the model, untrained"] = Scores(judge.odds(tune), judge.odds(test))
    a_line = (time.process_time() - began) / (len(tune) + len(test))
    began = time.process_time()
    losses = judge.learn(train, training)
    an_update = (time.process_time() - began) / len(losses)
    systems["accept-reject model"] = Scores(judge.odds(tune), judge.odds(test))
    rows = {name: scores.record(tune, test) for name, scores in systems.items()}
    for name, row in rows.items():
        cells = (f"{key} {row[key]:.3f}" for key in ("recall", "precision", "accuracy", "f1", "auc"))
        print(f"{name:24}{'  '.join(cells)}  tuned f1 {row['tuned']['f1']:.3f}")
    fell = f"loss {losses[0]:.3f} to {losses[-1]:.3f}"
    print(f"an update {an_update:.1f} s of processor time, a judged line {a_line:.2f} s; {fell}")
    if options.lines is None and options.test is None:
        name = Path(options.model).name.lower()
        record = stamp() | {"systems": rows, "test": len(test), "train": len(train), "steps": options.steps}
        record |= {"batch": options.batch, "seed": options.seed, "tune": len(tune), "model": name}
        record |= {"losses": losses, "an_update": an_update, "a_line": a_line}
        print(f"record: {write_record(options.results, f'proactive-bench-{name}', record)}")


@dataclass(frozen=True)
class Scores:
    """Of a system: of the learned lines that choose a threshold, and of the test lines. Above 0: accepts."""

    tune: Sequence[float]
    test: Sequence[float]

    def record(self, tune: Sequence[Judged], test: Sequence[Judged]) -> dict[str, Any]:
        """Metrics at 0 and at the tuned threshold, and the area under the curve."""
        learned, valid = ([line.valid is True for line in part] for part in (tune, test))
        threshold = best_threshold(learned, self.tune)
        tuned = judge_counts(valid, [score >= threshold for score in self.test]).metrics
        at_zero = judge_counts(valid, [score > 0 for score in self.test]).metrics
        return at_zero | {"auc": auc(valid, self.test), "threshold": threshold, "tuned": tuned}


def best_threshold(valid: Sequence[bool], scores: Sequence[float]) -> float:
    """The score from which on to accept for the largest F1."""
    return max(
        sorted(set(scores)), key=lambda least: judge_counts(valid, [x >= least for x in scores]).metrics["f1"]
    )


def auc(valid: Sequence[bool], scores: Sequence[float]) -> float:
    """How often an accepted line scores above a rejected one, ties counting half; NaN without one of both."""
    accepted, found = np.array(valid), np.array(scores)
    if accepted.all() or not accepted.any():
        return math.nan
    apart = np.subtract.outer(found[accepted], found[~accepted])
    return float((apart > 0).mean() + (apart == 0).mean() / 2)


def lines(
    train: Sequence[Judged], tune: Sequence[Judged], test: Sequence[Judged], seed: int
) -> dict[str, Scores]:
    """The lines of comparison."""
    majority = 1.0 if sum(line.valid is True for line in train) * 2 > len(train) else -1.0
    words = bag_of_words(train, seed)
    scores: dict[str, Callable[[Judged], float]] = {
        "majority": lambda line: majority,
        "always accepts": lambda line: 1.0,
        "bag of words": lambda line: words.logit(bag(line)),
    }
    return {name: Scores([of(x) for x in tune], [of(x) for x in test]) for name, of in scores.items()}


def bag_of_words(train: Sequence[Judged], seed: int) -> Discriminator:
    """A logistic model over the words of the balanced lines, `EPOCHS` times round."""
    model, order = Discriminator(rate=0.1), random.Random(seed)
    learned = balanced(train, seed)
    for _ in range(EPOCHS):
        for line in order.sample(learned, len(learned)):
            model.learn(bag(line), line.valid is True)
    return model


def bag(line: Judged) -> Features:
    """The words of the proposed task, and those of the last event."""
    task = [f"task {word}" for word in WORD.findall((line.pred_task or "none").lower())]
    last = [f"event {word}" for word in WORD.findall(line.events[-1][1].lower())]
    return np.array(sorted({place(name) for name in ("any", *task, *last)}), dtype=np.int64)


if __name__ == "__main__":
    main()
