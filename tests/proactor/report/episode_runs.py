"""The folder of a made-up run in an environment, without an engine."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from proactor.methods.user_metrics import KEYS, intervals, metrics, paired_change
from proactor.training.episode_rows import EpisodeRow, TurnRow
from proactor.training.summary import interval_values

STEPS, CHECKED = 12, 3
"""Training steps, and how many lie between two checks on dev."""


def made_up(task: str, sample: int, rng: random.Random, skill: float, *, trained: bool = True) -> EpisodeRow:
    """An episode of an agent that asks the user less and answers better, the higher its ``skill``, 0 to 1."""
    turns, score, ending = [], 0.0, "turns"
    for _ in range(6):
        asks = rng.random() < 0.6 - 0.4 * skill
        right = rng.random() < 0.1 + 0.5 * skill
        verb = "answer" if asks else rng.choice(("action", "search"))
        heard = ("yes" if right else "no, try again") if asks else f"the value is {rng.randint(1, 99)}"
        reward = 1.0 if asks and right else -0.1 if asks else 0.0
        unread = rng.random() < 0.1 * (1 - skill)
        turns.append(
            TurnRow.model_validate(
                {
                    "calls": [] if unread else [{"verb": verb, "content": f"{rng.randint(1, 9)} + {task}"}],
                    "said": "Let me think about that." if unread or rng.random() < 0.2 else "",
                    "feedback": "" if unread else heard,
                    "reward": 0.0 if unread else reward,
                    "user_involved": asks and not unread,
                    "advantage": round(rng.gauss(reward, 0.4), 3) if trained else None,
                    "tokens": rng.randint(5, 30),
                }
            )
        )
        if unread:
            ending = "no_call"
            break
        if asks and right:
            score, ending = 1.0, "terminated"
            break
    if ending == "turns" and rng.random() < 0.3:
        score = 0.4
    if rng.random() < 0.04:
        ending, score = "error", 0.0
    return EpisodeRow(
        task=task,
        sample=sample,
        score=score,
        ending=ending,
        error="the world was lost" if ending == "error" else "",
        opening=f"What is the rule of {task}?",
        tokens=sum(t.tokens for t in turns),
        turns=tuple(turns),
    )


def averages(rows: list[EpisodeRow], prefix: str = "") -> dict[str, float]:
    """Metrics of some episodes, and their endings, as a row of metrics.jsonl has them."""
    values = {f"{prefix}{k}": v for k, v in metrics([row.outcome(1.0) for row in rows]).items()}
    endings = Counter(row.ending for row in rows)
    return values | {f"{prefix}ending/{k}": float(v) for k, v in endings.items()}


def write_run(
    folder: Path, *, seed: int = 0, skill: float = 0.9, tests: int = 12, final: bool = True
) -> Path:
    """A run of STEPS steps whose agent ends with ``skill``; without ``final`` it has not reached its end."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    (folder / "samples").mkdir()
    config = {
        "name": folder.name,
        "model": "m",
        "seed": seed,
        "environment": {"gym": "function_family", "options": {"largest": 3}},
        "method": {"name": "bao", "options": {"user_price": 0.05}},
        "eval": {"success": 1.0},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows: list[dict[str, Any]] = []

    def check(step: int) -> None:
        dev = [made_up(f"dev-{i}", 0, rng, skill * step / STEPS, trained=False) for i in range(16)]
        rows.append({"phase": "grpo", "kind": "eval", "step": step, **averages(dev, "eval_")})

    check(0)
    for step in range(1, STEPS + 1):
        tasks = [f"train-{rng.randint(0, 99)}" for _ in range(4)]
        played = [made_up(t, i, rng, skill * step / STEPS) for t in dict.fromkeys(tasks) for i in range(4)]
        counts = {"episodes": float(len(played)), "groups_with_spread": 3.0, "host/turns": 50.0}
        rows.append({"phase": "grpo", "kind": "grpo", "step": step, **averages(played), **counts})
        lines = "".join(row.model_dump_json() + "\n" for row in played)
        (folder / "samples" / f"grpo-{step:06d}.jsonl").write_text(lines)
        if step % CHECKED == 0:
            check(step)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not final:
        return folder

    def tested(name: str, reached: float) -> list[EpisodeRow]:
        rngs = [random.Random(f"{seed} {name} {i}") for i in range(tests)]
        return [made_up(f"test-{i}", 0, rng, reached, trained=False) for i, rng in enumerate(rngs)]

    sides = {"before": tested("before", 0.0), "after": tested("after", skill)}
    dumped = {name: [row.model_dump() for row in side] for name, side in sides.items()}
    (folder / "episodes.json").write_text(json.dumps({"success": 1.0, **dumped}))
    before, after = ([row.outcome(1.0) for row in sides[name]] for name in ("before", "after"))
    best = max((r for r in rows if r["kind"] == "eval"), key=lambda r: r["eval_score"])
    summary = {name: {k: v for k, v in averages(side).items() if k in KEYS} for name, side in sides.items()}
    summary |= {
        "intervals": {
            name: interval_values(intervals(side, KEYS, resamples=200))
            for name, side in (("before", before), ("after", after))
        },
        "difference": interval_values(paired_change(before, after, KEYS, resamples=200)),
        "tasks": tests,
        "seconds": 12.5,
        "chosen": {
            "phase": "grpo",
            "measure": "score",
            "best_step": best["step"],
            "steps": STEPS,
            "start": rows[0]["eval_score"],
            "best": best["eval_score"],
            "end": rows[-1]["eval_score"],
        },
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
