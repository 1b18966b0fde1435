"""Telepathy: guess the entity that the user thinks of by questions for yes and no.

Entities are UserRL's (Apache-2.0), the code and the judge's prompts are ours: protocol only, no claim. What
is known exactly is in `questions`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter

from proactor.environments.calls import VERBS
from proactor.environments.gyms.guessing import GuessingGym, Riddle
from proactor.environments.gyms.tasks import Held, Tasks, by_id, official_tests
from proactor.environments.users import UserModel
from proactor.files import find_files, read_validated

NAME = "telepathy"
SYSTEM = (
    "The user thinks of something. Find out what. Call interact_with_env in each turn with one choice:\n"
    "action: a question that can be answered with yes or no.\n"
    "answer: what you believe it is. You may answer again after a wrong answer.\n"
    "The number of turns is limited."
)
ROLE = "You think of something, and somebody else has to find out what."


class _Record(BaseModel):
    id: str
    title: str
    description: str
    target_entity: str


def telepathy_gym(
    path: str | Path,
    user: UserModel,
    split: Held = "official",
    max_turns: int = 16,
    user_verbs: Sequence[str] = VERBS,
) -> GuessingGym:
    """The gym over ``telepathy_entities.json`` (or .gz) or UserRL's ``all_entities_refined.json`` at
    ``path``. Raises SourceError for an unreadable file or a wrong record.
    """
    files = ("telepathy_entities.json.gz", "telepathy_entities.json", "all_entities_refined.json")
    file = find_files(Path(path), *files)[0]
    records = read_validated(file, TypeAdapter(list[_Record]))
    riddles = [(r.id, Riddle(r.id, r.description, r.target_entity, (_criterion(r),))) for r in records]
    tasks = Tasks(NAME, by_id(NAME, file, riddles), split, official_tests(NAME))
    return GuessingGym(NAME, tasks, user, (SYSTEM, ROLE), max_turns, user_verbs)


def _criterion(record: _Record) -> tuple[str, float]:
    return f"The answer names {record.title}, and nothing else.", 1.0
