"""Statistics of a GRPO step beside the trainer's (reward parts, judge, unread pieces), and sample rows."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, SupportsFloat, cast

from proactor.dialogue.decisions import Decision
from proactor.dialogue.dialogue import Status
from proactor.dialogue.prompt import target, unknowable
from proactor.engine import Sample
from proactor.ruler import RankAgreement, compare_rankings, spread
from proactor.training.answers import AnswerGroup


def reward_statistics(gather: Callable[[Any], list[Any]], groups: Sequence[AnswerGroup]) -> dict[str, float]:
    """Statistics over the groups of all ranks; ``gather`` returns the values of all ranks.

    - ``parts/<name>``: mean of a part of the reward over samples; ``_std``: its deviation over samples;
      ``_within``: its mean deviation inside a group, the only spread that gives gradient.
    - ``unparsed_share``: answers not parsed in full; ``unread/<reason>``: their unread pieces, and in graph
      mode ``unread_graph/<reason>`` those of state graphs.
    - ``acts/ready``, ``acts/not_ready``: share of the answers that act (with a READY action) where an action
      is ready, and where none is. Decisions at which an unknown window may be right are left out.
    - ``pull/ready``, ``pull/not_ready``: the sum of those answers' advantages, divided by the samples. Where
      those of a group add up to 0, both together are the update's pull toward acting: below 0 it teaches
      waiting.
    - ``samples``, ``groups``, ``tokens_sampled``; ``groups_dropped``: groups that the reward dropped. Those
      count in ``tokens_sampled`` too, and nowhere else.
    """
    sums = _add_ranks(gather(_sums(groups)))
    samples, count = max(sums["samples"], 1), max(sums["groups"], 1)
    row: dict[str, float] = {"unparsed_share": sums["unparsed"] / samples}
    for name in sorted(k.removeprefix("sum/") for k in sums if k.startswith("sum/")):
        mean = sums[f"sum/{name}"] / samples
        row[f"parts/{name}"] = mean
        row[f"parts/{name}_std"] = math.sqrt(max(0.0, sums[f"square/{name}"] / samples - mean * mean))
        row[f"parts/{name}_within"] = sums[f"within/{name}"] / count
    row |= {k: float(v) for k, v in sorted(sums.items()) if k.startswith(("unread/", "unread_graph/"))}
    for kind in ("ready", "not_ready"):
        if answers := sums[f"answers/{kind}"]:
            row[f"acts/{kind}"] = sums[f"acts/{kind}"] / answers
            row[f"pull/{kind}"] = sums[f"advantage/{kind}"] / samples
    row |= {name: float(sums[name]) for name in ("samples", "groups", "groups_dropped", "tokens_sampled")}
    return row


def _sums(groups: Iterable[AnswerGroup]) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for group in groups:
        if group.dropped:
            sums["groups_dropped"] += 1
            sums["tokens_sampled"] += sum(len(s.token_ids) for s in group.group.samples)
            continue
        sums["groups"] += 1
        kind = _kind(group.decision)
        values: dict[str, list[float]] = {}
        for answer in group.answers:
            sums["samples"] += 1
            sums["tokens_sampled"] += len(answer.sample.token_ids)
            sums["unparsed"] += not answer.parsed.ok
            if kind is not None:
                acts = any(action.status is Status.READY for action in answer.parsed.actions)
                sums[f"answers/{kind}"] += 1
                sums[f"acts/{kind}"] += acts
                sums[f"advantage/{kind}"] += acts * _advantage(answer.sample)
            for reason, pieces in answer.parsed.unread.items():
                sums[f"unread/{reason}"] += pieces
            for reason, pieces in answer.unread_graph.items():
                sums[f"unread_graph/{reason}"] += pieces
            for name, value in answer.parts.items():
                values.setdefault(name, []).append(value)
        for name, column in values.items():
            sums[f"sum/{name}"] += sum(column)
            sums[f"square/{name}"] += sum(v * v for v in column)
            sums[f"within/{name}"] += _deviation(column)
    return dict(sums)


def _kind(decision: Decision) -> Literal["ready", "not_ready"] | None:
    """Whether an action is ready at a decision; None where an unknown window may be."""
    dialogue, turn, board = decision.dialogue, decision.turn, decision.board
    if unknowable(dialogue, turn, board):
        return None
    return "ready" if target(dialogue, turn, board, pending=False) else "not_ready"


def _advantage(sample: Sample) -> float:
    """The one advantage of a sample; 0 where it was not trained."""
    return 0.0 if sample.advantage is None else float(cast(SupportsFloat, sample.advantage))


def _add_ranks(ranks: Iterable[Mapping[str, float]]) -> defaultdict[str, float]:
    """The sums of all ranks."""
    sums: defaultdict[str, float] = defaultdict(float)
    for rank in ranks:
        for name, value in rank.items():
            sums[name] += value
    return sums


def judge_statistics(
    gather: Callable[[Any], list[Any]],
    groups: Sequence[AnswerGroup],
    judged: Sequence[str],
    counters: Mapping[str, int],
) -> dict[str, float]:
    """Statistics of the judge over the groups of all ranks; ``judged`` names the reward parts it gave.

    - ``judge/<event>``: its counters in this step.
    - ``judge/spread``: mean deviation of its scores inside a group.
    - ``judge/agreement``: of the pairs of answers to one decision that both the judge and the metric reward
      tell apart, the share they order alike; ``judge/pairs``: the number of those pairs.
    - ``judge/tau``: Kendall's tau-b over all pairs.

    All but the counters are absent where the judge was not asked.
    """
    columns, metric = _judged_columns(groups, judged)
    spreads = [deviation for column in columns if (deviation := spread([column])) is not None]
    local = {f"judge/{name}": float(n) for name, n in counters.items()}
    local |= {"spread": sum(spreads), "groups": len(spreads)}
    ranks = gather((local, compare_rankings(columns, metric)))
    sums = _add_ranks(values for values, _ in ranks)
    pairs = sum((agreed for _, agreed in ranks), RankAgreement())
    row = {k: v for k, v in sorted(sums.items()) if k.startswith("judge/")}
    if sums["groups"]:
        row["judge/spread"] = sums["spread"] / sums["groups"]
        row["judge/pairs"] = float(pairs.same + pairs.opposite)
    rates = {"judge/agreement": pairs.rate, "judge/tau": pairs.tau}
    return row | {name: rate for name, rate in rates.items() if rate is not None}


def _judged_columns(
    groups: Iterable[AnswerGroup], judged: Sequence[str]
) -> tuple[list[list[float]], list[list[float]]]:
    """The scores of each judged group, and the metric reward of the same samples."""
    columns, metric = [], []
    for group in groups:
        parts = [a.parts for a in group.answers]
        for name in judged:
            if all(name in p for p in parts):
                columns.append([p[name] for p in parts])
                metric.append([p["metric"] for p in parts])
    return columns, metric


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def sample_rows(groups: Iterable[AnswerGroup]) -> list[dict[str, Any]]:
    """The samples as rows of a sample file (see `proactor.training.runs`); null rewards in dropped groups."""
    return [
        {
            "dialogue": group.decision.dialogue.id,
            "turn": group.decision.turn,
            "sample": i,
            "text": answer.sample.text,
            "reward": answer.sample.reward,
            "parts": answer.parts,
            "advantage": answer.sample.advantage,
            "finish_reason": answer.sample.finish_reason,
            "ok": answer.parsed.ok,
            "unread": answer.parsed.unread,
            "tokens": len(answer.sample.token_ids),
        }
        for group in groups
        for i, answer in enumerate(group.answers)
    ]
