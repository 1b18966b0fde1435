"""Success against how often the user is bothered: metrics of episodes, with intervals over runs and tasks.

An action is a call that ran, or a reply without one. Episodes whose environment failed are in no metric; what
is compared or has an interval leaves their tasks out on every side.

- ``score``: mean `Episode.score`; ``solved``: share of the episodes that `Episode.solves`.
- ``pass_u1`` … ``pass_u3`` (Pass@U-k): share solved with at most k user-involved actions.
- ``user_rate`` (UR): user-involved actions / all actions (micro); ``user_rate_macro``: mean over episodes.
- ``user_actions`` (U), ``tokens`` (trained ones): means over episodes.
- hypervolume of some systems' (score, U) against the reference point (0, T): the area that they dominate.

Names and purpose of Score, Pass@U-k, UR and U: second hand, after BAO; the formula of UR, the hypervolume and
all intervals are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from proactor.engine import ProactorError
from proactor.environments.episode import Episode
from proactor.scoring.arrays import Array, ratio
from proactor.scoring.bootstrap import Interval, bootstrap_sums

LARGEST_K = 3
PASSES = tuple(f"pass_u{k}" for k in range(1, LARGEST_K + 1))
FIELDS = ("episodes", "score", "solved", *PASSES, "user_actions", "actions", "rate", "acted", "tokens")
"""The sums of some episodes; rate: of the user involvement rates of those that acted at all."""
ROUNDING = 1e-12
KEYS = ("score", "solved", *PASSES, "user_rate", "user_rate_macro", "user_actions", "tokens")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one episode ended. ``run`` tells apart training runs that are compared (their seed); ``failed``: it
    says nothing about the agent (`Episode.failed`).
    """

    task: str
    score: float
    solved: bool
    user_actions: int
    actions: int
    tokens: int = 0
    run: int = 0
    failed: bool = False

    @classmethod
    def of(cls, episode: Episode, run: int = 0, success: float = 1.0) -> Outcome:
        """The outcome of an episode; ``success``: as `Episode.solves`."""
        return cls(
            task=episode.task,
            score=episode.score,
            solved=episode.solves(success),
            user_actions=episode.user_actions,
            actions=episode.actions,
            tokens=sum(episode.sample.trained_mask()),
            run=run,
            failed=episode.failed,
        )

    @property
    def sums(self) -> list[float]:
        """FIELDS of this episode."""
        passes = [self.solved and self.user_actions <= k for k in range(1, LARGEST_K + 1)]
        rate = self.user_actions / self.actions if self.actions else 0.0
        counts = (self.user_actions, self.actions, rate, self.actions > 0, self.tokens)
        return [float(value) for value in (1, self.score, self.solved, *passes, *counts)]


def pass_at_u(outcomes: Sequence[Outcome], k: int) -> float:
    """Pass@U-k for any k; 0 without episodes."""
    kept = [o for o in outcomes if not o.failed]
    return sum(o.solved and o.user_actions <= k for o in kept) / max(1, len(kept))


def without_failed(*systems: Sequence[Outcome]) -> list[list[Outcome]]:
    """The outcomes of each system, without the tasks in which an environment failed in any of them."""
    failed = {o.task for outcomes in systems for o in outcomes if o.failed}
    return [[o for o in outcomes if o.task not in failed] for outcomes in systems]


def metrics_of(sums: Array) -> dict[str, Array]:
    """KEYS from sums: [..., len(FIELDS)] float64 -> each [...]; 0 where nothing was counted."""
    v = {name: sums[..., i] for i, name in enumerate(FIELDS)}
    of_episodes = ("score", "solved", *PASSES, "user_actions", "tokens")
    return {
        **{key: ratio(v[key], v["episodes"]) for key in of_episodes},
        "user_rate": ratio(v["user_actions"], v["actions"]),
        "user_rate_macro": ratio(v["rate"], v["acted"]),
    }


def metrics(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """KEYS of some outcomes, those that did not fail; 0 without any."""
    rows = [outcome.sums for outcome in outcomes if not outcome.failed]
    sums = np.array(rows).reshape(-1, len(FIELDS)).sum(axis=0)
    return {key: float(value) for key, value in metrics_of(sums).items()}


def intervals(
    outcomes: Sequence[Outcome], keys: Sequence[str] = KEYS, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Interval]:
    """The metrics of one system, with 95% bootstrap intervals; runs and tasks are drawn by themselves.

    Raises ProactorError where a run lacks a task.
    """
    rows = _grid({"outcomes": outcomes})[0]
    return bootstrap_sums(rows, metrics_of, keys, resamples=resamples, seed=seed)


def paired_change(
    before: Sequence[Outcome],
    after: Sequence[Outcome],
    keys: Sequence[str] = KEYS,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """after - before of the metrics, with paired 95% bootstrap intervals over runs and tasks.

    Raises ProactorError unless both have the same tasks in the same runs.
    """
    rows = np.concatenate(list(_grid({"before": before, "after": after})), axis=-1)

    def change(sums: Array) -> dict[str, Array]:
        old, new = (metrics_of(side) for side in np.split(sums, 2, axis=-1))
        return {key: new[key] - old[key] for key in keys}

    return bootstrap_sums(rows, change, keys, resamples=resamples, seed=seed)


def hypervolume(points: Array, horizon: float) -> Array:
    """Area that points (score, U) [..., P, 2] dominate, against (0, ``horizon``): [...] float64.

    More score and fewer user-involved actions are better; what lies beyond the reference point adds nothing.
    """
    order = np.argsort(-points[..., 0], axis=-1, kind="stable")
    score = np.take_along_axis(points[..., 0], order, -1).clip(min=0.0)
    fewest = np.minimum.accumulate(np.take_along_axis(points[..., 1], order, -1), axis=-1)
    steps = -np.diff(score, axis=-1, append=0.0)
    area: Array = (steps * (horizon - fewest).clip(min=0.0)).sum(axis=-1)
    return area


def hypervolume_gain(
    new: Mapping[str, Sequence[Outcome]],
    old: Mapping[str, Sequence[Outcome]],
    horizon: float,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Hypervolume of the ``new`` systems minus that of the ``old``, with a paired 95% bootstrap interval.

    A system is one point: its mean score and U over runs and tasks. A resample uses one draw of runs and of
    tasks for every system. Raises ProactorError unless all have the same runs and, in each, the same tasks.
    """
    named = {**{f"new {name}": o for name, o in new.items()}, **{f"old {name}": o for name, o in old.items()}}
    used = [FIELDS.index(name) for name in ("episodes", "score", "user_actions")]
    grid = _grid(named)[..., used]  # [systems, runs, tasks, 3]
    systems, runs, tasks, _ = grid.shape
    rows = np.moveaxis(grid, 0, 2).reshape(runs, tasks, systems * 3)

    def gain(sums: Array) -> dict[str, Array]:
        cells = sums.reshape(*sums.shape[:-1], systems, 3)
        points = ratio(cells[..., 1:], cells[..., :1])
        areas = [
            hypervolume(points[..., part, :], horizon) for part in (slice(len(new)), slice(len(new), None))
        ]
        difference = areas[0] - areas[1]
        # equal areas are summed over other points: what rounding leaves is neither a gain nor a loss
        return {"gain": np.where(np.abs(difference) < ROUNDING * horizon, 0.0, difference)}

    return bootstrap_sums(rows, gain, ["gain"], resamples=resamples, seed=seed)["gain"]


def _grid(systems: Mapping[str, Sequence[Outcome]]) -> Array:
    """[systems, runs, tasks, len(FIELDS)]: the sums of each cell, of the tasks that did not fail anywhere.
    Raises ProactorError for an empty one.
    """
    played = any(systems.values())
    systems = dict(zip(systems, without_failed(*systems.values()), strict=True))
    runs = sorted({o.run for outcomes in systems.values() for o in outcomes})
    tasks = sorted({o.task for outcomes in systems.values() for o in outcomes})
    if not runs:
        why = "in each task an environment failed" if played else "no episodes"
        raise ProactorError(f"user metrics: {why}")
    at_run, at_task = {run: i for i, run in enumerate(runs)}, {task: i for i, task in enumerate(tasks)}
    grid = np.zeros((len(systems), len(runs), len(tasks), len(FIELDS)))
    for i, outcomes in enumerate(systems.values()):
        for outcome in outcomes:
            grid[i, at_run[outcome.run], at_task[outcome.task]] += outcome.sums
    missing = np.argwhere(grid[..., 0] == 0)
    if len(missing):
        i, run, task = missing[0]
        raise ProactorError(
            f"user metrics: {list(systems)[i]} has no episode of task {tasks[task]!r} in run {runs[run]}"
        )
    return grid
