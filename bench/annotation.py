"""A small model as annotator: agreement with known windows, and the tokens that sharing a dialogue saves.

    python -m bench.annotation [--model runs/models/demo] [--steps 250] [--dialogues 100]

The model learns the marks of synthetic dialogues through `Engine.train`, then annotates unseen ones. It is
pre-trained first where its folder is missing. Prints and writes ``bench/results/<machine>/annotation.json``:
agreement with the known windows before and after training, drops, and tokens computed against those of a loop
that sends the dialogue again for every turn.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.records import add_results, say, stamp, write_record
from proactor.annotation import AnnotationOptions, annotate, marks_of
from proactor.annotation.engine_oracle import EngineOracle
from proactor.annotation.log_oracle import LogOracle
from proactor.annotation.marks import render
from proactor.annotation.oracle import OracleRequest
from proactor.annotation.report_json import report_table
from proactor.config_file import load_config
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog
from proactor.engine import SFT, Engine, Group, LoRA, Sample
from proactor.progress import Quiet
from proactor.sources import Corpus, load

DATA: dict[str, Any] = {
    "size": 40000,
    "min_turns": 4,
    "max_turns": 8,
    "max_actions": 2,
    "tools": 3,
    "skills": ["add_event", "cancel_event", "set_reminder", "book_table"],
}
"""The dialogues of configs/demo.yaml."""
REPORTED = ("known", "dialogues", "entries", "drops", "repairs", "merge", "gates")
"""Sections of an annotation report that the record keeps."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.annotation", description="a small model as annotator"
    )
    parser.add_argument("--model", type=Path, default=Path("runs/models/demo"))
    parser.add_argument(
        "--config", type=Path, default=Path("configs/demo.yaml"), help="builds the model where it is missing"
    )
    parser.add_argument("--steps", type=int, default=250, help="training steps")
    parser.add_argument("--seconds", type=float, default=900, help="most seconds of training")
    parser.add_argument("--dialogues", type=int, default=100, help="dialogues of the test split to annotate")
    parser.add_argument("--batch", type=int, default=16, help="dialogues in one step")
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    add_results(parser)
    options = parser.parse_args(arguments)
    if not options.model.is_dir():
        _build(options.config, options.model)
    lora = LoRA(rank=options.rank, alpha=2 * options.rank)
    engine = Engine.load(options.model, lora=lora, seed=options.seed)
    oracle = EngineOracle(engine, brief=True, max_tokens=96)
    test = load("synthetic", split="test", limit=options.dialogues, seed=1, **DATA)
    train = load("synthetic", split="train", limit=20000, seed=1, **DATA)
    reports = {"log": run(test, LogOracle()), "before": run(test, oracle)}
    say(f"known windows: log-derived {reports['log']['known']}, untrained {reports['before']['known']}")
    start = time.monotonic()
    steps, loss = teach(engine, oracle, train, options)
    train_seconds = time.monotonic() - start
    start, before = time.monotonic(), oracle.cost()
    reports["after"] = run(test, oracle)
    seconds = time.monotonic() - start
    record: dict[str, Any] = {
        "model": str(options.model),
        "data": DATA,
        "steps": steps,
        "batch": options.batch,
        "loss": loss,
        "train_seconds": train_seconds,
        "dialogues": options.dialogues,
        "systems": {name: {key: report[key] for key in REPORTED} for name, report in reports.items()},
        "tokens": tokens_since(before, oracle),
        "seconds": seconds,
        "tokens_long": long_dialogues(engine, min(30, options.dialogues)),
        **stamp(),
    }
    write_record(options.results, "annotation", record)
    Console(width=120).print(report_table(reports["after"]))
    print(
        json.dumps(
            {name: r["known"] for name, r in record["systems"].items()}
            | {k: record[k] for k in ("tokens", "tokens_long")}
        )
    )


def _build(config: Path, folder: Path) -> None:
    """Build the small model of ``config`` at ``folder``."""
    from proactor.training.model_folder import build_small_model

    settings = load_config(config, [f"model={folder}"])
    if settings.pretrain is None:
        raise SystemExit(f"{config}: no pretrain section, and {folder} is not there")
    say(f"building {folder} in {settings.pretrain.seconds:.0f} s")
    build_small_model(settings, settings.pretrain, Quiet())


LONG: dict[str, Any] = {"min_turns": 24, "max_turns": 30, "max_actions": 5, "tools": 6}
"""Longer dialogues, to count tokens only: the model is not trained on them, and answers are cut short."""


def long_dialogues(engine: Engine, number: int) -> dict[str, float]:
    """Tokens computed for ``number`` dialogues of 24 to 30 turns, beside those of the loop."""
    oracle = EngineOracle(engine, brief=True, max_tokens=16)
    before = oracle.cost()
    run(load("synthetic", split="test", limit=number, seed=2, **LONG), oracle)
    return tokens_since(before, oracle)


def run(corpus: Corpus, oracle: EngineOracle | LogOracle) -> dict[str, Any]:
    """Annotate a corpus; returns the report. Gates only count, so that all dialogues are compared."""
    with tempfile.TemporaryDirectory() as folder:
        return annotate(
            corpus.dialogues, corpus.catalog, oracle, Path(folder), AnnotationOptions(gates=False)
        )


def teach(
    engine: Engine, oracle: EngineOracle, corpus: Corpus, options: argparse.Namespace
) -> tuple[int, float]:
    """Train on the known marks of every turn, for ``options.steps`` or ``options.seconds``.

    The rate warms up over 20 steps and falls to 0 over the second half. Returns (steps, mean final loss).
    """
    start, losses, dialogues = time.monotonic(), list[float](), list(corpus.dialogues)
    random.Random(options.seed).shuffle(dialogues)
    while (share := max(len(losses) / options.steps, (time.monotonic() - start) / options.seconds)) < 1:
        first = len(losses) * options.batch
        chosen = [dialogues[i % len(dialogues)] for i in range(first, first + options.batch)]
        groups = [g for d in chosen for g in lessons(oracle, d, corpus.catalog)]
        factor = min(1.0, len(losses) / 20 + 0.05, (1 - share) / 0.5)
        losses.append(engine.train(groups, SFT(lr=options.rate * factor))["loss"])
        if len(losses) % 20 == 0:
            say(f"  step {len(losses)} of {options.steps}, loss {sum(losses[-20:]) / 20:.3f}")
    last = losses[-max(1, len(losses) // 10) :]
    return len(losses), sum(last) / len(last)


def lessons(oracle: EngineOracle, dialogue: Dialogue, catalog: Catalog) -> list[Group]:
    """One supervised example per turn; those of a dialogue share its trunk."""
    tools = catalog.subset(dialogue.tools)
    groups = []
    for turn, marks in marks_of(dialogue).items():
        prompt = oracle.prompt(OracleRequest(dialogue, turn, tools))
        answer = oracle.chat.encode_answer(render(marks, flat=True))
        groups.append(Group(prompt, [Sample(prompt, answer)], tree=dialogue.id))
    return groups


def tokens_since(before: Mapping[str, int], oracle: EngineOracle) -> dict[str, float]:
    """Tokens since ``before``; ``naive``: those of a loop that sends everything again for every turn."""
    used = {name: count - before[name] for name, count in oracle.cost().items()}
    naive = used["prompt_tokens"] + used["tokens_sampled"]
    return {**used, "naive": naive, "saving": round(naive / used["tokens_computed"], 3)}


if __name__ == "__main__":
    main()
