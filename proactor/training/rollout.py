"""Decision points of dialogues as groups for the engine: sampled and scored for GRPO, or with the wanted
answer for supervised training.

A logged dialogue is replayed turn by turn, so each decision is a contextual bandit and no user simulator is
needed [INFERRED, 1.7]. All decisions of a dialogue go to the engine together: they share its trunk.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proactor.dialogue import Dialogue
from proactor.dialogue.candidates import Candidates, Stage
from proactor.dialogue.decisions import Decision, decisions, noise_key
from proactor.dialogue.parse import parse
from proactor.dialogue.prompt import PromptEncoder, unknowable
from proactor.engine import Engine, Group, Sample, Sampling
from proactor.rewards import Judging, RewardFunction, TurnReward, run_reward
from proactor.training.graph_rollout import roll_out


def sample_groups(
    engine: Engine,
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    sampling: Sampling,
    reward_name: str,
    reward: RewardFunction,
    *,
    seed: int,
    epoch: int,
    logged: float = 0.5,
) -> list[Group]:
    """Sample a group at every decision point and score it.

    Each sample's ``info`` holds dialogue, turn, parts (of the reward), ok (all of it could be read) and
    unread (by reason). Raises RewardError, naming the reward, when it raises or gives something that is not a
    finite number.
    """
    points = decisions(encoder, dialogues, seed=seed, epoch=epoch, logged=logged)
    if encoder.style.mode == "graph":
        groups = roll_out(engine, encoder, points, sampling)
    else:
        keys = [noise_key(p.dialogue, p.turn) for p in points]
        groups = engine.sample([p.prompt for p in points], sampling, keys=keys)
    for point, group in zip(points, groups, strict=True):
        group.tree = encoder.tree(point.dialogue, point.turn)
        texts = [s.text for s in group.samples]
        columns: Mapping[str, Sequence[object]] = {
            "dialogue": [point.dialogue] * len(texts),
            "turn": [point.turn] * len(texts),
            "board": [point.board] * len(texts),
        }
        shown = {
            id(s.prompt_ids): s.prompt_ids for s in group.samples
        }  # one a group, but for the graphs of candidates
        prompts = {name: engine.tokenizer.decode(ids) for name, ids in shown.items()}
        seen = [prompts[id(s.prompt_ids)] for s in group.samples]
        _note(point, group, run_reward(reward_name, reward, seen, texts, columns))
    return groups


@dataclass(slots=True)
class Judged:
    """What a `GroupReward` made of a step's decisions: ``groups`` in their order, those dropped (without
    rewards) included.

    ``seconds``: "sampling" (the judge may have worked beside it), "judging" (first group handed over to last
    one scored) and "waiting" (after the last sample). ``counters``: the judge's events in this step.
    """

    groups: list[Group]
    seconds: dict[str, float]
    counters: Counter[str] = field(default_factory=Counter)


def dropped(group: Group) -> bool:
    """Whether the reward had nothing to say about the group, so that it leaves the batch."""
    return any(s.reward is None for s in group.samples)


def judge_groups(
    engine: Engine,
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    sampling: Sampling,
    judging: Judging,
    metric: TurnReward,
    *,
    stage: Stage,
    seed: int,
    epoch: int,
    logged: float = 0.5,
) -> Judged:
    """Sample a group at every decision point and have it judged, beside the sampling where the reward allows
    it.

    ``info`` as in `sample_groups`; parts hold those of ``metric`` too, its reward as "metric", for comparison
    with the judge. Samples of a dropped group have no reward and no parts of the reward.
    """
    tools = {d.id: encoder.catalog.subset(d.tools) if d.tools else encoder.catalog for d in dialogues}
    groups: dict[int, Group] = {}
    began = time.perf_counter()

    def hand_over(place: int, point: Decision, group: Group) -> None:
        groups[place] = group
        texts = tuple(s.text for s in group.samples)
        judged.add(
            place, Candidates(point.dialogue, point.turn, texts, tools[point.dialogue.id], point.board)
        )

    async def stream() -> None:
        keys = [noise_key(p.dialogue, p.turn) for p in points]
        async for group in engine.stream([p.prompt for p in points], sampling, keys=keys):
            hand_over(group.index, points[group.index], group)

    with judging.round(stage) as judged:
        points = decisions(encoder, dialogues, seed=seed, epoch=epoch, logged=logged)
        if encoder.style.mode == "graph":
            for i, group in enumerate(roll_out(engine, encoder, points, sampling)):
                hand_over(i, points[i], group)
        else:
            asyncio.run(stream())
        ended = time.perf_counter()
        found = judged.finish()
    for i, point in enumerate(points):
        group = groups[i]
        group.tree = encoder.tree(point.dialogue, point.turn)
        measured = [
            metric.parts(point.dialogue, point.turn, parse(s.text), point.board) for s in group.samples
        ]
        scored = found[i]
        kept = [{k: v for k, v in m.items() if k != "reward"} | {"metric": m["reward"]} for m in measured]
        _note(point, group, None if scored is None else [m | s for m, s in zip(kept, scored, strict=True)])
    seconds = {"sampling": ended - began, "judging": judged.seconds, "waiting": judged.waited}
    return Judged([groups[i] for i in range(len(points))], seconds, judged.counters)


def _note(point: Decision, group: Group, scored: Sequence[dict[str, float]] | None) -> None:
    """Write rewards, and what is known of each sample, into the group."""
    for i, sample in enumerate(group.samples):
        read = parse(sample.text)
        sample.reward = None if scored is None else scored[i]["reward"]
        sample.info |= {
            "dialogue": point.dialogue.id,
            "turn": point.turn,
            "parts": {} if scored is None else scored[i],
            "ok": read.ok,
            "unread": read.unread,
        }


def sft_groups(
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    *,
    seed: int,
    epoch: int,
    logged: float = 0.5,
    pending: bool = True,
) -> tuple[list[Group], Counter[str]]:
    """One wanted answer a decision point, sharing trunks. Points where an unknown window may be right are
    left out and counted as ``unknowable``.
    """
    groups, counters = [], Counter[str]()
    for point in decisions(encoder, dialogues, seed=seed, epoch=epoch, logged=logged):
        if unknowable(point.dialogue, point.turn, point.board):
            counters["unknowable"] += 1
            continue
        ids = encoder.wanted(point.dialogue, point.turn, point.board, pending=pending)
        groups.append(
            Group(point.prompt, [Sample(point.prompt, ids)], tree=encoder.tree(point.dialogue, point.turn))
        )
        counters["examples"] += 1
    return groups, counters


def held_out_loss(engine: Engine, groups: Sequence[Group]) -> float:
    """Mean negative log-likelihood (nats a token) of the groups' samples; nothing is updated."""
    return engine.nll(groups)
