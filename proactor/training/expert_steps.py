"""A step of stage B for a method that learns at an expert's states (`methods.stepagent`): inspect the policy
there, then reflect.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean, pstdev
from typing import Any, TypeVar

from proactor.engine import Engine
from proactor.episode_config import EpisodeGRPO
from proactor.methods.stepagent import (
    Discriminator,
    ExpertStep,
    Inspected,
    PreferenceLoss,
    StepAgent,
    accuracy,
    examples_of,
    expert_steps,
    inspect,
    learn_epoch,
    pairs_of,
    preference_groups,
    remember_reference,
    reward_groups,
)
from proactor.training.demonstrations import Demonstrations
from proactor.training.episodes import Arena, added
from proactor.training.step_episodes import in_order
from proactor.training.steps import Row, derive_seed, update

T = TypeVar("T")
Places = Mapping[int, Sequence[Inspected]]
"""The inspected states of each task, by its place among those of the step."""
MOST_TURNS = 4096
"""More than an episode has: a state's noise is keyed by its task's place and its turn."""


@dataclass(slots=True)
class ExpertSteps:
    """What `row` needs; ``memory``: the discriminator's state from step to step (`Position.memory`)."""

    arena: Arena
    method: StepAgent
    stage: EpisodeGRPO
    taught: Demonstrations
    memory: dict[str, Any]

    def row(self, step: int, tasks: Sequence[str]) -> Row:
        """Inspect the expert's states of some tasks, and update once, or ``epochs`` times by pairs.

        ``states``: those inspected; ``agreement``: share of the sampled actions that are the expert's;
        ``unread_actions``, ``states_too_long`` (no room in the context), ``demonstrations``, ``left_out_…``.
        """
        engine = self.arena.engine
        with engine.together("inspection"):
            inspected, counts = self._inspected(step, tasks)
        totals = dict.fromkeys(("states", "agreed_actions"), 0.0) | added(engine, counts, "inspection")
        reflect = self._implicit if self.method.reward == "implicit" else self._inverse
        return {
            **reflect(inspected),
            **{name: value for name, value in totals.items() if name != "agreed_actions"},
            "agreement": totals["agreed_actions"] / max(totals.get("actions", 0.0), 1.0),
        }

    def _inspected(self, step: int, tasks: Sequence[str]) -> tuple[Places, Counter[str]]:
        arena, counts = self.arena, Counter[str]()
        steps, keys = list[ExpertStep](), list[int]()
        for place, task in arena.engine.share(list(enumerate(tasks))):
            made = self.taught.samples(task)
            if isinstance(made, str):
                counts[f"left_out_{made}"] += 1
                continue
            [episode] = made  # nothing of it is edited
            counts["demonstrations"] += 1
            for state in expert_steps(task, episode, arena.chat, arena.engine.tokenizer.decode):
                if len(state.prompt_ids) >= arena.engine.context_length:
                    counts["states_too_long"] += 1
                    continue
                steps.append(state)
                keys.append(place * MOST_TURNS + state.turn)
        noise = derive_seed(arena.config.seed, "noise", step)
        playing = arena.config.environment.play.sampling
        sampling = playing.model_copy(update={"n": self.stage.n, "seed": noise})
        inspected = inspect(arena.engine, arena.chat, steps, sampling, keys)
        counts["states"] += len(inspected)
        for one in inspected:
            counts["actions"] += len(one.samples)
            counts["agreed_actions"] += sum(one.agreed)
            counts["unread_actions"] += sum(not action for action in one.actions)
            counts["tokens_sampled"] += sum(len(sample.token_ids) for sample in one.samples)
        places: dict[int, list[Inspected]] = {}
        for key, one in zip(keys, inspected, strict=True):
            places.setdefault(key // MOST_TURNS, []).append(one)
        return places, counts

    def _implicit(self, inspected: Places) -> Row:
        """``epochs`` updates on the pairs, against the policy that was inspected.

        ``pairs``; of the last pass ``reward_margin`` and ``pairs_right`` (share whose margin is above 0).
        """
        engine, groups = self.arena.engine, preference_groups(chain(*inspected.values()))
        pairs = sum(engine.gather(pairs_of(groups), "pairs"))
        row: Row = {"pairs": float(pairs), "skipped_update": float(not pairs)}
        if not pairs:
            return {**row, "loss": math.nan, "tokens_trained": 0.0}
        with engine.together("reference"):
            remember_reference(engine, groups)
        loss, tokens = PreferenceLoss(groups, self.method.beta, pairs), 0.0
        for _ in range(self.stage.epochs):
            with engine.together("gradients of pairs"):
                sums = added(engine, _numbers(engine.forward_backward(groups, loss)), "statistics of pairs")
            stepped = engine.step(self.stage)
            tokens += sums["tokens"]
        return {
            **row,
            "loss": sums["loss"] / pairs,
            "reward_margin": sums["margin"] / pairs,
            "pairs_right": sums["wins"] / pairs,
            "entropy": sums["entropy"] / sums["tokens"],
            "tokens_trained": tokens,
            "tokens_computed": sums["rows"] * self.stage.epochs,
            **{k: v for k, v in stepped.items() if k not in ("step", "normalizer")},
            "policy_version": float(engine.policy_version),
        }

    def _inverse(self, inspected: Places) -> Row:
        """One epoch of the discriminator on the states of all ranks, then GRPO with its rewards.

        ``discriminator_accuracy``: before the epoch; from `StepAgent.rest_at` on there is none
        (``discriminator_rested``). ``discriminator_perfect``: whether it then tells every action apart.
        """
        engine, method = self.arena.engine, self.method
        judge = Discriminator.load(method.rate, self.memory)
        examples = _of_all(engine, inspected, examples_of, "examples")
        before = accuracy(judge, examples)
        rested = before >= method.rest_at
        if not rested:
            learn_epoch(judge, examples)
        self.memory.clear()
        self.memory.update(judge.state())
        groups, counts = reward_groups(judge, chain(*inspected.values()), method)
        spread = sum(engine.gather(sum(_spread(g.rewards) for g in groups), "spread"))
        return {
            "loss": math.nan,
            "tokens_trained": 0.0,
            **update(engine, groups, self.stage),
            **_spread_of(_of_all(engine, inspected, _rewards, "rewards")),
            **added(engine, counts, "counts of rewards"),
            "groups_with_spread": float(spread),
            "discriminator_accuracy": before,
            "discriminator_rested": float(rested),
            "discriminator_perfect": float(accuracy(judge, examples) == 1.0),
        }


def _of_all(
    engine: Engine, inspected: Places, of: Callable[[Iterable[Inspected]], Sequence[T]], phase: str
) -> list[T]:
    """What ``of`` makes of each task's states on all ranks, in the order of the step's tasks."""
    mine = {place: of(states) for place, states in inspected.items()}
    return list(chain(*in_order(engine.gather(mine, phase))))


def _rewards(inspected: Iterable[Inspected]) -> list[float]:
    return [sample.reward for one in inspected for sample in one.samples if sample.reward is not None]


def _spread_of(rewards: Sequence[float]) -> Row:
    """Mean and deviation of the rewards of all ranks: the same bits on any number of them."""
    return {"reward_mean": fmean(rewards), "reward_std": pstdev(rewards)} if rewards else {}


def _spread(rewards: Sequence[float | None]) -> bool:
    return len(set(rewards)) > 1


def _numbers(sums: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in sums.items()}
