"""What sampling given groups takes: prompt tokens computed, tokens drawn, decode steps, operations, bytes.

Computed from shapes: prompts that begin alike are computed once, as by the prefix cache, and all sequences
that have room decode at once. What a cache that is too small computes again is not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from proactor.engine.footprint import Footprint
from proactor.engine.layout import layout
from proactor.engine.operations import Operations, Work
from proactor.engine.tree import Tree
from proactor.engine.types import Group, Sample


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """``prompts``: prompt tokens computed; ``drawn``: tokens drawn, in ``steps`` decode steps.
    ``prefill``, ``decode``: operations; ``moved``: bytes that the decode steps read, weights and KV.
    """

    prompts: int
    drawn: int
    steps: int
    prefill: float
    decode: float
    moved: float


def plan_sampling(
    groups: Sequence[Group], operations: Operations, footprint: Footprint, batch: int, in_turn: int = 0
) -> SamplingPlan:
    """The plan for groups whose samples have the lengths to plan for; at most ``batch`` sequences at once.

    ``in_turn``: decode steps that follow each other in any case, where samples wait for others.
    """
    heads = [replace(g, samples=[Sample(g.prompt_ids, [0])], parent=None) for g in groups]
    flat = layout(Tree(heads))
    prompts = Work(len(flat.ids), int((flat.positions + 1).sum()), len(groups))
    lengths = [len(s.token_ids) for g in groups for s in g.samples]
    drawn = sum(lengths)
    steps = max(-(-drawn // min(batch, len(lengths))), max(lengths), in_turn) if lengths else 0
    pairs = own = 0
    for group in groups:
        longest = max(len(s.token_ids) for s in group.samples)
        own += longest * len(group.prompt_ids)  # read once for all samples of the group
        for sample in group.samples:
            length = len(sample.token_ids)
            pairs += length * len(group.prompt_ids) + length * (length + 1) // 2
            own += length * (length + 1) // 2
    return SamplingPlan(
        prompts=prompts.rows,
        drawn=drawn,
        steps=steps,
        prefill=sum(operations.forward(prompts).values()),
        decode=sum(operations.forward(Work(drawn, pairs, drawn)).values()),
        moved=steps * (footprint.weights + footprint.adapter / 2) + own * footprint.token,
    )
