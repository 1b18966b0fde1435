"""``proactor evaluate`` and ``sample``."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from proactor.commands.common import (
    Adapter,
    ConfigFile,
    Overrides,
    Split,
    UsageError,
    check_split,
    console,
    dialogues_of,
    find_dialogue,
    open_workspace,
    terminal,
    writing_to,
)

if TYPE_CHECKING:
    from proactor.config import RunConfig
    from proactor.dialogue import Dialogue
    from proactor.engine import Sampling
    from proactor.training.workspace import Workspace


def evaluate(
    config: ConfigFile,
    overrides: Overrides = None,
    adapter: Adapter = "best",
    split: Split = "test",
    output: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="file to write to; default: a file in the run's folder"),
    ] = None,
) -> None:
    """Play dialogues through and print metrics with bootstrap intervals, beside the trivial policies."""
    from proactor.config_file import load_config

    settings = load_config(config, overrides or [])
    check_split(split)
    with nullcontext() if output is not None else writing_to(settings, adapter):
        from proactor.training.evaluation_files import RunFiles

        file = output or RunFiles.of(settings, config, overrides or []).evaluation(split, adapter)
        _evaluate(settings, adapter, split, file)


def _evaluate(settings: RunConfig, adapter: str, split: str, file: Path) -> None:
    """``file``: to write to."""
    workspace = open_workspace(settings, adapter)
    from proactor.engine import atomic_file
    from proactor.evaluation.breakdown import breakdown, breakdown_tables
    from proactor.evaluation.play import evaluate_policies
    from proactor.scoring.bootstrap import KEYS, intervals
    from proactor.scoring.metrics import ALL
    from proactor.tables import metrics_table, plain_name
    from proactor.training.evaluation_files import played

    dialogues = dialogues_of(workspace, split)
    with terminal() as ui:
        workspace.ui = ui
        evaluation = workspace.play(dialogues, f"playing {split}")
    if console.quiet:
        return
    policies = evaluate_policies(dialogues, workspace.turn_reward, workspace.costs, workspace.rule)
    systems = {adapter: evaluation, **policies}
    metrics = {name: system.metrics for name, system in systems.items()}
    bounds = intervals(evaluation.contributions, ALL, resamples=settings.eval.resamples)
    parts = breakdown(dialogues, evaluation, resamples=settings.eval.resamples)
    record = {
        "adapter": adapter,
        "split": split,
        "played": played(settings, split),
        "dialogues": len(dialogues),
        "unparsed_share": evaluation.unparsed_share,
        "truncated_share": evaluation.truncated_share,
        "intervals": {k: [b.low, b.high] for k, b in bounds.items() if math.isfinite(b.low)},
        "breakdown": parts.model_dump(mode="json"),
        **metrics,
    }
    atomic_file(file, (json.dumps(record, indent=2) + "\n").encode())
    console.print(metrics_table(f"{split}: {len(dialogues)} dialogues", metrics, KEYS))
    for table in breakdown_tables(parts):
        console.print(table)
    ranges = ", ".join(
        f"{plain_name(k)} {b.low:.3f} to {b.high:.3f}"
        if math.isfinite((b := bounds[k]).low)
        else f"{plain_name(k)} –"
        for k in KEYS
    )
    console.print(
        f"95% by dialogue: {ranges}\n"
        f"unparsed {evaluation.unparsed_share:.1%}, truncated {evaluation.truncated_share:.1%}\n"
        f"{file}",
        markup=False,
    )


def sample(
    config: ConfigFile,
    overrides: Overrides = None,
    adapter: Adapter = "best",
    split: Split = "dev",
    dialogue: Annotated[str, typer.Option(help="the id of a dialogue, or its position in the split")] = "0",
    turn: Annotated[
        int, typer.Option(help="number of the user turn after which to decide; 0: all turns")
    ] = 0,
    n: Annotated[int, typer.Option("-n", min=1, help="number of samples for each decision")] = 4,
    temperature: Annotated[float, typer.Option(min=0.0)] = 1.0,
    prompt: Annotated[str, typer.Option(help="your own user message, instead of a dialogue")] = "",
) -> None:
    """Sample answers at the decision points of one dialogue, and show the reward of each."""
    from proactor.config_file import load_config
    from proactor.engine import Sampling

    settings = load_config(config, overrides or [])
    check_split(split)
    workspace = open_workspace(settings, adapter)
    sampling = Sampling(n=n, temperature=temperature, max_tokens=settings.eval.max_tokens, seed=settings.seed)
    if prompt:
        group = workspace.engine.sample([[{"role": "user", "content": prompt}]], sampling)[0]
        for drawn in group.samples:
            console.print(drawn.text, markup=False)
        return
    _show_samples(workspace, find_dialogue(dialogues_of(workspace, split), dialogue), turn, sampling)


def _show_samples(workspace: Workspace, chosen: Dialogue, turn: int, sampling: Sampling) -> None:
    """Print a dialogue with the answers sampled at ``turn`` (0: at every decision), best first."""
    from proactor.dialogue.board import logged_board
    from proactor.dialogue.candidates import Candidates
    from proactor.dialogue.decisions import noise_key
    from proactor.rewards import run_reward

    if turn and turn not in chosen.decision_turns:
        raise UsageError(
            f"--turn {turn}: dialogue {chosen.id!r} has user turns "
            f"{', '.join(map(str, chosen.decision_turns))}"
        )
    turns = [turn] if turn else list(chosen.decision_turns)
    boards = {u: logged_board(chosen, u) for u in turns}
    encoder = workspace.encoder
    prompts = [
        encoder.prompt(chosen, u, boards[u], encoder.earlier_graph(chosen, u, boards[u])) for u in turns
    ]
    sampled = workspace.engine.sample(prompts, sampling, keys=[noise_key(chosen, u) for u in turns])
    groups = dict(zip(turns, sampled, strict=True))
    for spoken in chosen.turns:
        console.print(f"{spoken.index:3} {spoken.speaker}: {spoken.text}", markup=False)
        if spoken.index not in groups:
            continue
        texts = tuple(s.text for s in groups[spoken.index].samples)
        candidates = Candidates(chosen, spoken.index, texts, encoder.catalog, boards[spoken.index])
        scored = run_reward(
            workspace.config.reward, workspace.sample_reward, candidates, lambda: [""] * sampling.n
        )
        table = Table("reward", "answer", box=None, padding=(0, 2))
        for parts, text in sorted(zip(scored, texts, strict=True), key=lambda pair: -pair[0]["reward"]):
            table.add_row(f"{parts['reward']:+.3f}", Text(text))
        console.print(table)
