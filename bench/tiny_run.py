"""A run that trains in seconds, and its commands as forked children: what `bench.reliability` disturbs."""

from __future__ import annotations

import json
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from bench.forked import Child, Ended, fork_ranks
from proactor.config_base import SmallModel
from proactor.sources import load
from proactor.training.runs import read_rows
from proactor.training.small_model import build_model, train_tokenizer

SIZE = SmallModel(hidden=32, layers=1, heads=2, kv_heads=1, intermediate=64, vocabulary=420, context=1024)
OPTIONS: dict[str, Any] = {
    "size": 40,
    "min_turns": 4,
    "max_turns": 6,
    "max_actions": 1,
    "tools": 1,
    "skills": ["set_alarm"],
}
TOOLS: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "set_alarm",
        "description": "Set an alarm.",
        "parameters": {"type": "object", "properties": {"time": {"type": "string"}}, "required": ["time"]},
    },
}
PRELOADED = (
    "proactor.training.loop",
    "proactor.training.scalars",
    "proactor.calibration.tradeoff",
    "proactor.report.folders",
    "proactor.sources.synthetic",
    "tensorboard.summary.writer.event_file_writer",
    "transformers.tokenization_utils_tokenizers",
    "typer",
    "rich.table",
)
"""Imported once, before children are forked; what reads the environment is not."""
CLOCKS = ("seconds", "tokens_per_second", "version", "commit", "machine")
"""What may differ between two runs of one config."""


def length_reward(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """A reward with spread on the text of a model with random weights."""
    return [(len(text) % 5) / 4 for text in completions]


def values(model: Path, runs: Path, timeout: float) -> dict[str, Any]:
    """The config of a run of five steps in deterministic mode, saved after each."""
    return {
        "name": "tiny",
        "model": str(model),
        "runs": str(runs),
        "engine": {"deterministic": True, "kv_tokens": 4096, "rank_timeout": timeout},
        "lora": {"rank": 2},
        "prompt": {"instructions": ""},
        "data": {"options": OPTIONS, "train": {"limit": 4}, "dev": {"limit": 2}, "test": {"limit": 2}},
        "sft": {"lr": 2e-3, "batch_dialogues": 2, "max_steps": 2, "eval_every": 1, "patience": 9},
        "grpo": {
            "lr": 1e-2,
            "batch_dialogues": 2,
            "steps": 3,
            "eval_every": 2,
            "sampling": {"n": 2, "max_tokens": 8},
        },
        "reward": "bench.tiny_run:length_reward",
        "eval": {"max_tokens": 8, "resamples": 100},
        "save_every": 1,
    }


class TinyRun:
    """A folder with a model and commands on runs of it. ``timeout``: the config's `rank_timeout`."""

    def __init__(self, folder: Path, timeout: float = 60.0) -> None:
        self.folder, self.timeout = folder, timeout
        self.model, self.tools = folder / "model", folder / "tools.json"
        self.count = 0
        for name in PRELOADED:
            import_module(name)
        if not self.model.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            self.tools.write_text(json.dumps([TOOLS]))
            check(Child(folder / "log" / "model", self._write_model).end())

    def _write_model(self) -> None:
        corpus = load("synthetic", split="train", limit=24, **OPTIONS)
        tokenizer = train_tokenizer((t.text for d in corpus.dialogues for t in d.turns), SIZE.vocabulary)
        build_model(tokenizer, SIZE).save_pretrained(self.model)
        tokenizer.save_pretrained(self.model)

    def config(self, runs: Path) -> Path:
        """The config of a run in ``runs``/tiny, beside it."""
        file = runs / "tiny.yaml"
        if not file.exists():
            runs.mkdir(parents=True, exist_ok=True)
            file.write_text(yaml.safe_dump(values(self.model, runs, self.timeout)))
        return file

    def command(self, *words: str | Path, fault: str = "", limit: int | None = None) -> Child:
        """``proactor`` with arguments; ``fault``: as PROACTOR_FAULT; ``limit``: most bytes of a file."""
        self.count += 1
        return Child(self.folder / "log" / f"{self.count}", lambda: live(words, fault, limit))

    def train(self, runs: Path, fault: str = "") -> Child:
        """Begin or resume the run in ``runs``."""
        return self.command("train", self.config(runs), "--resume", fault=fault)

    def train_ranks(self, runs: Path, count: int = 2, lost: int = 0, fault: str = "") -> list[Child]:
        """Begin or resume it on ranks, of which ``lost`` has the fault."""
        self.count += 1
        words = ("train", self.config(runs), "--resume")

        def work(rank: int) -> None:
            live(words, fault if rank == lost else "")

        return fork_ranks(count, self.folder / "log" / f"{self.count}", work)

    def finished(self, runs: Path) -> Path:
        """A run in ``runs`` that nothing disturbs."""
        check(self.train(runs).end())
        return runs / "tiny"

    def copy(self, run: Path, runs: Path) -> Path:
        """A copy of a run in another folder."""
        self.config(runs)
        return Path(shutil.copytree(run, runs / "tiny"))


def live(words: tuple[str | Path, ...], fault: str = "", limit: int | None = None) -> None:
    """The life of a process that runs one command."""
    import resource
    import signal

    from proactor.engine import faults

    faults._plan = fault
    if limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails with EFBIG instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = ["proactor", *map(str, words)]
    from proactor.cli import main

    main()


def check(end: Ended) -> Ended:
    """Raise SystemExit where an undisturbed command failed: nothing can be compared then."""
    if end.code != 0:
        raise SystemExit(f"an undisturbed command ended with {end.code}: {end.errors or end.output}")
    return end


def refused(end: Ended) -> bool:
    """Whether a command ended with exit code 2 and one line."""
    return end.code == 2 and end.errors.startswith("proactor: ") and end.errors.count("\n") == 1


def differences(run: Path, reference: Path, rounded: bool = False) -> list[str]:
    """The files of a run that differ from an undisturbed one's, clocks aside.

    ``rounded``: numbers of rows are compared to 8 digits, because ranks add them in another order.
    """
    found = [
        name
        for name in (f"{kind}/adapter_model.safetensors" for kind in ("start", "best", "last"))
        if _bytes(run / name) != _bytes(reference / name)
    ]
    mine, theirs = (_rows(folder, rounded) for folder in (run, reference))
    if mine != theirs:
        found.append("metrics.jsonl")
    for file in sorted((reference / "samples").iterdir()):
        parts = [sorted(_bytes(folder / "samples" / file.name).splitlines()) for folder in (run, reference)]
        if parts[0] != parts[1]:
            found.append(f"samples/{file.name}")
    left = [entry.name for entry in run.iterdir() if ".writing-" in entry.name]
    return found + left


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _rows(run: Path, rounded: bool) -> list[dict[str, Any]]:
    def number(value: Any) -> Any:
        return float(f"{value:.8g}") if rounded and isinstance(value, float) else value

    rows = read_rows(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    return [
        {k: number(v) for k, v in row.items() if k not in CLOCKS and not k.startswith("seconds_")}
        for row in rows
    ]
