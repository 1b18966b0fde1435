"""Groups to trees, and trees to rows."""

from __future__ import annotations

import random

from bench.micro.conftest import Part
from proactor.engine import Group, Sample, Tree
from proactor.engine.blocks import segment_families, stack
from proactor.engine.layout import layout
from proactor.engine.packing import pack
from proactor.engine.segments import tree_segments

REFERENCE = "python"


def groups(turns: int, samples: int) -> list[Group]:
    """Decisions along one dialogue."""
    rng = random.Random(0)
    dialogue = [rng.randrange(1000) for _ in range(30 * turns)]
    made = []
    for turn in range(turns):
        prompt = dialogue[: 30 * (turn + 1)]
        drawn = [Sample(prompt, [rng.randrange(1000) for _ in range(20)]) for _ in range(samples)]
        for i, sample in enumerate(drawn):
            sample.advantage = 1.0 if i % 2 else -1.0
        made.append(Group(prompt, drawn))
    return made


def test_packing(part: Part) -> None:
    dialogue = groups(12, 8)
    part(lambda: pack(dialogue, budget=2048))


def test_layout(part: Part) -> None:
    tree = Tree(groups(12, 8))
    part(lambda: layout(tree))


def test_attention_blocks(part: Part) -> None:
    tree = Tree(groups(12, 8))
    segments = tree_segments(tree, layout(tree).start)
    part(lambda: stack(segment_families(segments)))
