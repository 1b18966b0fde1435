"""What a GRPO step reports beside the trainer's numbers: parts of the reward and their spread, what could not be read, and the samples themselves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from proactor.engine import Group


def reward_statistics(gather: Callable[[Any], list[Any]], groups: Sequence[Group]) -> dict[str, float]:
    """Statistics over the groups of all ranks (``gather`` gives every rank's value).

    ``parts/<name>``: mean of a part of the reward over samples; ``_std``: its deviation over samples; ``_within``: mean deviation inside a group, the only
    spread that gives gradient. ``unparsed_share``: answers not read in full, ``unread/<reason>`` their pieces; ``samples``, ``groups``, ``tokens_sampled``.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    for part in gather(_sums(groups)):
        for name, value in part.items():
            sums[name] += value
    samples, count = max(sums["samples"], 1), max(sums["groups"], 1)
    found: dict[str, float] = {"unparsed_share": sums["unparsed"] / samples}
    for name in sorted(k.removeprefix("sum/") for k in sums if k.startswith("sum/")):
        mean = sums[f"sum/{name}"] / samples
        found[f"parts/{name}"] = mean
        found[f"parts/{name}_std"] = math.sqrt(max(0.0, sums[f"square/{name}"] / samples - mean * mean))
        found[f"parts/{name}_within"] = sums[f"within/{name}"] / count
    found |= {k: float(v) for k, v in sorted(sums.items()) if k.startswith("unread/")}
    return found | {name: float(sums[name]) for name in ("samples", "groups", "tokens_sampled")}


def _sums(groups: Iterable[Group]) -> dict[str, float]:
    sums: defaultdict[str, float] = defaultdict(float)
    for group in groups:
        sums["groups"] += 1
        values: dict[str, list[float]] = {}
        for sample in group.samples:
            sums["samples"] += 1
            sums["tokens_sampled"] += len(sample.token_ids)
            sums["unparsed"] += not sample.info["ok"]
            for reason, pieces in sample.info["unread"].items():
                sums[f"unread/{reason}"] += pieces
            for name, value in sample.info["parts"].items():
                values.setdefault(name, []).append(value)
        for name, column in values.items():
            sums[f"sum/{name}"] += sum(column)
            sums[f"square/{name}"] += sum(v * v for v in column)
            sums[f"within/{name}"] += _deviation(column)
    return dict(sums)


def _deviation(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def sample_rows(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """The samples as plain rows: where, text, reward and its parts, advantage, how it ended, whether it was read."""
    return [
        {
            "dialogue": s.info["dialogue"], "turn": s.info["turn"], "sample": i, "text": s.text, "reward": s.reward, "parts": s.info["parts"],
            "advantage": s.advantage, "finish_reason": s.finish_reason, "ok": s.info["ok"], "unread": s.info["unread"],
            "tokens": len(s.token_ids),
        }
        for group in groups
        for i, s in enumerate(group.samples)
    ]  # fmt: skip
