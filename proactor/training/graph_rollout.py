"""GRPO with state graphs: K candidates walk through a dialogue side by side, each with the graph that it
keeps for itself.

The logged dialogue and the boards are those of the other modes, the same for all candidates, so a decision
stays a bandit but for the graph: candidates of one decision are compared with one another although their
prompts differ in it, and a graph earns what the answer beside it earns, nothing for what it does later
[INFERRED]. The engine compares samples of one prompt only, so the advantages of such a group are computed
here and its samples go to the engine as one group a prompt.

The decisions of a dialogue come one after the other, those of all dialogues together; see
`proactor.dialogue.state_graph` for what this costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from proactor.dialogue.decisions import candidate_key
from proactor.dialogue.prompt import PromptEncoder
from proactor.dialogue.state_graph import NO_GRAPH, StateGraph
from proactor.engine import Convention, Engine, Group, Sampling, group_advantages

if TYPE_CHECKING:
    from proactor.dialogue.decisions import Decision


def roll_out(
    engine: Engine, encoder: PromptEncoder, points: Sequence[Decision], sampling: Sampling
) -> tuple[list[Group], list[list[dict[str, int]]]]:
    """The ``sampling.n`` candidates of every decision point, each after its own graph: one group a point, in
    their order, and for each sample the pieces of its graph that could not be read, by reason.

    A dialogue's points must come in the order of its turns. The samples of a group have prompts of their own;
    `trainable` turns them into groups for the engine.
    """
    rounds: defaultdict[int, list[int]] = defaultdict(list)
    seen: defaultdict[str, int] = defaultdict(int)
    for i, point in enumerate(points):
        rounds[seen[point.dialogue.id]].append(i)
        seen[point.dialogue.id] += 1
    graphs: dict[tuple[str, int], StateGraph] = {}
    groups: dict[int, Group] = {}
    unread: defaultdict[int, list[dict[str, int]]] = defaultdict(list)
    alone = sampling.model_copy(update={"n": 1})
    for k in sorted(rounds):
        jobs = [(i, points[i], c) for i in rounds[k] for c in range(sampling.n)]
        prompts = [
            encoder.prompt(p.dialogue, p.turn, p.board, graphs.get((p.dialogue.id, c), NO_GRAPH))
            for _, p, c in jobs
        ]
        drawn = engine.sample(prompts, alone, keys=[candidate_key(p.dialogue, p.turn, c) for _, p, c in jobs])
        for (i, p, c), one in zip(jobs, drawn, strict=True):
            sample = one.samples[0]
            groups.setdefault(i, Group(sample.prompt_ids, [])).samples.append(sample)
            graph = graphs.get((p.dialogue.id, c), NO_GRAPH)
            graphs[p.dialogue.id, c], pieces = graph.after(sample.text)
            unread[i].append(pieces)
    order = range(len(points))
    return [groups[i] for i in order], [unread[i] for i in order]


def trainable(groups: Sequence[Group], convention: Convention = "art") -> list[Group]:
    """The groups as the engine takes them: one whose samples share their prompt stays as it is; of any other,
    each prompt becomes a group of its own, whose samples carry the advantages of the whole comparison. Their
    rewards must be finite numbers.
    """
    found: list[Group] = []
    for group in groups:
        if all(s.prompt_ids == group.prompt_ids for s in group.samples):
            found.append(group)
            continue
        rewards = [float(s.reward) for s in group.samples if s.reward is not None]
        parts: dict[tuple[int, ...], Group] = {}
        for sample, advantage in zip(group.samples, group_advantages(rewards, convention), strict=True):
            sample.advantage = advantage
            part = parts.setdefault(tuple(sample.prompt_ids), Group(sample.prompt_ids, [], tree=group.tree))
            part.samples.append(sample)
        found.extend(parts.values())
    return found
