"""Agent-Omit: an agent that leaves out thoughts and has observations taken out of its history.

A turn writes what it omits (`omit_format`); the history is edited, and each turn is trained after exactly the
ids that it was drawn after (`Episode.pieces`). Stage A learns from a teacher's episodes (`omit_lessons`).

    R_omit = (tokens of omitted thoughts + of omitted observations) / Tok(y), 0 unless the task was solved
    r(y)   = (1 - mu) R_task + mu R_omit        r'(y') = R_task
    A      = r normalised over the group, on the whole trajectory's tokens
    A'     = R_task normalised over the group, / p, on each of the p turns that omit: the partial samples

Format, effect and ``mu``: confirmed by the authors' code, which counts characters, and trains on the log that
was not edited. Formulas and dual sampling: second hand. Ours: Tok(y) counts all that was drawn and shown, and
what was left out (so R_omit < 1); an omitted thought counts as the median thought of its group; `relative`
compares with the mean length of the group before omissions and is never negative; partial samples are
normalised by R_task over the group's episodes; the instruction's words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median
from typing import Literal

from pydantic import Field

from proactor.engine import Config, Convention, Group, Sample, group_advantages
from proactor.environments.episode import Episode
from proactor.methods.omit_format import omit_turns
from proactor.methods.turn_credit import finite_rewards, over_tokens

COUNTS = ("thoughts", "observations", "unknown", "repeated", "partials")
"""Counters of a step, ``omit/…``: what was left out, numbers that name no earlier result, or one that was
omitted before (both without effect), and partial samples."""


class AgentOmit(Config):
    """``mu``: weight of R_omit. ``omit_reward``: the share of tokens left out, or (second version of the
    paper, second hand) how much shorter the episode is than its group before omissions. ``partial``: train
    partial samples too. ``success``: as `Episode.solves`. ``instruct``: put `omit_format.INSTRUCTION` into
    the opening.

    Cold start (`omit_lessons.cold_start`): ``tries`` rollouts of each omission, on the first ``cold_tasks``
    tasks; 0: stage A learns the teacher's episodes as they are.
    """

    mu: float = Field(0.2, ge=0, le=1)
    omit_reward: Literal["share", "relative"] = "share"
    partial: bool = True
    success: float = 1.0
    advantages: Convention = "verl"
    instruct: bool = True
    tries: int = Field(2, ge=1)
    cold_tasks: int = Field(0, ge=0)


def omit_share(thoughts: float, observations: float, tokens: float) -> float:
    """R_omit of a solved task: tokens left out / Tok(y), what was left out included."""
    return (thoughts + observations) / tokens


def reward(task: float, omitted: float, mu: float, solved: bool) -> float:
    """r(y): success is paid for what it left out, failure is not."""
    return (1 - mu) * task + mu * (omitted if solved else 0.0)


def rewards(group: Sequence[Episode], config: AgentOmit) -> list[float]:
    """r(y) of each episode of a group. Raises ProactorError for a reward that is not finite."""
    thought = usual_thought(group)
    thoughts = [thought * sum(turn.no_thought for turn in omit_turns(episode)) for episode in group]
    whole = [len(episode.sample.token_ids) + t for episode, t in zip(group, thoughts, strict=True)]
    usual = fmean(whole) if whole else 0.0
    found = []
    for episode, left_out, tokens in zip(group, thoughts, whole, strict=True):
        finite_rewards(episode)
        if config.omit_reward == "share":
            omitted = omit_share(left_out, len(episode.sample.token_ids) - episode.tokens, tokens)
        else:
            omitted = max(0.0, (usual - episode.tokens) / usual)
        found.append(reward(episode.score, omitted, config.mu, episode.solves(config.success)))
    return found


def usual_thought(group: Sequence[Episode]) -> float:
    """The median length of the group's thoughts in tokens, 0 where none was written."""
    thoughts = [turn.thought for episode in group for turn in omit_turns(episode) if turn.thought]
    return float(median(thoughts)) if thoughts else 0.0


def partials(episode: Episode) -> list[tuple[float, Sample]]:
    """(weight 1/p, sample) for each of the p turns that omit: that turn alone, after what it was drawn after,
    where what it takes out still stands.
    """
    turns = [turn for turn in omit_turns(episode) if turn.omitting]
    return [(1 / len(turns), episode.pieces([turn])[0]) for turn in turns]


def groups_of(group: Sequence[Episode], config: AgentOmit, name: object) -> tuple[list[Group], Counter[str]]:
    """A group's episodes as groups to train on, and counts (`COUNTS`); each sample has its advantage.

    ``name``: of the group among others; what its contexts share is computed once. The first sample of an
    episode carries its score as reward, its log (`Episode.sample`) the advantage, for the record.
    """
    counts = Counter[str](dict.fromkeys(COUNTS, 0))
    whole = group_advantages(rewards(group, config), config.advantages)
    tasks = group_advantages([episode.score for episode in group], config.advantages)
    samples: list[Sample] = []
    for episode, advantage, of_task in zip(group, whole, tasks, strict=True):
        turns = omit_turns(episode)
        counts["thoughts"] += sum(turn.no_thought for turn in turns)
        counts["observations"] += sum(len(turn.omits) for turn in turns)
        counts["unknown"] += sum(turn.unknown for turn in turns)
        counts["repeated"] += sum(turn.repeated for turn in turns)
        episode.sample.advantage = over_tokens(episode, [advantage] * len(episode.turns))
        pieces = episode.pieces()
        pieces[0].reward = episode.score
        for piece in pieces:
            piece.advantage = advantage
        extra = partials(episode) if config.partial else []
        for weight, sample in extra:
            sample.advantage = weight * of_task
        counts["partials"] += len(extra)
        samples += [*pieces, *(sample for _, sample in extra)]
    by_prompt: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(tuple(sample.prompt_ids), []).append(sample)
    groups = [Group(list(prompt), found, tree=("omit", name)) for prompt, found in by_prompt.items()]
    return groups, Counter({f"omit/{key}": count for key, count in counts.items()})
