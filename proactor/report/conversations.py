"""The episodes for the page: those of one task beside one another, to be searched, filtered and compared.

Test tasks come first, those whose outcome changed before the others; then training's groups, the latest step
first. Of very long trainings some steps are left out, and the page says which ones it holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proactor.report.endings import ENDINGS
from proactor.training.episode_rows import BeforeAfter, CallRow, EpisodeRow, read_samples

FIRST_PAGE = 6
"""Groups in the HTML itself, for a page without scripts."""
MOST = 1500
"""Training episodes of a page."""
LONGEST = 1500
"""Characters shown of what was said or came back."""


@dataclass(frozen=True, slots=True)
class Played:
    """An episode of a group, called ``name`` there; ``solved``: `EpisodeRow.solves`."""

    name: str
    row: EpisodeRow
    solved: bool

    @property
    def level(self) -> str:
        """``solved``, ``partly`` (a score above 0) or ``none``."""
        return "solved" if self.solved else "partly" if self.row.score > 0 else "none"

    @property
    def ending(self) -> str:
        """Its ending in words."""
        return ENDINGS.get(self.row.ending, self.row.ending)


@dataclass(frozen=True, slots=True)
class EpisodeGroup:
    """Episodes of one task: before and after on test (``step`` None), or those of a training step.

    ``change`` of a test task: ``gained`` (solved after, not before), ``lost``, ``up`` or ``down`` (of its
    score), or ``same``; "" in training.
    """

    task: str
    step: int | None
    episodes: tuple[Played, ...]
    change: str = ""

    @property
    def part(self) -> str:
        """Where it was played."""
        return "test" if self.step is None else f"step {self.step}"

    @property
    def opening(self) -> str:
        """What the user said before the first turn."""
        return next((e.row.opening for e in self.episodes if e.row.opening), "")

    @property
    def scale(self) -> float:
        """The largest advantage of a turn, without sign; 1 where there is none."""
        given = [abs(t.advantage) for e in self.episodes for t in e.row.turns if t.advantage is not None]
        return max(given, default=0.0) or 1.0

    @property
    def row(self) -> dict[str, Any]:
        """What the page's script searches and sorts by."""
        rows = [e.row for e in self.episodes]
        return {
            "text": "\n".join(dict.fromkeys(_texts(self.task, rows))).lower(),
            "part": self.part,
            "step": -1 if self.step is None else self.step,
            "episodes": sorted({(e.row.ending, e.level) for e in self.episodes}),
            "change": self.change or ("mixed" if len({e.solved for e in self.episodes}) > 1 else ""),
            "score": sum(row.score for row in rows) / len(rows),
            "user": sum(row.user_actions for row in rows) / len(rows),
            "turns": sum(len(row.turns) for row in rows) / len(rows),
        }


def _texts(task: str, rows: Iterable[EpisodeRow]) -> Iterable[str]:
    yield task
    for row in rows:
        yield row.opening
        yield row.error
        for turn in row.turns:
            yield from (turn.said, turn.feedback)
            for call in turn.calls:
                yield from (call.verb, said_in(call))


def said_in(call: CallRow) -> str:
    """What a call said: its content, or the arguments of a tool of its own."""
    if call.content or not call.arguments:
        return call.content
    return json.dumps(call.arguments, ensure_ascii=False)


def compared_groups(tested: BeforeAfter) -> list[EpisodeGroup]:
    """A group a test task, those whose outcome changed first. A task that one side lacks has one episode."""
    after = {e.task: e for e in tested.after}
    before = {e.task: e for e in tested.before}
    groups = []
    for task in dict.fromkeys((*before, *after)):
        sides = [(n, s[task]) for n, s in (("before", before), ("after", after)) if task in s]
        played = tuple(Played(name, row, row.solves(tested.success)) for name, row in sides)
        groups.append(EpisodeGroup(task, None, played, _change(played)))
    order = {"gained": 0, "lost": 1, "up": 2, "down": 3, "same": 4, "": 5}
    return sorted(groups, key=lambda g: (order[g.change], -g.episodes[-1].row.score))


def _change(played: Sequence[Played]) -> str:
    if len(played) < 2:
        return ""
    old, new = played
    if old.solved != new.solved:
        return "gained" if new.solved else "lost"
    step = new.row.score - old.row.score
    return "up" if step > 0 else "down" if step < 0 else "same"


def training_groups(step: int, rows: Iterable[EpisodeRow], success: float) -> list[EpisodeGroup]:
    """The groups of a training step, as they were sampled."""
    by_task: dict[str, list[Played]] = {}
    for row in rows:
        by_task.setdefault(row.task, []).append(Played(f"{row.sample + 1}", row, row.solves(success)))
    return [EpisodeGroup(task, step, tuple(played)) for task, played in by_task.items()]


def read_training_groups(files: Mapping[int, Path], success: float) -> list[EpisodeGroup]:
    """The groups of the steps that a page holds, the latest first: all, or evenly spread ones where there are
    more than MOST episodes. Raises SourceError for a file that cannot be read.
    """
    steps = sorted(files)
    if not steps:
        return []
    last = read_samples(files[steps[-1]])
    read = {steps[-1]: last}
    groups = []
    for step in reversed(spread(steps, max(2, MOST // max(1, len(last))))):
        rows = read[step] if step in read else read_samples(files[step])
        groups += training_groups(step, rows, success)
    return groups


def spread(steps: Sequence[int], most: int) -> list[int]:
    """``most`` of the steps, evenly spread, the first and the last among them; all where there are fewer."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
