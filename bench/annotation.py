"""A small model as annotator: how well it finds windows that are known exactly, and what the shared dialogue
saves.

python -m bench.annotation [--model runs/models/demo] [--steps 250] [--dialogues 100]

The model (one is pre-trained on the spot where the folder is missing) learns the marks of synthetic dialogues
through `Engine.train`, then annotates dialogues it has not seen. Printed and written to
``bench/results/<machine>/annotation.json``: the agreement with the known windows before and after training,
what was dropped, and tokens computed against those of a loop that sends the dialogue again for every turn.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness import machine, result_folder, say
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.annotation", description="a small model as annotator"
    )
    parser.add_argument("--model", type=Path, default=Path("runs/models/demo"))
    parser.add_argument(
        "--config", type=Path, default=Path("configs/demo.yaml"), help="builds the model where it is missing"
    )
    parser.add_argument("--steps", type=int, default=250, help="of training")
    parser.add_argument("--seconds", type=float, default=900, help="of training, at most")
    parser.add_argument("--dialogues", type=int, default=100, help="annotated; from the test split")
    parser.add_argument("--batch", type=int, default=16, help="dialogues in one step")
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    given = parser.parse_args(arguments)
    if not given.model.is_dir():
        _build(given.config, given.model)
    engine = Engine.load(given.model, lora=LoRA(rank=given.rank, alpha=2 * given.rank), seed=given.seed)
    oracle = EngineOracle(engine, brief=True, max_tokens=96)
    test = load("synthetic", split="test", limit=given.dialogues, seed=1, **DATA)
    train = load("synthetic", split="train", limit=20000, seed=1, **DATA)
    reports = {"log": run(test, LogOracle()), "before": run(test, oracle)}
    say(f"known windows: log-derived {reports['log']['known']}, untrained {reports['before']['known']}")
    start = time.monotonic()
    steps, loss = teach(engine, oracle, train, given)
    taught = time.monotonic() - start
    start, before = time.monotonic(), oracle.cost()
    reports["after"] = run(test, oracle)
    seconds = time.monotonic() - start
    used = {name: count - before[name] for name, count in oracle.cost().items()}
    record = {
        "model": str(given.model),
        "data": DATA,
        "steps": steps,
        "batch": given.batch,
        "loss": loss,
        "train_seconds": taught,
        "dialogues": given.dialogues,
        "systems": {name: _brief(r) for name, r in reports.items()},
        "tokens": tokens(used),
        "seconds": seconds,
        "tokens_long": long_dialogues(engine, min(30, given.dialogues)),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    file = result_folder(given.results, record["machine"]) / "annotation.json"
    file.write_text(json.dumps(record, indent=2) + "\n")
    Console(width=120).print(report_table(reports["after"]))
    print(
        json.dumps(
            {name: r["known"] for name, r in record["systems"].items()}
            | {k: record[k] for k in ("tokens", "tokens_long")}
        )
    )


def _build(config: Path, folder: Path) -> None:
    """The small model of ``config``, at ``folder``."""
    from proactor.training.model_folder import build_small_model

    settings = load_config(config, [f"model={folder}"])
    if settings.pretrain is None:
        raise SystemExit(f"{config}: no pretrain section, and {folder} is not there")
    say(f"building {folder} in {settings.pretrain.seconds:.0f} s")
    build_small_model(settings, settings.pretrain, Quiet())


LONG: dict[str, Any] = {"min_turns": 24, "max_turns": 30, "max_actions": 5, "tools": 6}
"""Longer dialogues, for the count of tokens alone: the model is not trained on them, and answers are cut
after a few tokens.
"""


def long_dialogues(engine: Engine, number: int) -> dict[str, float]:
    """Tokens computed for ``number`` dialogues of 24 to 30 turns, beside the loop."""
    oracle = EngineOracle(engine, brief=True, max_tokens=16)
    before = oracle.cost()
    run(load("synthetic", split="test", limit=number, seed=2, **LONG), oracle)
    return tokens({name: count - before[name] for name, count in oracle.cost().items()})


def run(corpus: Corpus, oracle: EngineOracle | LogOracle) -> dict[str, Any]:
    """Annotate a corpus from nothing; gates are counted and drop nothing, so that all of it is compared."""
    with tempfile.TemporaryDirectory() as folder:
        return annotate(
            corpus.dialogues, corpus.catalog, oracle, Path(folder), AnnotationOptions(gates=False)
        )


def teach(
    engine: Engine, oracle: EngineOracle, corpus: Corpus, given: argparse.Namespace
) -> tuple[int, float]:
    """Supervised training on the known marks of every turn, for ``given.steps`` or ``given.seconds``; (steps,
    mean loss of the last tenth).

    The rate warms up over 20 steps and falls to nothing over the second half.
    """
    start, losses, dialogues = time.monotonic(), list[float](), list(corpus.dialogues)
    random.Random(given.seed).shuffle(dialogues)
    while (share := max(len(losses) / given.steps, (time.monotonic() - start) / given.seconds)) < 1:
        first = len(losses) * given.batch
        chosen = [dialogues[i % len(dialogues)] for i in range(first, first + given.batch)]
        groups = [g for d in chosen for g in lessons(oracle, d, corpus.catalog)]
        factor = min(1.0, len(losses) / 20 + 0.05, (1 - share) / 0.5)
        losses.append(engine.train(groups, SFT(lr=given.rate * factor))["loss"])
        if len(losses) % 20 == 0:
            say(f"  step {len(losses)} of {given.steps}, loss {sum(losses[-20:]) / 20:.3f}")
    last = losses[-max(1, len(losses) // 10) :]
    return len(losses), sum(last) / len(last)


def lessons(oracle: EngineOracle, dialogue: Dialogue, catalog: Catalog) -> list[Group]:
    """One supervised example a turn; all of a dialogue share its trunk."""
    tools = catalog.subset(dialogue.tools)
    groups = []
    for turn, marks in marks_of(dialogue).items():
        prompt = oracle.prompt(OracleRequest(dialogue, turn, tools))
        groups.append(
            Group(
                prompt,
                [Sample(prompt, oracle.chat.encode_answer(render(marks, flat=True)))],
                tree=dialogue.id,
            )
        )
    return groups


def tokens(used: dict[str, int]) -> dict[str, float]:
    """What the engine computed, beside a loop that sends system, dialogue and question again for every
    turn.
    """
    naive = used["prompt_tokens"] + used["tokens_sampled"]
    return {**used, "naive": naive, "saving": round(naive / used["tokens_computed"], 3)}


def _brief(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: found[name] for name in ("known", "dialogues", "entries", "drops", "repairs", "merge", "gates")
    }


if __name__ == "__main__":
    main()
