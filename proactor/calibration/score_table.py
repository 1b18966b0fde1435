"""`ScoreTable`: for every decision and tool, the probability that the tool fires, and its values.

From a table, any threshold policy is replayed without the model. The values are the model's greedy completion
after the forced name of the tool. Rows below the probability `floor` are left out: a threshold that low fires
nearly everywhere, and each row costs a sample. All decisions are scored on an empty board, because the board
of a policy depends on its thresholds. The board would keep the agent from firing the same tool with the same
values again, so a replay never does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from proactor.calibration.probabilities import DialogueProbabilities, Path, score
from proactor.dialogue import Action, Dialogue, Status
from proactor.dialogue.parse import key, parse
from proactor.dialogue.prompt import PromptEncoder
from proactor.engine import Engine, Sampling

FLOOR = 0.02
"""Least probability of a row [INFERRED]."""


class ToolScore(BaseModel):
    """One tool at one decision; ``values``: the parameters of its fire."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialogue: str
    turn: int
    tool: str
    probability: float
    values: dict[str, str] = Field(default_factory=dict)

    @property
    def action(self) -> Action:
        """The fire as a READY action."""
        return Action(name=self.tool, params=self.values, status=Status.READY)


class ScoreTable(BaseModel):
    """Rows in the order of dialogues and turns.

    ``dialogues``: ids of all that were scored, also without a row. ``unread``: forced answers that could not
    be parsed; their values are empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dialogues: tuple[str, ...]
    rows: tuple[ToolScore, ...] = ()
    floor: float = FLOOR
    unread: int = 0

    def by_dialogue(self) -> dict[str, list[ToolScore]]:
        """The rows of each scored dialogue."""
        rows: dict[str, list[ToolScore]] = {name: [] for name in self.dialogues}
        for row in self.rows:
            rows[row.dialogue].append(row)
        return rows


def replay(rows: Sequence[ToolScore], admits: Callable[[str, float], bool]) -> dict[int, tuple[Action, ...]]:
    """The fires of a policy in one dialogue, by turn: every row that ``admits(tool, probability)``.

    The most probable comes first in a turn. The same tool with the same values (`parse.key`) fires once.
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
    """The table of ``dialogues``, and all probabilities behind it.

    One tree pass per dialogue, then one greedy batch for the values. ``max_tokens`` limits a whole answer.
    ``progress(done, total)`` counts dialogues, and the batch as one more.
    """
    total = len(dialogues) + 1
    probabilities: list[DialogueProbabilities] = []
    fires: list[_Fire] = []
    for dialogue, scores in zip(dialogues, score(engine, encoder, dialogues, pending=True), strict=True):
        probabilities.append(scores.probabilities)
        for turn in scores.probabilities.turns:
            for tool, probability in turn.tools.items():
                if probability >= floor:
                    opening = scores.openings[turn.turn, tool]
                    fires.append(_Fire(dialogue, turn.turn, tool, probability, opening))
        if progress is not None:
            progress(len(probabilities), total)
    rows, unread = [], 0
    for fire, text in zip(fires, _complete(engine, encoder, fires, max_tokens), strict=True):
        values = forced_values(text, fire.tool)
        unread += values is None
        rows.append(
            ToolScore(
                dialogue=fire.dialogue.id,
                turn=fire.turn,
                tool=fire.tool,
                probability=fire.probability,
                values=dict(values or {}),
            )
        )
    if progress is not None:
        progress(total, total)
    ids = tuple(d.id for d in dialogues)
    return ScoreTable(dialogues=ids, rows=tuple(rows), floor=floor, unread=unread), probabilities


@dataclass(frozen=True, slots=True)
class _Fire:
    """A tool probable enough at a decision; ``opening``: the ids that its forced answer begins with."""

    dialogue: Dialogue
    turn: int
    tool: str
    probability: float
    opening: Path


def _complete(engine: Engine, encoder: PromptEncoder, fires: Sequence[_Fire], max_tokens: int) -> list[str]:
    """The whole answers that begin with the openings, completed greedily in one batch."""
    if not fires:
        return []
    prompts = [[*encoder.prompt(fire.dialogue, fire.turn), *fire.opening] for fire in fires]
    settings = [forced_sampling(fire.opening, max_tokens) for fire in fires]
    groups = engine.sample(prompts, settings)
    return [
        encoder.chat.decode([*fire.opening, *group.samples[0].token_ids])
        for fire, group in zip(fires, groups, strict=True)
    ]


def forced_sampling(opening: Path, max_tokens: int) -> Sampling:
    """How an answer that begins with ``opening`` is completed; it has ``max_tokens`` in all."""
    return Sampling(temperature=0.0, max_tokens=max(1, max_tokens - len(opening)))


def forced_values(text: str, tool: str, status: Status = Status.READY) -> Mapping[str, str] | None:
    """Parameters of the first action of the tool with that status; None when none can be parsed."""
    return next((a.params for a in parse(text).actions if a.name == tool and a.status is status), None)
