"""The agent's own state graphs: shown back to it in play, and one per candidate in training."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import Dialogue
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.decisions import Decision, candidate_key
from proactor.dialogue.prompt import PromptEncoder, PromptStyle
from proactor.dialogue.state_graph import NO_GRAPH, GraphNode, StateGraph
from proactor.engine import EngineError, Group, Sample, Sampling, Tree
from proactor.evaluation.play import evaluate
from proactor.kernels.grpo import group_advantages
from proactor.training.graph_rollout import roll_out, trainable
from proactor.training.loop import train
from proactor.training.runs import Run
from proactor.training.steps import grpo_step, sft_step
from proactor.training.workspace import Workspace
from tests.proactor.dialogue.test_prompt import CATALOG, byte_chat
from tests.proactor.dialogues import pending, users
from tests.proactor.runs import config

LENGTH = "tests.proactor.runs:length_reward"


def graph(text: str) -> StateGraph:
    return StateGraph((GraphNode(pending(text)),))


class Scripted:
    """An engine that answers by number: the n-th sample ever drawn writes the graph `n<n>`, except where
    `silent` says that it writes none.
    """

    def __init__(self, silent: Sequence[int] = ()) -> None:
        self.prompts: list[list[int]] = []
        self.keys: list[int] = []
        self.silent = silent

    def sample(self, prompts: list[list[int]], sampling: Sampling, keys: list[int]) -> list[Group]:
        assert sampling.n == 1
        groups = []
        for prompt, key in zip(prompts, keys, strict=True):
            n = len(self.prompts)
            text = "[]" if n in self.silent else f"<think>t</think><graph>{graph(f'n{n}').render()}</graph>[]"
            self.prompts.append(prompt)
            self.keys.append(key)
            groups.append(Group(prompt, [Sample(prompt, [n + 1, 0], text=text, finish_reason="stop")]))
        return groups


@pytest.fixture
def encoder() -> PromptEncoder:
    return PromptEncoder(byte_chat(), CATALOG, PromptStyle(instructions="", mode="graph"))


def points(encoder: PromptEncoder, dialogues: Sequence[Dialogue], board: Board = EMPTY) -> list[Decision]:
    return [Decision(d, u, board, encoder.prompt(d, u, board)) for d in dialogues for u in d.decision_turns]


LONG, SHORT = users(3, id="long"), users(1, id="short")


def test_an_agent_that_is_played_sees_the_graph_it_wrote_last(encoder: PromptEncoder) -> None:
    engine: Any = Scripted(silent=(2,))
    evaluation = evaluate(engine, encoder, [LONG, SHORT])
    shown = [
        NO_GRAPH,
        NO_GRAPH,
        graph("n0"),
        graph("n0"),
    ]  # long 1, short 1, long 2, and long 3 after a silent one
    turns = [(LONG, 1), (SHORT, 1), (LONG, 2), (LONG, 3)]
    assert engine.prompts == [encoder.prompt(d, u, EMPTY, g) for (d, u), g in zip(turns, shown, strict=True)]
    assert evaluation.unread_graph_share == 0.25 and evaluation.unparsed_share == 0


def test_every_candidate_carries_its_own_graph(encoder: PromptEncoder) -> None:
    engine: Any = Scripted()
    groups, unread = roll_out(engine, encoder, points(encoder, [LONG, SHORT]), Sampling(n=2))
    assert unread == [[{}, {}]] * 4
    assert [len(g.samples) for g in groups] == [
        2,
        2,
        2,
        2,
    ]  # long 1, 2, 3, short 1: in the order of the points
    drawn = [[s.token_ids[0] - 1 for s in g.samples] for g in groups]
    assert drawn == [[0, 1], [4, 5], [6, 7], [2, 3]]  # round by round, the dialogues together
    for at, turn in ((1, 2), (2, 3)):
        for c, sample in enumerate(groups[at].samples):
            own = encoder.prompt(LONG, turn, EMPTY, graph(f"n{drawn[at - 1][c]}"))
            assert sample.prompt_ids == own
    assert len(set(engine.keys)) == 8 and engine.keys[5] == candidate_key(LONG, 2, 1)


def group_of(rewards: Sequence[float], prompts: Sequence[int]) -> Group:
    samples = [Sample([7, p], [1, 2], reward=r) for r, p in zip(rewards, prompts, strict=True)]
    return Group(samples[0].prompt_ids, samples, tree="t")


def test_advantages_come_from_all_candidates_whatever_their_prompts() -> None:
    rewards = (1.0, 0.0, 0.0, 0.5)
    (first, second) = trainable([group_of(rewards, (1, 2, 1, 2))])
    assert [s.reward for s in first.samples] == [1.0, 0.0] and [s.reward for s in second.samples] == [
        0.0,
        0.5,
    ]
    assert first.tree == second.tree == "t" and Tree([first, second]).rows == 1 + 2 + 4
    expected = group_advantages(rewards)
    assert [s.advantage for s in (*first.samples, *second.samples)] == [expected[i] for i in (0, 2, 1, 3)]
    verl = trainable([group_of(rewards, (1, 2, 1, 2))], "verl")
    assert verl[0].samples[0].advantage == group_advantages(rewards, "verl")[0] != expected[0]
    same = group_of(rewards, (1, 1, 1, 1))
    assert trainable([same]) == [same] and same.samples[0].advantage is None, "the engine's own business"
    with pytest.raises(EngineError, match="prompt is not the group's"):
        Tree([group_of(rewards, (1, 2, 1, 2))])  # why this is needed at all


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every output held a graph of its own: the tiny model never learnt to write one."""

    def after(self: StateGraph, text: str) -> tuple[StateGraph, dict[str, int]]:
        return graph(f"g{zlib.crc32(text.encode()) % 1000}"), {"no_graph": 1}

    monkeypatch.setattr(StateGraph, "after", after)


@pytest.mark.usefixtures("talkative")
def test_a_step_trains_candidates_of_different_prompts_exactly(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(
        tmp_path, tiny_model, f"reward={LENGTH}", "prompt.mode=graph", "grpo.sampling.max_tokens=12"
    )
    workspace = Workspace.open(settings)
    assert settings.grpo is not None
    row, groups = grpo_step(workspace, settings.grpo, 0)
    later = [g for g in groups if len({tuple(s.prompt_ids) for s in g.group.samples}) > 1]
    assert later and all(len(g.group.samples) == 3 for g in groups)
    assert row["groups"] == len(groups) and row["samples"] == row["unread_graph/no_graph"] == 3 * len(groups)
    assert row["sampler_trainer_gap"] == 0 and row["ratio_max_error"] == 0 and row["grad_norm"] > 0
    for g in (a.group for a in later):
        assert [s.advantage for s in g.samples] == group_advantages([s.reward or 0.0 for s in g.samples])
    again = Workspace.open(settings)
    same, _ = grpo_step(again, settings.grpo, 0)
    assert same["grad_norm"] == row["grad_norm"] and same["tokens_sampled"] == row["tokens_sampled"]


SMALL = (
    "sft.max_steps=1",
    "grpo.steps=1",
    "data.train.limit=2",
    "eval.max_tokens=16",
    "grpo.sampling.max_tokens=16",
)


def test_a_whole_run_with_graphs(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, tiny_model, f"reward={LENGTH}", "prompt.mode=graph", *SMALL)
    summary = train(settings)
    assert {"before", "after", "human"} <= summary.keys()
    rows = Run(settings.folder).rows()
    steps = {r["kind"]: r for r in rows if r["kind"] != "eval"}
    assert steps["sft"]["loss"] > 0 and steps["grpo"]["unread_graph/no_graph"] > 0
    assert all(r["eval_unread_graph_share"] == 1.0 for r in rows if "eval_reward" in r)


def test_thoughts_train_like_any_answer(tiny_model: Path, tmp_path: Path) -> None:
    workspace = Workspace.open(
        config(tmp_path, tiny_model, f"reward={LENGTH}", "prompt.mode=reasoning", *SMALL)
    )
    assert workspace.config.sft is not None and workspace.config.grpo is not None
    # Each step draws other boards, so single losses go up and down.
    losses = [sft_step(workspace, workspace.config.sft, step)["loss"] for step in range(9)]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    row, groups = grpo_step(workspace, workspace.config.grpo, 0)
    assert all(len({tuple(s.prompt_ids) for s in g.group.samples}) == 1 for g in groups)
    assert row["sampler_trainer_gap"] == 0 and not any(k.startswith("unread_graph") for k in row)
