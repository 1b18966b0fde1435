"""The gyms that recommend: one config builds a model and trains both stages, a stopped run goes on exactly,
and its end is compared with a player at random.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.config_file import load_run
from proactor.environments.gyms.players import players
from proactor.episode_config import EpisodeConfig
from proactor.methods.user_metrics import metrics
from proactor.progress import Stopped
from proactor.training.episode_pairs import scripted_outcomes
from proactor.training.episodes import open_tasks
from proactor.training.episodes_loop import train_episodes
from tests.proactor.commands.calls import call, refusal
from tests.proactor.training.test_loop import Asks, assert_equal, rows

SMALLER = """
pretrain.steps=30 pretrain.limit=40 pretrain.size.hidden=32 pretrain.size.layers=2 pretrain.size.heads=2
pretrain.size.kv_heads=1 pretrain.size.intermediate=64 pretrain.size.batch=4 environment.options.train=100
environment.options.test=4 environment.dev=2 environment.play.sampling.max_tokens=12 sft.max_steps=2
sft.eval_every=2 sft.batch_tasks=2 grpo.steps=2 grpo.eval_every=2 grpo.warmup=0 grpo.n=3 grpo.batch_tasks=2
eval.resamples=100 engine.deterministic=true engine.kv_tokens=8192 save_every=1
""".split()
Finished = tuple[Path, list[str], EpisodeConfig]


@pytest.fixture(scope="module", params=["taira", "agentcf"])
def finished(request: Any, repo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A config's file, overrides that make it small, and what it says: its run has ended."""
    folder = tmp_path_factory.mktemp(request.param)
    file = repo_root / "configs" / f"{request.param}-small.yaml"
    overrides = [f"model={folder / 'model'}", f"runs={folder}", *SMALLER]
    call("train", file, *overrides)
    return file, overrides, read(file, overrides)


def read(file: Path, overrides: list[str]) -> EpisodeConfig:
    config = load_run(file, overrides)
    assert isinstance(config, EpisodeConfig)
    return config


def test_one_config_trains_both_stages(finished: Finished) -> None:
    settings = finished[2]
    logged = rows(settings.folder)
    kinds = [(row["phase"], row["kind"]) for row in logged]
    assert kinds == [
        *[("sft", kind) for kind in ("eval", "sft", "sft", "eval")],
        *[("grpo", kind) for kind in ("eval", "grpo", "grpo", "eval")],
    ]
    assert sum(row.get("demonstrations", 0) for row in logged) > 0
    assert logged[3]["held_out_loss"] < logged[0]["held_out_loss"]
    for row in logged[5:7]:
        assert row["episodes"] == 6 and row["episodes_failed"] == 0 and row["sampler_trainer_gap"] == 0
    assert (settings.folder / "report.html").is_file()


def test_a_stopped_run_continues_bitwise(finished: Finished, tmp_path: Path) -> None:
    file, overrides, whole = finished
    settings = read(file, [*overrides, f"runs={tmp_path}", "save_every=100"])
    with pytest.raises(Stopped, match="after step 3, saved"):
        train_episodes(settings, resume=True, ui=Asks(3))
    train_episodes(settings, resume=True)
    assert_equal(settings.folder, whole.folder)


def test_its_end_is_compared_with_a_player_at_random(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = finished[2]
    folder, name = settings.folder, settings.name
    call("compare", folder, folder, "--against", "random", "--resamples", 100, "--json", tmp_path / "n.json")
    said = capsys.readouterr().out
    assert f"change: {name} - {name} random" in said and f"score against {name} random: " in said
    gym, parts = open_tasks(settings)
    wanted = metrics(scripted_outcomes(gym, [(task, 0) for task in parts.test], players(gym)["random"]))
    written = json.loads((tmp_path / "n.json").read_text())
    assert written["systems"][f"{name} random"] == pytest.approx(wanted)
    told = refusal(capsys, "compare", folder, folder, "--against", "nobody")
    assert "no system 'nobody': one of before, after, expert, hasty" in told
