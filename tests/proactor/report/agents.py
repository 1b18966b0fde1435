"""Evaluations of made-up agents, without an engine."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from proactor.dialogue import Action, Dialogue, Status
from proactor.dialogue.parse import parse, render
from proactor.dialogue.windows import open_at, params_at
from proactor.evaluation.play import Evaluation, Replay
from proactor.rewards import score_replay
from proactor.scoring.metrics import aggregate


def evaluation(dialogues: Sequence[Dialogue], texts: Mapping[str, Mapping[int, str]]) -> Evaluation:
    """What `evaluate` gives for an agent that answers `texts` (dialogue id -> turn -> text)."""
    contributions, replays = [], []
    for dialogue in dialogues:
        parsed = {turn: parse(text) for turn, text in texts.get(dialogue.id, {}).items()}
        contribution, rewards = score_replay(dialogue, parsed)
        contributions.append(contribution)
        actions = {turn: p.actions for turn, p in parsed.items()}
        replays.append(Replay(dialogue.id, dict(texts.get(dialogue.id, {})), actions, rewards))
    return Evaluation(aggregate(contributions), contributions, replays, 0.125, 0.0625)


def agent(dialogues: Sequence[Dialogue], seed: int, skill: float) -> dict[str, dict[int, str]]:
    """Random play: more fires inside the window, fewer outside, the higher `skill` (0 to 1)."""
    rng = random.Random(seed)
    texts: dict[str, dict[int, str]] = {}
    for dialogue in dialogues:
        for turn in dialogue.decision_turns:
            actions = []
            for r in open_at(dialogue, turn):
                ready = r.ready is not None and r.ready[0] <= turn <= r.ready[1]
                if rng.random() < (0.2 + 0.7 * skill if ready else 0.4 * (1 - skill)):
                    actions.append(Action(name=r.name, params=params_at(r, turn), status=Status.READY))
                elif rng.random() < 0.3:
                    actions.append(Action(name=r.name, params=params_at(r, turn), status=Status.PENDING))
            if dialogue.tools and rng.random() < 0.2 * (1 - skill):
                actions.append(Action(name=rng.choice(dialogue.tools), params={}, status=Status.READY))
            broken = rng.random() < 0.1 * (1 - skill)
            texts.setdefault(dialogue.id, {})[turn] = "I would rather talk [" if broken else render(actions)
    return texts
