"""Examples for pre-training and stage A: a teacher's episodes of a gym, token by token as the agent would
play them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from proactor.config_base import ConfigError
from proactor.engine import Group, Sample, ToolChat
from proactor.environments.demonstration import Demonstration
from proactor.environments.episode import Episode
from proactor.environments.gyms.players import players
from proactor.environments.host import HostConfig
from proactor.environments.protocol import Gym
from proactor.environments.scripted import play
from proactor.environments.wording import Wording
from proactor.episode_config import Teacher
from proactor.methods.bao import DemonstrationFilter, kept_demonstrations

Edit = Callable[[Demonstration], Demonstration | None]


@dataclass(slots=True)
class Demonstrations:
    """The teacher's episodes, each made when it is first asked for.

    ``thoughts``: whether it says before each call what it thinks, as ``wording`` has it. ``edit``: what a
    method makes of an episode; None: it is left out. ``host``: as the agent will play there: what it sees,
    and how many turns it has.
    """

    gym: Gym
    chat: ToolChat
    thoughts: bool
    teacher: Teacher = "expert"
    wording: Wording = field(default_factory=Wording)
    edit: Edit | None = None
    host: HostConfig = field(default_factory=HostConfig)
    _made: dict[str, list[Sample] | str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        gym: Gym,
        chat: ToolChat,
        thoughts: bool,
        teacher: Teacher = "expert",
        wording: Wording | None = None,
        edit: Edit | None = None,
        host: HostConfig | None = None,
    ) -> Demonstrations:
        """Those of a gym. Raises as `check`."""
        wording, host = wording or Wording(), host or HostConfig()
        return cls(cls.check(gym), chat, thoughts, teacher, wording, edit, host)

    @staticmethod
    def check(gym: Gym) -> Gym:
        """Raise ConfigError for a gym that has no expert."""
        if not players(gym):
            raise ConfigError(
                f"environment.gym: {gym.name} has no symbolic expert; leave sft, pretrain and stepagent out"
            )
        return gym

    def groups(self, tasks: Sequence[str]) -> tuple[list[Group], Counter[str]]:
        """A group of one for each task's episode; ``demonstrations`` that were kept, and those left out by
        reason: ``left_out_failed``, ``_sections``, ``_repeated`` (`bao.fault`), ``_refused`` (``edit``).
        """
        counts, groups = Counter[str](), []
        for task in tasks:
            made = self.samples(task)
            if isinstance(made, str):
                counts[f"left_out_{made}"] += 1
            else:
                groups += [Group(sample.prompt_ids, [sample]) for sample in made]
                counts["demonstrations"] += 1
        return groups, counts

    def samples(self, task: str) -> list[Sample] | str:
        """The task's episode, trained on the teacher's turns, or why it is left out."""
        if task not in self._made:
            self._made[task] = self._samples(task)
        return self._made[task]

    def _samples(self, task: str) -> list[Sample] | str:
        episode, replies = self._played(task)
        wanted = DemonstrationFilter(sections=self.wording.sections if self.thoughts else ())
        kept, reasons = kept_demonstrations([(episode, replies)], wanted)
        if not kept:
            return next(iter(reasons))
        if self.edit is None:
            return [kept[0].sample]
        edited = self.edit(self.demonstration(task))
        return "refused" if edited is None else edited.samples(self.chat)

    def _played(self, task: str) -> tuple[Episode, Sequence[str]]:
        demonstration = self.demonstration(task)
        return demonstration.episode(self.chat), demonstration.said

    def demonstration(self, task: str) -> Demonstration:
        """The teacher's episode of a task, as nobody has edited it."""
        played = play(self.gym, task, players(self.gym)[self.teacher](task), host=self.host)
        said = tuple(self.wording.thought(move) if self.thoughts else "" for move in played.moves)
        return Demonstration(played, self.gym.make(task).reset(0), said, self.wording)
