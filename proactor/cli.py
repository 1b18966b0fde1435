"""The command line: ``proactor train|pretrain|evaluate|sample|report|pool|demo``. Each command is a few lines around the library.

Input that cannot work is told in one line on stderr with exit code 2; a run that was asked to stop ends with 128 + the signal, saved.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from proactor.bootstrap import KEYS, intervals
from proactor.config import ConfigError, RunConfig
from proactor.config_file import load_config
from proactor.console import Terminal, metrics_table
from proactor.engine import EngineError, Sampling
from proactor.progress import Quiet, Stopped
from proactor.rewards import RewardError, run_reward
from proactor.sources import SourceError

if TYPE_CHECKING:
    from proactor.dialogue import Dialogue
    from proactor.session import Session

app = typer.Typer(
    help="Train agents that decide at every turn whether to act, on what, and when.",
    no_args_is_help=True,
    add_completion=False,
)
console = Console(quiet=os.environ.get("RANK", "0") != "0", highlight=False)
if not console.is_terminal:
    console.width = 120  # a file or a pipe has no width of its own, and 80 cuts tables

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file; see configs/", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="e.g. grpo.lr=1e-4 data.train.limit=50", show_default=False),
]
Adapter = Annotated[str, typer.Option(help="start, best, last, none, or a folder with an adapter")]
Split = Annotated[str, typer.Option(help="train, dev or test")]


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    overfit: Annotated[
        int, typer.Option(metavar="N", help="self-test: learn N dialogues to their maximum, write nothing")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the last save")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="replace the run of this name")] = False,
) -> None:
    """Train a run; its folder, runs/<name>/, holds metrics, samples, adapters and the state to resume from."""
    from proactor.train import train as run_training

    settings = load_config(config, overrides or [])
    _ensure_model(settings)
    if overfit:
        _overfit(settings, overfit)
        return
    with _terminal() as ui:
        summary = run_training(settings, resume=resume, fresh=fresh, ui=ui)
    if summary and not console.quiet:
        systems = {
            k: v for k, v in summary.items() if isinstance(v, dict) and set(KEYS) <= v.keys() and k != "difference"
        }
        console.print(
            metrics_table(
                f"{settings.name}: {summary['dialogues']} test dialogues", systems, KEYS, summary["difference"]
            )
        )
        _report(settings.folder)
    console.print(f"{settings.folder}: done", markup=False)


def _overfit(settings: RunConfig, count: int) -> None:
    from proactor.overfit import overfit

    with _terminal() as ui:
        result = overfit(settings, count, ui)
    console.print(str(result), markup=False)
    if not result.passed:
        raise typer.Exit(1)


@app.command()
def pretrain(config: ConfigFile, overrides: Overrides = None) -> None:
    """Build the small model that a config with a `pretrain` section trains (`train` does it too, when there is none yet)."""
    settings = load_config(config, overrides or [])
    if settings.pretrain is None:
        raise ConfigError(f"{config}: no pretrain section, nothing to build")
    _ensure_model(settings)


def _ensure_model(settings: RunConfig) -> None:
    if settings.pretrain is None or Path(settings.model).is_dir():
        return
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            f"model {settings.model}: not there yet; build it in one process first (proactor pretrain CONFIG)"
        )
    from proactor.small import build

    with _terminal() as ui:
        build(settings, settings.pretrain, ui)


@app.command()
def evaluate(config: ConfigFile, overrides: Overrides = None, adapter: Adapter = "best", split: Split = "test") -> None:
    """Play dialogues through and print metrics with bootstrap intervals, beside the trivial policies."""
    from proactor.evaluate import trivial

    settings = load_config(config, overrides or [])
    session = _session(settings, adapter)
    dialogues = _dialogues(session, split)
    with _terminal() as ui:
        session.ui = ui
        found = session.play(dialogues, f"playing {split}")
    if console.quiet:
        return
    named = {adapter: found, **trivial(dialogues, session.turn_reward)}
    bounds = intervals(found.contributions, KEYS, resamples=settings.eval.resamples)
    record = {
        "adapter": adapter, "split": split, "dialogues": len(dialogues), "unparsed_share": found.unparsed_share, "truncated_share": found.truncated_share,
        "intervals": {k: [b.low, b.high] for k, b in bounds.items()}, **{name: e.metrics for name, e in named.items()},
    }  # fmt: skip
    file = settings.folder / f"evaluate-{split}-{Path(adapter).name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console.print(metrics_table(f"{split}: {len(dialogues)} dialogues", {k: e.metrics for k, e in named.items()}, KEYS))
    ranges = ", ".join(f"{k} {b.low:.3f} to {b.high:.3f}" for k, b in bounds.items())
    console.print(
        f"95% by dialogue: {ranges}\nunparsed {found.unparsed_share:.1%}, truncated {found.truncated_share:.1%}\n{file}",
        markup=False,
    )


@app.command()
def sample(
    config: ConfigFile, overrides: Overrides = None, adapter: Adapter = "best", split: Split = "dev",
    dialogue: Annotated[str, typer.Option(help="id, or position in the split")] = "0",
    turn: Annotated[int, typer.Option(help="user turn after which to decide; 0: every one")] = 0,
    n: Annotated[int, typer.Option("-n", min=1, help="samples a decision")] = 4,
    temperature: Annotated[float, typer.Option(min=0.0)] = 1.0,
    prompt: Annotated[str, typer.Option(help="a user message of one's own instead of a dialogue")] = "",
) -> None:  # fmt: skip
    """Draw answers at the decision points of one dialogue (logged board) and show what each would earn."""
    settings = load_config(config, overrides or [])
    session = _session(settings, adapter)
    drawing = Sampling(n=n, temperature=temperature, max_tokens=settings.eval.max_tokens, seed=settings.seed)
    if prompt:
        group = session.engine.sample([[{"role": "user", "content": prompt}]], drawing)[0]
        for drawn in group.samples:
            console.print(drawn.text, markup=False)
        return
    _show_samples(session, _find(_dialogues(session, split), dialogue), turn, drawing)


def _show_samples(session: Session, chosen: Dialogue, turn: int, drawing: Sampling) -> None:
    from proactor.board import logged_board
    from proactor.rollout import noise_key

    if turn and turn not in chosen.decision_turns:
        raise ConfigError(
            f"--turn {turn}: dialogue {chosen.id!r} has user turns {', '.join(map(str, chosen.decision_turns))}"
        )
    turns = [turn] if turn else list(chosen.decision_turns)
    boards = {u: logged_board(chosen, u) for u in turns}
    prompts = [session.encoder.prompt(chosen, u, boards[u]) for u in turns]
    groups = dict(
        zip(turns, session.engine.sample(prompts, drawing, keys=[noise_key(chosen, u) for u in turns]), strict=True)
    )
    for spoken in chosen.turns:
        console.print(f"{spoken.index:3} {spoken.speaker}: {spoken.text}", markup=False)
        if spoken.index not in groups:
            continue
        texts = [s.text for s in groups[spoken.index].samples]
        columns: dict[str, list[Any]] = {
            "dialogue": [chosen] * len(texts), "turn": [spoken.index] * len(texts), "board": [boards[spoken.index]] * len(texts),
        }  # fmt: skip
        scored = run_reward(session.config.reward, session.reward, [""] * len(texts), texts, columns)
        table = Table("reward", "answer", box=None, padding=(0, 2))
        for parts, text in sorted(zip(scored, texts, strict=True), key=lambda pair: -pair[0]["reward"]):
            table.add_row(f"{parts['reward']:+.3f}", text.replace("[", r"\["))
        console.print(table)


@app.command()
def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="a run's folder, or the config it came from", show_default=False)
    ],
) -> None:
    """Write runs/<name>/report.html again from what the folder holds."""
    _report(load_config(run).folder if run.is_file() else run)


@app.command()
def pool(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs that differ by seed")],
) -> None:
    """Before and after over several seeds, with the paired bootstrap over dialogues pooled."""
    from proactor.compare import pooled
    from proactor.evaluations import EvaluationsError

    try:
        found = pooled(runs)
    except EvaluationsError as error:
        raise ConfigError(str(error)) from error
    systems = {name: found[name] for name in ("before", "after")}
    console.print(metrics_table(f"{found['runs']} runs", systems, KEYS, found["difference"]))
    console.print(json.dumps(found), soft_wrap=True, markup=False)


@app.command()
def demo(overrides: Overrides = None) -> None:
    """Pre-train a small 4-bit model on synthetic dialogues, train it with GRPO, show it before and after."""
    config = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
    if not config.is_file():
        raise ConfigError(f"{config}: not there; the demo runs from a checkout of the repository")
    train(config, overrides, fresh=True)


def _session(settings: RunConfig, adapter: str) -> Session:
    from proactor.session import Session, adapter_folder

    folder = adapter_folder(settings.folder, adapter)
    with _terminal() as ui:
        session = Session.open(settings, ui)
    if folder is not None:
        session.engine.load_adapter(folder)
    return session


def _dialogues(session: Session, split: str) -> tuple[Dialogue, ...]:
    if split not in ("train", "dev", "test"):
        raise ConfigError(f"--split {split}: train, dev or test")
    found: tuple[Dialogue, ...] = getattr(session, split)
    return found


def _find(dialogues: tuple[Dialogue, ...], wanted: str) -> Dialogue:
    for i, dialogue in enumerate(dialogues):
        if wanted in (dialogue.id, str(i)):
            return dialogue
    raise ConfigError(f"--dialogue {wanted}: neither an id nor a position below {len(dialogues)}")


def _report(folder: Path) -> None:
    from proactor.report import rebuild_report

    try:
        file = rebuild_report(folder)
    except ValueError as error:  # a file of the run that is missing or damaged: the message names it
        raise ConfigError(str(error)) from error
    console.print(f"report: {file}", markup=False)


def _terminal() -> AbstractContextManager[Any]:
    return nullcontext(Quiet()) if console.quiet else Terminal(console)


def main() -> None:
    """Entry point of ``proactor`` and ``python -m proactor.cli`` (the latter under torchrun)."""
    try:
        app()
    except (ConfigError, EngineError, RewardError, SourceError) as error:
        print(f"proactor: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Stopped as stopped:
        print(f"proactor: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.signal) from None


if __name__ == "__main__":
    main()
