"""A run beside a scripted player: in the same worlds, and with no more turns than the run had."""

from __future__ import annotations

from pathlib import Path

import yaml

from proactor.environments.gyms.agentcf import AgentCFGym
from proactor.environments.gyms.players import players
from proactor.environments.host import HostConfig
from proactor.environments.scripted import play
from proactor.training.episode_pairs import outcomes_of, scripted_outcomes
from proactor.training.episode_rows import BeforeAfter, EpisodeRow
from tests.proactor.training.episodes import values

OPTIONS = {"train": 4, "test": 12, "rounds": 6}


def of_tasks(tasks: list[str]) -> BeforeAfter:
    rows = tuple(EpisodeRow(task=t, seed=7 + i, score=0.0, ending="turns") for i, t in enumerate(tasks))
    return BeforeAfter(success=1.0, before=rows, after=rows)


def test_a_player_meets_the_worlds_of_the_run_and_its_turns(tmp_path: Path) -> None:
    gym = AgentCFGym(**OPTIONS)
    environment = {"gym": "agentcf", "options": OPTIONS, "dev": 1, "host": {"max_turns": 4}}
    settings = values(tmp_path, tmp_path / "no-model", environment=environment)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    run, first = of_tasks(list(gym.tasks("test"))), players(gym)["first"]
    found = outcomes_of(tmp_path, run, "first")
    cut = HostConfig(max_turns=4)
    alike = [play(gym, row.task, first(row.task), row.seed, cut).episode for row in run.after]
    assert [o.score for o in found] == [e.score for e in alike] and {o.actions for o in found} == {4}
    assert [e.rewards for e in alike] != [
        play(gym, row.task, first(row.task), 0, cut).episode.rewards for row in run.after
    ], "another seed is another world"


def test_a_script_that_gives_up_has_not_failed() -> None:
    class Quitter:
        def move(self) -> None:
            return None

        def see(self, call: object, observation: str) -> None:
            raise AssertionError("nothing was asked")

    gym = AgentCFGym(**OPTIONS)
    [outcome] = scripted_outcomes(gym, [("test-0", 0)], lambda _: Quitter())
    assert (outcome.score, outcome.failed, outcome.actions) == (0.0, False, 0)
