"""Two runs in an environment, or a run and a scripted player, on the same test tasks, paired by task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from proactor.config_file import load_run
from proactor.environments.gyms.players import players
from proactor.environments.host import HostConfig
from proactor.environments.protocol import Gym
from proactor.environments.scripted import Script, play
from proactor.episode_config import EpisodeConfig
from proactor.files import SourceError
from proactor.methods.user_metrics import KEYS, Outcome, metrics, paired_change, without_failed
from proactor.training.episode_rows import BeforeAfter, read_before_after
from proactor.training.episodes import open_tasks, open_user
from proactor.training.summary import interval_values


def compare_episodes(
    folders: Sequence[Path], systems: Sequence[str], *, resamples: int = 2000
) -> dict[str, Any]:
    """``systems``: the metrics of one side (``before`` or ``after``) of each of two runs, or of a scripted
    player of its gym by name (`players`); ``difference``: second - first, with paired intervals over tasks;
    ``tasks``: their number, without those in which an environment failed on either side; ``failed``: the
    episodes of each side that did.

    Raises SourceError where a run has no test episodes, has no such system, or another measure of success
    than the other; ProactorError where one lacks a task of the other.
    """
    read = [read_tested(folder) for folder in folders]
    played = [outcomes_of(*place) for place in zip(folders, read, systems, strict=True)]
    if read[0].success != read[1].success:
        raise SourceError(
            f"{folders[1]}: a task is solved at a score of {read[1].success}, in {folders[0]} at "
            f"{read[0].success}: evaluate both by one eval.success"
        )
    first, second = without_failed(*played)
    if not second:
        raise SourceError(f"{folders[1]}: in each test task an environment failed, here or in {folders[0]}")
    return {
        "systems": [metrics(first), metrics(second)],
        "difference": interval_values(paired_change(first, second, KEYS, resamples=resamples)),
        "tasks": len(second),
        "failed": [sum(outcome.failed for outcome in outcomes) for outcomes in played],
    }


def read_tested(folder: Path) -> BeforeAfter:
    """The test episodes of a run. Raises SourceError where it has none."""
    if (tested := read_before_after(folder)) is None:
        raise SourceError(f"{folder / 'episodes.json'}: no such file: the run has not played its test tasks")
    return tested


def outcomes_of(folder: Path, tested: BeforeAfter, system: str) -> list[Outcome]:
    """How a system plays the test tasks of a run: ``before`` or ``after``, or a scripted player by name.

    Raises SourceError where the run's gym has no such player.
    """
    if system == "before":
        return tested.outcomes("before")
    if system == "after":
        return tested.outcomes("after")
    config = load_run(folder / "config.yaml")
    assert isinstance(config, EpisodeConfig), "a run with test episodes is one in an environment"
    gym, _ = open_tasks(config, open_user(config))
    scripts = players(gym)
    if system not in scripts:
        raise SourceError(
            f"{folder}: no system {system!r}: one of {', '.join(('before', 'after', *scripts))}"
        )
    worlds = [(row.task, row.seed) for row in tested.after]
    return scripted_outcomes(gym, worlds, scripts[system], tested.success, config.environment.host)


def scripted_outcomes(
    gym: Gym,
    worlds: Sequence[tuple[str, int]],
    script: Callable[[str], Script],
    success: float = 1.0,
    host: HostConfig | None = None,
) -> list[Outcome]:
    """How a script, made for each task, plays some worlds of a gym, a (task, seed) each; ``success``: as
    `Episode.solves`, ``host``: as in `play`.
    """
    played = (play(gym, task, script(task), seed, host).episode for task, seed in worlds)
    return [
        replace(Outcome.of(episode, success=success), failed=False)  # a script that gave up was "cancelled"
        for episode in played
    ]
