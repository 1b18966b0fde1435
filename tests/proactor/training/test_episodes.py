"""A run in an environment from one config: what it leaves, exact resume, the stop rule, rows, gradients."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from proactor.config_base import ConfigError
from proactor.config_file import load_run
from proactor.engine import GRPO, Engine, Group, GRPOLoss
from proactor.engine.model import Decoder
from proactor.environments.episode import Episode
from proactor.episode_config import EpisodeConfig, EpisodeEval, EpisodeSFT, MethodOptions
from proactor.methods.user_metrics import metrics
from proactor.progress import Quiet, Stopped
from proactor.training.episode_rows import EpisodeRow, read_before_after
from proactor.training.episodes import EVALUATION, Arena, dealt_back
from proactor.training.episodes_loop import EpisodeTraining, train_episodes
from proactor.training.method_credit import Credit, frame
from proactor.training.runs import Run, RunError
from proactor.training.steps import batch
from tests.proactor.commands.calls import call
from tests.proactor.methods.episodes import episode
from tests.proactor.training.episodes import config
from tests.proactor.training.test_loop import Asks, assert_equal, rows

pytestmark = pytest.mark.usefixtures("guess")


@pytest.fixture(scope="module")
def finished(guess_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nobody disturbed."""
    settings = config(tmp_path_factory.mktemp("finished"), guess_model)
    train_episodes(settings)
    return settings.folder


@pytest.fixture(scope="module")
def arena(guess_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    """An arena whose model was not trained; some tasks break, and the reward line is shown."""
    settings = config(tmp_path_factory.mktemp("arena"), guess_model)
    broken = settings.environment.model_copy(
        update={
            "options": {"broken": 8},
            "host": settings.environment.host.model_copy(update={"show_reward": True}),
        }
    )
    return Arena.open(settings.model_copy(update={"environment": broken}))


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
    with pytest.raises(RunError, match="the expert's episodes are all left out"):
        training.held_out_loss()


# -- groups without spread ---


def drawn_again(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, flat: set[int], **changes: Any
) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """(the row of step 0 of an arena, tasks in the epoch's order, samples) where the first groups of the
    tasks at the places ``flat`` of that order have no spread. The arena stays as it was.
    """
    assert arena.config.grpo is not None
    grpo = arena.config.grpo.model_copy(update={"batch_tasks": 3, **changes})
    settings = arena.config.model_copy(update={"grpo": grpo})
    _, tasks, others = batch(arena.tasks.train, 3, settings.seed, "grpo", 0, str)
    named = {task for place, task in enumerate([*tasks, *others]) if place in flat}
    seen = Counter[str]()

    def without_spread(self: Credit, episodes: Sequence[Episode]) -> bool:
        seen[episodes[0].task] += 1
        return episodes[0].task in named and seen[episodes[0].task] == 1

    monkeypatch.setattr(Credit, "without_spread", without_spread)
    training = EpisodeTraining(replace(arena, config=settings), Run("nowhere", writer=False), [], Quiet())
    state = arena.engine.state_dict()
    row, samples = training.grpo_row(0)
    arena.engine.load_state_dict(state)
    return row, [*tasks, *others], samples


def test_tasks_without_spread_are_played_again(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tasks with other tokens, or the next of the order; the others keep what they were."""
    plain, order, first = drawn_again(arena, monkeypatch, set(), redraws=0)
    assert "groups_redrawn" not in plain
    same, _, again = drawn_again(arena, monkeypatch, {0, 2}, redraws=3)
    assert same["groups_redrawn"] == 2 and same["episodes"] == 12
    assert same["tokens_sampled"] > same["tokens_redrawn"] > 0
    assert [s["task"] for s in again[::4]] == [s["task"] for s in first[::4]] == order[:3]
    assert again[4:8] == first[4:8] and again[:4] != first[:4] and again[8:] != first[8:]
    other, _, more = drawn_again(arena, monkeypatch, {0, 2, 4}, redraws=3, redraw="other")
    assert other["groups_redrawn"] == 3 and more[:4] == first[4:8]
    assert [s["task"] for s in more[::4]] == [order[1], order[3], order[5]]
    _, _, capped = drawn_again(arena, monkeypatch, {0, 2, 4}, redraws=1, redraw="other")
    assert [s["task"] for s in capped[::4]] == [order[1], order[3], order[4]], "the last draw stays"


def test_a_group_is_without_spread_where_no_token_gets_an_advantage() -> None:
    alike, other = [episode([0.0, 1.0]) for _ in range(2)], episode([0.0, 0.0])
    for name in ("userrl", "bao", "agent_omit"):
        credit = Credit.of(MethodOptions(name=name))
        assert credit.without_spread([*alike, failed("error"), episode([])])
        assert not credit.without_spread([*alike, other])
        assert not credit.without_spread([alike[0], failed("error")]), "nothing to compare"


@pytest.mark.parametrize("name", ["infopo", "stepagent"])
def test_methods_that_draw_nothing_again(guess_model: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"grpo.redraws=1: {name} "):
        config(tmp_path, guess_model, "grpo.redraws=1", f"method={{name: {name}}}")


# -- from episodes to groups ---


def played(arena: Arena, *tasks: str) -> list[list[Episode]]:
    return arena.play(tasks or ("train-8-0", "train-9-1"), n=4, iteration=1, epoch=0)[0]


@pytest.mark.parametrize("name", ["userrl", "bao", "infopo"])
def test_each_method_gives_each_trained_token_an_advantage(arena: Arena, name: Any) -> None:
    credit = Credit.of(arena.config.method.model_copy(update={"name": name}))
    [whole] = played(arena, "train-8-0")
    groups, left_out = credit.groups([whole], arena.engine, arena.chat, 0)
    assert left_out["groups_with_spread"] + left_out["groups_without_spread"] == len(groups) == 1
    for sample, one in zip(groups[0].samples, whole, strict=True):
        assert sample.reward == one.score
        values = sample.token_advantages()
        assert len(values) == len(sample.token_ids)
        assert not any(v for v, on in zip(values, sample.trained_mask(), strict=True) if not on)


def failed(ending: Any) -> Episode:
    one = episode([0.0, 1.0])
    one.ending = ending
    return one


def credited(played: Sequence[Sequence[Episode]]) -> tuple[list[Group], Counter[str]]:
    method = Credit.of(MethodOptions())
    return method.groups(played, None, None, 0)  # type: ignore[arg-type]


def test_what_cannot_be_compared_is_left_out_and_counted() -> None:
    good, bad, empty = episode([0.0, 1.0]), episode([0.0, 0.0]), episode([])
    groups, left_out = credited(
        [
            [good, bad, failed("error"), failed("timeout"), failed("cancelled"), empty],
            [episode([1.0]), failed("error")],
            [episode([1.0]), episode([1.0])],
        ]
    )
    assert left_out == {
        "episodes_failed": 4,
        "episodes_without_turns": 1,
        "groups_too_small": 1,
        "groups_with_spread": 1,
        "groups_without_spread": 1,
    }
    assert groups[0].samples == [good.sample, bad.sample]
    assert good.sample.token_advantages()[0] > 0 > bad.sample.token_advantages()[0]


def test_a_world_that_raises_ends_one_episode(arena: Arena) -> None:
    episodes = [e for group in played(arena, "train-0-0", "train-1-1") for e in group]
    endings = {e.ending for e in episodes}
    assert "error" in endings and any("lost" in e.error for e in episodes)
    assert all(len(e.turns) == 2 for e in episodes if e.ending == "error")


# -- rows and gradients ---


def gradient(arena: Arena, groups: Sequence[Group]) -> tuple[torch.Tensor, int]:
    """(the adapter's gradient, rows that the decoder computed) of a loss that adds up over tokens."""
    engine, rows = arena.engine, []
    whole = Decoder.hidden

    def counted(self: Decoder, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(ids.numel())
        return whole(self, ids, *rest)

    engine.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "hidden", counted)
        engine.forward_backward(groups, GRPOLoss(GRPO(normalizer="constant")))
    engine.reduce_gradients()
    leaves = [p.grad.flatten().clone() for p in engine.parameters() if p.grad is not None]
    engine.zero_grad()
    return torch.cat(leaves), sum(rows)


def test_rows_are_prompt_and_trajectories_and_the_gradient_is_that_of_each_alone(arena: Arena) -> None:
    groups, _ = arena.credit.groups(played(arena), arena.engine, arena.chat, 0)
    assert len(groups) == 2 and all(len(group.samples) == 4 for group in groups)
    samples = [sample for group in groups for sample in group.samples]
    for i, sample in enumerate(samples):
        sample.advantage = [(i - 3.5) / (turn + 1) for turn in range(len(sample.turns()))]
    together, computed = gradient(arena, groups)
    prompts = [group.prompt_ids for group in groups]
    assert prompts[0] == prompts[1]
    trajectories = sum(len(sample.token_ids) - 1 for sample in samples)  # the last token is a target alone
    assert computed == len(prompts[0]) * len(groups) + trajectories
    parts = [gradient(arena, [Group(sample.prompt_ids, [sample])]) for sample in samples]
    assert sum(rows for _, rows in parts) == len(prompts[0]) * len(samples) + trajectories
    flat = torch.stack([part for part, _ in parts]).sum(0)
    assert float(flat.abs().max()) > 0
    torch.testing.assert_close(together, flat, rtol=1e-5, atol=1e-5)


# -- evaluation ---


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_what_was_dealt_to_ranks_comes_back_in_its_order(ranks: int) -> None:
    tasks = list(range(7))
    assert dealt_back([tasks[rank::ranks] for rank in range(ranks)]) == tasks and dealt_back([[], []]) == []


def test_evaluation_has_its_own_temperature_and_hides_the_reward_line(arena: Arena) -> None:
    trained = played(arena)
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
