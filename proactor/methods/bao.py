"""BAO (arXiv 2602.11351): behaviour-regularised GRPO for agents that may ask a user, and its stage A filter.

Objective: E[R - w U], U the number of user-involved actions. Both regularisers are described second hand: one
for user-involved turns that follow each other, one for an episode whose tokens run out. The paper's equations
and coefficients are unpublished, and no code was found, so what follows is our form:

    pen_t = w u_t + l_is c_t + l_ot min((T - T') / T', c_max) x_t
    S_i   = trajectory score of r_t - pen_t;  A_i = S_i normalised over the group
    A_t   = A_i w_t n / sum(w) - kappa (h_t - mean of h over the group's turns)

u_t: the turn's calls that involved the user; c_t: there were some, and in the turn before it too; x_t: the
last turn of an episode that ran out of tokens at turn T' of T without success. w_t: UserRL's turn credit of
the rewards r_t, *not* of the shaped ones: those may add up to less than 0, and the sign of every advantage
would turn around. h_t: c_t or x_t, where the term has a price. The user price w is not in h: charged turn by
turn it would punish the right answer. The local term is not divided by the scores' deviation, which
near-equal scores would blow up.

Which calls involve the user is for the environment to say (`Turn.user_involved`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import Field

from proactor.engine import Config, ProactorError
from proactor.environments.calls import canonical
from proactor.environments.episode import Episode
from proactor.environments.wording import SECTIONS
from proactor.methods.turn_credit import (
    TurnCredit,
    advantages,
    finite_rewards,
    named,
    over_tokens,
    turn_factors,
)

OUT_OF_TOKENS = ("tokens", "context")
"""Endings that the over-thinking term charges; the cap on turns is not among them."""


class BAO(Config):
    """Prices of stage B, in reward; all 0 is UserRL's GRPO. All values are ours.

    ``user_price``: w. ``information_seeking``: l_is. ``over_thinking``: l_ot, up to ``most_over_thinking``
    (c_max) times. ``kappa``: of the local term, in advantages; 0: prices reach a turn through the score
    alone. ``success``: as `Episode.solves`.
    """

    user_price: float = Field(0.05, ge=0)
    information_seeking: float = Field(0.1, ge=0)
    over_thinking: float = Field(0.1, ge=0)
    most_over_thinking: float = Field(2.0, gt=0)
    kappa: float = Field(0.5, ge=0)
    success: float = 1.0
    credit: TurnCredit = TurnCredit()


def objective(episode: Episode, user_price: float) -> float:
    """R - w U."""
    return sum(episode.rewards) - user_price * episode.user_actions


def consecutive(episode: Episode) -> list[bool]:
    """Whether each turn involved the user right after one that did; never the first."""
    involved = [turn.user_involved > 0 for turn in episode.turns]
    return [now and before for before, now in zip([False, *involved], involved, strict=False)]


def overrun(episode: Episode, config: BAO) -> float:
    """min((T - T') / T', c_max) of an episode that ran out of tokens without success; else 0."""
    reached = len(episode.turns)
    if not reached or episode.ending not in OUT_OF_TOKENS or episode.solves(config.success):
        return 0.0
    return min(max(0.0, (episode.horizon - reached) / reached), config.most_over_thinking)


def penalties(episode: Episode, config: BAO) -> list[float]:
    """pen_t of each turn, in reward."""
    charged = [
        config.user_price * turn.user_involved + config.information_seeking * again
        for turn, again in zip(episode.turns, consecutive(episode), strict=True)
    ]
    if charged:
        charged[-1] += config.over_thinking * overrun(episode, config)
    return charged


def shaped(episode: Episode, config: BAO) -> list[float]:
    """r_t - pen_t of each turn: for the trajectory's score only."""
    rewards = finite_rewards(episode)
    return [reward - price for reward, price in zip(rewards, penalties(episode, config), strict=True)]


def hits(episode: Episode, config: BAO) -> list[bool]:
    """h_t: whether a regulariser that has a price charges the turn."""
    seen = [again and config.information_seeking > 0 for again in consecutive(episode)]
    if config.over_thinking > 0 and overrun(episode, config) > 0:
        seen[-1] = True
    return seen


def local_terms(group: Sequence[Episode], config: BAO) -> list[list[float]]:
    """-kappa (h_t - mean of h) of each turn of each episode; they add up to 0 over the group."""
    seen = [hits(episode, config) for episode in group]
    turns = sum(map(len, seen))
    mean = sum(map(sum, seen)) / turns if turns else 0.0
    return [[-config.kappa * (hit - mean) for hit in of_episode] for of_episode in seen]


def turn_advantages(group: Sequence[Episode], config: BAO) -> list[list[float]]:
    """A_t of each turn of each episode of a group. Raises as `turn_credit.token_advantages`."""
    values = advantages([config.credit.scored(shaped(e, config)) for e in group], config.credit)
    return [
        [value * factor + term for factor, term in zip(turn_factors(e, config.credit), terms, strict=True)]
        for e, value, terms in zip(group, values, local_terms(group, config), strict=True)
    ]


def token_advantages(group: Sequence[Episode], config: BAO) -> list[list[float]]:
    """A_t of each token of each episode's sample, 0 for what is not trained; raises as `turn_advantages`."""
    return [over_tokens(e, turns) for e, turns in zip(group, turn_advantages(group, config), strict=True)]


# --- stage A: which of a teacher's episodes are learned from ---


class DemonstrationFilter(Config):
    """Which demonstrations are kept: a success, each section written in ``share`` of the turns at least, and
    no call made twice to the same answer. All of it is ours.
    """

    sections: tuple[str, ...] = SECTIONS
    share: float = Field(0.8, ge=0, le=1)
    success: float = 1.0


def read_sections(reply: str, names: Iterable[str] = SECTIONS) -> dict[str, str]:
    """The text of each section of a reply, stripped; "" for one that is absent or not closed."""
    tags = {name: re.escape(name) for name in names}
    found = {name: re.search(f"<{tag}>(.*?)</{tag}>", reply, re.DOTALL) for name, tag in tags.items()}
    return {name: match[1].strip() if match else "" for name, match in found.items()}


def fault(episode: Episode, replies: Sequence[str], config: DemonstrationFilter) -> str:
    """Why a demonstration is left out: "failed", "sections" or "repeated"; "" for one that is kept.

    ``replies``: the text of each turn. Raises ProactorError for another number of them.
    """
    if len(replies) != len(episode.turns):
        raise ProactorError(f"{named(episode)}: {len(replies)} replies for {len(episode.turns)} turns")
    if not episode.solves(config.success):
        return "failed"
    read = [read_sections(reply, config.sections) for reply in replies]
    if any(sum(bool(r[name]) for r in read) < config.share * len(read) for name in config.sections):
        return "sections"
    calls = [(*canonical(call), turn.feedback) for turn in episode.turns for call in turn.calls]
    return "repeated" if len(set(calls)) < len(calls) else ""


def kept_demonstrations(
    demonstrations: Iterable[tuple[Episode, Sequence[str]]], config: DemonstrationFilter
) -> tuple[list[Episode], Counter[str]]:
    """The episodes that `fault` finds nothing in, and how many were left out for what."""
    kept, left_out = [], Counter[str]()
    for episode, replies in demonstrations:
        reason = fault(episode, replies, config)
        if reason:
            left_out[reason] += 1
        else:
            kept.append(episode)
    return kept, left_out
