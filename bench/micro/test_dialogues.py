"""Answers read and dialogues scored."""

from __future__ import annotations

from bench.micro.conftest import Part
from proactor.dialogue import Action, Dialogue, Status
from proactor.dialogue.parse import parse, render
from proactor.scoring.bootstrap import intervals
from proactor.scoring.metrics import score_dialogue
from proactor.sources import load

REFERENCE = "python"


def outputs(dialogue: Dialogue) -> dict[int, list[Action]]:
    """Every wanted action at every turn: much to match."""
    wanted = [Action(name=r.name, params=r.params, status=Status.READY) for r in dialogue.references]
    return dict.fromkeys(dialogue.decision_turns, wanted)


def test_answers_are_read(part: Part) -> None:
    actions = [
        Action(name=f"tool_{i}", params={"city": "Rome", "day": "7"}, status=Status.READY) for i in range(3)
    ]
    text = render(actions)
    part(lambda: [parse(text) for _ in range(20)])


def test_dialogues_are_scored(part: Part) -> None:
    dialogues = load("synthetic", size=2, seed=0).dialogues
    part(lambda: [score_dialogue(dialogue, outputs(dialogue)) for dialogue in dialogues])


def test_intervals(part: Part) -> None:
    dialogues = load("synthetic", size=20, seed=0).dialogues
    contributions = [score_dialogue(dialogue, outputs(dialogue)) for dialogue in dialogues]
    part(lambda: intervals(contributions, resamples=500))
