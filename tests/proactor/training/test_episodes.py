"""A run in an environment from one config: what it leaves, exact resume, the stop rule, evaluation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from proactor.config_base import ConfigError
from proactor.config_file import load_run
from proactor.engine import Engine, Group
from proactor.episode_config import EpisodeConfig, EpisodeEval, EpisodeSFT
from proactor.methods.user_metrics import metrics
from proactor.progress import Quiet, Stopped
from proactor.training.episode_rows import EpisodeRow, read_before_after
from proactor.training.episodes import EVALUATION, Arena, dealt_back
from proactor.training.episodes_loop import EpisodeTraining, train_episodes
from proactor.training.method_credit import frame
from proactor.training.runs import Run, RunError
from tests.proactor.commands.calls import call
from tests.proactor.training.episodes import config
from tests.proactor.training.test_loop import Asks, assert_equal, rows

pytestmark = pytest.mark.usefixtures("guess")


@pytest.fixture(scope="module")
def finished(guess_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    settings = config(tmp_path_factory.mktemp("finished"), guess_model)
    train_episodes(settings)
    return settings.folder


# -- a whole run ---


def test_what_a_run_leaves(finished: Path) -> None:
    logged = rows(finished)
    assert [(r["kind"], r["step"]) for r in logged] == [
        ("eval", 0),
        ("grpo", 1),
        ("grpo", 2),
        ("eval", 2),
        ("grpo", 3),
        ("grpo", 4),
        ("eval", 4),
    ]
    steps = [r for r in logged if r["kind"] == "grpo"]
    for row in steps:
        assert row["episodes"] == 12 and row["sampler_trainer_gap"] == 0 and row["ratio_max_error"] == 0
        assert sum(value for key, value in row.items() if key.startswith("ending/")) == 12
        assert row["groups_with_spread"] + row["groups_without_spread"] == 3
        assert row["reward_mean"] == pytest.approx(row["score"])
    assert any(row["grad_norm"] > 0 and row["groups_with_spread"] for row in steps)
    assert {"eval_score", "eval_pass_u1", "eval_user_rate", "eval_tokens"} <= logged[0].keys()
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["tasks"] == 4 and summary["chosen"]["steps"] == 4 and "stopped" not in summary
    assert summary["difference"]["score"]["estimate"] == pytest.approx(
        summary["after"]["score"] - summary["before"]["score"]
    )
    for name in ("start", "best", "last"):
        assert (finished / name / "adapter_model.safetensors").is_file()
    [first] = (finished / "samples").glob("grpo-000001.jsonl")
    samples = [json.loads(line) for line in first.read_text().splitlines()]
    assert len(samples) == 12 and {s["task"].split("-")[0] for s in samples} == {"train"}
    turn = samples[0]["turns"][0]
    assert {"calls", "feedback", "reward", "user_involved", "advantage", "tokens"} <= turn.keys()
    assert {sample["opening"] for sample in samples} == {"go"}


def test_the_test_episodes_are_kept(finished: Path) -> None:
    tested = read_before_after(finished)
    assert tested is not None and tested.success == 1.0
    summary = json.loads((finished / "summary.json").read_text())
    sides: tuple[tuple[Literal["before", "after"], tuple[EpisodeRow, ...]], ...] = (
        ("before", tested.before),
        ("after", tested.after),
    )
    for name, side in sides:
        assert [e.task for e in side] == sorted(f"test-{i}-{i}" for i in range(4))
        assert metrics([e.outcome(1.0) for e in side]) == pytest.approx(summary[name])
        assert {outcome.run for outcome in tested.outcomes(name, run=7)} == {7}
        assert all(turn.calls or turn.said for e in side for turn in e.turns), (
            "an unread reply is kept as text"
        )
        assert all(turn.advantage is None for e in side for turn in e.turns)


def test_a_run_ends_with_the_adapter_that_its_config_names(
    guess_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    load = Engine.load_adapter
    monkeypatch.setattr(
        Engine, "load_adapter", lambda self, folder: (asked.append(folder.name), load(self, folder))[1]
    )
    short = {"lr": 1e-2, "n": 2, "batch_tasks": 1, "steps": 1, "eval_every": 1}
    for adapter in ("last", "best"):
        ending = {"adapter": adapter, "resamples": 100, "limit": 1}
        settings = config(tmp_path, guess_model, name=adapter, grpo=short, eval=ending)
        summary = train_episodes(settings)
        assert summary["adapter"] == adapter and ("chosen" in summary) == (adapter == "best")
    assert asked == ["start", "last", "start", "best"]


def test_a_stopped_run_continues_bitwise(finished: Path, guess_model: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, guess_model, "save_every=100")
    with pytest.raises(Stopped, match="after step 3, saved"):
        train_episodes(settings, resume=True, ui=Asks(3))
    train_episodes(settings, resume=True)
    assert_equal(settings.folder, finished)


class Heard(Quiet):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_steps_without_spread_stop_the_run(guess_model: Path, tmp_path: Path) -> None:
    """A world without rewards, and no prices: all groups are flat."""
    environment = {
        "gym": "guess",
        "dev": 2,
        "options": {"right": 0.0},
        "play": {"sampling": {"max_tokens": 6}},
    }
    settings = config(
        tmp_path,
        guess_model,
        "grpo.steps=9",
        "grpo.max_flat_steps=2",
        "eval.final=false",
        environment=environment,
        method={"name": "userrl"},
        engine={"kv_tokens": 4096},
    )
    heard = Heard()
    train_episodes(settings, ui=heard)
    steps = [r for r in rows(settings.folder) if r["kind"] == "grpo"]
    assert [r["flat_steps"] for r in steps] == [1, 2]
    assert all(r["groups_without_spread"] == 3 and r["zero_gradient"] == 1 for r in steps)
    said = [line for line in heard.lines if line.startswith("GRPO stopped after step 2 of 9")]
    assert said and "the last 2 steps no group had spread" in said[0]
    train_episodes(settings, resume=True)
    assert len(Run(settings.folder).rows()) == len(rows(settings.folder)) == 4  # it stays stopped


def test_tasks_without_a_demonstration_are_counted(arena: Arena, tmp_path: Path) -> None:
    class Failing:
        def groups(self, tasks: Sequence[str]) -> tuple[list[Group], Counter[str]]:
            return [], Counter(left_out_failed=len(tasks))

    settings = arena.config.model_copy(update={"sft": EpisodeSFT(batch_tasks=2)})
    training = EpisodeTraining(replace(arena, config=settings), Run(tmp_path), [], Quiet())
    training._taught = Failing()  # type: ignore[assignment]
    row = training.sft_row(0)
    assert row["skipped_update"] == 1 and row["tokens_trained"] == 0 and row["left_out_failed"] == 2
    assert row["nonfinite_gradient"] == 0, "no such step: some of them end a run"
    with pytest.raises(RunError, match="the expert's episodes are all left out"):
        training.held_out_loss()


# -- evaluation ---


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_was_dealt_to_ranks_comes_back_in_its_order(ranks: int) -> None:
    tasks = list(range(7))
    assert dealt_back([tasks[rank::ranks] for rank in range(ranks)]) == tasks and dealt_back([[], []]) == []


def test_evaluation_has_its_own_temperature_and_hides_the_reward_line(arena: Arena) -> None:
    trained, _ = arena.play(["train-8-0", "train-9-1"], n=4, iteration=1, epoch=0)
    assert any("Reward:" in turn.feedback for group in trained for e in group for turn in e.turns)
    greedy, _ = arena.play(["test-0-0"], n=2, iteration=EVALUATION, epoch=0, evaluating=True)
    [one, two] = greedy[0]
    assert one.sample.token_ids == two.sample.token_ids
    assert not any("Reward:" in turn.feedback for turn in one.turns)
    warm = arena.config.model_copy(update={"eval": EpisodeEval(temperature=1.0)})
    sampled, _ = replace(arena, config=warm).play(
        ["test-0-0"], n=4, iteration=EVALUATION, epoch=0, evaluating=True
    )
    assert len({tuple(e.sample.token_ids) for e in sampled[0]}) > 1
    row, outcomes, _ = arena.evaluate(arena.tasks.test, "test")
    assert row["eval_score"] == sum(o.score for o in outcomes) / len(outcomes) and len(outcomes) == 4


def test_the_frame_of_a_result_is_what_does_not_depend_on_it(arena: Arena) -> None:
    before, after = frame(arena.chat)
    end = sorted(arena.chat.template.end_ids)[:1]
    ids = arena.chat.observation(end, [{"role": "tool", "name": "x", "content": "lower"}])
    assert arena.chat.template.chat.tokenizer.decode(ids[before:-after]) == "lower"


def test_dev_tasks_are_never_trained_on(arena: Arena) -> None:
    parts = arena.tasks
    assert len(parts.dev) == 4 and not set(parts.dev) & set(parts.train)
    assert {*parts.dev, *parts.train} == set(arena.gym.tasks("train"))


# -- the example ---

SMALLER = """
pretrain.steps=2 pretrain.limit=20 pretrain.size.hidden=32 pretrain.size.layers=2 pretrain.size.heads=2
pretrain.size.kv_heads=1 pretrain.size.intermediate=64 environment.options.train=60 environment.options.test=2
environment.dev=2 environment.play.sampling.max_tokens=4 sft.max_steps=1 sft.batch_tasks=2 grpo.steps=1
grpo.n=2 grpo.batch_tasks=1 eval.resamples=100
""".split()


def test_the_example_builds_a_model_and_runs_both_stages(
    repo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = repo_root / "configs" / "function-small.yaml"
    call("train", file, f"model={tmp_path / 'model'}", f"runs={tmp_path}", *SMALLER)
    folder = tmp_path / "function-small"
    logged = rows(folder)
    assert [(r["phase"], r["kind"]) for r in logged] == [
        ("sft", "eval"),
        ("sft", "sft"),
        ("sft", "eval"),
        ("grpo", "eval"),
        ("grpo", "grpo"),
        ("grpo", "eval"),
    ]
    assert logged[1]["demonstrations"] == 2 and logged[2]["held_out_loss"] < logged[0]["held_out_loss"]
    assert json.loads((folder / "summary.json").read_text())["tasks"] == 2
    assert "function-small: 2 test tasks" in capsys.readouterr().out
    assert (folder / "report.html").is_file()
    settings = load_run(file, [f"model={tmp_path / 'model'}", "environment.options.seed=5"])
    assert isinstance(settings, EpisodeConfig)
    with pytest.raises(ConfigError, match="may have seen those that this run tests on"):
        Arena.open(settings)
