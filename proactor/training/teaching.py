"""`Teaching`: the teacher's episodes as the run's method has them learned.

Agent-Omit's stage A tries what can be left out of them, SAND deliberates on them; others take them as they
are.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proactor.config_base import ConfigError
from proactor.endpoint_errors import EndpointSetupError
from proactor.environments.demonstration import Demonstration
from proactor.environments.errors import GymError
from proactor.environments.player import Player
from proactor.methods import omit_lessons, sand
from proactor.methods.agent_omit import AgentOmit
from proactor.methods.omit_lessons import Omittable
from proactor.methods.sand import SAND, Deliberated, ModelCritic, RuleCritic
from proactor.methods.stepagent import StepAgent
from proactor.training.demonstrations import Demonstrations, Edit
from proactor.training.episodes import Arena
from proactor.training.revisions import Revisions, Row, counted, editing
from proactor.training.runs import Run

COLD_START = 2**32 - 3
"""The session's iteration where omissions are tried; that of a deliberation is the run's update."""


@dataclass(slots=True)
class Teaching:
    """Makes a run's demonstrations."""

    arena: Arena
    run: Run
    _critic: RuleCritic | ModelCritic | None = None
    _made: tuple[int, Demonstrations, Row] | None = None
    _rows: dict[str, Row] = field(default_factory=dict)

    def episodes(self, edit: Edit | None = None) -> Demonstrations:
        """The teacher's episodes, edited or as they are."""
        method = self.arena.credit.method
        section = method if isinstance(method, StepAgent) else self.arena.config.sft
        thoughts = section.thoughts if section is not None else True
        wording, host = self.arena.credit.wording, self.arena.config.environment.host
        return Demonstrations.of(
            self.arena.gym, self.arena.chat, thoughts, wording=wording, edit=edit, host=host
        )

    def close(self) -> None:
        """End the connections of the critic."""
        if isinstance(self._critic, ModelCritic):
            self._critic.model.close()

    def stage_a(self) -> Demonstrations:
        """Those of the supervised stage."""
        method, tasks = self.arena.credit.method, self.arena.tasks
        if not isinstance(method, AgentOmit) or not method.cold_tasks:
            return self.episodes()
        teacher = self.episodes()

        async def tried(player: Player, task: str, place: int) -> Row:
            found, counts = await omit_lessons.cold_start(
                player, teacher.demonstration(task), method.tries, place
            )
            left_out = found or Omittable()
            return {
                "task": task,
                "sample": 0,
                "refused": found is None,
                "thoughts": list(left_out.thoughts),
                "results": list(left_out.results),
                "counts": dict(counts),
            }

        wanted = [*tasks.train[: method.cold_tasks], *tasks.dev]
        rows = Revisions(self.arena, self.run, "omit").rows(0, wanted, COLD_START, tried)
        self.arena.ui.say(f"omissions: {counted(rows)}")
        return self.episodes(editing(rows, _omitting))

    def iteration(self, method: SAND, number: int, update: int) -> tuple[Demonstrations, Row]:
        """Those of an iteration of SAND that begins before update ``update``, and its counters."""
        if self._made is None or self._made[0] != number:
            self._made = (number, *self._deliberated(method, number, update))
        _, taught, counts = self._made
        return taught, counts

    def _deliberated(self, method: SAND, number: int, update: int) -> tuple[Demonstrations, Row]:
        if not method.candidates:
            return self.episodes(), {}
        if number and not self._rows:  # resumed: what the iteration before had made is the expert's
            self._rows = self._read(method, update - method.updates)
        teacher, before = self.episodes(), editing(self._rows, _deliberating)
        critic = self._open_critic(method)

        async def thought(player: Player, task: str, place: int) -> Row:
            demonstration = before(teacher.demonstration(task))
            if demonstration is None:
                return self._rows[task] | {"counts": {"sand/refused": 1}}
            found = await sand.deliberated(player, demonstration, method.candidates, critic, place)
            old = _thoughts(self._rows.get(task, {}))
            return {
                "task": task,
                "sample": 0,
                "critic": critic.name,
                "refused": found.refused,
                "thoughts": {str(n): text for n, text in sorted((old | found.thoughts).items())},
                "candidates": {str(n): actions for n, actions in sorted(found.candidates.items())},
                "counts": {f"sand/{name}": count for name, count in found.counts.items()},
            }

        wanted = self.arena.tasks.train[: method.tasks]
        self._rows = Revisions(self.arena, self.run, "deliberations").rows(update, wanted, update, thought)
        counts = counted(self._rows)
        self.arena.ui.say(f"deliberations ({critic.name}): {counts}")
        return self.episodes(editing(self._rows, _deliberating)), counts

    def _read(self, method: SAND, update: int) -> dict[str, Row]:
        """The rows of the iteration that began before update ``update``."""

        async def absent(player: Player, task: str, place: int) -> Row:
            raise ConfigError(f"{self.run.folder}: samples/deliberations-{update:06d}.jsonl is missing")

        wanted = self.arena.tasks.train[: method.tasks]
        return Revisions(self.arena, self.run, "deliberations").rows(update, wanted, update, absent)

    def _open_critic(self, method: SAND) -> RuleCritic | ModelCritic:
        if self._critic is None:
            self._critic = open_critic(method)
            if isinstance(self._critic, ModelCritic):
                self._critic.model.bind(self.arena.engine)
        return self._critic


def open_critic(method: SAND) -> RuleCritic | ModelCritic:
    """The critic of a config. Raises ConfigError for one that cannot be."""
    try:
        return sand.build_critic(method.critic)
    except (GymError, EndpointSetupError) as error:
        raise ConfigError(f"method.options.critic: {error}") from None


def _omitting(demonstration: Demonstration, row: Row) -> Demonstration:
    left_out = Omittable(tuple(row["thoughts"]), tuple(row["results"]))
    return omit_lessons.omitting(demonstration, left_out)


def _deliberating(demonstration: Demonstration, row: Row) -> Demonstration:
    return Deliberated(row["task"], thoughts=_thoughts(row)).revise(demonstration)


def _thoughts(row: Row) -> dict[int, str]:
    return {int(number): text for number, text in row.get("thoughts", {}).items()}
