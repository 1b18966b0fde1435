"""What a method made of the teacher's episodes with the policy that it had then: kept in the run's folder, so
that a resumed run learns from the same.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from proactor.environments.demonstration import Demonstration
from proactor.environments.player import Player
from proactor.training.demonstrations import Edit
from proactor.training.episodes import Arena, dealt_back
from proactor.training.runs import Run, read_rows

Row = dict[str, Any]
Make = Callable[[Player, str, int], Awaitable[Row]]
"""The row of a task, which has a place among all; ``counts`` in it are counters."""


class Revisions:
    """``name``: of the files in ``samples/``, one for each update before which something was made."""

    def __init__(self, arena: Arena, run: Run, name: str) -> None:
        self.arena, self.run, self.name = arena, run, name

    def rows(self, update: int, tasks: Sequence[str], iteration: int, make: Make) -> dict[str, Row]:
        """The rows of some tasks, made before update ``update``: read, or made now by all ranks.

        ``iteration``: of the session. Raises SourceError for a file that cannot be read.
        """
        file = self.run.folder / "samples" / f"{self.name}-{update:06d}.jsonl"
        engine = self.arena.engine
        if engine.gather(file.is_file(), "revisions")[0]:
            return {row["task"]: row for row in read_rows(file)}
        places = engine.share(list(enumerate(tasks)))
        done = 0

        async def one(player: Player, place: int, task: str) -> Row:
            nonlocal done
            row = await make(player, task, place)
            done += 1
            self.arena.ui.substep(self.name, done, len(places))
            return row

        async def all_of(player: Player) -> list[Row]:
            return list(await asyncio.gather(*(one(player, place, task) for place, task in places)))

        with engine.together("revisions"):
            mine, _ = self.arena.playing(iteration, all_of)
        rows = dealt_back(engine.gather(mine, "revisions"))
        self.run.write_samples(self.name, update, rows)
        engine.barrier("revisions")
        return {row["task"]: row for row in rows}


def counted(rows: Mapping[str, Row]) -> Row:
    """The counters of some rows, added."""
    total = Counter[str]()
    for row in rows.values():
        total.update(row["counts"])
    return {name: float(count) for name, count in sorted(total.items())}


def editing(rows: Mapping[str, Row], edit: Callable[[Demonstration, Row], Demonstration]) -> Edit:
    """The edit of episodes that ``rows`` know; others stay, and refused ones are left out."""

    def edited(demonstration: Demonstration) -> Demonstration | None:
        row = rows.get(demonstration.task)
        if row is None:
            return demonstration
        return None if row["refused"] else edit(demonstration, row)

    return edited
