"""GRPO with state graphs: K candidates walk through a dialogue side by side, each with a graph of its own.

The logged dialogue and the boards are the same for all candidates, as in the other modes, so a decision stays
a bandit except for the graph. Candidates of one decision are compared although their graphs, and so their
prompts, differ. A graph earns the reward of its own answer, nothing for later ones [INFERRED]. The engine
compares samples of one prompt only: advantages are computed here, and each prompt becomes a group.

The decisions of a dialogue are sampled in order, those of all dialogues together; see
`proactor.dialogue.state_graph` for the cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from proactor.dialogue.decisions import Decision, candidate_key
from proactor.dialogue.prompt import PromptEncoder
from proactor.dialogue.state_graph import NO_GRAPH, StateGraph
from proactor.engine import Convention, Engine, Group, Sampling, group_advantages


def roll_out(
    engine: Engine, encoder: PromptEncoder, points: Sequence[Decision], sampling: Sampling
) -> tuple[list[Group], list[list[dict[str, int]]]]:
    """Sample ``sampling.n`` candidates at every decision point, each after its own graph.

    Returns one group per point, in the order of ``points``, and for each sample the pieces of its graph that
    could not be parsed, by reason. A dialogue's points must come in the order of its turns. The samples of a
    group have different prompts; `trainable` turns them into groups for the engine.
    """
    rounds: defaultdict[int, list[int]] = defaultdict(list)
    earlier_points: defaultdict[str, int] = defaultdict(int)
    for i, point in enumerate(points):
        rounds[earlier_points[point.dialogue.id]].append(i)
        earlier_points[point.dialogue.id] += 1
    graphs: dict[tuple[str, int], StateGraph] = {}
    groups: dict[int, Group] = {}
    unread: defaultdict[int, list[dict[str, int]]] = defaultdict(list)
    one_sample = sampling.model_copy(update={"n": 1})
    for round_points in rounds.values():
        jobs = [(i, points[i], c) for i in round_points for c in range(sampling.n)]
        prompts = [
            encoder.prompt(p.dialogue, p.turn, p.board, graphs.get((p.dialogue.id, c), NO_GRAPH))
            for _, p, c in jobs
        ]
        keys = [candidate_key(p.dialogue, p.turn, c) for _, p, c in jobs]
        drawn = engine.sample(prompts, one_sample, keys=keys)
        for (i, p, c), single in zip(jobs, drawn, strict=True):
            sample = single.samples[0]
            groups.setdefault(i, Group(sample.prompt_ids, [])).samples.append(sample)
            graph = graphs.get((p.dialogue.id, c), NO_GRAPH)
            graphs[p.dialogue.id, c], pieces = graph.after(sample.text)
            unread[i].append(pieces)
    order = range(len(points))
    return [groups[i] for i in order], [unread[i] for i in order]


def trainable(groups: Sequence[Group], convention: Convention = "art") -> list[Group]:
    """Groups whose samples share a prompt, as the engine needs them.

    A group with one prompt stays as it is. Of any other, each prompt becomes a group, and its samples carry
    the advantages computed over the whole group. Rewards must be finite numbers.
    """
    by_prompt: list[Group] = []
    for group in groups:
        if all(s.prompt_ids == group.prompt_ids for s in group.samples):
            by_prompt.append(group)
            continue
        rewards = [float(s.reward) for s in group.samples if s.reward is not None]
        parts: dict[tuple[int, ...], Group] = {}
        for sample, advantage in zip(group.samples, group_advantages(rewards, convention), strict=True):
            sample.advantage = advantage
            part = parts.setdefault(tuple(sample.prompt_ids), Group(sample.prompt_ids, [], tree=group.tree))
            part.samples.append(sample)
        by_prompt.extend(parts.values())
    return by_prompt
