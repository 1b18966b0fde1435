"""SpeakRL-style reward: whether a reply asks or acts when it should, and what it asks for.

Second hand: reinforcement learning that rewards the right clarifying question, with asking and acting in
balance, without more turns; no direct penalty for asking too much is reported. The equation was not found;
this form is ours:

    unreadable reply                     -1
    ask needed, asked                    0.5 + 0.5 q,  q = |asked and missing| / |asked or missing|
    ask needed, acted                    -1
    act needed, acted                    correctness, 0 to 1
    act needed, asked                    -over_ask

So the right verb with the worst content beats the wrong verb. `PARITY` has no price on asking too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from proactor.engine import Config, ProactorError

Verb = Literal["ask", "act"]


class SpeakRL(Config):
    """``over_ask``: the price of a question where nothing is missing. ``most_asks``: questions of a dialogue
    beyond this many count as such, whatever they ask for; None: any number.
    """

    over_ask: float = Field(0.5, ge=0)
    most_asks: int | None = Field(None, ge=0)


PARITY = SpeakRL(over_ask=0.0)
"""As far as the paper is known: without a price on asking too much."""


@dataclass(frozen=True, slots=True)
class Reply:
    """``verb``: None where the reply could not be read. ``asked``: slots asked for; ``correctness`` of what
    was done, 0 to 1.
    """

    verb: Verb | None
    asked: frozenset[str] = frozenset()
    correctness: float = 0.0


Policy = Callable[[frozenset[str]], Reply]
"""The reply to a point, from the slots that are missing there."""


def overlap(asked: Iterable[str], missing: Iterable[str]) -> float:
    """q: slots in both / slots in either; 0 where there are none."""
    asked, missing = set(asked), set(missing)
    return len(asked & missing) / len(asked | missing) if asked | missing else 0.0


def reward(reply: Reply, missing: frozenset[str], config: SpeakRL) -> float:
    """The reward of a reply where ``missing`` slots are needed before one may act (none: act).

    Raises ProactorError for a correctness outside 0 to 1.
    """
    if not 0 <= reply.correctness <= 1:
        raise ProactorError(f"SpeakRL: a correctness of {reply.correctness}, not of 0 to 1")
    if reply.verb is None:
        return -1.0
    if reply.verb == "ask":
        return 0.5 + 0.5 * overlap(reply.asked, missing) if missing else -config.over_ask
    return -1.0 if missing else reply.correctness


def dialogue_rewards(
    replies: Sequence[Reply], missing: frozenset[str], success: float, config: SpeakRL
) -> list[float]:
    """The reward of each reply of a dialogue in which the user fills in what is asked; ``success`` is added
    to the last.
    """
    rewards, asks = [], 0
    for reply in replies:
        asks += reply.verb == "ask"
        too_many = reply.verb == "ask" and config.most_asks is not None and asks > config.most_asks
        rewards.append(-config.over_ask if too_many else reward(reply, missing, config))
        if reply.verb == "ask":
            missing -= reply.asked
    if rewards:
        rewards[-1] += success
    return rewards


# --- lines to compare with ---


def always_ask(missing: frozenset[str]) -> Reply:
    """Asks for exactly what is missing: no question does better, so no policy of its kind does."""
    return Reply("ask", asked=missing)


def always_act(missing: frozenset[str]) -> Reply:
    """Acts, rightly where nothing is missing."""
    return Reply("act", correctness=float(not missing))


@dataclass(frozen=True, slots=True)
class Line:
    """Of a policy over some points: mean reward, share of right verbs, and that share where a question (an
    action) was right; 0 where there is no such point.
    """

    reward: float
    accuracy: float
    ask_recall: float
    act_recall: float


def line(policy: Policy, points: Sequence[frozenset[str]], config: SpeakRL) -> Line:
    """How a policy fares at points with these missing slots. Raises ProactorError without points."""
    if not points:
        raise ProactorError("SpeakRL: no points")
    replies = [policy(missing) for missing in points]
    right = [reply.verb == ("ask" if missing else "act") for reply, missing in zip(replies, points)]
    ask = [hit for hit, missing in zip(right, points) if missing]
    act = [hit for hit, missing in zip(right, points) if not missing]
    return Line(
        reward=sum(reward(r, m, config) for r, m in zip(replies, points)) / len(points),
        accuracy=sum(right) / len(points),
        ask_recall=sum(ask) / max(1, len(ask)),
        act_recall=sum(act) / max(1, len(act)),
    )
