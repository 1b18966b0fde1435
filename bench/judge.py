"""Can the run's own small model learn to judge? An adapter taught the rule judge's verdicts, against the
model as it is, on dialogues it has not seen.

python -m bench.judge configs/sgd-small.yaml [key=value …] [--seconds 300]

Teaches an adapter of the config's shape (see `proactor.ruler.distil`), writes it to ``runs/<name>/judge`` and
measures, on dev dialogues, how it orders the answers of a group against the rule judge: the policy's own
samples, as a training step has them, and samples mixed with spoilt ones. Beside it the untrained judge and
two that know nothing: one that likes waiting best, one that likes acting best. The result is a small model
that imitates rules; how well it does so is all this says. Writes ``bench/results/<machine>/judge.json``, one
entry a config.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.harness import machine, result_folder, say
from proactor.config_file import load_config
from proactor.dialogue.candidates import Candidates
from proactor.engine import Sampling, atomic_file
from proactor.ruler import EngineJudge, RankAgreement, RuleJudge, Ruler, compare_rankings, spread
from proactor.ruler.distil import RUBRIC, StudentSetup, sample_answers, teach, with_mutations
from proactor.scoring.arrays import Array
from proactor.scoring.bootstrap import bootstrap_sums
from proactor.training.workspace import Workspace

KEEP_EVERY = 25
"""Training steps between saves of the adapter, so that a stopped run can go on (``--more``)."""

Scores = list[list[float] | None]
"""One list a group; None where there was no usable verdict."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.judge", description="a small model taught the rule judge's verdicts"
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seconds", type=float, default=300, help="of training")
    parser.add_argument("--dialogues", type=int, default=120, help="to learn from, of the training part")
    parser.add_argument("--held-out", type=int, default=32, help="dialogues to measure on, of the dev part")
    parser.add_argument("--n", type=int, default=8, help="answers drawn at each decision")
    parser.add_argument("--most", type=int, default=6, help="candidates of a mixed group")
    parser.add_argument("--batch", type=int, default=1, help="dialogues a step")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--rubric", default=RUBRIC, help="the student's: custom, or a text (no sub-scores)")
    parser.add_argument("--more", action="store_true", help="go on from the adapter that is there")
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    given = parser.parse_intermixed_args(arguments)
    if given.seconds <= 0:
        raise SystemExit("--seconds must be above 0")
    config = load_config(
        given.config,
        [
            f"data.train.limit={given.dialogues}",
            f"data.dev.limit={given.held_out}",
            "data.test.limit=1",
            *given.overrides,
        ],
    )
    if config.grpo is None:
        raise SystemExit(f"{given.config}: no grpo section, so no policy whose answers are judged")
    workspace, asked = Workspace.open(config), StudentSetup(rubric=given.rubric)
    try:
        record = measured(workspace, asked, given)
    finally:
        workspace.close()
    record |= {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    file = result_folder(given.results, record["machine"]) / "judge.json"
    whole = json.loads(file.read_text()) if file.exists() else {}
    whole[config.name] = record
    atomic_file(file, (json.dumps(whole, indent=2) + "\n").encode())
    show(config.name, record)
    print(f"record: {file}\nreward_options: {json.dumps(record['reward_options'])}")


def measured(workspace: Workspace, asked: StudentSetup, given: argparse.Namespace) -> dict[str, Any]:
    """Draw, measure the untrained judge, teach, write the adapter, measure it."""
    config, engine = workspace.config, workspace.engine
    assert config.grpo is not None
    sampling = Sampling(**{**config.grpo.sampling.model_dump(), "n": given.n})
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
        "mixed": [g for g in (with_mutations(g, given.most, draws) for g in held) if len(g) > 1],
    }
    systems = {
        name: {"untrained": examine(asked.ruler(EngineJudge(engine)), groups)}
        for name, groups in sets.items()
    }
    folder = config.folder / "judge"
    if given.more:
        engine.load_adapter(folder)

    def tell(share: float, text: str) -> None:
        if int(text.split()[1].rstrip(",")) % KEEP_EVERY == 0:
            say(f"  {share:.0%} {text}")
            engine.save_adapter(folder)

    told = teach(
        engine,
        asked,
        drawn,
        seconds=given.seconds,
        rate=given.rate,
        batch=given.batch,
        most=given.most,
        seed=config.seed,
        progress=tell,
    )
    engine.save_adapter(folder)
    engine.load_state_dict(untrained)  # what is measured is the adapter as it was written
    for name, groups in sets.items():
        systems[name]["taught"] = examine(asked.ruler(EngineJudge(engine, adapter=folder)), groups)
        systems[name] |= {"likes waiting": trivial(groups, 1.0), "likes acting": trivial(groups, 0.0)}
    options = asked.options(folder)
    return {
        "config": config.model_dump(mode="json", exclude={"data": {"path"}}),
        "reward_options": options,
        "teacher": asked.teacher,
        "settings": {
            k: getattr(given, k)
            for k in ("seconds", "dialogues", "held_out", "n", "most", "batch", "rate", "more")
        },
        "decisions": {"train": len(drawn), "held_out": len(held)},
        "drawing_seconds": drawing,
        "steps": told.steps,
        "examples": told.examples,
        "too_long": told.too_long,
        "loss": told.last(),
        "systems": systems,
    }


def rules(groups: Sequence[Candidates]) -> Scores:
    """The teacher's scores."""
    return scored(Ruler(RuleJudge(), "custom"), groups)


def scored(ruler: Ruler, groups: Sequence[Candidates]) -> Scores:
    found = asyncio.run(ruler.score_all(groups))
    return [None if group is None else [parts["ruler"] for parts in group] for group in found]


def examine(ruler: Ruler, groups: Sequence[Candidates]) -> dict[str, Any]:
    """A judge beside the rules, with the time it took and what was counted."""
    began = time.monotonic()
    found = scored(ruler, groups)
    seconds = time.monotonic() - began
    return {**compared(groups, found), "seconds": seconds, "counters": dict(ruler.counters)}


def trivial(groups: Sequence[Candidates], waiting: float) -> dict[str, Any]:
    """A judge that only looks whether an answer acts."""
    return compared(
        groups, [[waiting if not p.actions and p.ok else 1 - waiting for p in g.parsed] for g in groups]
    )


def compared(groups: Sequence[Candidates], found: Scores) -> dict[str, Any]:
    """Agreement of scores with the rules' on the same groups: over different answers, groups without a
    verdict left out. Intervals by dialogue.
    """
    truth = rules(groups)
    by_dialogue: dict[str, RankAgreement] = {}
    kept: list[tuple[list[float], list[float]]] = []
    for group, mine, theirs in zip(groups, found, truth, strict=True):
        if mine is None or theirs is None:
            continue
        first = list({text: i for i, text in reversed(list(enumerate(group.texts)))}.values())
        pair = [theirs[i] for i in first], [mine[i] for i in first]
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
    """Rate and tau of sums [..., same, opposite, tied by the rules, tied by the judge]; nan where there is
    none.
    """
    same, opposite, first, second = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        tau = (same - opposite) / np.sqrt((same + opposite + second) * (same + opposite + first))
        return {"rate": same / (same + opposite), "tau": tau}


def show(name: str, record: dict[str, Any]) -> None:
    """The table."""
    title = f"{name}: {record['steps']} steps, {record['examples']} groups, against the rule judge on dialogues not trained on"
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
        for system, found in systems.items():
            low, high = found["intervals"].get("tau", (float("nan"), float("nan")))
            table.add_row(
                kind,
                system,
                str(found["groups"]),
                _number(found["usable"]),
                str(found["pairs"]),
                _number(found["rate"]),
                rf"{_number(found['tau'])} \[{low:+.3f}, {high:+.3f}]",
                _number(found["spread"]),
                _number(found["spread_of_rules"]),
            )
    Console(width=140).print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
