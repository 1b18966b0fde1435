"""Every (decision, tool) of some dialogues with the probability that the tool fires there and the values it
would fire with.

From such a table any threshold policy can be replayed without the model. The values are the model's greedy
completion after the tool's name was forced; rows whose probability is below `floor` are left out, since a
threshold that low fires at nearly everything, and completing them would cost a sample each. All decisions are
scored on an empty board: what a policy has fired by then depends on its thresholds. A replay therefore never
fires the same tool with the same values twice, which is what the board would have told the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from proactor.calibration.probabilities import DialogueProbabilities, Path, score
from proactor.dialogue import Action, Dialogue, Status
from proactor.dialogue.parse import key, parse
from proactor.dialogue.prompt import PromptEncoder
from proactor.engine import Engine, Sampling

FLOOR = 0.02
"""Least probability of a row [INFERRED]."""


class Score(BaseModel):
    """One tool at one decision; `values` are those it would fire with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialogue: str
    turn: int
    tool: str
    probability: float
    values: dict[str, str] = Field(default_factory=dict)

    @property
    def action(self) -> Action:
        """The fire."""
        return Action(name=self.tool, params=self.values, status=Status.READY)


class ScoreTable(BaseModel):
    """Rows in the order of dialogues and turns. `dialogues`: all that were scored, those without a row too;
    `unread`: forced answers that could not be read, whose values are empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialogues: tuple[str, ...]
    rows: tuple[Score, ...] = ()
    floor: float = FLOOR
    unread: int = 0

    def by_dialogue(self) -> dict[str, list[Score]]:
        """The rows of each dialogue, the empty ones too."""
        found: dict[str, list[Score]] = {name: [] for name in self.dialogues}
        for row in self.rows:
            found[row.dialogue].append(row)
        return found


def replay(rows: Sequence[Score], admits: Callable[[str, float], bool]) -> dict[int, tuple[Action, ...]]:
    """What a policy fires in one dialogue: every row it `admits` (tool, probability), most probable first in
    a turn, but never the same tool with the same values (`parse.key`) again.
    """
    fired = set()
    outputs: dict[int, tuple[Action, ...]] = {}
    for row in sorted(rows, key=lambda r: (r.turn, -r.probability, r.tool)):
        action = row.action
        if admits(row.tool, row.probability) and key(action) not in fired:
            fired.add(key(action))
            outputs[row.turn] = (*outputs.get(row.turn, ()), action)
    return outputs


def score_table(
    engine: Engine,
    encoder: PromptEncoder,
    dialogues: Sequence[Dialogue],
    *,
    floor: float = FLOOR,
    max_tokens: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[ScoreTable, list[DialogueProbabilities]]:
    """The table of `dialogues`, and all probabilities it was made from. One tree pass a dialogue, then one
    greedy batch for the values.

    `max_tokens`: of a whole answer. `progress(done, total)` counts dialogues, and the batch as one more.
    """
    found, wanted = [], []
    for i, (dialogue, scored) in enumerate(
        zip(dialogues, score(engine, encoder, dialogues, pending=True), strict=True)
    ):
        found.append(scored.probabilities)
        for turn in scored.probabilities.turns:
            for tool, probability in turn.tools.items():
                if probability >= floor:
                    wanted.append((dialogue, turn.turn, tool, probability, scored.openings[turn.turn, tool]))
        if progress is not None:
            progress(i + 1, len(dialogues) + 1)
    answers = _complete(
        engine, encoder, [(d, turn, opening) for d, turn, _, _, opening in wanted], max_tokens
    )
    rows, unread = [], 0
    for (dialogue, turn_index, tool, probability, _), text in zip(wanted, answers, strict=True):
        values = _values(text, tool)
        unread += values is None
        rows.append(
            Score(
                dialogue=dialogue.id,
                turn=turn_index,
                tool=tool,
                probability=probability,
                values=dict(values or {}),
            )
        )
    if progress is not None:
        progress(len(dialogues) + 1, len(dialogues) + 1)
    return ScoreTable(
        dialogues=tuple(d.id for d in dialogues), rows=tuple(rows), floor=floor, unread=unread
    ), found


def _complete(
    engine: Engine, encoder: PromptEncoder, points: Sequence[tuple[Dialogue, int, Path]], max_tokens: int
) -> list[str]:
    """The whole answers that begin with the openings, completed greedily in one batch."""
    if not points:
        return []
    prompts = [[*encoder.prompt(dialogue, turn), *opening] for dialogue, turn, opening in points]
    settings = [
        Sampling(temperature=0.0, max_tokens=max(1, max_tokens - len(opening))) for _, _, opening in points
    ]
    groups = engine.sample(prompts, settings)
    return [
        encoder.chat.decode([*opening, *group.samples[0].token_ids])
        for (_, _, opening), group in zip(points, groups, strict=True)
    ]


def _values(text: str, tool: str) -> Mapping[str, str] | None:
    """Values of the first READY action of the tool; None when there is none to read."""
    return next((a.params for a in parse(text).actions if a.name == tool and a.status is Status.READY), None)
