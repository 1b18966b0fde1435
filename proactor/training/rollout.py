"""Decision points as groups for the engine: sampled and scored for GRPO, or with the wanted answer for SFT.

A logged dialogue is replayed turn by turn, so each decision is a contextual bandit and no user simulator is
needed [INFERRED, 1.7]. All decisions of a dialogue go to one engine together: they share its trunk.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from proactor.dialogue import Dialogue
from proactor.dialogue.board import BoardShares
from proactor.dialogue.candidates import Candidates
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.decisions import Decision, decisions, noise_key
from proactor.dialogue.prompt import PromptEncoder, unknowable
from proactor.engine import EarlyGradient, Engine, Group, Sample, Sampling
from proactor.rewards import GroupScores, RewardFunction, RewardWorker, TurnReward, run_reward
from proactor.rewards.schedule import TrainingProgress
from proactor.training.answers import AnswerGroup, read_answers
from proactor.training.graph_rollout import roll_out


def sample_groups(
    engine: Engine,
    encoder: PromptEncoder,
    points: Sequence[Decision],
    sampling: Sampling,
    reward_name: str,
    reward: RewardFunction | TurnReward,
    alone: bool = False,
    early: EarlyGradient | None = None,
) -> list[AnswerGroup]:
    """Sample a group at every decision point and score it; returns those of this rank (`draw`), in order.

    While this rank has nothing to sample and others do, it scores its groups and adds them to ``early``.
    Raises RewardError, naming the reward, when it fails or returns something that is not a finite number.
    """
    tools = tools_by_dialogue(encoder, [p.dialogue for p in points])
    drawn: dict[int, tuple[Group, list[dict[str, int]] | None]] = {}
    answered: dict[int, AnswerGroup] = {}

    def score(place: int) -> None:
        point, (group, unread) = points[place], drawn[place]
        group.tree = encoder.tree(point.dialogue, point.turn)
        candidates = candidates_at(point, group, tools[point.dialogue.id])
        answers = read_answers(point, group, candidates, unread)
        answers.set_rewards(run_reward(reward_name, reward, candidates, partial(prompt_texts, engine, group)))
        answered[place] = answers

    def idle() -> bool:
        left = sorted(drawn.keys() - answered.keys())
        if left:
            score(left[0])  # one at a time, so that this rank's heart goes on beside a slow reward
        elif early is not None:
            early.add(trained(answered))
        return bool(left)

    at_rest = None if early is None else idle
    for place, group, unread in draw(engine, encoder, points, sampling, alone, at_rest):
        drawn[place] = group, unread
    for place in sorted(drawn.keys() - answered.keys()):
        score(place)
    return [answered[place] for place in sorted(answered)]


def trained(answered: Mapping[int, AnswerGroup]) -> list[Group]:
    """The groups to train on, in the order of their places: those that the reward did not drop."""
    return [answered[place].group for place in sorted(answered) if not answered[place].dropped]


def draw(
    engine: Engine,
    encoder: PromptEncoder,
    points: Sequence[Decision],
    sampling: Sampling,
    alone: bool = False,
    idle: Callable[[], bool] | None = None,
) -> Iterator[tuple[int, Group, list[dict[str, int]] | None]]:
    """Sample at decision points: (place in ``points``, group, unread pieces of graphs), as groups end.

    Ranks share the dialogues of ``points``, each of which is on one rank (``idle``: as
    `Engine.sample_shared`). In graph mode, and where a rank draws ``alone``, all are this rank's.
    """
    if encoder.style.mode == "graph":
        yield from zip(range(len(points)), *roll_out(engine, encoder, points, sampling), strict=True)
        return
    prompts, keys = [p.prompt for p in points], [noise_key(p.dialogue, p.turn) for p in points]
    units = [p.dialogue.id for p in points]
    groups = (
        engine.sample(prompts, sampling, keys=keys)
        if alone
        else engine.sample_shared(prompts, sampling, keys=keys, units=units, idle=idle)
    )
    for group in groups:
        yield group.index, group, None


def tools_by_dialogue(encoder: PromptEncoder, dialogues: Sequence[Dialogue]) -> dict[str, Catalog]:
    """The tools offered in each dialogue, by its id: those it names, or all."""
    return {d.id: encoder.catalog.offered_in(d) for d in dialogues}


def candidates_at(point: Decision, group: Group, tools: Catalog) -> Candidates:
    """The texts of a group's samples as candidates for ``point``."""
    return Candidates(point.dialogue, point.turn, tuple(s.text for s in group.samples), tools, point.board)


def prompt_texts(engine: Engine, group: Group) -> list[str]:
    """The prompt of each sample as text, each decoded once: usually one per group, several in graph mode."""
    prompts = {id(s.prompt_ids): s.prompt_ids for s in group.samples}
    texts = {
        name: engine.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        for name, ids in prompts.items()
    }
    return [texts[id(s.prompt_ids)] for s in group.samples]


@dataclass(slots=True)
class JudgedStep:
    """A step's decisions on this rank, scored by a `GroupReward`: ``groups`` in order, dropped ones (no
    rewards) included.

    ``seconds``: "sampling" (the judge may work during it), "judging" (first group handed over to last one
    scored) and "waiting" (after the last sample). ``counters``: the judge's events in this step.
    """

    groups: list[AnswerGroup]
    seconds: dict[str, float]
    counters: Counter[str] = field(default_factory=Counter)


def judge_groups(
    engine: Engine,
    encoder: PromptEncoder,
    points: Sequence[Decision],
    sampling: Sampling,
    worker: RewardWorker,
    metric: TurnReward,
    progress: TrainingProgress,
    alone: bool = False,
    early: EarlyGradient | None = None,
) -> JudgedStep:
    """Sample a group at every decision point and have it judged, while sampling goes on if the reward allows.

    An answer's parts include those of ``metric``, with its reward as "metric", for comparison with the judge.
    The answers of a dropped group have neither reward nor parts. While this rank has nothing to sample and
    others do, its groups are added to ``early`` once all of them are judged.
    """
    tools = tools_by_dialogue(encoder, [p.dialogue for p in points])
    scoring = worker.round(progress)
    sampled: dict[int, tuple[Group, Candidates, Sequence[Mapping[str, int]] | None]] = {}
    answered: dict[int, AnswerGroup] = {}

    def note(scores: Mapping[int, GroupScores]) -> None:
        for i in sorted(scores.keys() - answered.keys()):
            point, (group, candidates, unread_graphs) = points[i], sampled[i]
            group.tree = encoder.tree(point.dialogue, point.turn)
            answers = read_answers(point, group, candidates, unread_graphs)
            answers.set_rewards(with_metric(metric, candidates, scores[i]))
            answered[i] = answers

    def idle() -> bool:
        if early is not None:
            if len(answered) < len(sampled):
                note(scoring.ready())
            early.add(trained(answered))
        return False

    at_rest = None if early is None else idle
    began = time.perf_counter()
    with scoring:
        for i, group, unread in draw(engine, encoder, points, sampling, alone, at_rest):
            candidates = candidates_at(points[i], group, tools[points[i].dialogue.id])
            candidates = replace(candidates, prompts=tuple(prompt_texts(engine, group)))
            sampled[i] = group, candidates, unread
            scoring.add(i, candidates)
        ended = time.perf_counter()
        note(scoring.finish())
    seconds = {"sampling": ended - began, "judging": scoring.seconds, "waiting": scoring.waited}
    return JudgedStep([answered[i] for i in sorted(answered)], seconds, scoring.counters)


def with_metric(metric: TurnReward, candidates: Candidates, scores: GroupScores) -> GroupScores:
    """The judge's ``scores`` with the parts of ``metric`` added, its reward as "metric". None stays None."""
    if scores is None:
        return None
    dialogue, turn = candidates.dialogue, candidates.turn
    parts = [metric.parts(dialogue, turn, parsed, candidates.board) for parsed in candidates.parsed]
    return [{**p, "metric": p["reward"], **score} for p, score in zip(parts, scores, strict=True)]


def sft_groups(
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    *,
    seed: int,
    epoch: int,
    shares: BoardShares | None = None,
    pending: bool = True,
) -> tuple[list[Group], Counter[str]]:
    """The wanted answer of each decision point, sharing trunks.

    Points where an unknown window may be right are left out and counted as ``unknowable``.
    """
    groups, counters = [], Counter[str]()
    for point in decisions(encoder, dialogues, seed=seed, epoch=epoch, shares=shares):
        if unknowable(point.dialogue, point.turn, point.board):
            counters["unknowable"] += 1
            continue
        ids = encoder.target_ids(point.dialogue, point.turn, point.board, pending=pending)
        tree = encoder.tree(point.dialogue, point.turn)
        groups.append(Group(point.prompt, [Sample(point.prompt, ids)], tree=tree))
        counters["examples"] += 1
    return groups, counters
