"""Dialogues played through, by the agent on its own board and by the policies of `policies.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proactor.dialogue import Action, Dialogue
from proactor.dialogue.decisions import noise_key
from proactor.dialogue.matching import EXACT, MatchRule, exact_rule
from proactor.dialogue.parse import Parsed, render
from proactor.dialogue.prompt import PromptEncoder
from proactor.engine import Engine, Sampling
from proactor.evaluation.own_board import OwnBoard
from proactor.evaluation.policies import HUMAN, POLICIES, logs_triggers
from proactor.rewards import TurnReward, score_replay
from proactor.scoring.metrics import Contribution, aggregate
from proactor.scoring.utility import Costs, utility


@dataclass(slots=True)
class Replay:
    """One dialogue played through: the text, the parsed actions and the turn reward, by decision turn."""

    dialogue_id: str
    outputs: dict[int, str] = field(default_factory=dict)
    actions: dict[int, tuple[Action, ...]] = field(default_factory=dict)
    rewards: dict[int, float] = field(default_factory=dict)


@dataclass(slots=True)
class Evaluation:
    """Corpus metrics, with the contributions and replays of the dialogues behind them.

    The shares are of all outputs. ``unread_graph_share``: those without a state graph, or with one that could
    not be read in full; None outside graph mode. ``rule``: what counted as right. ``note``: a line for the
    reader where the rule is not the one that the run was scored by.
    """

    metrics: dict[str, float | None]
    contributions: list[Contribution]
    replays: list[Replay]
    unparsed_share: float = 0.0
    truncated_share: float = 0.0
    unread_graph_share: float | None = None
    rule: MatchRule = EXACT
    note: str = ""


def evaluate(
    engine: Engine,
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    reward: TurnReward | None = None,
    *,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    costs: Costs | None = None,
    rule: MatchRule | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Play every dialogue through. The k-th decisions of all dialogues are one batch of the engine.

    ``temperature`` 0 is greedy. ``reward`` (default `WeightedMetric`) gives the turn rewards, ``costs`` the
    utility. ``rule``: what counts as right (default: `exact_rule` of the encoder's catalog). The trunk's KV
    pages are reused from one decision to the next. ``progress(done, total)`` counts decisions. In graph mode
    each prompt shows the graph that the agent wrote last.
    """
    played = {d.id: OwnBoard() for d in dialogues}
    keeps_graph = encoder.style.mode == "graph"
    parsed: dict[str, dict[int, Parsed]] = {d.id: {} for d in dialogues}
    texts: dict[str, dict[int, str]] = {d.id: {} for d in dialogues}
    total, done, unread, cut, unread_graphs = sum(len(d.decision_turns) for d in dialogues), 0, 0, 0, 0
    sampling = answer_sampling(max_tokens, temperature, seed)
    for k in range(max((len(d.decision_turns) for d in dialogues), default=0)):
        points = [(d, d.decision_turns[k]) for d in dialogues if k < len(d.decision_turns)]
        prompts = [played[d.id].prompt(encoder, d, turn) for d, turn in points]
        groups = engine.sample(prompts, sampling, keys=[noise_key(d, turn) for d, turn in points])
        for (dialogue, turn), group in zip(points, groups, strict=True):
            sample = group.samples[0]
            read, whole = played[dialogue.id].take(encoder, dialogue, turn, sample.text)
            texts[dialogue.id][turn], parsed[dialogue.id][turn] = sample.text, read
            unread_graphs += not whole
            unread += not read.ok
            cut += sample.finish_reason != "stop"
        done += len(points)
        if progress is not None:
            progress(done, total)
    rule = exact_rule(encoder.catalog) if rule is None else rule
    evaluation = _score(dialogues, parsed, texts, reward, costs, rule)
    evaluation.unparsed_share, evaluation.truncated_share = unread / max(total, 1), cut / max(total, 1)
    evaluation.unread_graph_share = unread_graphs / max(total, 1) if keeps_graph else None
    return evaluation


def answer_sampling(max_tokens: int, temperature: float, seed: int) -> Sampling:
    """How an answer is drawn that the agent acts on."""
    return Sampling(n=1, temperature=temperature, max_tokens=max_tokens, seed=seed)


def join_evaluations(dialogues: Sequence[Dialogue], parts: Sequence[tuple[Evaluation, int]]) -> Evaluation:
    """One evaluation, in the order of ``dialogues``, from (evaluation, number of decisions) of each rank."""
    contributions = {c.dialogue: c for part, _ in parts for c in part.contributions}
    replays = {r.dialogue_id: r for part, _ in parts for r in part.replays}
    total = max(sum(count for _, count in parts), 1)
    ordered = [contributions[d.id] for d in dialogues]
    unread_graph_share = None
    if parts[0][0].unread_graph_share is not None:
        unread_graph_share = sum((part.unread_graph_share or 0.0) * count for part, count in parts) / total
    return Evaluation(
        aggregate(ordered),
        ordered,
        [replays[d.id] for d in dialogues],
        sum(part.unparsed_share * count for part, count in parts) / total,
        sum(part.truncated_share * count for part, count in parts) / total,
        unread_graph_share,
        parts[0][0].rule,
    )


def evaluate_policies(
    dialogues: Sequence[Dialogue],
    reward: TurnReward | None = None,
    costs: Costs | None = None,
    rule: MatchRule = EXACT,
) -> dict[str, Evaluation]:
    """The evaluations of `POLICIES` by name; `human` only where a dialogue logs when it acted.

    ``rule``: what counts as right; an agent beside them is to be scored by the same one.
    """
    evaluations = {}
    for name, policy in POLICIES.items():
        if name == HUMAN and not logs_triggers(dialogues):
            continue
        parsed = {
            d.id: {turn: Parsed(tuple(actions)) for turn, actions in policy(d).items()} for d in dialogues
        }
        texts = {key: {turn: render(p.actions) for turn, p in turns.items()} for key, turns in parsed.items()}
        evaluations[name] = _score(dialogues, parsed, texts, reward, costs, rule)
    return evaluations


def _score(
    dialogues: Sequence[Dialogue],
    parsed: dict[str, dict[int, Parsed]],
    texts: dict[str, dict[int, str]],
    reward: TurnReward | None,
    costs: Costs | None,
    rule: MatchRule,
) -> Evaluation:
    contributions, replays = [], []
    for dialogue in dialogues:
        contribution, rewards = score_replay(dialogue, parsed[dialogue.id], reward, rule)
        if costs is not None:
            contribution.sums["utility_sum"] = utility(dialogue, parsed[dialogue.id], costs)
        contributions.append(contribution)
        actions = {turn: p.actions for turn, p in parsed[dialogue.id].items()}
        replays.append(Replay(dialogue.id, texts[dialogue.id], actions, rewards))
    return Evaluation(aggregate(contributions), contributions, replays, rule=rule)
