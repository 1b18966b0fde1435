"""A run from the first step to the summary; killed and resumed; on several processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from proactor.catalogs import write_catalog
from proactor.config import RunConfig
from proactor.config_base import ConfigError
from proactor.engine import ProactorError
from proactor.engine.state import read_state
from proactor.episode_config import EpisodeConfig
from proactor.progress import Quiet, Stopped
from proactor.rewards import RewardError
from proactor.scoring.bootstrap import KEYS
from proactor.sources import load
from proactor.training.loop import Training, train
from proactor.training.position import Position, read_position
from proactor.training.runs import CLOCKS, Run, RunError
from proactor.training.workspace import Workspace
from tests.proactor.runs import OPTIONS, config, config_file, masked

REWARD = "tests.proactor.runs:length_reward"
SETTINGS = (f"reward={REWARD}", "data.dev.limit=6")
"""Of fewer dev dialogues the held-out loss may rise within these few steps."""
LOGGED = """
loss entropy clip_share sampler_trainer_gap adapter_norm grad_norm lr reward_mean reward_std zero_spread_share
truncated_share unparsed_share tokens_computed tokens_avoided parts/reward parts/reward_std
parts/reward_within
""".split()


def rows(folder: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in Run(folder).rows()]


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without what another run of the same may have otherwise: its time, and changes beside it."""
    return {k: v for k, v in summary.items() if k not in ("seconds", "commit")}


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("finished")
    train(config(folder, tiny_model, *SETTINGS))
    return folder / "runs" / "tiny"


# -- a whole run ---


def test_what_a_run_leaves(finished: Path) -> None:
    logged = rows(finished)
    assert [(r["phase"], r["kind"], r["step"]) for r in logged] == [
        ("sft", "eval", 0),
        ("sft", "sft", 1),
        ("sft", "sft", 2),
        ("sft", "eval", 2),
        ("sft", "sft", 3),
        ("sft", "sft", 4),
        ("sft", "eval", 4),
        ("grpo", "eval", 4),
        ("grpo", "grpo", 5),
        ("grpo", "grpo", 6),
        ("grpo", "eval", 6),
        ("grpo", "grpo", 7),
        ("grpo", "grpo", 8),
        ("grpo", "eval", 8),
    ]
    steps = [r for r in logged if r["kind"] == "grpo"]
    for row in steps:
        assert set(LOGGED) <= row.keys()
        assert row["sampler_trainer_gap"] == 0 and row["ratio_max_error"] == 0
    assert any(
        r["zero_spread_share"] < 1 and r["parts/reward_within"] > 0 and r["tokens_avoided"] > 0 for r in steps
    )
    assert logged[6]["held_out_loss"] < logged[0]["held_out_loss"]
    for name in ("start", "best", "last"):
        assert (finished / name / "adapter_model.safetensors").is_file()
    assert list((finished / "tensorboard").iterdir())
    sample = json.loads((finished / "samples" / "grpo-000005.jsonl").read_text().splitlines()[0])
    assert {
        "dialogue",
        "turn",
        "text",
        "reward",
        "parts",
        "advantage",
        "finish_reason",
        "ok",
    } <= sample.keys()
    summary = json.loads((finished / "summary.json").read_text())
    assert {"before", "after", "never", "always", "values_seen", "seconds"} <= summary.keys()
    chosen = summary["chosen"]
    assert (chosen["phase"], chosen["measure"], chosen["steps"]) == ("grpo", "reward", 4)
    assert chosen["best_step"] == read_state(finished / "state.safetensors")[1]["caller"]["best_step"]
    for name in ("before", "after", "never", "always"):
        assert summary[name].keys() == set(KEYS)


def test_sft_ends_when_the_held_out_loss_stops_falling(tiny_model: Path, tmp_path: Path) -> None:
    stage = {"lr": 1.0, "batch_dialogues": 2, "max_steps": 50, "eval_every": 1, "patience": 2}
    train(config(tmp_path, tiny_model, "grpo=null", "eval.final=false", sft=stage))
    run = Run(tmp_path / "runs" / "tiny")
    losses = [r["held_out_loss"] for r in run.rows() if r["kind"] == "eval"]
    assert len(losses) == 3 and min(losses) == losses[0]
    record = read_state(run.state)[1]["caller"]
    assert (record["phase"], record["step"], record["best_step"], record["best"]) == ("done", 2, 0, losses[0])


def test_grpo_begins_with_the_lowest_held_out_loss(tiny_model: Path, tmp_path: Path) -> None:
    stage = {"lr": 1.0, "batch_dialogues": 2, "max_steps": 2, "eval_every": 1}
    train(config(tmp_path, tiny_model, "grpo.steps=1", "eval.final=false", sft=stage))
    adapter = load_file(tmp_path / "runs" / "tiny" / "start" / "adapter_model.safetensors")
    assert not any(tensor.any() for name, tensor in adapter.items() if "lora_B" in name), (
        "the untrained one was the best"
    )


def test_steps_on_unknown_windows_do_not_end_a_run(tiny_model: Path, tmp_path: Path) -> None:
    """Not for want of an update, nor for a gradient that is not finite."""
    corpus = load("synthetic", limit=3, **OPTIONS)
    dialogues = (corpus.dialogues[0], *map(masked, corpus.dialogues[1:]))
    (tmp_path / "d.jsonl").write_text("".join(f"{d.model_dump_json()}\n" for d in dialogues))
    write_catalog(corpus.catalog, tmp_path / "catalog.json")
    parts = {name: {"split": None} for name in ("train", "dev", "test")}
    data = {"source": "jsonl", "path": str(tmp_path / "d.jsonl"), **parts}
    stage = {"lr": 1e-3, "batch_dialogues": 1, "max_steps": 3, "eval_every": 3}
    train(
        config(tmp_path, tiny_model, "grpo=null", "eval.final=false", data=data, sft=stage, max_nonfinite=1)
    )
    steps = [row for row in rows(tmp_path / "runs" / "tiny") if row["kind"] == "sft"]
    assert sorted(row["skipped_update"] for row in steps) == [0, 1, 1]
    assert sorted(row["examples"] > 0 for row in steps) == [False, False, True]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (f"eval.reward={REWARD}", f"eval.reward: '{REWARD}' does not score single decisions"),
        ('eval.costs={"tools": {"fly": {}}}', "eval.costs: no tool 'fly'"),
        ("data.options.size=1", "data.dev: synthetic has no dialogues"),
        ("data.path=elsewhere", "data: "),
        ("start=no/adapter", "no/adapter"),
        ("model=no/model", "no/model"),
    ],
)
def test_a_run_is_not_given_up_for_one_that_cannot_begin(
    tiny_model: Path, tmp_path: Path, override: str, message: str
) -> None:
    run = begun(config(tmp_path, tiny_model))
    (tmp_path / "elsewhere").mkdir()
    before, wrong = contents(run.folder), config(tmp_path, tiny_model, override)
    with pytest.raises(ProactorError, match=re.escape(message)):
        train(wrong, fresh=True)
    assert contents(run.folder) == before


def test_a_run_is_not_given_up_for_a_dev_part_without_answers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, tiny_model)
    run = begun(settings)
    before = contents(run.folder)
    unknown = property(lambda self: tuple(map(masked, self.dev)))
    monkeypatch.setattr(Workspace, "held_out", unknown)
    with pytest.raises(ConfigError, match=r"data\.dev: the right answer is known at none"):
        train(settings, fresh=True)
    assert contents(run.folder) == before


def test_a_run_that_can_begin_replaces_the_old_one(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, tiny_model, "grpo=null", "sft.max_steps=1", "eval.final=false")
    run = begun(settings)
    train(settings, fresh=True)
    assert [row["kind"] for row in run.rows()] == ["eval", "sft", "eval"]
    assert not (run.best / "mine").exists() and (run.folder / "config.yaml").is_file()


def begun(settings: RunConfig | EpisodeConfig) -> Run:
    """A run of these settings that has something to lose."""
    run = Run(settings.folder)
    run.begin(settings, resume=False, fresh=False)
    run.log({"phase": "grpo", "kind": "grpo", "step": 1})
    run.best.mkdir()
    (run.best / "mine").write_text("weights")
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_a_run_needs_a_stage(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="neither sft nor grpo"):
        train(config(tmp_path, tiny_model, "sft=null", "grpo=null"))


# -- killed and resumed ---


def assert_equal(folder: Path, reference: Path) -> None:
    """Everything a run leaves, clocks aside."""
    assert rows(folder) == rows(reference)
    for name in ("start", "best", "last"):
        file = f"{name}/adapter_model.safetensors"
        assert (folder / file).read_bytes() == (reference / file).read_bytes(), file
    assert sorted(f.name for f in (folder / "samples").glob("*")) == sorted(
        f.name for f in (reference / "samples").glob("*")
    )
    for file in (folder / "samples").glob("*"):
        assert file.read_text() == (reference / "samples" / file.name).read_text()
    assert timeless(json.loads((folder / "summary.json").read_text())) == timeless(
        json.loads((reference / "summary.json").read_text())
    )
    mine, theirs = (read_state(f / "state.safetensors")[0] for f in (folder, reference))
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.slow
def test_a_killed_run_continues_bitwise(
    finished: Path, tiny_model: Path, tmp_path: Path, repo_root: Path
) -> None:
    file = config_file(tmp_path, tiny_model)
    command = [sys.executable, "-m", "proactor.cli", "train", str(file), *SETTINGS, "--resume"]
    # inside a supervised step; when rows are ahead of the state; while sampling. Between state and adapter:
    # see below
    for fault in ("backward:5", "metrics:2", "sampling:60"):
        killed = subprocess.run(
            command,
            cwd=repo_root,
            env={**os.environ, "PROACTOR_FAULT": fault},
            capture_output=True,
            text=True,
        )
        assert killed.returncode == -signal.SIGKILL, (fault, killed.stderr)
    ended = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert_equal(tmp_path / "runs" / "tiny", finished)


class Asks(Quiet):
    """Asks the process to end after ``step`` steps, as a scheduler of jobs does."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, text: str) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def test_sigterm_saves_and_the_run_continues_bitwise(
    finished: Path, tiny_model: Path, tmp_path: Path
) -> None:
    settings = config(tmp_path, tiny_model, *SETTINGS, "save_every=100")
    handler = signal.getsignal(signal.SIGTERM)
    for step, update in ((3, 3), (2, 5)):
        with pytest.raises(Stopped, match=f"after step {update}, saved") as stopped:
            train(settings, resume=True, ui=Asks(step))
        assert stopped.value.signal == signal.SIGTERM and signal.getsignal(signal.SIGTERM) is handler
    train(settings, resume=True)
    assert_equal(tmp_path / "runs" / "tiny", finished)


def supervised(folder: Path, model: Path, **changes: float) -> Path:
    """A run without GRPO in ``folder``, begun or gone on with."""
    folder.mkdir(exist_ok=True)
    stage = {"lr": 1e-3, "batch_dialogues": 2, "eval_every": 2, **changes}
    train(config(folder, model, "grpo=null", "eval.final=false", sft=stage), resume=True)
    return folder / "runs" / "tiny"


def test_an_ended_supervised_run_goes_on_for_more_steps(tiny_model: Path, tmp_path: Path) -> None:
    """As if it had been asked for all of them at once."""
    whole = supervised(tmp_path / "whole", tiny_model, max_steps=4, patience=9)
    supervised(tmp_path / "parts", tiny_model, max_steps=2, patience=9)
    parts = supervised(tmp_path / "parts", tiny_model, max_steps=4, patience=9)
    assert rows(parts) == rows(whole) and len(rows(whole)) == 4 + 3
    file = "best/adapter_model.safetensors"
    assert (parts / file).read_bytes() == (whole / file).read_bytes()


def test_one_that_ended_for_want_of_progress_does_not(tiny_model: Path, tmp_path: Path) -> None:
    run = supervised(tmp_path, tiny_model, lr=1.0, eval_every=1, max_steps=9, patience=1)
    before = rows(run)
    assert supervised(tmp_path, tiny_model, lr=1.0, eval_every=1, max_steps=12, patience=1) == run
    assert rows(run) == before and len(before) < 2 * 9


def test_the_best_adapter_is_written_again_when_the_kill_came_before_it(
    finished: Path, tiny_model: Path, tmp_path: Path
) -> None:
    settings = config(tmp_path, tiny_model, "grpo=null", "sft.max_steps=2", "eval.final=false")
    train(settings)
    run = Run(settings.folder)
    workspace = Workspace.open(settings)
    training = Training(workspace, run, [], Quiet())
    training.restore()
    training.position.phase, training.position.best_step = "sft", 2
    training.save()
    best = run.best / "adapter_model.safetensors"
    kept = best.read_bytes()
    best.write_bytes(b"older")
    Training(workspace, run, [], Quiet()).restore()
    assert best.read_bytes() == kept


def test_a_broken_reward_loses_no_save(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, tiny_model, "reward=tests.proactor.runs:nan_reward", "sft.max_steps=2")
    with pytest.raises(RewardError, match=r"nan_reward' gave nan for completion"):
        train(settings)
    assert read_state(settings.folder / "state.safetensors")[1]["caller"]["update"] == 2
    assert (settings.folder / "start" / "adapter_model.safetensors").is_file()


def test_a_judge_that_cannot_work_is_refused_before_anything_is_written(
    tiny_model: Path, tmp_path: Path
) -> None:
    """A password in its address would stand in the run's config."""
    judge = {"kind": "endpoint", "model": "m", "base_url": "http://user:PASSWORD@host/v1"}
    settings = config(tmp_path, tiny_model, reward="custom_ruler", reward_options={"judge": judge})
    with pytest.raises(RewardError, match="base_url holds a user name or password") as caught:
        train(settings)
    assert "PASSWORD" not in str(caught.value) and not settings.folder.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": None}, "step is missing"),
        ({"metrics_bytes": None}, "metrics_bytes is missing"),
        ({"step": "two"}, "step: "),
    ],
)
def test_a_state_of_something_else_is_one_line(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    record = {"phase": "sft", "step": 1, "update": 1, "metrics_bytes": 3} | change
    run = Run(tmp_path)
    with pytest.raises(RunError, match=rf"state\.safetensors: not the record of a run \({words}"):
        read_position({k: v for k, v in record.items() if v is not None}, run.state)
    good = {"phase": "grpo", "step": 1, "update": 2, "best": float("inf"), "metrics_bytes": 3}
    assert read_position(good, run.state) == (Position("grpo", 1, 2, float("inf")), 3)


# -- several processes ---


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(
    finished: Path, tiny_model: Path, tmp_path: Path, repo_root: Path
) -> None:
    file = config_file(tmp_path, tiny_model)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29417",
        "-m",
        "proactor.cli",
    ]
    ended = subprocess.run(
        [*command, "train", str(file), *SETTINGS], cwd=repo_root, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    folder = tmp_path / "runs" / "tiny"
    assert (folder / "last/adapter_model.safetensors").read_bytes() == (
        finished / "last/adapter_model.safetensors"
    ).read_bytes()
    for mine, alone in zip(rows(folder), rows(finished), strict=True):
        assert mine == {
            k: pytest.approx(v, abs=1e-8) if isinstance(v, float) else v for k, v in alone.items()
        }
    drawn = [
        [json.loads(line) for line in sorted((f / "samples/grpo-000006.jsonl").read_text().splitlines())]
        for f in (folder, finished)
    ]
    assert drawn[0] == drawn[1]
