"""Can the run's own small model learn to imitate the rule judge? An adapter against the untrained model.

    python -m bench.judge configs/sgd-small.yaml [key=value …] [--seconds 300]

Teaches an adapter the rule judge's verdicts (see `proactor.ruler.distil`) and writes it to
``runs/<name>/judge``. Measures on dev dialogues how it orders the answers of a group, against the rule judge:
on the policy's own samples, as in a training step, and on samples mixed with spoilt ones. Beside it: the
untrained judge, one that always prefers waiting and one that always prefers acting. Writes
``bench/results/<machine>/judge.json``, one entry per config.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.learning import recorded_config
from bench.records import decimal, record_file, run_parser, say, stamp, write_json
from proactor.config_file import load_config
from proactor.dialogue.candidates import Candidates
from proactor.engine import Engine, Sampling
from proactor.ruler import EngineJudge, RankAgreement, RuleJudge, Ruler, compare_rankings, spread
from proactor.ruler.distil import RUBRIC, StudentSetup, sample_answers, teach, with_mutations
from proactor.scoring.arrays import Array
from proactor.scoring.bootstrap import bootstrap_sums
from proactor.training.workspace import Workspace

KEEP_EVERY = 25
"""Training steps between saves of the adapter, from which an interrupted run can go on (``--more``)."""
SETTINGS = ("seconds", "dialogues", "held_out", "n", "most", "batch", "rate", "more")
"""Options that the record keeps."""

Scores = list[list[float] | None]
"""One list per group; None without a usable verdict."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = run_parser("bench.judge", "a small model taught the rule judge's verdicts")
    parser.add_argument("--seconds", type=float, default=300, help="seconds of training")
    parser.add_argument(
        "--dialogues", type=int, default=120, help="dialogues of the training part to learn from"
    )
    parser.add_argument("--held-out", type=int, default=32, help="dialogues of the dev part to measure on")
    parser.add_argument("--n", type=int, default=8, help="answers drawn at each decision")
    parser.add_argument("--most", type=int, default=6, help="most candidates in a mixed group")
    parser.add_argument("--batch", type=int, default=1, help="dialogues a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument(
        "--rubric", default=RUBRIC, help="rubric of the student: custom, or a text (no sub-scores)"
    )
    parser.add_argument("--more", action="store_true", help="continue training the saved adapter")
    options = parser.parse_intermixed_args(arguments)
    if options.seconds <= 0:
        raise SystemExit("--seconds must be above 0")
    limits = [
        f"data.train.limit={options.dialogues}",
        f"data.dev.limit={options.held_out}",
        "data.test.limit=1",
    ]
    config = load_config(options.config, [*limits, *options.overrides])
    if config.grpo is None:
        raise SystemExit(f"{options.config}: no grpo section, so no policy whose answers are judged")
    workspace, asked = Workspace.open(config), StudentSetup(rubric=options.rubric)
    try:
        record = measure(workspace, asked, options)
    finally:
        workspace.close()
    record |= stamp()
    file = record_file(options.results, record["machine"], "judge")
    by_config = json.loads(file.read_text()) if file.exists() else {}
    by_config[config.name] = record
    write_json(file, by_config)
    show(config.name, record)
    print(f"record: {file}\nreward_options: {json.dumps(record['reward_options'])}")


def measure(workspace: Workspace, asked: StudentSetup, options: argparse.Namespace) -> dict[str, Any]:
    """Draw answers, measure the untrained judge, teach, write the adapter, measure it; returns the record."""
    config, engine = workspace.config, workspace.engine
    assert config.grpo is not None
    sampling = Sampling(**{**config.grpo.sampling.model_dump(), "n": options.n})
    untrained = engine.state_dict()
    if config.start is not None:
        engine.load_adapter(config.start)
    began = time.monotonic()
    held = sample_answers(engine, workspace.encoder, workspace.dev, sampling, seed=config.seed, epoch=1)
    drawn = sample_answers(engine, workspace.encoder, workspace.train, sampling, seed=config.seed)
    engine.load_state_dict(untrained)
    drawing = time.monotonic() - began
    say(f"{len(drawn)} decisions to learn from, {len(held)} held out, drawn in {drawing:.0f} s")
    draws = random.Random(config.seed)
    sets = {
        "sampled": [g for g in held if len(set(g.texts)) > 1],
        "mixed": [g for g in (with_mutations(g, options.most, draws) for g in held) if len(g) > 1],
    }
    systems = {
        name: {"untrained": examine(asked.ruler(EngineJudge(engine)), groups)}
        for name, groups in sets.items()
    }
    folder = config.folder / "judge"
    if options.more:
        engine.load_adapter(folder)
    training = teach(
        engine,
        asked,
        drawn,
        seconds=options.seconds,
        rate=options.rate,
        batch=options.batch,
        most=options.most,
        seed=config.seed,
        progress=_saving_progress(engine, folder),
    )
    engine.save_adapter(folder)
    engine.load_state_dict(untrained)  # the adapter is measured as it was written
    for name, groups in sets.items():
        systems[name]["taught"] = examine(asked.ruler(EngineJudge(engine, adapter=folder)), groups)
        systems[name] |= {"likes waiting": trivial(groups, 1.0), "likes acting": trivial(groups, 0.0)}
    return {
        "config": recorded_config(config),
        "reward_options": asked.options(folder),
        "teacher": asked.teacher,
        "settings": {key: getattr(options, key) for key in SETTINGS},
        "decisions": {"train": len(drawn), "held_out": len(held)},
        "drawing_seconds": drawing,
        "steps": training.steps,
        "examples": training.examples,
        "too_long": training.too_long,
        "loss": training.last(),
        "systems": systems,
    }


def _saving_progress(engine: Engine, folder: Path) -> Callable[[float, str], None]:
    """Prints progress and saves the adapter every `KEEP_EVERY` steps; texts begin with "step N"."""

    def progress(share: float, text: str) -> None:
        if int(text.split()[1].rstrip(",")) % KEEP_EVERY == 0:
            say(f"  {share:.0%} {text}")
            engine.save_adapter(folder)

    return progress


def rule_scores(groups: Sequence[Candidates]) -> Scores:
    """The teacher's scores."""
    return score(Ruler(RuleJudge(), "custom"), groups)


def score(ruler: Ruler, groups: Sequence[Candidates]) -> Scores:
    """A ruler's scores of the candidates of each group."""
    verdicts = asyncio.run(ruler.score_all(groups))
    return [None if group is None else [parts["ruler"] for parts in group] for group in verdicts]


def examine(ruler: Ruler, groups: Sequence[Candidates]) -> dict[str, Any]:
    """A judge beside the rules, with its time and counters."""
    began = time.monotonic()
    scores = score(ruler, groups)
    seconds = time.monotonic() - began
    return {**compare(groups, scores), "seconds": seconds, "counters": dict(ruler.counters)}


def trivial(groups: Sequence[Candidates], waiting: float) -> dict[str, Any]:
    """A judge that scores only whether an answer acts: ``waiting`` if it does not, else 1 - ``waiting``."""
    scores: Scores = [[waiting if not p.actions and p.ok else 1 - waiting for p in g.parsed] for g in groups]
    return compare(groups, scores)


def compare(groups: Sequence[Candidates], scores: Scores) -> dict[str, Any]:
    """Rank agreement of scores with the rules' on the same groups, distinct answers; intervals by dialogue.

    Groups without a verdict are left out.
    """
    by_dialogue: dict[str, RankAgreement] = {}
    kept: list[tuple[list[float], list[float]]] = []
    for group, mine, theirs in zip(groups, scores, rule_scores(groups), strict=True):
        if mine is None or theirs is None:
            continue
        distinct = [i for i, text in enumerate(group.texts) if text not in group.texts[:i]]
        pair = [theirs[i] for i in distinct], [mine[i] for i in distinct]
        kept.append(pair)
        so_far = by_dialogue.get(group.dialogue.id, RankAgreement())
        by_dialogue[group.dialogue.id] = so_far + compare_rankings([pair[0]], [pair[1]])
    total = sum(by_dialogue.values(), RankAgreement())
    rows = np.array(
        [[a.same, a.opposite, a.tied_first, a.tied_second] for a in by_dialogue.values()], dtype=float
    )
    bounds = bootstrap_sums(rows, statistics, ("rate", "tau")) if len(rows) else {}
    return {
        "groups": len(groups),
        "usable": len(kept) / len(groups) if groups else None,
        "pairs": total.pairs,
        "ordered": total.same + total.opposite + total.tied_second,
        "rate": total.rate,
        "tau": total.tau,
        "intervals": {key: [i.low, i.high] for key, i in bounds.items()},
        "spread": spread(mine for _, mine in kept),
        "spread_of_rules": spread(theirs for theirs, _ in kept),
    }


def statistics(sums: Array) -> dict[str, Array]:
    """Rate and tau of sums [..., 4]: same, opposite, tied by the rules, tied by the judge. NaN: undefined."""
    same, opposite, first, second = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        tau = (same - opposite) / np.sqrt((same + opposite + second) * (same + opposite + first))
        return {"rate": same / (same + opposite), "tau": tau}


def show(name: str, record: dict[str, Any]) -> None:
    """Print the table of one config."""
    title = (
        f"{name}: {record['steps']} steps, {record['examples']} groups, "
        "against the rule judge on dialogues not trained on"
    )
    table = Table(title=title, title_justify="left")
    for heading in (
        "answers",
        "judge",
        "groups",
        "usable",
        "pairs",
        "ordered alike",
        "tau [95%]",
        "spread",
        "rules",
    ):
        table.add_column(heading, justify="left" if heading in ("answers", "judge") else "right")
    for kind, systems in record["systems"].items():
        for system, result in systems.items():
            low, high = result["intervals"].get("tau", (float("nan"), float("nan")))
            table.add_row(
                kind,
                system,
                str(result["groups"]),
                decimal(result["usable"]),
                str(result["pairs"]),
                decimal(result["rate"]),
                rf"{decimal(result['tau'])} \[{low:+.3f}, {high:+.3f}]",
                decimal(result["spread"]),
                decimal(result["spread_of_rules"]),
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
