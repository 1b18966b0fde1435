"""Turtle: find the story behind a strange scene by questions for yes and no.

Stories are UserRL's (Apache-2.0), the code and the judge's prompts are ours: protocol only, no claim.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter

from proactor.environments.calls import VERBS
from proactor.environments.gyms.guessing import GuessingGym, Riddle
from proactor.environments.gyms.tasks import Held, Tasks, by_id, official_tests
from proactor.environments.users import UserModel
from proactor.files import find_files, read_validated

NAME = "turtle"
SYSTEM = (
    "The user tells the surface of a strange story. Find out what lies behind it. Call interact_with_env in "
    "each turn with one choice:\n"
    "action: a question that can be answered with yes or no.\n"
    "answer: the whole story as you understand it. You may answer again.\n"
    "The number of turns is limited."
)
ROLE = "You know what lies behind a strange story, and somebody else has to find out."


class _Criterion(BaseModel):
    statement: str
    score: float = Field(gt=0)


class _Record(BaseModel):
    id: str
    new_surface: str
    new_bottom: str
    evaluation: Annotated[tuple[_Criterion, ...], Field(min_length=1)]


def turtle_gym(
    path: str | Path,
    user: UserModel,
    split: Held = "official",
    max_turns: int = 16,
    user_verbs: Sequence[str] = VERBS,
) -> GuessingGym:
    """The gym over ``turtle_stories.json`` (or .gz) at ``path``: a list with the ids that UserRL's file has
    as keys. Raises SourceError for an unreadable file or a wrong record.
    """
    file = find_files(Path(path), "turtle_stories.json.gz", "turtle_stories.json")[0]
    records = read_validated(file, TypeAdapter(list[_Record]))
    riddles = [(r.id, _riddle(r)) for r in records]
    tasks = Tasks(NAME, by_id(NAME, file, riddles), split, official_tests(NAME))
    return GuessingGym(NAME, tasks, user, (SYSTEM, ROLE), max_turns, user_verbs)


def _riddle(record: _Record) -> Riddle:
    total = sum(criterion.score for criterion in record.evaluation)
    criteria = tuple((criterion.statement, criterion.score / total) for criterion in record.evaluation)
    return Riddle(record.id, record.new_surface, record.new_bottom, criteria)
